"""The straight path over recorded events, as fast as the machine allows, acting on nothing, with a ledger of its own."""

from __future__ import annotations

import csv
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from agent.assembly import recorded
from agent.daemon import wall_clock
from agent.loop import Pass
from agent.watch import QUANTILE_COLUMNS
from models.domain import Incident, SourceError
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
                (request, *(f"{value:.6g}" for value in row))
                for request, row in zip(scored["request_id"], seconds, strict=True)
            )

    def forecast(self) -> dict[str, dict[str, float]]:
        """Errors of the model and of the baselines on the same transfers."""
        if not self._seconds:
            return {}
        seconds = np.concatenate(self._seconds)
        return {name: forecast_metrics(seconds, np.concatenate(parts)) for name, parts in self._forecasts.items()}


def replay(
    files: Sequence[Path],
    *,
    measurements: Sequence[Path],
    site_map: Path | None,
    model: Path | None,
    predictions: Path | None,
) -> dict[str, Any]:
    """Run recorded events through the agent; return the object that `--json` prints.

    Raise SourceError if a file cannot be read, ModelError if the model cannot be used.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridmedic-replay-")))
        out = stack.enter_context(predictions.open("w", encoding="utf-8", newline="")) if predictions else None
        agent = recorded(stack, files, measurements=measurements, site_map=site_map, model=model, state=folder)
        tally = _Tally(out)
        now = wall_clock()
        began = time.perf_counter()
        while True:
            done = agent.run_once(now)
            if done.unreachable:
                raise SourceError(done.unreachable[0])
            tally.add(done)
            if done.caught_up:
                break
        seconds = time.perf_counter() - began
        with agent.ledger.begin(write=False) as tx:
            incidents = tx.incidents()
    return _result(tally, incidents, seconds)


def _result(tally: _Tally, incidents: Sequence[Incident], seconds: float) -> dict[str, Any]:
    refused = dict(tally.refused)
    if tally.repeated:
        refused["repeated"] = tally.repeated
    return {
        "events": {"read": tally.read, "scored": tally.scored, "used": tally.used, "refused": refused},
        "events_per_second": round(tally.read / max(seconds, 1e-9), 1),
        "flagged_share": tally.flagged / tally.scored if tally.scored else 0.0,
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
        f"flagged    {result['flagged_share']:.2%} of the scored",
        "",
    ]
    if result["forecast"]:
        measures = [name for name in next(iter(result["forecast"].values())) if name != "n"]
        lines.append(f"{'forecast':<12}" + "".join(f"{name:>15}" for name in ("n", *measures)))
        for name, values in result["forecast"].items():
            numbers = "".join(f"{values[measure]:>15.4g}" for measure in measures)
            lines.append(f"{name:<12}{values['n']:>15}{numbers}")
        lines.append("")
    lines.append(f"incidents  {len(result['incidents'])}")
    for incident in result["incidents"]:
        closed = incident["closed_at"] or "still open"
        span = f"{incident['opened_at']} to {closed}"
        lines.append(
            f"  {incident['id']}  {incident['kind']:<20} {incident['culprit']:<44} {span}, {incident['events']} events"
        )
    return "\n".join(lines)
