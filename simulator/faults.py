"""What can be wrong with a grid, where, from when to when; and what that does to storage, network and FTS while it lasts.

Beside faults stand disturbances: what looks unusual and is nobody's fault. Times are seconds after the world's start.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from simulator.topology import Topology

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

HOUR: Final = 3600.0
FLAP_S: Final = 1200.0  # a flapping link loses packets for half of this, and is well for the other half
LONGER_ROUTE_LOSS: Final = 1e-3  # of packets, on a route that is longer than it should be
DOOR_SLOWNESS: Final = (
    0.8  # a door is slower by the bandwidth lost to this power: slow disks answer metadata slowly too
)


class FaultKind(enum.StrEnum):
    READ_SLOW = "read-slow"
    WRITE_SLOW = "write-slow"
    STORAGE_FULL = "storage-full"
    CREDENTIALS_EXPIRED = "credentials-expired"
    DISK_CORRUPT = "disk-corrupt"
    FILES_MISSING = "files-missing"
    OVERLOADED = "overloaded"
    LINK_LOSSY = "link-lossy"
    SITE_LOSSY = "site-lossy"
    ROUTE_LONGER = "route-longer"
    FTS_STALLED = "fts-stalled"
    TAPE_SLOW = "tape-slow"
    SITE_DARK = "site-dark"
    BLACK_HOLE = "black-hole"
    LINK_FLAPPING = "link-flapping"


class Target(enum.StrEnum):
    """What a fault strikes: the word before the colon of its culprit."""

    RSE = "rse"  # rse:NAME
    NETWORK = "network"  # network:SITE>SITE, in this direction
    SITE = "site"  # site:NAME
    FTS = "fts"  # fts:HOST


@dataclass(frozen=True, slots=True)
class Nature:
    """Of a kind of fault: what it strikes, what its `strength` means, how strong it is if nobody says, and may be at all."""

    target: Target
    means: str
    mildest: float
    gravest: float
    low: float
    high: float


_R, _N, _S, _F = Target.RSE, Target.NETWORK, Target.SITE, Target.FTS
NATURES: Final[Mapping[FaultKind, Nature]] = {
    FaultKind.READ_SLOW: Nature(_R, "factor of its bandwidth that one file being read has left", 0.06, 0.02, 0.001, 1),
    FaultKind.WRITE_SLOW: Nature(
        _R, "factor of its bandwidth that one file being written has left", 0.06, 0.02, 0.001, 1
    ),
    FaultKind.STORAGE_FULL: Nature(_R, "share of writes that find no space", 0.8, 1, 0, 1),
    FaultKind.CREDENTIALS_EXPIRED: Nature(
        _R, "share of transfers from and to it, and of deletions, that are refused", 0.7, 1, 0, 1
    ),
    FaultKind.DISK_CORRUPT: Nature(_R, "share of its files whose checksum is wrong once they are read", 0.3, 0.7, 0, 1),
    FaultKind.FILES_MISSING: Nature(_R, "share of its files that are not found", 0.3, 0.7, 0, 1),
    FaultKind.OVERLOADED: Nature(_R, "number of connections that its door still takes at once", 3, 1, 1, 1000),
    FaultKind.LINK_LOSSY: Nature(_N, "share of packets lost", 0.005, 0.04, 0, 1),
    FaultKind.SITE_LOSSY: Nature(_S, "share of packets lost on every path into and out of it", 0.01, 0.04, 0, 1),
    FaultKind.ROUTE_LONGER: Nature(_N, "factor of the round trip", 3, 8, 1, 50),
    FaultKind.FTS_STALLED: Nature(_F, "factor of its slots that are left", 0.01, 0, 0, 1),
    FaultKind.TAPE_SLOW: Nature(_R, "factor of the time to mount a tape", 8, 20, 1, 1000),
    FaultKind.SITE_DARK: Nature(_S, "share of connections to any of its storage that are refused", 0.9, 1, 0, 1),
    FaultKind.BLACK_HOLE: Nature(_R, "share of transfers to it that fail within seconds", 0.9, 1, 0, 1),
    FaultKind.LINK_FLAPPING: Nature(_N, "share of packets lost, ten minutes in every twenty", 0.02, 0.08, 0, 1),
}


@dataclass(slots=True, kw_only=True)
class Fault:
    """One thing that is wrong in [start, end). A support ticket may bring `end` forward, never back.

    One that does not recover by itself has no end, which is infinity, until a ticket finds it.
    """

    number: int
    kind: FaultKind
    culprit: str
    start: float
    end: float
    strength: float
    recovers: bool = True

    @property
    def where(self) -> str:
        """The name of the culprit, without its kind."""
        return self.culprit.partition(":")[2]

    def active(self, at: float) -> bool:
        return self.start <= at < self.end

    def found_by(self, culprit: str, topology: Topology) -> bool:
        """Whether support would find it if it were told of `culprit`: the thing itself, its site, or a link that it is on."""
        kind, _, name = culprit.partition(":")
        ends = name.split(">")
        if culprit == self.culprit:
            return True
        target = NATURES[self.kind].target
        if target is Target.RSE:
            site = topology.sites[topology.rse_site[topology.rse(self.where)]]
            return culprit == f"site:{site}" or (kind == "link" and self.where in ends)
        sites = [_site_of(end, topology) for end in ends]
        if target is Target.SITE:
            return kind in {"rse", "link", "network"} and self.where in sites
        return target is Target.NETWORK and kind in {"link", "network"} and ">".join(sites) == self.where


def _site_of(name: str, topology: Topology) -> str:
    """The site of a storage element; what is none stays as it is."""
    return topology.sites[topology.rse_site[topology.rses.index(name)]] if name in topology.rses else name


def possible(kind: FaultKind, topology: Topology) -> bool:
    """Whether the grid has what such a fault strikes."""
    return kind is not FaultKind.TAPE_SLOW or bool(topology.tape.any())


class DisturbanceKind(enum.StrEnum):
    """`strength` means for each kind what stands beside it."""

    LARGE_FILES = "large-files"  # factor of the files' sizes
    BUSY_DAY = "busy-day"  # factor of what arrives
    DOWNTIME = "downtime"  # none: whatever it names is closed, as was announced


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What is unusual in [start, end), and no fault. `where` is empty (everywhere), site:X, rse:X or activity:X."""

    kind: DisturbanceKind
    where: str
    start: float
    end: float
    strength: float

    def rses(self, topology: Topology) -> IntArray:
        """The storage elements that it is about; all of them for an activity."""
        what, _, name = self.where.partition(":")
        if what == "rse":
            return np.array([topology.rse(name)], dtype=np.int64)
        if what == "site":
            return np.flatnonzero(topology.rse_site == topology.site(name))
        return np.arange(len(topology.rses), dtype=np.int64)


