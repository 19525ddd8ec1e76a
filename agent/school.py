"""Training a forecaster on recorded events and on the simulated grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from agent.daemon import wall_clock
from agent.sources import EVENTS
from agent.sources.files import FilesSource
from models.domain import ModelError
from models.events import FINISHED, decode
from models.training import train as train_on
from simulator.world import simulated_events

PAGE = 50_000


def train(data: Sequence[Path], *, simulated_hours: float, seed: int, out: Path) -> str:
    """Train on recorded `data` and on so many hours of a simulated grid; return what to tell the user."""
    streams = [_recorded(data)] if data else []
    if simulated_hours > 0:
        events, _ = decode(simulated_events(seed=seed, hours=simulated_hours), now=wall_clock())
        streams.append(events[events["type"].isin(FINISHED)])
    if not streams:
        raise ModelError("there is nothing to train on: name files of events, or give --simulated-hours")
    manifest = train_on(streams, out=out, seed=seed)
    lines = [f"{out}: trained for {manifest.epochs} epochs; on the held-out last fifth:"]
    for name, metrics in manifest.metrics.items():
        shown = ", ".join(f"{measure} {metrics[measure]:.4g}" for measure in ("mae_log1p", "median_ae_s", "coverage90"))
        lines.append(f"  {name:<12} {shown}")
    return "\n".join(lines)


def _recorded(data: Sequence[Path]) -> pd.DataFrame:
    """Finished transfers of all files, in stream order."""
    source = FilesSource(name="training", paths=data, decoder=EVENTS)
    now, cursor, parts = wall_clock(), None, []
    while True:
        page = source.poll(cursor, limit=PAGE, now=now)
        parts.append(page.rows[page.rows["type"].isin(FINISHED)])
        cursor = page.cursor
        if page.caught_up:
            return pd.concat(parts, ignore_index=True)
