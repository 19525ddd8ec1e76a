"""Where a fault would be felt: what arrives while it lasts, and how much of that it would hurt, by rule of thumb.

A fault at a place that nobody uses meanwhile is no fault to anybody, so places are drawn by the transfers that it would hurt.
What arrives does not depend on how the grid is doing, so this can be known before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from simulator.draws import Draws, FloatArray, For
from simulator.faults import (
    DOOR_SLOWNESS,
    FLAP_S,
    HOUR,
    LONGER_ROUTE_LOSS,
    NATURES,
    Disturbance,
    FaultKind,
    Target,
    possible,
)
from simulator.topology import IntArray, Topology, tcp_limit
from simulator.workload import Workload

ENOUGH: Final = 40.0  # transfers that a fault should hurt
WEIGHED_S: Final = 6 * HOUR  # of a fault, from its start, in which what it would hurt is counted
LATE_S: Final = 60.0  # by which a transfer is late, if it is by half of what it takes
_REST_S = 30.0  # of a transfer's time, beside its bytes
_HANDSHAKES = 12.0  # round trips before the first byte
_SLOT_S = 40.0  # that a transfer has a slot of FTS
_TOGETHER_S = 60.0  # what comes within this is at the door at once
_TAPE_LAST, _NOWHERE = 1000, 1 << 30  # distances
_READING = frozenset({FaultKind.READ_SLOW, FaultKind.DISK_CORRUPT, FaultKind.FILES_MISSING, FaultKind.TAPE_SLOW})
_WRITING = frozenset({FaultKind.WRITE_SLOW, FaultKind.STORAGE_FULL, FaultKind.BLACK_HOLE})

Place = tuple[str, float]  # culprit, transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Transfers whose way is known, [n] each: when they are asked for, from where to where, how large they are."""

    at: FloatArray
    source: IntArray
    destination: IntArray
    bytes: FloatArray

    def within(self, start: float, end: float) -> Arrivals:
        kept = (start <= self.at) & (self.at < end)
        return Arrivals(
            at=self.at[kept], source=self.source[kept], destination=self.destination[kept], bytes=self.bytes[kept]
        )


