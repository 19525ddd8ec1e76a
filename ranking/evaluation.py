"""Judging a ranking on the log before it is trusted: what it would have cost, whether the log agrees, whether it replays.

Only recommendations have a propensity, so only they enter an estimate of costs. Estimates from a log are wide, some
hundredths to some tenths for 1,000 decisions: report them, do not gate on them daily.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.domain import Decision, RemedyCard
from ranking.bandit import Bandit, Ranking
from ranking.reward import RIGHT_BELOW, Lesson

Z = 1.96  # two-sided 95 %

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An expected cost in [0, 1] with its 95 % interval, from `n` decisions that tell as much as `effective` would
    have that the policy itself had made.
    """

    cost: float
    low: float
    high: float
    n: int
    effective: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the log says of a policy's best remedies: decisions in which it was right, wrong, or nothing was said of it."""

    right: int
    wrong: int
    unsaid: int


def snips(costs: _Floats, logged: _Floats, target: _Floats) -> Estimate:
    """Self-normalised inverse propensity estimate of a policy's cost.

    Of each decision's recommendation: its cost, the probability `logged` when it was drawn, and the one that the policy
    judged gives it; all shaped [n]. Raises ValueError for probabilities outside (0, 1] (logged) or [0, 1] (target).
    """
    if not (np.all((logged > 0) & (logged <= 1)) and np.all((target >= 0) & (target <= 1))):
        raise ValueError(
            "a logged probability must lie in (0, 1], a policy's in [0, 1]; look for rows without a propensity"
        )
    weights = target / logged
    total = float(weights.sum())
    if total <= 0.0:
        return Estimate(cost=0.5, low=0.0, high=1.0, n=costs.size, effective=0.0)
    squares = float((weights**2).sum())
    cost = float(weights @ costs) / total
    # Two decisions made up, one right and one wrong, keep the interval honest where all that there are agree.
    typical = squares / total
    weights = np.append(weights, [typical, typical])
    known = np.append(costs, [0.0, 1.0])
    middle = float(weights @ known / weights.sum())
    half = Z * math.sqrt(float(weights**2 @ (known - middle) ** 2)) / float(weights.sum())
    return Estimate(
        cost=cost,
        low=min(cost, max(0.0, middle - half)),
        high=max(cost, min(1.0, middle + half)),
        n=costs.size,
        effective=total**2 / squares,
    )


def estimate(lessons: Iterable[Lesson], rankings: Mapping[str, Ranking]) -> Estimate:
    """What a policy would have cost, from its rankings by decision; a decision that it did not rank is left out."""
    rows: list[tuple[float, float, float]] = []
    for decision, said in _by_decision(lessons).items():
        drawn = [(row, row.cost) for row in said if row.feedback.propensity is not None]
        costs = [cost for _, cost in drawn if cost is not None]
        if costs and decision in rankings:
            lesson, ranking = drawn[0][0], rankings[decision]
            target = ranking.probabilities[ranking.remedies.index(lesson.remedy)]
            rows.append((sum(costs) / len(costs), lesson.feedback.propensity or 0.0, target))
    return snips(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


def agreement(lessons: Iterable[Lesson], rankings: Mapping[str, Ranking]) -> Agreement:
    """How the log judges the best remedy of each ranking."""
    verdicts = {True: 0, False: 0, None: 0}
    for decision, said in _by_decision(lessons).items():
        if decision in rankings:
            best = rankings[decision].remedies[rankings[decision].best]
            costs = [row.cost for row in said if row.remedy == best]
            known = [cost for cost in costs if cost is not None]
            verdicts[sum(known) / len(known) < RIGHT_BELOW if known else None] += 1
    return Agreement(right=verdicts[True], wrong=verdicts[False], unsaid=verdicts[None])


def progressive(cards: Mapping[str, RemedyCard], lessons: Iterable[Lesson]) -> dict[str, Ranking]:
    """How the bandit would have ranked each decision, having learned only from the rows before the decision's first.

    A decision over a remedy that the catalogue no longer has is not ranked.
    """
    rankings: dict[str, Ranking] = {}
    seen: set[str] = set()
    with Bandit(cards) as bandit:
        for lesson in lessons:
            decision = lesson.feedback.decision_id
            if decision not in seen:
                slate = [remedy for remedy, probability in lesson.options if probability > 0.0]
                if slate and all(remedy in cards for remedy in slate):
                    rankings[decision] = bandit.rank(lesson.context, slate)
                seen.add(decision)
            bandit.learn([lesson])
    return rankings


def redrawn(decision: Decision) -> int:
    """The recommendation drawn again from the logged probabilities: an index into the decision's options."""
    slate = [i for i, option in enumerate(decision.options) if option.probability > 0.0]
    ranking = Ranking(
        remedies=tuple(decision.options[i].candidate.remedy for i in slate),
        probabilities=tuple(decision.options[i].probability for i in slate),
        expected_costs=tuple(decision.options[i].expected_cost for i in slate),
    )
    return slate[Bandit.draw(ranking, decision.id)]


def _by_decision(lessons: Iterable[Lesson]) -> dict[str, Sequence[Lesson]]:
    """Rows of one decision are not independent, so they are one sample."""
    grouped: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        grouped.setdefault(lesson.feedback.decision_id, []).append(lesson)
    return dict(grouped)
