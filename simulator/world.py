"""The world: rules arrive, transfers and deletions follow, faults break out and end, perfSONAR looks on.

It moves only by `advance`, and only by its seed, its faults and the acts of `simulator.grid`: the same seed and the same
acts at the same simulated times give the same documents, however the time is cut into calls.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from models.domain import aware
from simulator import errors
from simulator.conveyor import HOUR, Conveyor
from simulator.documents import Documents
from simulator.draws import Draws, For
from simulator.faults import Conditions, Fault, outbreak
from simulator.perfsonar import EVERY, Probes
from simulator.state import State, Stream
from simulator.topology import Topology, small_grid
from simulator.workload import Workload

_DELETIONS_PER_HOUR = 500.0
_TRAINING_START = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday, long past: no clock takes it for the future


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a world is made from. `start` is its first instant; faults' times are seconds after it.

    `first_outbreak` is when the first of an endless sequence of faults breaks out; None: only those that are given.
    """

    seed: int
    start: datetime
    transfers_per_hour: float = 3000.0
    faults: tuple[Fault, ...] = ()
    first_outbreak: timedelta | None = None

    def __post_init__(self) -> None:
        aware(self.start)
        if not 0 < self.transfers_per_hour < 1e6:
            raise ValueError(f"transfers_per_hour={self.transfers_per_hour!r} must be above 0 and below a million")


class _Parts(TypedDict):
    topology: Topology
    draws: Draws
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """Documents that can be read from now on, in the order in which the index shows them."""

    events: list[dict[str, Any]]
    measurements: list[dict[str, Any]]


