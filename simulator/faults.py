"""What can be wrong with a grid, where, from when to when; and what that does to storage and network while it lasts."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulator.draws import Draws, For
from simulator.topology import Topology

HOUR = 3600.0


class FaultKind(enum.StrEnum):
    """`strength` means for each kind what stands beside it."""

    READ_SLOW = "read-slow"  # fraction of its bandwidth that one file being read has left
    WRITE_SLOW = "write-slow"  # the same for writing
    DISK_FULL = "disk-full"  # share of writes that find no space
    DOOR_REFUSES = "door-refuses"  # share of connections that the storage's door refuses
    DOOR_BUSY = "door-busy"  # connections that the door still takes at once
    PACKETS_LOST = "packets-lost"  # fraction of packets lost from one site to another


@dataclass(slots=True, kw_only=True)
class Fault:
    """One thing that is wrong. `culprit` is `rse:X` or `network:S>T`; times are seconds after the world's start.

    A support ticket may bring `end` forward, never back.
    """

    number: int
    kind: FaultKind
    culprit: str
    start: float
    end: float
    strength: float

    @property
    def where(self) -> str:
        """The name of the culprit, without its kind."""
        return self.culprit.partition(":")[2]

    def found_by(self, culprit: str, topology: Topology) -> bool:
        """Whether support would find it if it were told of `culprit`: the thing itself, its site, or a link that it is on."""
        kind, _, name = culprit.partition(":")
        ends = name.split(">")
        if self.where in topology.storages:
            return culprit in {self.culprit, f"site:{topology.storages[self.where].site}"} or (
                kind == "link" and self.where in ends
            )
        sites = (topology.storages[end].site if end in topology.storages else end for end in ends)
        return kind in {"link", "network"} and ">".join(sites) == self.where


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is left of a storage element."""

    read: float = 1.0
    write: float = 1.0
    full: float = 0.0
    refuses: float = 0.0
    connections: int | None = None

    @property
    def slowness(self) -> float:
        """How much longer its door takes: disks that are slow answer metadata slowly too."""
        return float(min(self.read, self.write) ** -0.8)


HEALTHY = Health()


class Conditions:
    """What the faults of this moment do, by storage element and by path; whatever is not named is as it should be."""

    def __init__(self, active: Iterable[Fault]) -> None:
        self.storages: dict[str, Health] = {}
        self.losses: dict[tuple[str, str], float] = {}
        places: dict[str, list[Fault]] = {}
        for fault in active:
            places.setdefault(fault.where, []).append(fault)
        for where, faults in places.items():
            if ">" in where:
                source, _, destination = where.partition(">")
                self.losses[source, destination] = max(fault.strength for fault in faults)
            else:
                self.storages[where] = _health(faults)

    def storage(self, name: str) -> Health:
        return self.storages.get(name, HEALTHY)

    def loss(self, source: str, destination: str, usual: float) -> float:
        return max(usual, self.losses.get((source, destination), 0.0))


def _health(faults: Sequence[Fault]) -> Health:
    strength = {fault.kind: fault.strength for fault in faults}
    busy = strength.get(FaultKind.DOOR_BUSY)
    return Health(
        read=strength.get(FaultKind.READ_SLOW, 1.0),
        write=strength.get(FaultKind.WRITE_SLOW, 1.0),
        full=strength.get(FaultKind.DISK_FULL, 0.0),
        refuses=strength.get(FaultKind.DOOR_REFUSES, 0.0),
        connections=None if busy is None else round(busy),
    )


_STRENGTHS = {
    FaultKind.READ_SLOW: (0.02, 0.06),
    FaultKind.WRITE_SLOW: (0.02, 0.06),
    FaultKind.DISK_FULL: (0.8, 1.0),
    FaultKind.DOOR_REFUSES: (0.7, 1.0),
    FaultKind.DOOR_BUSY: (2.0, 5.0),
    FaultKind.PACKETS_LOST: (0.01, 0.04),
}
_KINDS = tuple(FaultKind)
_APART = 4  # so many faults in a row have different culprits
_FAR_S = 0.015  # round trip from which on lost packets are felt


def outbreak(number: int, before: Sequence[Fault], *, first: float, topology: Topology, draws: Draws) -> Fault:
    """The fault of that number out of an endless sequence, given those drawn before it.

    One breaks out every one to two hours and lasts one to four; the first starts at `first` and is a slow storage
    element. Each six in a row hold every kind once.
    """
    gap = draws.between(HOUR, 2 * HOUR, For.FAULT, number, 0)
    start = before[-1].start + gap if before else first
    block = number // len(_KINDS)
    order = sorted(_KINDS, key=lambda kind: draws.uniform(For.FAULT, block, 1000 + _KINDS.index(kind)))
    if block == 0:
        order.sort(key=lambda kind: kind is not FaultKind.READ_SLOW)
    kind = order[number % len(_KINDS)]
    places = _places(kind, topology)
    recent = {fault.culprit for fault in before[-_APART:]}
    likely = [(place, weight) for place, weight in places if place not in recent]
    strongest, weakest = _STRENGTHS[kind]
    if number == 0:  # the first one strikes hard, and where it is soon seen
        likely = sorted(likely, key=lambda place: -place[1])[:4]
        weakest = strongest + (weakest - strongest) / 4
    cumulative = [sum(weight for _, weight in likely[: i + 1]) for i in range(len(likely))]
    return Fault(
        number=number,
        kind=kind,
        culprit=likely[draws.index(cumulative, For.FAULT, number, 1)][0],
        start=start,
        end=start + draws.between(HOUR, 4 * HOUR, For.FAULT, number, 2),
        strength=draws.between(strongest, weakest, For.FAULT, number, 3),
    )


def _places(kind: FaultKind, topology: Topology) -> list[tuple[str, float]]:
    """Where such a fault may strike, and how likely: where much is moved."""
    disks = [s for s in topology.storages.values() if s.name.endswith("_DATADISK")]
    if kind is not FaultKind.PACKETS_LOST:
        return [(f"rse:{storage.name}", storage.weight**2) for storage in disks]
    weights = {storage.site: storage.weight**2 for storage in disks}
    return [
        (f"network:{path.source}>{path.destination}", weights[path.source] * weights[path.destination])
        for path in topology.paths.values()
        if path.rtt_s > _FAR_S
    ]
