"""The world: rules arrive, transfers and deletions follow, faults break out and end, perfSONAR looks on.

It moves only by `advance`, and only by its scenario, its seed and the acts of `simulator.grid`: the same of these at the same
simulated times give the same documents, however the time is cut into calls. Every draw is keyed by what it is drawn for, so the
same world without its faults is its twin: the same transfers with the same luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from models.domain import aware
from simulator import engine
from simulator.deletions import Deletions
from simulator.documents import Documents
from simulator.draws import Draws, For
from simulator.faults import Conditions, Disturbance, DisturbanceKind, Fault, changes
from simulator.outbreaks import Plan
from simulator.perfsonar import MEASUREMENT, Probes
from simulator.records import RECORD, Records, What
from simulator.scenario import Scenario
from simulator.state import Array, Chronicle, N, State, dump, fresh, undump, with_room
from simulator.topology import Topology
from simulator.workload import Period, Workload

HOUR = 3600
TEST_S = 30.0  # how long a throughput test loads its path
TEST_SHARE = 0.5  # of the path's bandwidth, meanwhile
REPAIR_S, REPAIR_SPREAD = 45 * 60.0, 0.6  # until people whom a ticket told have mended what is wrong: median, sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """What can be read from now on, in the order in which the index shows it; and, for the truth, what ended meanwhile."""

    events: Records
    measurements: Array
    ended: Records


class World:
    """A grid in simulated time.

    `snapshot` is what `save` gave in another world of the same scenario, seed and start, `faults` whether there are any, or
    which.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int,
        start: datetime,
        snapshot: bytes | None = None,
        faults: bool | Plan = True,
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.start = aware(start)
        self.draws = Draws(seed)
        self.topology: Topology = scenario.topology(seed)
        self.disturbances = scenario.disturbances_of(self.topology, seed)
        self.workload = Workload(self.topology, self.draws, scenario.load, self.disturbances)
        self.documents = Documents(self.topology, self.draws, start)
        self.probes = Probes(self.topology, self.draws, scenario.perfsonar, start)
        if isinstance(faults, bool):
            self._plan = scenario.plan(self.topology, seed) if faults else None
        else:
            self._plan = faults
        self._deletions = Deletions(self.draws)
        self.state: State = fresh(self.topology)
        self.chronicle = Chronicle()
        self._posted: dict[str, Array] = {
            "events": np.zeros(0, dtype=RECORD),
            "events at": np.zeros(0),
            "measurements": np.zeros(0, dtype=MEASUREMENT),
            "deletions": self._deletions.none(),
        }
        if snapshot is not None:
            self.state, self.chronicle, self._posted = undump(snapshot, self.state)
        self._period: Period | None = None
        self._around: tuple[engine.Surroundings, Conditions] | None = None

    @property
    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.chronicle.clock)

    @property
    def clock(self) -> float:
        """Seconds after the start."""
        return self.chronicle.clock

    @property
    def faults(self) -> list[Fault]:
        """Every fault that has begun by now, and those that are planned beside it."""
        if self._plan is None:
            return []
        faults = self._plan.until(float(self.state.numbers[N.CLOCK]) + 2 * HOUR)
        for fault in faults:
            fault.end = min(fault.end, self.chronicle.mended.get(fault.number, math.inf))
        return faults

    def active_faults(self) -> list[Fault]:
        """What is wrong now."""
        return [fault for fault in self.faults if fault.start <= self.chronicle.clock < fault.end]

    def downtimes(self) -> list[Disturbance]:
        """Announced interruptions, past and future ones."""
        return [one for one in self.disturbances if one.kind == DisturbanceKind.DOWNTIME]

    def truth(self) -> list[dict[str, Any]]:
        """Every fault that has begun, with its times as instants; `end` is when it ended or will end, None if nothing ends it."""
        return [
            {
                "number": fault.number,
                "kind": str(fault.kind),
                "culprit": fault.culprit,
                "strength": fault.strength,
                "recovers": fault.recovers,
                "start": (self.start + timedelta(seconds=fault.start)).isoformat(),
                "end": None if fault.end == math.inf else (self.start + timedelta(seconds=fault.end)).isoformat(),
            }
            for fault in self.faults
            if fault.start < self.chronicle.clock
        ]

    def save(self) -> bytes:
        """All that is needed to go on from here."""
        return dump(self.state, self.chronicle, self._posted)

    def fork(self) -> World:
        """Another world that is as this one is now, and goes its own way."""
        faults = False if self._plan is None else self._plan.copy()
        return World(self.scenario, seed=self.seed, start=self.start, snapshot=self.save(), faults=faults)

    def advance(self, to: datetime) -> Emitted:
        """Let time pass; raise ValueError if `to` lies before `now`."""
        clock = (aware(to) - self.start).total_seconds()
        if clock < self.chronicle.clock:
            raise ValueError(f"the world stands at {self.now} and cannot go back to {to}")
        ended: list[Records] = []
        while int(self.state.numbers[N.CLOCK]) < int(clock):
            ended.append(self._live(int(clock)))
        self.chronicle.clock = clock
        events, measurements = self._readable(clock)
        return Emitted(
            events=events,
            measurements=measurements,
            ended=np.concatenate(ended) if ended else np.zeros(0, dtype=RECORD),
        )

    def mend_sooner(self, culprit: str, number: int) -> float:
        """People were told of `culprit` by ticket `number`; return when what is wrong there, if anything is, will have ended."""
        done = self.chronicle.clock + self.draws.lognormal(REPAIR_S, REPAIR_SPREAD, For.TICKET, number)
        for fault in self.active_faults():
            if fault.found_by(culprit, self.topology) and done < fault.end:
                self.chronicle.mended[fault.number] = done
        self.touched()
        return done

    def touched(self) -> None:
        """Limits, tests or faults are others from now on."""
        self._around = None

    def around(self) -> tuple[engine.Surroundings, Conditions]:
        """What the kernels read, as of now, and what the faults do to it."""
        if self._around is None:
            at = float(self.state.numbers[N.CLOCK])
            found = Conditions.of(self.topology, [one for one in self.faults if one.start <= at < one.end], at)
            self._around = self._surroundings(found, at), found
            engine.change_limits(self.state, self._around[0])
        return self._around

    def _live(self, until: int) -> Records:
        """One stretch in which nothing changes from outside; return what ended in it."""
        since = int(self.state.numbers[N.CLOCK])
        period = self._arrivals(since // HOUR)
        until = min(until, HOUR * (since // HOUR + 1), self._next_change(since))
        surroundings, conditions = self.around()
        arrivals = engine.Arrivals(period.rules, period.destinations, period.sources, period.bytes)
        engine.live(self.state, surroundings, arrivals, until)
        reached = int(self.state.numbers[N.CLOCK])
        count = int(self.state.numbers[N.RECORDS])
        records = self.state.outbox[:count].copy()
        self.state.numbers[N.RECORDS] = 0
        deleted, self._posted["deletions"] = self._deletions.live(
            period.deletions,
            self._posted["deletions"],
            conditions,
            surroundings.closed[:, 2],
            float(since),
            float(reached),
        )
        self._post(np.concatenate([records, deleted]))
        measured = self.probes.measure(conditions, float(since), float(reached))
        self._posted["measurements"] = np.concatenate([self._posted["measurements"], measured])
        if reached >= self._next_change(since):
            self.touched()
        return records[(records["what"] == What.DONE) | (records["what"] == What.FAILED)]

    def _arrivals(self, number: int) -> Period:
        """The period's rules, with room for them."""
        numbers = self.state.numbers
        if self._period is None or numbers[N.PERIOD] != number:
            self._period = self.workload.period(number)
        if numbers[N.PERIOD] != number:
            numbers[N.PERIOD], numbers[N.ARRIVED] = number, 0
            self.state = with_room(self.state, transfers=len(self._period.bytes), rules=len(self._period.rules))
        return self._period

    def _next_change(self, since: int) -> int:
        """The first second after `since` at which the surroundings are others."""
        times = [changes(self.faults, float(since))]
        times += [end for _, _, end in self.chronicle.tests]
        times += [time for one in self.downtimes() for time in (one.start, one.end)]
        times += self.state.banned_until[self.state.banned_until > since].tolist()
        return min((math.ceil(time) for time in times if since < time < math.inf), default=since + HOUR)

    def _surroundings(self, found: Conditions, at: float) -> engine.Surroundings:
        topology, state, down = self.topology, self.state, self._down(at)
        paths = topology.capacity.copy()
        for source, destination, end in self.chronicle.tests:
            if end > at:
                paths[source, destination] *= 1 - TEST_SHARE
        read, write = topology.read * np.sqrt(found.read), topology.write * np.sqrt(found.write)
        most = np.stack([topology.outbound, topology.inbound], axis=1)
        return engine.Surroundings(
            seed=self.draws.state,
            rse_site=topology.rse_site,
            tape=topology.tape,
            closed=state.closed | (down > 0)[:, None],
            door_s=topology.overhead_s * found.overhead,
            read=topology.stream * found.read,
            write=topology.stream * found.write,
            connections=np.where(found.busy > 0, found.busy, topology.connections),
            storage_limit=np.where(state.storage_limit > 0, state.storage_limit, most),
            link_limit=np.where(state.link_limit > 0, state.link_limit, topology.link_limit),
            drives=topology.drives,
            mount_s=topology.mount_s * found.mount,
            drive_rate=topology.drive_rate,
            full=found.full,
            credentials=found.credentials,
            corrupt=found.corrupt,
            missing=found.missing,
            refused=np.maximum(found.refused, down),
            black_hole=found.black_hole,
            blame=found.blame,
            site_fts=topology.site_fts,
            slots=np.ceil(topology.slots * found.slots).astype(np.int64),
            rtt_s=found.rtt_s,
            loss=found.loss,
            capacity=np.concatenate([read, write, topology.uplink_out, topology.uplink_in, paths.ravel()]),
        )

    def _down(self, at: float) -> Array:
        """1.0 for storage elements in a downtime, f8[R]."""
        down = np.zeros(len(self.topology.rses))
        for one in self.downtimes():
            if one.start <= at < one.end:
                down[one.rses(self.topology)] = 1.0
        return down

    def _post(self, records: Records) -> None:
        """Keep documents until they can be read: not before the second after the one in which they came about."""
        at, delivered = self.documents.deliver(records)
        at = np.maximum(at, np.floor(delivered["at"]) + 2.0)
        self._posted["events"] = np.concatenate([self._posted["events"], delivered])
        self._posted["events at"] = np.concatenate([self._posted["events at"], at])

    def _readable(self, clock: float) -> tuple[Records, Array]:
        events, at, measurements = (self._posted[name] for name in ("events", "events at", "measurements"))
        ready = at <= clock
        found = events[ready]
        order = np.lexsort((found["what"], found["tries"], found["file"], at[ready]))
        self._posted["events"], self._posted["events at"] = events[~ready], at[~ready]
        measured = measurements["readable"] <= clock
        shown = measurements[measured]
        self._posted["measurements"] = measurements[~measured]
        names = ("quantity", "destination", "source", "readable")
        self.chronicle.emitted["events"] += len(found)
        self.chronicle.emitted["measurements"] += len(shown)
        return found[order], shown[np.lexsort([shown[name] for name in names])]


def run(world: World, *, hours: float) -> Iterator[Emitted]:
    """The documents of a world that nobody touches, an hour at a time, for so many hours from its `now`."""
    begin, lived = world.now, 0.0
    while lived < hours:
        lived = min(lived + 1.0, hours)
        yield world.advance(begin + timedelta(hours=lived))


def twin(world: World) -> World:
    """The world as it would have been from its start without a fault, and without an act."""
    return World(world.scenario, seed=world.seed, start=world.start, faults=False)
