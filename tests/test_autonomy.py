from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain import Feedback, FeedbackSource, IncidentKind
from ranking.autonomy import BORROWED, Record, Trust, trust, wilson_lower
from ranking.reward import AUTONOMY, Lesson

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SLOW, FAILING, STALLED = (
    IncidentKind.SLOW_TRANSFERS,
    IncidentKind.FAILING_TRANSFERS,
    IncidentKind.STALLED_TRANSFERS,
)
KINDS = (SLOW, FAILING, STALLED)
REMEDIES = ("wait", "throttle-link", "switch-source")
_rows = itertools.count(1)


def lesson(
    value: str, remedy: str = "throttle-link", kind: IncidentKind = SLOW, *, decision: object, by="ada"
) -> Lesson:
    if value in {"good", "wrong", "not-applicable"}:
        source = FeedbackSource.RATING
    elif value in {"chosen", "rejected"}:
        source = FeedbackSource.CHOICE
    else:
        source, by = FeedbackSource.OUTCOME, "core"
    feedback = Feedback(
        row=next(_rows),
        at=NOW,
        decision_id=str(decision),
        option=REMEDIES.index(remedy),
        source=source,
        value=value,
        by=by,
    )
    return Lesson(feedback=feedback, context={"kind": str(kind)}, options=tuple((name, 0.3) for name in REMEDIES))


def many(
    value: str, n: int, remedy: str = "throttle-link", kind: IncidentKind = SLOW, *, tag: str = ""
) -> list[Lesson]:
    return [lesson(value, remedy, kind, decision=f"{tag}{remedy}-{kind}-{i}") for i in range(n)]


def of(lessons: list[Lesson], remedy: str = "throttle-link", kind: IncidentKind = SLOW) -> Trust:
    return trust(lessons, remedy, kind)


def test_nothing_known_is_no_trust():
    nothing = of([])
    assert (nothing.lower, nothing.samples) == (0.0, 0)


def test_words_and_deeds_are_both_needed():
    waits = many("unchanged", 10, "wait")
    assert of(many("good", 50) + waits).lower == 0.0
    assert of(many("fixed", 50) + waits).lower == 0.0
    both = of(many("good", 50) + many("fixed", 50) + waits)
    assert both.lower == min(both.agreement.lower, both.outcome.lower) > 0.9
    assert (both.samples, both.agreement.samples, both.outcome.samples) == (100, 50, 50)


def test_few_samples_are_little_trust():
    waits = many("unchanged", 20, "wait")
    lower = [of(many("good", n) + many("fixed", n) + waits).lower for n in (1, 3, 10, 30, 100)]
    assert lower == sorted(lower)
    assert lower[0] < 0.3
    assert lower[2] < 0.8 < lower[4]


def test_a_remedy_that_helps_no_more_than_waiting_earns_nothing():
    fixed = many("good", 30) + many("fixed", 30)
    assert of(fixed + many("fixed", 30, "wait")).lower == 0.0
    assert of(fixed + many("unchanged", 30, "wait")).lower > 0.85
    unknown = of(fixed).lower  # nobody has waited yet: half of the incidents are taken to heal
    assert unknown == pytest.approx((wilson_lower(30, 30) - 0.5) / 0.5)


def test_waiting_is_not_held_against_itself():
    assert of(many("good", 20, "wait") + many("fixed", 20, "wait"), "wait").lower == pytest.approx(wilson_lower(20, 20))


def test_other_kinds_lend_a_little():
    elsewhere = many("good", 50, kind=FAILING) + many("fixed", 50, kind=FAILING) + many("unchanged", 50, "wait")
    lent = of(elsewhere)
    assert lent.samples == 0
    assert 0 < lent.agreement.lower == wilson_lower(BORROWED, BORROWED) < 0.6
    own = many("good", 5) + many("fixed", 5)
    bad_elsewhere = many("wrong", 50, kind=FAILING) + many("worse", 50, kind=FAILING) + many("unchanged", 50, "wait")
    assert of(own + bad_elsewhere).lower < of(own + many("unchanged", 50, "wait")).lower < of(own + elsewhere).lower


def test_a_decision_counts_once_however_often_it_is_clicked_on():
    clicks = [lesson("good", decision="d") for _ in range(50)] + [lesson("chosen", decision="d")]
    assert of(clicks).agreement.samples == 1
    crowd = [lesson("good", decision="d", by=f"operator {n}") for n in range(50)]
    assert of(crowd).agreement.samples == 1


def test_the_newest_word_of_each_operator_holds_and_one_no_is_a_no():
    assert of([lesson("wrong", decision="d"), lesson("good", decision="d")]).agreement.lower > 0
    assert of([lesson("good", decision="d"), lesson("wrong", decision="d")]).agreement.lower == 0
    assert of([lesson("wrong", decision="d", by="bob"), lesson("good", decision="d")]).agreement.lower == 0


def test_autonomy_does_not_vouch_for_itself_and_the_unknown_says_nothing():
    said = [lesson("chosen", decision=n, by=AUTONOMY) for n in range(20)]
    assert of(said + many("unknown", 20)).samples == 0


def test_trust_is_each_remedys_own():
    lessons = many("good", 20) + many("fixed", 20)
    assert of(lessons, "switch-source").samples == 0


YES = ("good", "chosen", "fixed")
NO = ("wrong", "not-applicable", "rejected", "unchanged", "worse")

# A decision is about one incident, so its kind goes with its number.
words = st.builds(
    lambda value, remedy, decision, by: lesson(value, remedy, KINDS[decision % 3], decision=decision, by=by),
    st.sampled_from((*YES, *NO, "unknown")),
    st.sampled_from(REMEDIES),
    st.integers(0, 20),
    st.sampled_from(("ada", "bob")),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(words, max_size=60),
    st.lists(st.tuples(st.sampled_from(NO), st.integers(0, 30), st.sampled_from(("ada", "bob", "eve"))), min_size=1),
    st.sampled_from(REMEDIES),
)
def test_more_that_speaks_against_a_remedy_never_raises_its_trust(lessons, against, remedy):
    before = Record(lessons)
    after = Record(lessons)
    for value, decision, by in against:
        after.add([lesson(value, remedy, KINDS[decision % 3], decision=decision, by=by)])
    for kind in KINDS:
        old, new = before.trust(remedy, kind), after.trust(remedy, kind)
        assert new.agreement.lower <= old.agreement.lower + 1e-12
        assert new.outcome.lower <= old.outcome.lower + 1e-12
        assert new.lower <= old.lower + 1e-12
        assert 0.0 <= new.lower <= 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(words, max_size=60), st.integers(0, 60))
def test_a_record_kept_up_equals_one_made_at_once(lessons, cut):
    kept = Record(lessons[:cut])
    kept.add(lessons[cut:])
    for remedy, kind in itertools.product(REMEDIES, KINDS):
        assert kept.trust(remedy, kind) == trust(lessons, remedy, kind)


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_bound_is_below_the_share(right, wrong):
    bound = wilson_lower(right, right + wrong)
    assert 0.0 <= bound <= 1.0
    if right + wrong > 0:
        assert bound <= right / (right + wrong) + 1e-9
    assert wilson_lower(right, right + wrong + 1) <= bound + 1e-12
    assert wilson_lower(right + 1, right + wrong + 1) >= bound - 1e-12
