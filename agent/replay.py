"""The straight path over recorded events, as fast as the machine allows, acting on nothing, with a ledger of its own."""

from __future__ import annotations

import csv
import itertools
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from agent.assembly import recorded
from agent.daemon import wall_clock
from agent.desk.text import clean
from agent.loop import Agent, Pass
from agent.watch import QUANTILE_COLUMNS
from models.domain import ConfigError, Incident, SourceError
from models.metrics import Baselines, forecast_metrics

Table = NDArray[np.float64]

SECONDS_OF = ("median_s", "q05_s", "q95_s")


class _Tally:
    """What is kept of the passes: counts, and one row of numbers for each scored transfer."""

    def __init__(self, predictions: IO[str] | None) -> None:
        self.read = self.scored = self.used = self.flagged = self.repeated = 0
        self.refused: Counter[str] = Counter()
        self._baselines = Baselines()
        self._seconds: list[Table] = []
        self._forecasts: dict[str, list[Table]] = {"model": [], "constant": [], "link_median": []}
        self._writer = csv.writer(predictions) if predictions else None
        if self._writer:
            self._writer.writerow(("request-id", *SECONDS_OF))

    def add(self, done: Pass) -> None:
        self.read += done.read
        self.scored += done.scored
        self.used += done.used
        self.repeated += done.repeated
        self.refused.update(done.refused)
        if done.observed is None or done.observed.empty:
            return
        scored = done.observed[done.observed["q50"].notna()]
        self.flagged += int(scored["flagged"].sum())
        self._seconds.append((scored["ended_at"] - scored["started_at"]).to_numpy(np.float64))
        self._forecasts["model"].append(scored[list(QUANTILE_COLUMNS)].to_numpy(np.float64))
        for name, quantiles in self._baselines.score(scored).items():
            self._forecasts[name].append(quantiles)
        if self._writer:
            seconds = np.expm1(scored[["q50", "q05", "q95"]].to_numpy(np.float64))
            self._writer.writerows(
                (request, *(f"{value:.9g}" for value in row))
                for request, row in zip(scored["request_id"], seconds, strict=True)
            )

    def forecast(self) -> dict[str, dict[str, float | None]]:
        """Errors of the model and of the baselines on the same transfers; None for what cannot be said."""
        seconds = np.concatenate([np.empty(0), *self._seconds])
        nothing = np.empty((0, len(QUANTILE_COLUMNS)))
        return {
            name: _sayable(forecast_metrics(seconds, np.concatenate([nothing, *parts])))
            for name, parts in self._forecasts.items()
        }


def _sayable(measures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in measures.items()}


def replay(
    files: Sequence[Path],
    *,
    measurements: Sequence[Path],
    site_map: Path | None,
    model: Path | None,
    predictions: Path | None,
) -> dict[str, Any]:
    """Run recorded events through the agent; return the object that `--json` prints.

    Raise SourceError if a file cannot be read or all are empty, ModelError if the model cannot be used.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridmedic-replay-")))
        agent = recorded(stack, files, measurements=measurements, site_map=site_map, model=model, state=folder)
        began = time.perf_counter()
        passes = _passes(agent)
        first = next(passes)
        if not first.read:
            names = ", ".join(map(str, files))
            raise SourceError(f"{names}: nothing to replay, there is no event in it; name files that hold events")
        # Only now, so that a file that cannot be read costs nobody the predictions of an earlier replay.
        out = stack.enter_context(predictions.open("w", encoding="utf-8", newline="")) if predictions else None
        tally = _Tally(out)
        for done in itertools.chain([first], passes):
            tally.add(done)
        seconds = time.perf_counter() - began
        with agent.ledger.begin(write=False) as tx:
            incidents = tx.incidents()
    return _result(tally, incidents, seconds)


def _passes(agent: Agent) -> Iterator[Pass]:
    now = wall_clock()
    while True:
        done = agent.run_once(now)
        if done.unreachable:
            raise SourceError(done.unreachable[0])
        yield done
        if done.caught_up:
            return


def check_output(path: Path, inputs: Sequence[Path]) -> None:
    """Raise ConfigError if results cannot be written to `path`: better before a long replay than after it."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {str(path.parent)!r}; make it, or name another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{path}: cannot be written by this user; name another file")
    if path.exists() and any(taken.exists() and path.samefile(taken) for taken in inputs):
        raise ConfigError(f"{path}: is what is replayed and would be overwritten; name another file")


def _result(tally: _Tally, incidents: Sequence[Incident], seconds: float) -> dict[str, Any]:
    refused = dict(tally.refused)
    if tally.repeated:
        refused["repeated"] = tally.repeated
    return {
        "events": {"read": tally.read, "scored": tally.scored, "used": tally.used, "refused": refused},
        "events_per_second": round(tally.read / max(seconds, 1e-9), 1),
        "flagged_share": tally.flagged / tally.scored if tally.scored else None,
        "incidents": [_incident(incident) for incident in sorted(incidents, key=lambda i: (i.opened_at, i.id))],
        "forecast": tally.forecast(),
    }


def _incident(incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.id,
        "kind": str(incident.kind),
        "culprit": str(incident.culprit),
        "opened_at": incident.opened_at.isoformat(),
        "closed_at": incident.closed_at.isoformat() if incident.closed_at else None,
        "events": incident.anomalous,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for people."""
    events = result["events"]
    refused = ", ".join(f"{reason} {n}" for reason, n in sorted(events["refused"].items())) or "none"
    lines = [
        f"events     {events['read']} read, {events['scored']} scored, {events['used']} used otherwise; refused: {refused}",
        f"speed      {result['events_per_second']:.0f} events/s",
    ]
    if events["scored"]:
        lines += [f"flagged    {result['flagged_share']:.2%} of the scored", ""]
        lines.append(f"{'forecast':<12}" + "".join(f"{name:>13}" for name in result["forecast"]["model"]))
        for name, values in result["forecast"].items():
            numbers = (f"{value:>13}" if isinstance(value, int) else f"{value:>13.4g}" for value in values.values())
            lines.append(f"{name:<12}" + "".join(numbers))
    lines += ["", f"incidents  {len(result['incidents'])}"]
    for incident in result["incidents"]:
        closed = incident["closed_at"] or "still open"
        span = f"{incident['opened_at']} to {closed}"
        culprit = clean(incident["culprit"], 80)
        lines.append(f"  {incident['id']}  {incident['kind']:<20} {culprit:<44} {span}, {incident['events']} events")
    return "\n".join(lines)