class Places:
    """What faults may strike in a grid, and what they would hurt there."""

    def __init__(
        self, topology: Topology, draws: Draws, workload: Workload, downtimes: Sequence[Disturbance] = ()
    ) -> None:
        self._topology = topology
        self._draws = draws
        self._workload = workload
        self._downtimes = downtimes
        self._hour = lru_cache(maxsize=16)(self._arrivals)

    def of(
        self, kind: FaultKind, strength: float, start: float, end: float, *, tape: bool | None = None
    ) -> list[Place]:
        """Every culprit that such a fault may have and that would hurt anything in its first hours; the worst comes first.

        `tape`: storage elements on tape only, or on disk only.
        """
        end = min(end, start + WEIGHED_S)
        hours = [self._hour(hour) for hour in range(int(start // HOUR), int(np.ceil(end / HOUR)))]
        arrivals = Arrivals(
            **{name: np.concatenate([getattr(hour, name) for hour in hours]) for name in Arrivals.__slots__}
        ).within(start, end)
        topology, target = self._topology, NATURES[kind].target
        if target is Target.RSE:
            hurt = self._rses(kind, strength, arrivals)
            on_tape = True if kind is FaultKind.TAPE_SLOW else tape
            names = [
                f"rse:{name}" if on_tape is None or bool(there) == on_tape else ""
                for name, there in zip(topology.rses, topology.tape, strict=True)
            ]
        elif target is Target.NETWORK:
            hurt = self._networks(kind, strength, arrivals, start)
            names = [f"network:{a}>{b}" if a != b else "" for a in topology.sites for b in topology.sites]
        elif target is Target.SITE:
            hurt = self._sites(kind, strength, arrivals)
            names = [f"site:{name}" for name in topology.sites]
        else:
            served = np.bincount(self._server(arrivals), minlength=len(topology.fts))
            hurt = served - np.ceil(strength * topology.slots) * (end - start) / _SLOT_S
            names = [f"fts:{name}" for name in topology.fts]
        found = [(name, weight) for name, weight in zip(names, hurt.tolist(), strict=True) if name and weight > 0]
        return sorted(found, key=lambda place: -place[1])

    def choose(
        self,
        kind: FaultKind,
        strength: float,
        times: tuple[float, float],
        uniform: float,
        *,
        apart: Collection[str] = (),
        tape: bool | None = None,
        among: int | None = None,
    ) -> str:
        """One of the places where it would hurt enough, by how much, and a number between 0 and 1.

        Not one of the culprits in `apart`, nor at a site of them, if that can be. `among`: the few worst ones only.
        """
        found = self.of(kind, strength, *times, tape=tape) or self._anywhere(kind, tape=tape)
        least = min(ENOUGH, found[0][1] / 2)
        found = (
            self._apart([place for place in found if place[1] >= least], apart) or self._apart(found, apart) or found
        )
        return drawn(found[:among], np.array([uniform]))[0]

    def usual(self, culprit: str, uniforms: FloatArray) -> list[str]:
        """Sites or storage elements, by how large they are: what `site:any` and its like stand for in disturbances."""
        kind = FaultKind.SITE_DARK if culprit.startswith("site:") else FaultKind.OVERLOADED
        tape = {"rse:any-disk": False, "rse:any-tape": True}.get(culprit)
        return drawn(self._anywhere(kind, tape=tape), uniforms)

    def possible(self, kind: FaultKind) -> bool:
        """Whether the grid has what such a fault strikes."""
        return possible(kind, self._topology)

    def sites(self, culprit: str) -> frozenset[str]:
        """The sites that it is at; none for an FTS server, which is at none of them."""
        kind, _, name = culprit.partition(":")
        if kind == Target.RSE:
            return frozenset({self._topology.sites[self._topology.rse_site[self._topology.rse(name)]]})
        return frozenset() if kind == Target.FTS else frozenset(name.split(">"))

    def _apart(self, found: Sequence[Place], culprits: Collection[str]) -> list[Place]:
        """Those at other sites, or at least other ones, if there are any."""
        sites = frozenset[str]().union(*(self.sites(culprit) for culprit in culprits))
        others = [place for place in found if place[0] not in culprits]
        return [place for place in others if not sites & self.sites(place[0])] or others

    def _anywhere(self, kind: FaultKind, *, tape: bool | None) -> list[Place]:
        """Every culprit that such a fault may have, by how large it is."""
        topology, target = self._topology, NATURES[kind].target
        if target is Target.RSE:
            tape = True if kind is FaultKind.TAPE_SLOW else tape
            weight = topology.weight * topology.site_weight[topology.rse_site]
            each = zip(topology.rses, weight.tolist(), topology.tape, strict=True)
            return [(f"rse:{name}", size) for name, size, on_tape in each if tape is None or on_tape == tape]
        weights = topology.site_weight.tolist()
        if target is Target.SITE:
            return [(f"site:{name}", size) for name, size in zip(topology.sites, weights, strict=True)]
        if target is Target.FTS:
            return [(f"fts:{name}", 1.0) for name in topology.fts]
        sites = list(zip(topology.sites, weights, strict=True))
        return [(f"network:{a}>{b}", x * y) for a, x in sites for b, y in sites if a != b]

    def _arrivals(self, hour: int) -> Arrivals:
        """What arrives in an hour, each file from its nearest source to its first candidate."""
        topology, period = self._topology, self._workload.period(hour)
        destination, sources = period.destinations[:, 0].astype(np.int64), period.sources.astype(np.int64)
        distance = topology.distance[sources, destination[:, None]]
        far = np.where((sources < 0) | (distance == 0), _NOWHERE, distance + _TAPE_LAST * topology.tape[sources])
        far = far + self._draws.uniforms(For.FILE, period.rules["number"][:, None], sources)  # as Rucio breaks ties
        source = sources[np.arange(len(sources)), far.argmin(axis=1)]
        destination, source = self._open(hour, destination), self._open(hour, source)
        kept = (destination >= 0) & (source >= 0) & (period.rules["brokered"] == 0)  # a broker may choose another place
        files = period.rules["files"] * kept
        return Arrivals(
            at=np.repeat(period.rules["at"], files),
            source=np.repeat(source, files),
            destination=np.repeat(destination, files),
            bytes=period.bytes[np.repeat(kept, period.rules["files"])].astype(np.float64),
        )

    def _open(self, hour: int, rses: IntArray) -> IntArray:
        """The same, with -1 for those that are in a downtime in this hour."""
        closed = np.zeros(len(self._topology.rses), dtype=np.bool_)
        for one in self._downtimes:
            if one.start < (hour + 1) * HOUR and hour * HOUR < one.end:
                closed[one.rses(self._topology)] = True
        return np.where(closed[rses], -1, rses)

    def _server(self, arrivals: Arrivals) -> IntArray:
        return self._topology.site_fts[self._topology.rse_site[arrivals.destination]]

    def _rses(self, kind: FaultKind, strength: float, arrivals: Arrivals) -> FloatArray:
        """Transfers that it would hurt at each storage element; f8[R]."""
        count = len(self._topology.rses)
        if kind is FaultKind.OVERLOADED:
            return self._crowded(strength, arrivals)
        hurt = np.zeros(count)
        for ends, skipped in ((arrivals.source, _WRITING), (arrivals.destination, _READING)):
            if kind in skipped:
                continue
            if kind in {FaultKind.READ_SLOW, FaultKind.WRITE_SLOW}:
                hurt += np.bincount(ends[self._slow(strength, ends, arrivals.bytes)], minlength=count)
            else:
                hurt += np.bincount(ends, minlength=count) * (1.0 if kind is FaultKind.TAPE_SLOW else strength)
        return hurt

    def _slow(self, factor: float, rse: IntArray, size: FloatArray) -> npt.NDArray[np.bool_]:
        """What would be late if its storage element had so much of its bandwidth left."""
        well = size / self._topology.stream[rse]
        return _late(well / factor - well + self._topology.overhead_s[rse] * (factor**-DOOR_SLOWNESS - 1.0), well)

    def _crowded(self, connections: float, arrivals: Arrivals) -> FloatArray:
        """What comes at about the same time as others, and would be turned away."""
        count, bins = len(self._topology.rses), (arrivals.at // _TOGETHER_S).astype(np.int64)
        rses = np.concatenate([arrivals.source, arrivals.destination])
        crowds, sizes = np.unique(np.concatenate([bins, bins]) * count + rses, return_counts=True)
        return np.bincount(crowds % count, np.maximum(sizes - connections, 0.0), minlength=count).astype(np.float64)

    def _paths(self, arrivals: Arrivals) -> IntArray:
        site = self._topology.rse_site
        return site[arrivals.source] * len(self._topology.sites) + site[arrivals.destination]

    def _networks(self, kind: FaultKind, strength: float, arrivals: Arrivals, start: float) -> FloatArray:
        """Transfers that it would hurt on each path; f8[S * S]."""
        rtt_s, loss = self._topology.rtt_s, self._topology.loss
        if kind is FaultKind.ROUTE_LONGER:
            late = self._lost(arrivals, rtt_s * strength, np.maximum(loss, LONGER_ROUTE_LOSS))
        else:
            late = self._lost(arrivals, rtt_s, np.maximum(loss, strength))
        if kind is FaultKind.LINK_FLAPPING:
            late &= (arrivals.at + _REST_S - start) % FLAP_S < FLAP_S / 2 - 2 * LATE_S  # the next lull is not too near
        return np.bincount(self._paths(arrivals)[late], minlength=loss.size).astype(np.float64)

    def _sites(self, kind: FaultKind, strength: float, arrivals: Arrivals) -> FloatArray:
        """Transfers that it would hurt at each site; f8[S]."""
        count, site = len(self._topology.sites), self._topology.rse_site
        here, there = site[arrivals.source], site[arrivals.destination]
        if kind is FaultKind.SITE_DARK:
            weight = np.full(len(here), strength)
        else:
            lost = self._lost(arrivals, self._topology.rtt_s, np.maximum(self._topology.loss, strength))
            weight = (lost & (here != there)).astype(np.float64)
        hurt = np.bincount(here, weight, count) + np.bincount(there, weight * (here != there), count)
        return hurt.astype(np.float64)

    def _lost(self, arrivals: Arrivals, rtt_s: FloatArray, loss: FloatArray) -> npt.NDArray[np.bool_]:
        """What would be late with these round trips and losses between sites."""
        path = self._paths(arrivals)
        limits = np.array([tcp_limit(*each) for each in zip(rtt_s.ravel(), loss.ravel(), strict=True)])
        stream = np.minimum(self._topology.stream[arrivals.source], self._topology.stream[arrivals.destination])
        well = arrivals.bytes / stream
        sick = arrivals.bytes / np.minimum(limits[path], stream) + _HANDSHAKES * rtt_s.ravel()[path]
        return _late(sick - well, well)


def _late(by_s: FloatArray, well_s: FloatArray) -> npt.NDArray[np.bool_]:
    late: npt.NDArray[np.bool_] = by_s > np.maximum(LATE_S, 0.5 * (well_s + _REST_S))
    return late


def drawn(places: Sequence[Place], uniforms: FloatArray) -> list[str]:
    """Culprits by their weights, one for each of some numbers between 0 and 1."""
    cumulative = np.cumsum([weight for _, weight in places])
    chosen = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    return [places[place][0] for place in np.minimum(chosen, len(places) - 1).tolist()]
