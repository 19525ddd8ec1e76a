"""What one policy did in one world: what is kept of a run to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An incident that was opened; times in seconds after the world's start."""

    opened: float  # when whoever watches could know of it
    culprit: str
    kind: str
    anomalous: int  # transfers
    hurt: Mapping[int, int]  # those of them that a fault hurt, by the number of the fault

    @property
    def causes(self) -> list[int]:
        """Numbers of the faults that hurt at least half of its transfers, the one that hurt most first."""
        by_weight = sorted(self.hurt.items(), key=lambda entry: (-entry[1], entry[0]))
        return [number for number, count in by_weight if 2 * count >= self.anomalous]


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A fault of the run, as the truth has it; times in seconds after the world's start."""

    number: int
    kind: str
    culprits: frozenset[str]  # who is rightly blamed: a site with one storage element is that
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hurt:
    """Requests of transfers that went worse than in the twin, a row for each; every array has shape (n,)."""

    file: NDArray[np.int64]  # the transfer
    fault: NDArray[np.int64]  # -1: nobody knows
    created: NDArray[np.float64]
    ended: NDArray[np.float64]

    def of(self, fault: int) -> Hurt:
        """Those that this fault hurt."""
        own = self.fault == fault
        return Hurt(file=self.file[own], fault=self.fault[own], created=self.created[own], ended=self.ended[own])

    @property
    def transfers(self) -> int:
        return len(np.unique(self.file))


@dataclass(slots=True, kw_only=True)
class Trial:
    """One run."""

    policy: str
    seed: int
    days: float
    faults: tuple[Struck, ...]
    hurt: Hurt
    alarms: list[Alarm] | None = None  # None: this policy does not look
    right_actions: int = 0
    wrong_actions: int = 0
    questions: int = 0
    first_choices: list[tuple[int, bool]] = field(default_factory=list)  # day, and whether it was right
