"""A simulated grid in this process, lived in steps, with what an agent reads of it and what it does to it."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agent.calendar import Calendar
from agent.grid.dry_run import Act
from models.events import Page, empty_events
from models.measurements import empty_readings
from simulator.announcements import announced
from simulator.faults import Fault
from simulator.grid import SimulatedGrid
from simulator.records import RECORD, What
from simulator.scenario import Scenario
from simulator.world import World

STEP = timedelta(minutes=5)  # between two passes of whoever watches
_MEASURED_EVERY = 2  # steps: perfSONAR measures a path every ten minutes


class Feed:
    """One of a world's streams as a source: whatever came since the last poll. Only the ledger's own cursor remembers it."""

    def __init__(self, name: str, empty: pd.DataFrame) -> None:
        self.name = name
        self._empty = empty
        self._rows = empty
        self._seq = 0

    def put(self, rows: pd.DataFrame) -> None:
        self._rows = pd.concat([self._rows, rows], ignore_index=True) if len(self._rows) else rows

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:  # noqa: ARG002 - as a source's
        """All of it at once, whatever the limit: a step brings little."""
        rows, self._rows = self._rows, self._empty
        self._seq += len(rows)
        return Page(rows=rows, cursor={"seq": self._seq}, read=len(rows))

    def close(self) -> None:
        """Nothing is held."""


class Arena:
    """A world, the grid that acts on it, and what has ended there."""

    def __init__(self, scenario: Scenario, *, seed: int, start: datetime) -> None:
        self.world = World(scenario, seed=seed, start=start)
        self.grid = SimulatedGrid(self.world)
        self.events = Feed("events", empty_events())
        self.measurements = Feed("measurements", empty_readings())
        self._ended: list[NDArray[np.void]] = []
        self._measured: list[NDArray[np.void]] = []  # and not shown yet
        self._told = 0  # acts of the world's that were asked for

    @property
    def now(self) -> datetime:
        return self.world.now

    def live(self, to: datetime, *, show: Sequence[What] = ()) -> None:
        """Let time pass; the feeds bring what can be read by then, of events those that are to be shown."""
        emitted = self.world.advance(to)
        self._ended.append(emitted.ended)
        if show:
            wanted = emitted.events if len(show) == len(What) else emitted.events[np.isin(emitted.events["what"], show)]
            self.events.put(self.world.documents.frame(wanted))
            self._measured.append(emitted.measurements)
            if len(self._measured) == _MEASURED_EVERY:
                self.measurements.put(self.world.probes.frame(np.concatenate(self._measured)))
                self._measured = []

    def ended(self) -> NDArray[np.void]:
        """Records of every request that has ended so far, in the order of stretches lived."""
        self._ended = [np.concatenate([np.zeros(0, dtype=RECORD), *self._ended])]
        return self._ended[0]

    def running(self) -> list[Fault]:
        """What is wrong now, by the truth."""
        return self.world.active_faults()

    def acts(self) -> dict[str, list[Act]]:
        """What was done to the grid since this was last asked, by key."""
        chronicle = self.world.chronicle
        marks = {ticket.mark: ticket for ticket in chronicle.tickets}
        done: dict[str, list[Act]] = defaultdict(list)
        for text in itertools.islice(chronicle.acts, self._told, None):
            key, method, *arguments = json.loads(text)
            if method == "open_ticket":
                arguments = [marks[key].culprit]
            done[key].append(Act(method=method, arguments=tuple(arguments), key=key))
        self._told = len(chronicle.acts)
        return dict(done)


class _Announcements:
    """The list of a world's downtimes, as its process would serve it."""

    name = "downtimes"

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self) -> object:
        return announced(self._world)


def calendar_of(world: World) -> Calendar:
    """What is announced in the world, known to whoever watches it as it is to a daemon."""
    return Calendar([_Announcements(world)])


def seconds(now: datetime, arena: Arena) -> float:
    """Seconds after the world's start."""
    return (now - arena.world.start).total_seconds()
