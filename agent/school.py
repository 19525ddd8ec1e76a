"""Training a forecaster on recorded events and on simulated grids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from agent.sources.files import files_of
from agent.sources.finished import Recording, check_columns
from models.domain import SourceError
from models.events import FINISHED
from models.measurements import Paths
from models.training import train as train_on
from simulator import scenario
from simulator.world import World, run

PAGE = 65_536
SHORT_WORLDS = 8
LONG_HOURS = 28.0
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def train(
    data: Sequence[Path],
    *,
    measurements: Sequence[Path] = (),
    site_map: Path | None = None,
    simulated_hours: float,
    seed: int,
    start: Path | None = None,
    out: Path,
) -> str:
    """Train on recorded `data` and on so many hours of simulated grids; return what to tell the user.

    Raise SourceError for a file that cannot be read, ModelError if there is too little to train on.
    """
    files, readings = files_of(data), files_of(measurements)
    streams: list[Iterator[pd.DataFrame]] = []
    recording = Recording({"data": files}, measurements=readings, site_map=site_map)
    if files:
        check_columns(files)
        streams.append(_finished(recording))
    streams += _simulated(hours=simulated_hours, seed=seed)
    task = _task(files, readings, site_map, simulated_hours, seed)
    manifest = train_on(streams, out=out, task=task, start=start, seed=seed)
    lines = [f"{out}: trained for {manifest.epochs} epochs; on the held-out last part:"]
    for name, metrics in manifest.metrics.items():
        shown = ", ".join(f"{measure} {metrics[measure]:.4g}" for measure in ("mae_log1p", "median_ae_s", "coverage90"))
        lines.append(f"  {name:<12} {shown}")
    if refused := recording.accounts["data"].refusals():
        lines.append(f"  refused of the data: {refused}")
    return "\n".join(lines)


def _finished(recording: Recording) -> Iterator[pd.DataFrame]:
    """Finished transfers; raise SourceError that says what there was instead if there are none."""
    yield from recording.pages()
    account = recording.accounts["data"]
    if not account.scored:
        raise SourceError(
            f"none of the {account.read:,} records of the data is a finished transfer that can be learnt from; refused: "
            f"{account.refusals() or 'none'}; name files that hold finished transfers with size, start and end"
        )


def _task(files: Sequence[Path], readings: Sequence[Path], site_map: Path | None, hours: float, seed: int) -> str:
    """The same for the same data: a training that was broken off goes on with these alone."""
    digest = hashlib.sha256(f"{hours} {seed}".encode())
    for path in (*files, *readings, *([site_map] if site_map else [])):
        stat = path.stat()
        digest.update(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _simulated(*, hours: float, seed: int) -> Iterator[Iterator[pd.DataFrame]]:
    """Several worlds of an hour, for how a grid looks to whoever has just begun to watch, and long ones."""
    short = min(SHORT_WORLDS, int(hours))
    long, rest = divmod(hours - short, LONG_HOURS)
    lengths = [1.0] * short + [LONG_HOURS] * int(long) + ([rest] if rest else [])
    for number, length in enumerate(lengths):
        # Seven hours apart, so that day and night are both seen.
        yield _lived(100 * seed + number, start=MONDAY + timedelta(hours=7 * number), hours=length)


def _lived(seed: int, *, start: datetime, hours: float) -> Iterator[pd.DataFrame]:
    """Finished transfers of a world, each once, with what perfSONAR had measured when they started."""
    parts, paths = [], Paths()
    world = World(scenario.load("training"), seed=seed, start=start)
    for emitted in run(world, hours=hours):
        paths.absorb(world.probes.frame(emitted.measurements))
        events = world.documents.frame(emitted.events)
        parts.append(paths.attach(events[events["type"].isin(FINISHED)]))
    events = pd.concat(parts).drop_duplicates("request_id").sort_values("ended_at", kind="stable", ignore_index=True)
    for first in range(0, len(events), PAGE):
        yield events.iloc[first : first + PAGE]
