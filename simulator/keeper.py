"""A world that is kept on disk: killed at any moment, it goes on where it stood, with every effect and number as it was.

The directory holds `run.json` (what the world is made from), `clock` (how far it was to go), `state.npz` (a snapshot),
`journal.jsonl` (every call received), `events/` and `measurements/` (documents by number), and `truth.json` (the faults so
far). Reading back is the snapshot, then the journal's acts at their instants: the world is deterministic, so the documents
that are on disk already come out the same and are not written twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from pydantic import ConfigDict, TypeAdapter, ValidationError, validate_call
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from models.domain import ConfigError, GridError
from simulator import disk
from simulator.announcements import announced
from simulator.grid import ACTS, READS, SimulatedGrid
from simulator.scenario import Scenario
from simulator.state import Array, Stream
from simulator.world import World

log = structlog.get_logger()

_SNAPSHOT_EVERY = timedelta(minutes=10)  # of simulated time
_STEP = timedelta(hours=1)  # most that is simulated before documents are written


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a world is made from. `start` is its first instant."""

    scenario: Scenario
    seed: int
    start: datetime


_SETUP = TypeAdapter(Setup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a call came to. `effect` is False for reads, refusals and acts that were known by their key."""

    result: Any = None
    effect: bool = False
    error: str = ""


class Keeper:
    """Not safe to share between threads: whoever has several must lock."""

    def __init__(self, directory: Path, setup: Setup, *, until: datetime) -> None:
        """Go on with the run in `directory`, or begin one and let time pass `until`.

        Raise ConfigError if the directory is in use or holds another run.
        """
        self._directory = directory
        self._lock = disk.claim(directory)
        try:
            self._open(setup, until)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, setup: Setup, until: datetime) -> None:
        directory = self._directory
        self.setup = self._adopt(setup, until)
        self._snapshot = directory / "state.npz"
        self._world = self._resumed()
        self._grid = SimulatedGrid(self._world)
        self._grid.prepare()
        strict = validate_call(config=ConfigDict(strict=True))
        self._methods = {name: strict(getattr(self._grid, name)) for name in READS + ACTS}
        self._logs: dict[Stream, disk.Log] = {
            "events": disk.Log(directory / "events"),
            "measurements": disk.Log(directory / "measurements"),
        }
        self._saved, self._truth = self._world.now, b""
        self._catch_up()
        self._clock = os.open(directory / "clock", os.O_RDWR)
        self._journal = (directory / "journal.jsonl").open("ab")

    @property
    def run(self) -> str:
        """A name of this run: numbers of documents mean nothing in another one."""
        return f"{self.setup.scenario.name}-{self.setup.seed}-{self.setup.start:%Y%m%dT%H%M%S}"

    @property
    def now(self) -> datetime:
        return self._world.now

    def advance(self, to: datetime) -> None:
        """Let simulated time pass. Where it is to end is on disk before the first document of it can be seen."""
        os.pwrite(self._clock, to.isoformat(timespec="microseconds").encode(), 0)
        self._live_until(to)
        truth = to_json(self._world.truth(), indent=1)
        if truth != self._truth:
            self._truth = truth
            disk.replace(self._directory / "truth.json", truth)
        if self._world.now - self._saved >= _SNAPSHOT_EVERY:
            self.save()

    def save(self) -> None:
        """Write a snapshot, so that little has to be lived through again."""
        for kept in self._logs.values():
            kept.sync()
        disk.replace(self._snapshot, self._world.save())
        self._saved = self._world.now

    def read(self, stream: Stream, *, after: int, limit: int) -> bytes:
        """JSON of the documents above number `after`: `run`, `first` and `last` of those given, `end` of all, `documents`."""
        kept = self._logs[stream]
        first, lines = kept.read(after, limit)
        head = {"run": self.run, "first": first, "last": first + len(lines) - 1, "end": kept.last}
        return to_json(head)[:-1] + b',"documents":[' + b",".join(lines) + b"]}"

    def downtimes(self) -> dict[str, Any]:
        """What is announced now, in CRIC's form."""
        return announced(self._world)

    def call(self, method: str, arguments: Mapping[str, Any]) -> Reply:
        """Call a method of the grid; it is in the journal, and on the disk if it is an act, before this returns."""
        try:
            to_json(arguments)
        except PydanticSerializationError as error:  # what the journal cannot tell is not done
            return Reply(error=f"the arguments cannot be written down: {error}")
        reply = self._reply(method, arguments)
        entry = {"at": self.now.isoformat(), "method": method, "args": arguments, "key": arguments.get("key")}
        outcome = {"error": reply.error} if reply.error else {"result": reply.result}
        self._journal.write(to_json(entry | {"effect": reply.effect} | outcome) + b"\n")
        self._journal.flush()
        if method in ACTS:
            os.fsync(self._journal.fileno())
        return reply

    def _reply(self, method: str, arguments: Mapping[str, Any]) -> Reply:
        if method not in self._methods:
            return Reply(error=f"the grid has no method {method!r}; it has {', '.join(self._methods)}")
        before = self._grid.effects
        try:
            result = to_jsonable_python(self._methods[method](**arguments))
        except (GridError, ValidationError) as error:
            return Reply(error=str(error))
        return Reply(result=result, effect=self._grid.effects > before)

    def close(self) -> None:
        self.save()
        self._journal.close()
        for kept in self._logs.values():
            kept.close()
        os.close(self._clock)
        os.close(self._lock)

    def _adopt(self, setup: Setup, until: datetime) -> Setup:
        """The directory's own run where it has one, whenever that was begun; else this one."""
        path = self._directory / "run.json"
        if not path.exists():
            disk.replace(self._directory / "clock", until.isoformat(timespec="microseconds").encode())
            (self._directory / "journal.jsonl").touch()
            disk.replace(path, _SETUP.dump_json(setup))
            return setup
        try:
            kept = _SETUP.validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(
                f"{path} cannot be read by this version: {error}; delete the directory or name another"
            ) from None
        if replace(kept, start=setup.start) != setup:
            raise ConfigError(
                f"{self._directory} holds a run of other settings (scenario {kept.scenario.name}, seed {kept.seed}); give the "
                "same scenario, seed and history, delete the directory or name another"
            )
        return kept

    def _resumed(self) -> World:
        """The world as it was when its snapshot was written; at its start if there is none."""
        setup, path = self.setup, self._snapshot
        try:
            snapshot = path.read_bytes() if path.exists() else None
            return World(setup.scenario, seed=setup.seed, start=setup.start, snapshot=snapshot)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; delete this file: the run is lived again from its start") from None

    def _catch_up(self) -> None:
        """Live again what lies between the snapshot and the clock, with the acts that were made in it."""
        target = datetime.fromisoformat((self._directory / "clock").read_text())
        acts = [
            entry for entry in map(json.loads, disk.whole_lines(self._directory / "journal.jsonl")) if entry["effect"]
        ]
        for entry in acts[len(self._world.chronicle.acts) :]:
            self._live_until(datetime.fromisoformat(entry["at"]))
            self._methods[entry["method"]](**entry["args"])
        self._live_until(target)
        log.info("grid-caught-up", now=target.isoformat(), acts=len(acts), directory=str(self._directory))

    def _live_until(self, to: datetime) -> None:
        while self._world.now < to:
            self._write(min(to, self._world.now + _STEP))

    def _write(self, to: datetime) -> None:
        """Advance by one step and write the documents that are not on disk yet."""
        world, before = self._world, dict(self._world.chronicle.emitted)
        emitted = world.advance(to)
        self._append("events", before, emitted.events, world.documents.lines)
        self._append("measurements", before, emitted.measurements, world.probes.lines)

    def _append(
        self, stream: Stream, before: Mapping[str, int], rows: Array, lines: Callable[[Array], Sequence[bytes]]
    ) -> None:
        kept = self._logs[stream]
        kept.append(lines(rows[max(0, kept.last - before[stream]) :]))
