"""Simulated documents in files: for each hour a part of events and one of measurements, as Parquet and as JSON lines.

What stands in a part depends on nothing but its records, so it is the same whichever process writes it.
"""

from __future__ import annotations

import gzip
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from models.domain import GridmedicError
from models.events import NUMBER_COLUMNS, TEXT_COLUMNS
from models.measurements import READING_COLUMNS
from simulator.documents import Documents
from simulator.draws import Draws
from simulator.perfsonar import Measurements, Probes
from simulator.records import Records
from simulator.scenario import Scenario

EVENTS, MEASUREMENTS = "events", "measurements"  # the directories
_EVENT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXT_COLUMNS] + [(name, pa.float64()) for name in NUMBER_COLUMNS]
)
_READING_SCHEMA = pa.schema(
    [(name, pa.float64() if name in {"value", "at"} else pa.string()) for name in READING_COLUMNS]
)
_OWN = frozenset(("request_id", "previous_request_id", "name", "rule_id"))  # hardly any two rows have the same
_BLOCK = 1 << 15  # messages that lie in memory as text
_PATIENCE_S = 10.0  # until a process that was told to end is ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose documents they are, and the directory that they go to."""

    scenario: Scenario
    seed: int
    start: datetime
    out: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What can be read in an hour, by its number after the start."""

    number: int
    events: Records
    measurements: Measurements


class Recorder:
    """Writes parts."""

    def __init__(self, place: Place) -> None:
        self._place = place
        topology, draws = place.scenario.topology(place.seed), Draws(place.seed)
        self._documents = Documents(topology, draws, place.start)
        self._probes = Probes(topology, draws, place.scenario.perfsonar, place.start)

    def write(self, part: Part) -> None:
        """Two files each of events and of measurements; raise OSError where that is impossible."""
        name = f"{self._place.start + timedelta(hours=part.number):%Y-%m-%dT%H}"
        documents, probes = self._documents, self._probes
        _write(self._place.out / EVENTS / name, part.events, documents.frame, documents.text, _EVENT_SCHEMA)
        _write(self._place.out / MEASUREMENTS / name, part.measurements, probes.frame, probes.text, _READING_SCHEMA)


class Writers:
    """So many processes that write parts, besides this one; none: this one writes. They end with it, however it ends."""

    def __init__(self, place: Place, processes: int) -> None:
        for name in (EVENTS, MEASUREMENTS):
            (place.out / name).mkdir(exist_ok=True)
        self._recorder = None if processes else Recorder(place)
        self._helpers = [_Helper(place) for _ in range(processes)]

    def write(self, part: Part) -> None:
        """Have it written. What went wrong with an earlier one is raised here, too."""
        if self._recorder is not None:
            self._recorder.write(part)
        else:
            self._helpers[part.number % len(self._helpers)].take(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for helper in self._helpers:
                    helper.finish()
        finally:
            for helper in self._helpers:
                helper.close()


class _Helper:
    """One of these processes, seen from here. It has at most one part to write."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_help, args=(theirs, place), daemon=True)
        # It ends when the connection is closed, and hears nothing of a Ctrl-C: that is for us to deal with. The tracker of
        # multiprocessing, when it starts, lets that signal through again; so it starts first.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._busy = False

    def take(self, part: Part) -> None:
        self.finish()
        try:
            self._connection.send(part)
        except OSError:
            self._gone()
        self._busy = True

    def finish(self) -> None:
        """Wait until it has written what it was given."""
        if self._busy:
            try:
                error = self._connection.recv()
            except (EOFError, OSError):
                self._gone()
            self._busy = False
            if error is not None:
                raise error

    def close(self) -> None:
        self._connection.close()
        self._process.join(_PATIENCE_S)
        self._process.kill()

    def _gone(self) -> None:
        self._process.join(_PATIENCE_S)
        raise GridmedicError(
            f"a process that writes files has ended by itself with status {self._process.exitcode}; see whether memory was "
            "short, and start again into another directory"
        )


def _help(connection: Connection[Any, Part], place: Place) -> None:
    try:
        recorder = Recorder(place)
        while True:
            part = connection.recv()
            try:
                recorder.write(part)
            except OSError as error:
                connection.send(error)
            else:
                connection.send(None)
    except (EOFError, ConnectionError):  # nobody is left to write for
        return


def _write(
    path: Path,
    rows: npt.NDArray[np.void],
    frame: Callable[[npt.NDArray[np.void]], pd.DataFrame],
    text: Callable[[npt.NDArray[np.void]], bytes],
    schema: pa.Schema,
) -> None:
    few = [name for name in schema.names if name not in _OWN]
    table = pa.Table.from_pandas(frame(rows), schema=schema, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, f"{path}.parquet", compression="zstd", compression_level=1, use_dictionary=few)
    with (
        Path(f"{path}.jsonl.gz").open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        for first in range(0, len(rows), _BLOCK):
            packed.write(text(rows[first : first + _BLOCK]))
