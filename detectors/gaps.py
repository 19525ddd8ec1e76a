"""How long nothing has come, in documents that would usually have come meanwhile, and whether that can be chance.

Documents that come by chance, `r` an hour, leave gaps of t hours with probability exp(-r t) (the gaps of a Poisson process). Real
feeds come in bursts, so the gaps' scale is taken from those seen: by the longest of them, which of n exponential gaps is on average
scale * (ln n + 0.577 + 1/2n) (the mean of their maximum, the n-th harmonic number), or by what is left of a gap at a random moment,
the sum of squares over twice the sum (renewal theory), whichever is shorter. The first sees through gaps that are all alike, the
second through gaps that are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHANCE = 1e-7  # that a gap so long comes about by itself, below which it is an incident
LONGER = 2.0  # times the longest gap seen
MIN_POLLS = 3  # that brought nothing
PLAIN = 0.02  # how much a document that came in no burst says against bursts: one odd gap in days makes no habit
_EULER = 0.5772156649


@dataclass(slots=True, kw_only=True)
class Gap:
    """The time since something came, by what was watched of it, and the longest before.

    >>> gap = Gap()
    >>> for missed in (1.0, 2.0, 5.0):
    ...     gap.grow(60.0, missed=missed)
    ...     gap.end(missed=2.0)
    >>> gap.longest, gap.ended, round(gap.scale, 2)
    (5.0, 3.0, 1.85)
    >>> gap.grow(900.0, missed=20.0)
    >>> round(gap.chance, 6)
    2e-05
    """

    seconds: float = 0.0
    missed: float = 0.0  # documents that would usually have come
    polls: int = 0
    told: float = 0.0  # what it had come to when it was told of
    # Of the gaps that have ended, in such documents; all of it fades with time.
    ended: float = 0.0
    plain: float = 0.0  # documents that came without one
    total: float = 0.0
    squares: float = 0.0
    longest: float = 0.0
    outlived: float = 0.0  # what one that was told of had come to by then

    def grow(self, seconds: float, *, missed: float) -> None:
        """A poll brought nothing."""
        self.seconds += seconds
        self.missed += missed
        self.polls += 1

    def end(self, *, missed: float, alarmed: bool = False) -> None:
        """A poll brought something, where so much was usual. What is learned is how long it had been known that nothing had.

        A gap that was told of was no habit of the feed, but if it comes again and again it is: so that much of it is learned.
        """
        self.plain += missed
        if alarmed:
            self.outlived = max(self.outlived, self.told)
        elif self.polls and self.missed:  # before anything is usual nothing is missed
            self.ended += 1.0
            self.total += self.missed
            self.squares += self.missed * self.missed
            self.longest = max(self.longest, self.missed)
        self.seconds, self.missed, self.polls, self.told = 0.0, 0.0, 0, 0.0

    def fade(self, share: float) -> None:
        self.ended *= share
        self.plain *= share
        self.total *= share
        self.squares *= share
        self.longest *= share
        self.outlived *= share

    @property
    def scale(self) -> float:
        """How many times longer than those of a Poisson process its gaps are; at least 1."""
        if not self.total:
            return 1.0
        number = max(self.ended, 1.0)
        by_longest = self.longest / (math.log(number) + _EULER + 1.0 / (2.0 * number))
        by_residual = self.squares / (2.0 * (self.total + PLAIN * self.plain))
        return max(1.0, min(by_longest, by_residual))

    @property
    def chance(self) -> float:
        """That a gap lasts so long."""
        return math.exp(-self.missed / self.scale)

    def is_improbable(self, least_s: float) -> bool:
        long = self.seconds >= least_s and self.polls >= MIN_POLLS
        return long and self.chance < CHANCE and self.missed >= LONGER * max(self.longest, self.outlived)
