"""Trust: how often a remedy is right in a kind of incident, at least. Earned from what operators say and what the grid did.

Both are needed: trust is the lower of the two bounds. It orders nothing and lifts no cap; the policy compares it with its
limit. A pure fold over lessons, so the same rows give the same trust.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from models.domain import FeedbackSource, IncidentKind
from ranking.reward import RIGHT_BELOW, Lesson

WAIT = "wait"  # the remedy that every other must beat
Z = 1.645  # one-sided 95 %
BORROWED = 4  # a remedy's experience in other kinds of incident counts as this many samples at most

_Case = tuple[str, int, bool]  # decision, option, whether it is the grid that speaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A lower confidence bound in [0, 1], and how many decisions in this kind of incident stand behind it."""

    lower: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """`agreement` is what operators say; `outcome` what the grid did, as the share of what waiting would not have fixed."""

    agreement: Bound
    outcome: Bound

    @property
    def lower(self) -> float:
        return min(self.agreement.lower, self.outcome.lower)

    @property
    def samples(self) -> int:
        return self.agreement.samples + self.outcome.samples


@dataclass(slots=True)
class _Tally:
    right: int = 0
    total: int = 0

    def count(self, *, right: bool, times: int) -> None:
        self.right += times * right
        self.total += times


class Record:
    """What has been said of every remedy and what became of it. Give it lessons in the order of their rows.

    A decision counts once, however often it is clicked on: the newest word of each operator holds, and one no among them
    makes it a no.
    """

    def __init__(self, lessons: Iterable[Lesson] = ()) -> None:
        self._words: dict[_Case, dict[str, bool]] = {}
        self._tallies: dict[tuple[bool, str], dict[str, _Tally]] = defaultdict(lambda: defaultdict(_Tally))
        self.add(lessons)

    def add(self, lessons: Iterable[Lesson]) -> None:
        for lesson in lessons:
            cost = lesson.cost
            if cost is None:
                continue
            feedback = lesson.feedback
            grid = feedback.source is FeedbackSource.OUTCOME
            words = self._words.setdefault((feedback.decision_id, feedback.option, grid), {})
            tally = self._tallies[grid, lesson.remedy][str(lesson.context["kind"])]
            if words:
                tally.count(right=all(words.values()), times=-1)
            words[feedback.by] = cost < RIGHT_BELOW
            tally.count(right=all(words.values()), times=1)

    def trust(self, remedy: str, kind: IncidentKind) -> Trust:
        """Trust in `remedy` for incidents of `kind`; 0 with 0 samples where nothing is known."""
        agreed, said = self._counts(remedy, kind, grid=False)
        fixed, tried = self._counts(remedy, kind, grid=True)
        outcome = wilson_lower(fixed, tried)
        if remedy != WAIT:
            outcome = _beyond_waiting(outcome, *self._counts(WAIT, kind, grid=True))
        return Trust(
            agreement=Bound(lower=wilson_lower(agreed, said), samples=self._tally(remedy, kind, grid=False).total),
            outcome=Bound(lower=outcome, samples=self._tally(remedy, kind, grid=True).total),
        )

    def _tally(self, remedy: str, kind: IncidentKind, *, grid: bool) -> _Tally:
        return self._tallies.get((grid, remedy), {}).get(str(kind)) or _Tally()

    def _counts(self, remedy: str, kind: IncidentKind, *, grid: bool) -> tuple[float, float]:
        """Right and total in this kind, with what is borrowed from the others."""
        own = self._tally(remedy, kind, grid=grid)
        kinds = self._tallies.get((grid, remedy), {})
        others = sum(tally.total for name, tally in kinds.items() if name != kind)
        if others == 0:
            return own.right, own.total
        right = sum(tally.right for name, tally in kinds.items() if name != kind) / others
        borrowed = min(BORROWED, others)
        return own.right + borrowed * right, own.total + borrowed


def trust(lessons: Iterable[Lesson], remedy: str, kind: IncidentKind) -> Trust:
    """Trust in `remedy` for incidents of `kind`, from all lessons."""
    return Record(lessons).trust(remedy, kind)


def wilson_lower(right: float, total: float) -> float:
    """Lower end of the one-sided 95 % Wilson interval of a share; 0 without samples.

    >>> round(wilson_lower(10, 10), 3)
    0.787
    """
    if total <= 0:
        return 0.0
    share, spread = right / total, Z * Z / total
    middle = share + spread / 2
    half = math.sqrt(max(0.0, spread * (share * (1 - share) + spread / 4)))
    return min(1.0, max(0.0, (middle - half) / (1 + spread)))


def _beyond_waiting(lower: float, healed: float, waited: float) -> float:
    """Share fixed of the incidents that would not have healed by themselves, at least.

    How many heal is the mean of the waits, started from one that healed and one that did not: as long as nobody has
    waited, half of them do.
    """
    baseline = (healed + 1) / (waited + 2)
    return max(0.0, (lower - baseline) / (1 - baseline))