class World:
    """A grid in simulated time. Give `state` to go on where another world of the same setup stood."""

    def __init__(self, setup: Setup, state: State | None = None) -> None:
        self.setup = setup
        self.topology = small_grid(setup.seed)
        self.state = state or State()
        self.draws = Draws(setup.seed)
        parts = _Parts(topology=self.topology, draws=self.draws, state=self.state)
        self._documents = Documents(**parts, start=setup.start)
        self._probes = Probes(**parts, start=setup.start)
        self._workload = Workload(self.topology, self.draws)
        self.conveyor = Conveyor(**parts, documents=self._documents)
        self._handlers: dict[str, Callable[[str, int, float], None]] = {
            "rule": self._rule,
            "forget": self._forget,
            "delete": self._delete,
            "fault": self._fault,
            "outbreak": self._outbreak,
            "probe": self._probe,
            "solve": self._solve,
            "submit": self.conveyor.submit,
            "ready": self.conveyor.ready,
            "begin": self.conveyor.begin,
            "end": self.conveyor.end,
            "repair": self.conveyor.repair,
        }
        self._conditions = Conditions(self.active_faults())
        if state is None:
            self._begin()
        else:
            self.conveyor.resume(self._conditions)

    @property
    def now(self) -> datetime:
        return self.setup.start + timedelta(seconds=self.state.clock)

    def advance(self, to: datetime) -> Emitted:
        """Let time pass; raise ValueError if `to` lies before `now`."""
        state, clock = self.state, (aware(to) - self.setup.start).total_seconds()
        if clock < state.clock:
            raise ValueError(f"the world stands at {self.now} and cannot go back to {to}")
        due, handlers = state.due, self._handlers
        while due and due[0][0] <= clock:
            at, _, what, subject, version = heapq.heappop(due)
            handlers[what](subject, version, at)
        state.clock = clock
        found: dict[Stream, list[dict[str, Any]]] = {"events": [], "measurements": []}
        while state.posted and state.posted[0][0] <= clock:
            _, _, stream, document = heapq.heappop(state.posted)
            found[stream].append(document)
        for stream, documents in found.items():
            state.emitted[stream] += len(documents)
        return Emitted(events=found["events"], measurements=found["measurements"])

    def active_faults(self) -> list[Fault]:
        """The truth at `now`."""
        return [fault for fault in self.state.faults if fault.start <= self.state.clock < fault.end]

    def truth(self) -> list[dict[str, Any]]:
        """Every fault that has begun, with its times as instants."""
        start = self.setup.start
        return [
            {
                "number": fault.number,
                "kind": str(fault.kind),
                "culprit": fault.culprit,
                "strength": fault.strength,
                "start": (start + timedelta(seconds=fault.start)).isoformat(),
                "end": (start + timedelta(seconds=fault.end)).isoformat(),
            }
            for fault in self.state.faults
            if fault.start <= self.state.clock
        ]

    def mend_sooner(self, culprit: str, number: int) -> None:
        """People were told of `culprit` by ticket `number`: some time later what is wrong there ends, if anything is."""
        now = self.state.clock
        done = now + self.draws.lognormal(45 * 60.0, 0.6, For.TICKET, number)
        for fault in self.active_faults():
            if fault.found_by(culprit, self.topology) and done < fault.end:
                fault.end = done
                self.state.schedule(done, "fault", str(fault.number))
        self.state.schedule(done, "solve", str(number))

    def _begin(self) -> None:
        state = self.state
        state.schedule(self._workload.pause(0, self.setup.transfers_per_hour), "rule", "0")
        state.schedule(self.draws.exponential(HOUR / _DELETIONS_PER_HOUR, For.DELETION, 0, 0), "delete", "0")
        for number in range(len(self._probes)):
            state.schedule(self.draws.between(0, EVERY, For.PROBE, number, 0, 0), "probe", str(number))
        for fault in self.setup.faults:
            self._watch(replace(fault))  # a ticket may change its end
        if self.setup.first_outbreak is not None:
            self._draw_outbreak(0)

    def _rule(self, number: str, _: int, now: float) -> None:
        state, n = self.state, int(number)
        state.schedule(now + self._workload.pause(n + 1, self.setup.transfers_per_hour), "rule", str(n + 1))
        rule, files = self._workload.rule(n, state.closed)
        state.rules[rule.id] = rule
        for file in files:
            self.conveyor.request(rule, file, now)

    def _forget(self, rule_id: str, _: int, _now: float) -> None:
        del self.state.rules[rule_id]

    def _delete(self, number: str, done: int, now: float) -> None:
        """Plan a deletion, or carry it out (`done`)."""
        n = int(number)
        storage, file, scope = self._workload.deletion(n)
        if done:
            refused = self.draws.uniform(For.DELETION, n, 3) < self._conditions.storage(storage.name).refuses
            reason = errors.deletion_refused(storage) if refused else ""
            self._documents.deletion(n, "failed" if refused else "done", storage, file, scope, now, reason)
            return
        pause = self.draws.exponential(HOUR / _DELETIONS_PER_HOUR, For.DELETION, n + 1, 0)
        self.state.schedule(now + pause, "delete", str(n + 1))
        if f"{storage.name} delete" in self.state.closed:
            return
        self._documents.deletion(n, "planned", storage, file, scope, now, "")
        self.state.schedule(now + self.draws.exponential(60.0, For.DELETION, n, 4), "delete", number, 1)

    def _watch(self, fault: Fault) -> None:
        """Have it begin and end."""
        self.state.faults.append(fault)
        self.state.schedule(fault.start, "fault", str(fault.number))
        self.state.schedule(fault.end, "fault", str(fault.number))

    def _fault(self, _number: str, _: int, now: float) -> None:
        active = [fault for fault in self.state.faults if fault.start <= now < fault.end]
        self._conditions = Conditions(active)
        self.conveyor.change(self._conditions, now)

    def _outbreak(self, number: str, _: int, _now: float) -> None:
        self._draw_outbreak(int(number))

    def _draw_outbreak(self, number: int) -> None:
        """Draw the fault of this number, and have the next one drawn when it begins."""
        first = (self.setup.first_outbreak or timedelta()).total_seconds()
        before = self.state.faults[len(self.setup.faults) :]
        fault = outbreak(number, before, first=first, topology=self.topology, draws=self.draws)
        self._watch(fault)
        self.state.schedule(fault.start, "outbreak", str(number + 1))

    def _probe(self, number: str, turn: int, now: float) -> None:
        self._probes.measure(int(number), turn, self._conditions, now)
        self.state.schedule(now + EVERY, "probe", number, turn + 1)

    def _solve(self, number: str, _: int, _now: float) -> None:
        self.state.tickets[int(number)].solved = True


def run(setup: Setup, *, hours: float) -> Iterator[Emitted]:
    """The documents of a world that nobody touches, an hour at a time."""
    world = World(setup)
    for hour in itertools.count(1):
        end = min(float(hour), hours)
        yield world.advance(setup.start + timedelta(hours=end))
        if end == hours:
            return


def simulated_events(*, seed: int, hours: float, outbreaks: bool = False) -> list[dict[str, Any]]:
    """Messages of all transfers that ended in so many hours, for training: nested documents as `models.events` decodes.

    About 3.3 kB of memory each, and some 3,300 an hour: `run` gives them in parts. `outbreaks`: with faults.
    """
    setup = Setup(seed=seed, start=_TRAINING_START, first_outbreak=timedelta(hours=1) if outbreaks else None)
    ended = {"transfer-done", "transfer-failed"}
    return [event for part in run(setup, hours=hours) for event in part.events if event["event_type"] in ended]
