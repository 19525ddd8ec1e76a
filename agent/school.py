"""Training a forecaster on recorded events and on simulated grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from agent.daemon import wall_clock
from agent.sources import EVENTS
from agent.sources.files import FilesSource
from models.events import FINISHED
from models.measurements import Paths
from models.training import train as train_on
from simulator import scenario
from simulator.world import World, run

PAGE = 50_000
SHORT_WORLDS = 8
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def train(data: Sequence[Path], *, simulated_hours: float, seed: int, out: Path) -> str:
    """Train on recorded `data` and on so many hours of simulated grids; return what to tell the user.

    Raise SourceError for a file that cannot be read, ModelError if there is too little to train on.
    """
    streams = [_recorded(data)] if data else []
    streams += _simulated(hours=simulated_hours, seed=seed)
    manifest = train_on(streams, out=out, seed=seed)
    lines = [f"{out}: trained for {manifest.epochs} epochs; on the held-out last fifth:"]
    for name, metrics in manifest.metrics.items():
        shown = ", ".join(f"{measure} {metrics[measure]:.4g}" for measure in ("mae_log1p", "median_ae_s", "coverage90"))
        lines.append(f"  {name:<12} {shown}")
    return "\n".join(lines)


def _simulated(*, hours: float, seed: int) -> Iterator[pd.DataFrame]:
    """Several worlds of an hour, for how a grid looks to whoever has just begun to watch, and a long one."""
    short = min(SHORT_WORLDS, int(hours))
    lengths = [1.0] * short + ([hours - short] if hours > short else [])
    for number, length in enumerate(lengths):
        # Seven hours apart, so that day and night are both seen.
        start = MONDAY + timedelta(hours=7 * number)
        yield _lived(World(scenario.load("training"), seed=100 * seed + number, start=start), hours=length)


def _lived(world: World, *, hours: float) -> pd.DataFrame:
    """Finished transfers of a world, with what perfSONAR had measured when they started."""
    parts, paths = [], Paths()
    for emitted in run(world, hours=hours):
        events = world.documents.frame(emitted.events)
        parts.append(events[events["type"].isin(FINISHED)])
        paths.absorb(world.probes.frame(emitted.measurements))
    return paths.attach(pd.concat(parts, ignore_index=True))


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