class Blame(enum.IntEnum):
    """Rows of `Conditions.blame`."""

    FULL = 0
    CREDENTIALS = 1
    CORRUPT = 2
    MISSING = 3
    REFUSED = 4
    BLACK_HOLE = 5
    BUSY = 6
    READ = 7
    WRITE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the faults of a moment do. R storage elements, S sites, F FTS servers; the graver of two faults counts."""

    read: FloatArray  # [R] factors of what one file gets; all files together get the square root of it
    write: FloatArray
    overhead: FloatArray  # [R] factor of the door's time
    full: FloatArray  # [R] shares that fail, from here
    credentials: FloatArray
    corrupt: FloatArray
    missing: FloatArray
    refused: FloatArray
    black_hole: FloatArray  # to here
    busy: IntArray  # [R] connections still taken; 0: as many as ever
    mount: FloatArray  # [R] factor of the time to mount a tape
    blame: IntArray  # [9, R] number of the fault behind each of `Blame`, -1 where there is none
    loss: FloatArray  # [S, S] share of packets
    rtt_s: FloatArray  # [S, S]
    slots: FloatArray  # [F] factor of the slots

    @classmethod
    def of(cls, topology: Topology, active: Iterable[Fault], at: float) -> Conditions:
        """The conditions at the moment `at` under the faults that are active then."""
        conditions = cls._sound(topology)
        for fault in active:
            conditions.strike(fault, topology, at)
        np.minimum(conditions.read, conditions.write, out=conditions.overhead)
        np.power(conditions.overhead, -DOOR_SLOWNESS, out=conditions.overhead)
        return conditions

    @classmethod
    def _sound(cls, topology: Topology) -> Conditions:
        rses = len(topology.rses)
        return cls(
            read=np.ones(rses),
            write=np.ones(rses),
            overhead=np.ones(rses),
            full=np.zeros(rses),
            credentials=np.zeros(rses),
            corrupt=np.zeros(rses),
            missing=np.zeros(rses),
            refused=np.zeros(rses),
            black_hole=np.zeros(rses),
            busy=np.zeros(rses, dtype=np.int64),
            mount=np.ones(rses),
            blame=np.full((len(Blame), rses), -1, dtype=np.int64),
            loss=topology.loss.copy(),
            rtt_s=topology.rtt_s.copy(),
            slots=np.ones(len(topology.fts)),
        )

    def strike(self, fault: Fault, topology: Topology, at: float) -> None:
        """Make it as bad as this fault makes it; `overhead` follows at the end."""
        target = NATURES[fault.kind].target
        if target is Target.RSE:
            self._strike_rse(fault, topology.rse(fault.where))
        elif target is Target.SITE:
            self._strike_site(fault, topology)
        elif target is Target.FTS:
            server = topology.server(fault.where)
            self.slots[server] = min(self.slots[server], fault.strength)
        else:
            source, destination = (topology.site(end) for end in fault.where.split(">"))
            self._strike_path(fault, source, destination, topology, at)

    def _strike_rse(self, fault: Fault, rse: int) -> None:
        strength = fault.strength
        if fault.kind is FaultKind.TAPE_SLOW:
            self.mount[rse] = max(self.mount[rse], strength)
        elif fault.kind is FaultKind.OVERLOADED:
            if self.busy[rse] == 0 or strength < self.busy[rse]:
                self.busy[rse], self.blame[Blame.BUSY, rse] = round(strength), fault.number
        elif fault.kind in {FaultKind.READ_SLOW, FaultKind.WRITE_SLOW}:
            row, factors = (Blame.READ, self.read) if fault.kind is FaultKind.READ_SLOW else (Blame.WRITE, self.write)
            if strength < factors[rse]:
                factors[rse], self.blame[row, rse] = strength, fault.number
        else:
            row, shares = {
                FaultKind.STORAGE_FULL: (Blame.FULL, self.full),
                FaultKind.CREDENTIALS_EXPIRED: (Blame.CREDENTIALS, self.credentials),
                FaultKind.DISK_CORRUPT: (Blame.CORRUPT, self.corrupt),
                FaultKind.FILES_MISSING: (Blame.MISSING, self.missing),
                FaultKind.BLACK_HOLE: (Blame.BLACK_HOLE, self.black_hole),
            }[fault.kind]
            if strength > shares[rse]:
                shares[rse], self.blame[row, rse] = strength, fault.number

    def _strike_site(self, fault: Fault, topology: Topology) -> None:
        site = topology.site(fault.where)
        others = np.arange(len(topology.sites)) != site
        dark = fault.kind is FaultKind.SITE_DARK
        loss = 1.0 if dark else fault.strength
        self.loss[site, others] = np.maximum(self.loss[site, others], loss)
        self.loss[others, site] = np.maximum(self.loss[others, site], loss)
        if dark:
            graver = (topology.rse_site == site) & (self.refused < fault.strength)
            self.refused[graver], self.blame[Blame.REFUSED, graver] = fault.strength, fault.number

    def _strike_path(self, fault: Fault, source: int, destination: int, topology: Topology, at: float) -> None:
        path = (source, destination)
        if fault.kind is FaultKind.ROUTE_LONGER:
            self.rtt_s[path] = max(self.rtt_s[path], topology.rtt_s[path] * fault.strength)
            self.loss[path] = max(self.loss[path], LONGER_ROUTE_LOSS)
        elif fault.kind is FaultKind.LINK_LOSSY or flapped(fault, at):
            self.loss[path] = max(self.loss[path], fault.strength)


def flapped(fault: Fault, at: float) -> bool:
    """Whether a flapping link loses packets at that moment."""
    return (at - fault.start) % FLAP_S < FLAP_S / 2


def changes(faults: Iterable[Fault], after: float) -> float:
    """The next moment after `after` at which conditions are others; infinity if they stay as they are."""
    return min((_next(fault, after) for fault in faults if fault.end > after), default=math.inf)


def _next(fault: Fault, after: float) -> float:
    if fault.start > after:
        return fault.start
    if fault.kind is not FaultKind.LINK_FLAPPING:
        return fault.end
    half = FLAP_S / 2
    flap = fault.start + half * (math.floor((after - fault.start) / half) + 1)
    return min(flap, fault.end) if flap > after else min(flap + half, fault.end)
