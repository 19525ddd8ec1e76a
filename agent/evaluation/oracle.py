"""The oracle: it knows of each fault when it starts, tries what could be done on copies of the world, and does what hurts least.

Beside the call that it chooses it tells the people who can mend it, and it puts back what it changed when the fault is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.evaluation.arena import Arena
from agent.evaluation.deeds import Deeds
from agent.evaluation.trial import Trial
from models.domain import GridError
from simulator.faults import NATURES, Fault, FaultKind, Target
from simulator.grid import SimulatedGrid
from simulator.records import What
from simulator.topology import Topology
from simulator.truth import LATE_S, LATE_SHARE

HORIZON: Final = timedelta(hours=3)  # that a candidate is lived with before it is judged
FAR: Final = 100  # distance of sources that are to be avoided
FEW: Final = 2  # connections that an overloaded storage element is asked for

Call = tuple[str, tuple[Any, ...]]  # a method of the grid, and its arguments, the value last where something is set
Records = NDArray[np.void]


class Twin:
    """How every transfer ends in the world without faults. `ended` holds the records of all that ended there."""

    def __init__(self, ended: Records) -> None:
        done = ended[ended["what"] == What.DONE]
        done = done[np.argsort(done["file"], kind="stable")]
        self._files, self._ends = done["file"], done["ended"]
        self._took = done["ended"] - done["created"]
        self._failed = np.sort(ended["ended"][ended["what"] == What.FAILED])

    def hurt(self, before: Records, after: Records, *, since: float, until: float) -> int:
        """About how many transfers were hurt in [since, until) by what ended `after`, given what had ended `before`."""
        done = after[after["what"] == What.DONE]
        failures = int(np.count_nonzero(after["what"] == What.FAILED))
        usual = int(np.diff(np.searchsorted(self._failed, [since, until]))[0])
        ends = np.full(len(self._files), np.nan)
        for records in (before[before["what"] == What.DONE], done):
            place = np.searchsorted(self._files, records["file"])
            known = place < len(self._files)
            known[known] = self._files[place[known]] == records["file"][known]
            ends[place[known]] = records["ended"][known]
        late = np.where(np.isnan(ends), until, ends) - self._ends
        counted = np.isnan(ends) | (ends >= since)
        is_late = counted & (late > LATE_S) & (late > LATE_SHARE * self._took)
        return int(np.count_nonzero(is_late)) + max(0, failures - usual)


class Oracle:
    """Treats each fault once."""

    def __init__(self, arena: Arena, twin: Twin) -> None:
        self._arena = arena
        self._twin = twin
        self._deeds = Deeds(arena)
        self._treated: set[int] = set()
        self._standing: dict[int, list[Call]] = {}  # what is set on the grid because of a fault, by its number
        self._found: dict[Call, Call] = {}  # what sets each of these as it was found

    def live(self, to: datetime) -> None:
        world = self._arena.world
        while (moment := self._next(to)) is not None:
            self._arena.live(moment)
            for fault in world.active_faults():
                if fault.number not in self._treated:
                    self._treat(fault)
            for fault in world.faults:
                if fault.number in self._standing and fault.end <= world.clock:
                    self._put_back(fault)
        self._arena.live(to)

    def tell(self, trial: Trial, hurt_by: object) -> None:  # noqa: ARG002 - as the policies'
        trial.right_actions, trial.wrong_actions = self._deeds.right, self._deeds.wrong

    def close(self) -> None:
        """Nothing is held."""

    def _next(self, to: datetime) -> datetime | None:
        """When the next fault starts or ends, if that is before `to`."""
        world, times = self._arena.world, []
        for fault in world.faults:
            if fault.number in self._standing:
                times.append(fault.end)
            elif fault.number not in self._treated:
                times.append(fault.start)
        moments = [world.start + timedelta(seconds=math.ceil(time)) for time in times if time < math.inf]
        return min((max(moment, world.now) for moment in moments if moment < to), default=None)

    def _treat(self, fault: Fault) -> None:
        world = self._arena.world
        until = world.now + HORIZON
        before, costs = self._arena.ended(), []
        treatments = list(_treatments(fault, world.topology))
        for calls in treatments:
            copy = world.fork()
            _carry_out(SimulatedGrid(copy), calls, f"oracle-{fault.number}")
            ended = copy.advance(until).ended
            costs.append(self._twin.hurt(before, ended, since=world.clock, until=copy.clock))
        best = treatments[int(np.argmin(costs))]  # of equals the first: the one that changes least
        self._treated.add(fault.number)
        self._standing[fault.number] = standing = [call for call in best if call[0] != "open_ticket"]
        for call in standing:
            self._found.setdefault(_setting(call), _as_it_is(self._arena.grid, call))
        _carry_out(self._arena.grid, best, f"oracle-{fault.number}")
        self._deeds.note()

    def _put_back(self, fault: Fault) -> None:
        """Leave what other faults still ask for, and set the rest as it was found."""
        over = {_setting(call) for call in self._standing.pop(fault.number)}
        asked = {_setting(call): call for calls in self._standing.values() for call in calls}
        calls = [asked.get(setting) or self._found.pop(setting) for setting in sorted(over)]
        _carry_out(self._arena.grid, calls, f"oracle-{fault.number}/undo")
        self._deeds.note()


def _treatments(fault: Fault, topology: Topology) -> Iterator[list[Call]]:
    """What can be tried against a fault: nothing but to tell, then whatever pulls its load away."""
    told: Call = ("open_ticket", (fault.culprit, "it is broken", ""))
    yield [told]
    match NATURES[fault.kind].target:
        case Target.RSE:
            rses = [fault.where]
        case Target.SITE:
            site = topology.site(fault.where)
            rses = [topology.rses[rse] for rse in np.flatnonzero(topology.rse_site == site)]
        case Target.NETWORK:
            source, destination = (_rses_of(end, topology) for end in fault.where.split(">"))
            yield [told, *_farther(source, destination, topology)]
            return
        case _:
            return
    farther = _farther(rses, topology.rses, topology)
    unread = [("set_availability", (rse, "read", False)) for rse in rses]
    unwritten = [("set_availability", (rse, "write", False)) for rse in rses]
    yield [told, *farther]
    yield [told, *unwritten]
    yield [told, *farther, *unwritten]
    yield [told, *unread, *unwritten]
    if fault.kind is FaultKind.OVERLOADED:
        yield [told, *(("set_storage_limit", (rse, way, FEW)) for rse in rses for way in ("source", "destination"))]


def _rses_of(site: str, topology: Topology) -> list[str]:
    return [topology.rses[rse] for rse in np.flatnonzero(topology.rse_site == topology.site(site))]


def _farther(sources: Sequence[str], destinations: Sequence[str], topology: Topology) -> list[Call]:
    return [
        ("set_distance", (source, destination, FAR))
        for source in sources
        for destination in destinations
        if source != destination and topology.distance[topology.rse(source), topology.rse(destination)] > 0
    ]


def _carry_out(grid: SimulatedGrid, calls: Sequence[Call], key: str) -> None:
    for method, arguments in calls:
        getattr(grid, method)(*arguments, key=key)


def _setting(call: Call) -> Call:
    """What the call sets, without the value."""
    method, arguments = call
    return method, arguments[:-1]


def _as_it_is(grid: SimulatedGrid, call: Call) -> Call:
    """The call that sets the same as it is now."""
    method, setting = _setting(call)
    match method, setting:
        case "set_distance", (source, destination):
            value: object = grid.distance(source, destination)
        case "set_availability", (rse, operation):
            value = getattr(grid.rse(rse), operation)
        case "set_storage_limit", (rse, direction):
            value = grid.storage_limit(rse, direction)
        case _:
            raise GridError(f"nothing puts back {method!r}")
    return method, (*setting, value)
