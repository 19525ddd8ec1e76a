from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from models.domain import (
    BlastRadius,
    Candidate,
    Decision,
    DecisionStatus,
    Feedback,
    FeedbackSource,
    IncidentKind,
    Option,
    Permission,
    RemedyCard,
    Safety,
)
from ranking.bandit import Bandit, Ranking
from ranking.evaluation import agreement, estimate, progressive, redrawn, snips
from ranking.reward import Lesson

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PRIORS = {"open-ticket": 0.6, "switch-source": 0.5, "throttle-link": 0.4, "wait": 0.3}
RIGHT = {"open-ticket": 0.1, "switch-source": 0.2, "throttle-link": 0.9, "wait": 0.3}  # the priors are wrong
CARDS = {
    name: RemedyCard(
        name=name,
        title=name,
        spec=f"somewhere:{name}",
        builtin=True,
        addresses=frozenset(IncidentKind),
        safety=Safety.REVERSIBLE,
        blast_radius=BlastRadius.LINK,
        cooldown=timedelta(0),
        settle_time=timedelta(0),
        prior=prior,
    )
    for name, prior in PRIORS.items()
}
NAMES = tuple(PRIORS)


def lesson(row: int, decision: str, option: int, value: str, *, propensity: float | None) -> Lesson:
    feedback = Feedback(
        row=row,
        at=NOW,
        decision_id=decision,
        option=option,
        source=FeedbackSource.RATING,
        value=value,
        by="ada",
        propensity=propensity,
    )
    options = tuple((name, 1 / len(NAMES)) for name in NAMES)
    return Lesson(feedback=feedback, context={"kind": "slow-transfers"}, options=options)


def log_of(n: int, seed: int) -> list[Lesson]:
    """A log in which every remedy was recommended at the same rate, and rated once."""
    pick = random.Random(seed)
    lessons = []
    for row in range(1, n + 1):
        option = pick.randrange(len(NAMES))
        value = "good" if pick.random() < RIGHT[NAMES[option]] else "wrong"
        lessons.append(lesson(row, f"d{row}", option, value, propensity=1 / len(NAMES)))
    return lessons


def always(remedy: str, lessons: list[Lesson]) -> dict[str, Ranking]:
    chosen = tuple(float(name == remedy) for name in NAMES)
    ranking = Ranking(remedies=NAMES, probabilities=chosen, expected_costs=tuple(1 - p for p in chosen))
    return {row.feedback.decision_id: ranking for row in lessons}


class TestSnips:
    def test_of_the_policy_that_logged_is_the_mean(self):
        costs = np.array([0.0, 1.0, 0.7, 0.0])
        logged = np.array([0.5, 0.1, 0.9, 0.3])
        result = snips(costs, logged, logged)
        assert result.cost == pytest.approx(costs.mean())
        assert (result.n, result.effective) == (4, pytest.approx(4))

    def test_nothing_logged_says_nothing(self):
        nothing = snips(np.array([]), np.array([]), np.array([]))
        assert (nothing.cost, nothing.low, nothing.high, nothing.n) == (0.5, 0.0, 1.0, 0)
        never = snips(np.array([1.0]), np.array([0.5]), np.array([0.0]))
        assert (never.low, never.high, never.effective) == (0.0, 1.0, 0.0)

    def test_all_alike_is_not_certain(self):
        few = snips(np.zeros(3), np.full(3, 0.5), np.full(3, 0.5))
        assert few.cost == few.low == 0.0
        assert few.high > 0.4

    @pytest.mark.parametrize(("logged", "target"), [(0.0, 0.5), (1.5, 0.5), (np.nan, 0.5), (0.5, -0.1), (0.5, np.nan)])
    def test_what_is_no_probability_is_refused(self, logged, target):
        with pytest.raises(ValueError, match="rows without a propensity"):
            snips(np.array([0.5]), np.array([logged]), np.array([target]))

    @pytest.mark.parametrize("n", [20, 200])
    @pytest.mark.parametrize("sharpness", [0.0, 2.0])
    def test_the_interval_holds_the_truth_as_often_as_it_says(self, n, sharpness):
        random_numbers = np.random.default_rng(5)
        held = 0
        for _ in range(400):
            rates = random_numbers.random(4)
            logged = random_numbers.dirichlet(np.ones(4), size=n) * 0.9 + 0.025
            actions = (logged.cumsum(axis=1) > random_numbers.random((n, 1))).argmax(axis=1)
            target = np.exp(sharpness * random_numbers.normal(size=(n, 4)))
            target /= target.sum(axis=1, keepdims=True)
            costs = (random_numbers.random(n) < rates[actions]).astype(float)
            each = np.arange(n)
            result = snips(costs, logged[each, actions], target[each, actions])
            held += result.low <= float((target @ rates).mean()) <= result.high
        assert held / 400 >= 0.90


