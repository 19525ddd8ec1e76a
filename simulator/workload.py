"""What the experiment wants moved and deleted: rules by activity, each for a dataset of files that have some replicas."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import accumulate

from simulator.draws import Draws, For
from simulator.state import File, Rule
from simulator.topology import Storage, Topology

_FILES = 8.0  # mean number of files in a rule, as drawn below; a test holds it to the rate of transfers
_REPLICAS = (0.25, 0.65, 0.9, 1.0)  # cumulative share of the datasets that have one replica, two, three, four
_MOST_FILES = 250
_MOST_BYTES = 7e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    name: str
    weight: float  # share of the rules
    priority: int
    bytes: float  # median of a file
    spread: float  # sigma of its logarithm
    files: float  # median of files in a rule
    to: str  # kind of space that it goes to
    scope: str
    kind: str
    export: bool = False  # out of the first site alone


_ACTIVITIES = (
    Activity(name="Production Input", weight=22, priority=4, bytes=120e6, spread=1.7, files=4, to="DATADISK",
             scope="mc16_13TeV", kind="EVNT"),
    Activity(name="Production Output", weight=18, priority=3, bytes=60e6, spread=1.8, files=4, to="DATADISK",
             scope="mc16_13TeV", kind="HITS"),
    Activity(name="Data Consolidation", weight=18, priority=3, bytes=30e6, spread=1.8, files=5, to="DATADISK",
             scope="mc15_13TeV", kind="AOD"),
    Activity(name="Data Brokering", weight=10, priority=3, bytes=250e6, spread=1.4, files=3, to="DATADISK",
             scope="data17_13TeV", kind="DAOD_EXOT2"),
    Activity(name="User Subscriptions", weight=16, priority=3, bytes=4e6, spread=2.2, files=5, to="SCRATCHDISK",
             scope="user.u001", kind="hist-output"),
    Activity(name="T0 Export", weight=3, priority=5, bytes=1.5e9, spread=0.6, files=3, to="DATADISK",
             scope="data17_13TeV", kind="RAW", export=True),
    Activity(name="T0 Tape", weight=3, priority=5, bytes=1.8e9, spread=0.6, files=3, to="DATATAPE",
             scope="data17_13TeV", kind="RAW", export=True),
    Activity(name="Functional Test", weight=10, priority=3, bytes=10e6, spread=0.3, files=1, to="DATADISK",
             scope="tests", kind="test"),
)  # fmt: skip


class Workload:
    """Rules and deletions by number; which replicas exist and how large files are does not depend on the world."""

    def __init__(self, topology: Topology, draws: Draws) -> None:
        self._draws = draws
        self._spaces = {
            token: [s for s in topology.storages.values() if s.name.endswith(f"_{token}")]
            for token in ("DATADISK", "SCRATCHDISK", "DATATAPE")
        }
        self._activities = list(accumulate(activity.weight for activity in _ACTIVITIES))
        self._deletable = self._spaces["DATADISK"] + self._spaces["SCRATCHDISK"]
        self._deletable_weights = list(accumulate(storage.weight for storage in self._deletable))

    def pause(self, number: int, transfers_per_hour: float) -> float:
        """Seconds between the rule before and this one."""
        return self._draws.exponential(3600.0 * _FILES / transfers_per_hour, For.RULE, number, 0)

    def rule(self, number: int, closed: Container[str]) -> tuple[Rule, list[File]]:
        """The rule of that number and its files. It goes nowhere that is closed to writes, if there is a choice."""
        draw = self._draws
        activity = _ACTIVITIES[draw.index(self._activities, For.RULE, number, 1)]
        disks, spaces = self._shuffled("DATADISK", number, 2), self._shuffled(activity.to, number, 3)
        if activity.export:
            disks = self._spaces["DATADISK"][:1]
            spaces = [space for space in spaces if space is not disks[0]]
        destination = next((space for space in spaces if f"{space.name} write" not in closed), spaces[0])
        replicas = 1 + draw.index(_REPLICAS, For.RULE, number, 4)
        task = 10_000_000 + number
        rule = Rule(
            id=draw.hex(For.RULE, number, 5),
            activity=activity.name,
            scope=activity.scope,
            dataset=f"{activity.scope}.{task}.{activity.kind}",
            destination=destination.name,
            sources=[disk.name for disk in disks if disk is not destination][:replicas],
            priority=activity.priority,
        )
        count = min(_MOST_FILES, 1 + int(draw.lognormal(activity.files, 1.2, For.RULE, number, 6)))
        size = activity.bytes * draw.lognormal(
            1.0, 0.6 * activity.spread, For.RULE, number, 7
        )  # of this dataset's files
        files = [
            File(
                number=number * 1000 + i,
                name=f"{activity.kind}.{task}._{i:06d}.root.1",
                bytes=self._bytes(size, 0.8 * activity.spread, number * 1000 + i),
            )
            for i in range(count)
        ]
        rule.pending = count
        return rule, files

    def deletion(self, number: int) -> tuple[Storage, File, str]:
        """Where what is deleted, and its scope."""
        draw = self._draws
        storage = self._deletable[draw.index(self._deletable_weights, For.DELETION, number, 1)]
        activity = _ACTIVITIES[draw.index(self._activities, For.DELETION, number, 2)]
        size = self._bytes(activity.bytes, activity.spread, 1_000_000_000_000 + number)
        name = f"{activity.kind}.{9_000_000 + number // 50}._{number % 50:06d}.root.1"
        return storage, File(number=number, name=name, bytes=size), activity.scope

    def _bytes(self, median: float, spread: float, file: int) -> int:
        return int(min(_MOST_BYTES, max(1000.0, self._draws.lognormal(median, spread, For.FILE, file, 1))))

    def _shuffled(self, token: str, number: int, salt: int) -> list[Storage]:
        """All spaces of a kind, in an order that puts the heavy ones first more often."""
        spaces = self._spaces[token]
        waits = {
            s.name: self._draws.exponential(1.0 / s.weight, For.RULE, number, salt, i) for i, s in enumerate(spaces)
        }
        return sorted(spaces, key=lambda space: waits[space.name])
