"""`gridmedic simulate`: a scenario lived through, with its documents, its truth, and which transfers were hurt by what, in files.

Memory does not grow with the time that is simulated: each hour is written as soon as it has been lived, in this grid and in
its twin in which nothing goes wrong.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent.recording import Part, Place, Writers
from models.domain import ConfigError
from simulator.announcements import listed
from simulator.faults import Disturbance, DisturbanceKind
from simulator.fields import TYPES, types_of
from simulator.readings import Quantity
from simulator.records import What
from simulator.scenario import Scenario
from simulator.truth import Comparison
from simulator.world import Emitted, World, run, twin

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
_LIBRARIES = ("gridmedic", "numba", "numpy", "pandas", "pyarrow", "scipy")  # whose versions the bytes depend on
_HURT = pa.schema(
    {
        "request_id": pa.string(),
        "file": pa.int64(),
        "tries": pa.int64(),
        "source": pa.string(),
        "destination": pa.string(),
        "created": pa.float64(),
        "ended": pa.float64(),
        "failed": pa.bool_(),
        "late_s": pa.float64(),
        "fault": pa.int64(),
    }
)

Told = Callable[[float, int], None]


def simulate(scenario: Scenario, *, seed: int, days: float, out: Path, workers: int, told: Told) -> Mapping[str, Any]:
    """Fill the directory `out`; return its manifest. `told` hears of the share that is done, and of the messages so far.

    Of the `workers` processes one is this. Raise ConfigError if `out` is not empty.
    """
    world = World(scenario, seed=seed, start=START)
    _prepare(out)
    place = Place(scenario=scenario, seed=seed, start=START, out=out)
    tally = _Tally()
    with ExitStack() as stack:
        writers = stack.enter_context(Writers(place, workers - 1))
        hurt = stack.enter_context(_Hurt(out / "hurt.parquet", world))
        for number, (here, well) in enumerate(_lived(world, hours=24 * days)):
            writers.write(Part(number=number, events=here.events, measurements=here.measurements))
            hurt.feed(here, well)
            tally.add(here)
            told(world.clock / (86_400 * days), tally.messages)
        hurt.finish()
    _write_json(out / "truth.json", _truth(world))
    _write_json(out / "downtimes.json", listed(world, since=0.0, until=world.clock))
    manifest = {
        "scenario": scenario.model_dump(mode="json", exclude_none=True),
        "seed": seed,
        "days": days,
        "start": START.isoformat(),
        "end": world.now.isoformat(),
        "counts": tally.counts() | {"faults": len(world.truth()), "hurt": hurt.rows, "hurt_by_none": hurt.by_none},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
    }
    _write_json(out / "manifest.json", manifest)  # last: where it is, all is there
    return manifest


def summary(manifest: Mapping[str, Any], out: Path) -> str:
    """What was made, in a few lines."""
    counts = manifest["counts"]
    events, measurements = (sum(counts[name].values()) for name in ("events", "measurements"))
    return (
        f"{out}: {manifest['scenario']['name']}, seed {manifest['seed']}, {manifest['start']} to {manifest['end']}\n"
        f"{events:,} events and {measurements:,} measurements; {counts['finished']:,} transfers finished, "
        f"{counts['failed']:,} attempts failed\n"
        f"{counts['faults']:,} faults; {counts['hurt']:,} attempts hurt, {counts['hurt_by_none']:,} of them by no fault"
    )


@contextmanager
def progress(what: str) -> Iterator[Told]:
    """A bar on the terminal; nothing is shown where there is none."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[messages]:,} events"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0, messages=0)
        yield lambda share, messages: bar.update(task, completed=share, messages=messages)


class _Tally:
    """Counts of what was emitted."""

    def __init__(self) -> None:
        self._events = np.zeros(len(TYPES), dtype=np.int64)
        self._measurements = np.zeros(len(Quantity), dtype=np.int64)
        self._ended = np.zeros(len(What), dtype=np.int64)

    @property
    def messages(self) -> int:
        return int(self._events.sum())

    def add(self, emitted: Emitted) -> None:
        self._events += np.bincount(types_of(emitted.events), minlength=len(TYPES))
        self._measurements += np.bincount(emitted.measurements["quantity"], minlength=len(Quantity))
        self._ended += np.bincount(emitted.ended["what"], minlength=len(What))

    def counts(self) -> dict[str, Any]:
        """Events and measurements by kind, repeated ones included; transfers that ended, each once."""
        return {
            "events": dict(zip(TYPES, self._events.tolist(), strict=True)),
            "measurements": {quantity.name.lower(): int(self._measurements[quantity]) for quantity in Quantity},
            "finished": int(self._ended[What.DONE]),
            "failed": int(self._ended[What.FAILED]),
        }


class _Hurt:
    """The file of transfers that were hurt. Its times are seconds since 1970."""

    def __init__(self, path: Path, world: World) -> None:
        self._world = world
        self._comparison = Comparison(world.topology, world.draws)
        self._file = pq.ParquetWriter(path, _HURT, compression="zstd", compression_level=1)
        self.rows = 0
        self.by_none = 0

    def feed(self, here: Emitted, well: Emitted) -> None:
        world = self._world
        self._write(self._comparison.feed(here.ended, well.ended, until=world.clock, faults=world.faults))

    def finish(self) -> None:
        self._write(self._comparison.finish(self._world.clock, self._world.faults))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, found: pd.DataFrame) -> None:
        start_s = self._world.start.timestamp()
        since_1970 = found.assign(created=found["created"] + start_s, ended=found["ended"] + start_s)
        self._file.write_table(pa.Table.from_pandas(since_1970, schema=_HURT, preserve_index=False))
        self.rows += len(found)
        self.by_none += int((found["fault"] < 0).sum())


def _lived(world: World, *, hours: float) -> Iterator[tuple[Emitted, Emitted]]:
    """Hour by hour what the world and its twin emit."""
    return zip(run(world, hours=hours), run(twin(world), hours=hours), strict=True)


def _prepare(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is no directory; name another one, it is made if it is not there")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty, and nothing is overwritten; name another directory, or empty this one")
    out.mkdir(parents=True, exist_ok=True)


def _truth(world: World) -> dict[str, Any]:
    """What was wrong, and what was unusual without being wrong, as far as it has begun."""
    begun = [one for one in world.disturbances if one.start < world.clock]
    return {
        "faults": world.truth(),
        "disturbances": _told(world, [one for one in begun if one.kind is not DisturbanceKind.DOWNTIME]),
        "downtimes": _told(world, [one for one in begun if one.kind is DisturbanceKind.DOWNTIME]),
    }


def _told(world: World, disturbances: Sequence[Disturbance]) -> list[dict[str, Any]]:
    return [
        {
            "kind": str(one.kind),
            "where": one.where,
            "strength": one.strength,
            "start": (world.start + timedelta(seconds=one.start)).isoformat(),
            "end": (world.start + timedelta(seconds=one.end)).isoformat(),
        }
        for one in disturbances
    ]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
