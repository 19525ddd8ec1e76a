"""The straight path over recorded events, as fast as the machine allows, acting on nothing, with a ledger of its own."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from agent.assembly import recorded
from agent.daemon import wall_clock
from agent.desk.text import clean
from agent.forecasts import Forecasts, measures_table
from agent.loop import Agent, Pass
from agent.watch import QUANTILE_COLUMNS
from models.domain import ConfigError, Incident, SourceError
from models.metrics import Baselines


class _Tally:
    """What is kept of the passes: counts, and one row of numbers for each scored transfer."""

    def __init__(self, predictions: IO[str] | None) -> None:
        self.read = self.scored = self.used = self.flagged = self.repeated = 0
        self.refused: Counter[str] = Counter()
        self._baselines = Baselines()
        self.forecasts = Forecasts(("model", "constant", "link_median"), predictions)

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
        model = scored[list(QUANTILE_COLUMNS)].to_numpy(np.float64)
        self.forecasts.add(scored, {"model": model, **self._baselines.score(scored)})


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
        "forecast": tally.forecasts.measures(),
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
        flagged = round(result["flagged_share"] * events["scored"])
        lines += [f"flagged    {flagged} of {events['scored']} scored ({result['flagged_share']:.2%})", ""]
        lines += measures_table(result["forecast"])
    lines += ["", f"incidents  {len(result['incidents'])}"]
    for incident in result["incidents"]:
        closed = incident["closed_at"] or "still open"
        span = f"{incident['opened_at']} to {closed}"
        culprit = clean(incident["culprit"], 80)
        lines.append(f"  {incident['id']}  {incident['kind']:<20} {culprit:<44} {span}, {incident['events']} events")
    return "\n".join(lines)