class TestLog:
    def test_finds_what_each_remedy_costs(self):
        lessons = log_of(2000, 1)
        for remedy, right in RIGHT.items():
            result = estimate(lessons, always(remedy, lessons))
            assert result.low < 1 - right < result.high
            assert result.effective == pytest.approx(500, rel=0.2)

    def test_only_recommendations_count_and_a_decision_counts_once(self):
        lessons = [
            lesson(1, "d", 0, "good", propensity=0.25),
            lesson(2, "d", 0, "wrong", propensity=0.25),
            lesson(3, "d", 1, "wrong", propensity=None),
            lesson(4, "e", 2, "good", propensity=None),
        ]
        result = estimate(lessons, always("open-ticket", lessons))
        assert (result.n, result.cost) == (1, 0.5)

    def test_agreement_is_what_was_said_of_the_best(self):
        lessons = [
            lesson(1, "a", 0, "good", propensity=0.25),
            lesson(2, "b", 0, "wrong", propensity=None),
            lesson(3, "c", 1, "good", propensity=0.25),
        ]
        result = agreement(lessons, always("open-ticket", lessons))
        assert (result.right, result.wrong, result.unsaid) == (1, 1, 1)

    def test_the_bandit_judged_as_it_learned_beats_its_priors(self):
        lessons = log_of(600, 2)
        learned = estimate(lessons, progressive(CARDS, lessons))
        fixed = estimate(lessons, always("open-ticket", lessons))
        assert learned.high < fixed.low
        assert agreement(lessons[300:], progressive(CARDS, lessons)).wrong < 20

    def test_a_ranking_knows_nothing_of_what_came_after(self):
        lessons = log_of(60, 3)
        turned = [
            replace(row, feedback=replace(row.feedback, value="wrong" if row.feedback.value == "good" else "good"))
            for row in lessons[30:]
        ]
        one, other = progressive(CARDS, lessons), progressive(CARDS, lessons[:30] + turned)
        assert [one[f"d{n}"] for n in range(1, 32)] == [other[f"d{n}"] for n in range(1, 32)]
        assert one["d60"] != other["d60"]

    def test_a_remedy_that_is_gone_does_not_stop_the_judging(self):
        lessons = log_of(20, 4)
        fewer = {name: remedy for name, remedy in CARDS.items() if name != "wait"}
        assert progressive(fewer, lessons) == {}


def test_a_decision_is_drawn_again_as_it_was():
    with Bandit(CARDS) as bandit:
        ranking = bandit.rank({"kind": "slow-transfers"}, NAMES)
    flat = replace(ranking, probabilities=(0.25, 0.25, 0.25, 0.25))
    for n in range(20):
        key = f"incident-{n}"
        drawn = flat.remedies[Bandit.draw(flat, key)]
        options = [option(name, Permission.ASK, 0.25) for name in random.Random(n).sample(NAMES, len(NAMES))]
        options.insert(1, option("boost-rule", Permission.SKIP, 0.0))
        decision = Decision(
            id=key,
            incident_id="i",
            made_at=NOW,
            status=DecisionStatus.OPEN,
            options=tuple(options),
            recommended=0,
            propensity=0.25,
            context={},
            model_hash="",
            catalogue_hash="",
            policy_hash="",
        )
        assert decision.options[redrawn(decision)].candidate.remedy == drawn


def option(remedy: str, permission: Permission, probability: float) -> Option:
    candidate = Candidate(remedy=remedy, params={}, targets=(), summary="")
    return Option(candidate=candidate, permission=permission, probability=probability)
