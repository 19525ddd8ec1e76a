"""The policy is pure and monotone, and no learning lifts what an author or the configuration has set."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.domain import (
    Action,
    ActionStatus,
    BlastRadius,
    Block,
    Candidate,
    IncidentKind,
    Outcome,
    Permission,
    RemedyCard,
    Safety,
)
from remedies.catalog import Catalog
from remedies.contract import BASELINE
from remedies.policy import LOOK_BACK, Limits, Standing, overlap, policy_hash, rule, standing
from remedies.testing import incident

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
CARDS = Catalog.load().cards
SWITCH = CARDS["switch_source"]
INCIDENT = incident(IncidentKind.SLOW_TRANSFERS, "link:A>B")
CANDIDATE = Candidate(remedy="switch_source", params={}, targets=("link:A>B",), summary="x")
WAIT = Candidate(remedy=BASELINE, params={}, targets=("link:A>B",), summary="x")
OPEN = Limits(autonomy=True, safety_cap=Safety.DISRUPTIVE, blast_radius_cap=BlastRadius.GRID)
EARNED = Standing(now=NOW, trust=0.95, best=True)
ORDER = [Permission.SKIP, Permission.ASK, Permission.AUTO]


def rank(permission: Permission) -> int:
    return ORDER.index(permission)


# Few different values, so that hypothesis finds those that meet.
TARGETS = ["link:A>B", "link:A>C", "rse:A", "rse:B", "site:S", "rule:1"]
target_sets = st.frozensets(st.sampled_from(TARGETS))
candidates = st.builds(
    Candidate,
    remedy=st.sampled_from(["switch_source", BASELINE, "other"]),
    params=st.just({}),
    targets=st.lists(st.sampled_from(TARGETS), max_size=4, unique=True).map(tuple),
    summary=st.just("x"),
)
cards = st.builds(
    lambda safety, blast, cooldown: replace(SWITCH, safety=safety, blast_radius=blast, cooldown=cooldown),
    st.sampled_from(list(Safety)),
    st.sampled_from(list(BlastRadius)),
    st.sampled_from([timedelta(0), timedelta(minutes=30), timedelta(days=7)]),
)
shares = st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0])
incidents = st.builds(lambda confidence: replace(INCIDENT, confidence=confidence), shares)
standings = st.builds(
    Standing,
    now=st.just(NOW),
    paused=st.booleans(),
    last_done=st.none() | st.sampled_from([0, 20, 60, 9000]).map(lambda minutes: NOW - timedelta(minutes=minutes)),
    actions_last_hour=st.integers(0, 4),
    busy=target_sets,
    proposed=target_sets,
    downtimes=target_sets,
    ineffective=st.integers(0, 3),
    unclear=st.booleans(),
    trust=shares,
    best=st.booleans(),
)
limits = st.builds(
    Limits,
    autonomy=st.booleans(),
    safety_cap=st.sampled_from(list(Safety)),
    blast_radius_cap=st.sampled_from(list(BlastRadius)),
    min_trust=shares,
    min_confidence=shares,
    max_actions_per_hour=st.integers(0, 4),
    max_targets=st.integers(1, 4),
    ineffective_before=st.integers(1, 3),
    disabled=st.frozensets(st.sampled_from(["switch_source", "other", BASELINE])),
)


@given(candidates, cards, incidents, standings, limits, st.data())
def test_more_danger_never_gives_more(candidate, card, an_incident, facts, allowed, data):
    worse = replace(
        card,
        safety=max(card.safety, data.draw(st.sampled_from(list(Safety)))),
        blast_radius=max(card.blast_radius, data.draw(st.sampled_from(list(BlastRadius)))),
        cooldown=card.cooldown + data.draw(st.sampled_from([timedelta(0), timedelta(days=1)])),
    )
    before = rule(candidate, card, an_incident, facts, allowed)
    after = rule(candidate, worse, an_incident, facts, allowed)
    assert rank(after.permission) <= rank(before.permission)
    assert set(before.blocks) <= set(after.blocks)


@given(candidates, cards, incidents, standings, standings, limits)
def test_the_more_is_going_on_the_less_is_allowed(candidate, card, an_incident, facts, others, allowed):
    worse = replace(
        facts,
        paused=facts.paused or others.paused,
        last_done=max(filter(None, (facts.last_done, others.last_done)), default=None),
        actions_last_hour=max(facts.actions_last_hour, others.actions_last_hour),
        busy=facts.busy | others.busy,
        proposed=facts.proposed | others.proposed,
        downtimes=facts.downtimes | others.downtimes,
        ineffective=max(facts.ineffective, others.ineffective),
        unclear=facts.unclear or others.unclear,
        trust=min(facts.trust, others.trust),
        best=facts.best and others.best,
    )
    before = rule(candidate, card, an_incident, facts, allowed)
    after = rule(candidate, card, an_incident, worse, allowed)
    assert rank(after.permission) <= rank(before.permission)
    assert set(before.blocks) <= set(after.blocks)


@given(candidates, cards, incidents, standings, limits, limits)
def test_stricter_limits_never_give_more(candidate, card, an_incident, facts, allowed, others):
    stricter = Limits(
        autonomy=allowed.autonomy and others.autonomy,
        safety_cap=min(allowed.safety_cap, others.safety_cap),
        blast_radius_cap=min(allowed.blast_radius_cap, others.blast_radius_cap),
        min_trust=max(allowed.min_trust, others.min_trust),
        min_confidence=max(allowed.min_confidence, others.min_confidence),
        max_actions_per_hour=min(allowed.max_actions_per_hour, others.max_actions_per_hour),
        max_targets=min(allowed.max_targets, others.max_targets),
        ineffective_before=min(allowed.ineffective_before, others.ineffective_before),
        disabled=allowed.disabled | others.disabled,
    )
    before = rule(candidate, card, an_incident, facts, allowed)
    after = rule(candidate, card, an_incident, facts, stricter)
    assert rank(after.permission) <= rank(before.permission)


@given(candidates, cards, incidents, standings, limits, target_sets)
def test_wider_targets_and_less_confidence_never_give_more(candidate, card, an_incident, facts, allowed, more):
    if not candidate.targets:
        return  # to touch nothing is refused for another reason
    wider = replace(candidate, targets=tuple(sorted({*candidate.targets, *more})))
    unsure = replace(an_incident, confidence=an_incident.confidence / 2)
    before = rule(candidate, card, an_incident, facts, allowed)
    after = rule(wider, card, unsure, facts, allowed)
    assert rank(after.permission) <= rank(before.permission)


@given(candidates, cards, incidents, standings, limits, shares)
def test_learning_lifts_no_cap(candidate, card, an_incident, facts, allowed, trust):
    """However much is learned, only the two blocks that are about learning go."""
    before = rule(candidate, card, an_incident, facts, allowed)
    after = rule(candidate, card, an_incident, replace(facts, trust=trust, best=True), allowed)
    learned = {Block.NOT_TRUSTED, Block.NOT_BEST}
    assert set(after.blocks) - learned == set(before.blocks) - learned
    if card.safety is Safety.DESTRUCTIVE or card.safety > allowed.safety_cap or not allowed.autonomy:
        assert after.permission is not Permission.AUTO
    if before.permission is Permission.SKIP:
        assert after.permission is Permission.SKIP


@given(candidates, cards, incidents, standings, limits)
def test_a_ruling_is_pure_and_says_why(candidate, card, an_incident, facts, allowed):
    ruling = rule(candidate, card, an_incident, facts, allowed)
    assert ruling == rule(candidate, card, an_incident, facts, allowed)
    assert (ruling.permission is Permission.AUTO) == (not ruling.blocks)
    assert len(set(ruling.blocks)) == len(ruling.blocks)
    if candidate.remedy == BASELINE:
        assert ruling.permission is not Permission.SKIP, "there is always something to choose"
    elif not candidate.targets or len(candidate.targets) > allowed.max_targets or facts.paused:
        assert ruling.permission is Permission.SKIP


def test_with_everything_in_its_favour_it_runs_by_itself():
    assert rule(CANDIDATE, SWITCH, INCIDENT, EARNED, OPEN).permission is Permission.AUTO


def test_by_default_nothing_does():
    assert rule(CANDIDATE, SWITCH, INCIDENT, EARNED, Limits()).blocks == (Block.AUTONOMY_OFF,)
    assert Limits().safety_cap is Safety.REVERSIBLE


def test_a_destructive_remedy_always_asks():
    card = replace(SWITCH, safety=Safety.DESTRUCTIVE)
    ruling = rule(CANDIDATE, card, INCIDENT, EARNED, replace(OPEN, safety_cap=Safety.DESTRUCTIVE))
    assert (ruling.permission, ruling.blocks) == (Permission.ASK, (Block.SAFETY_CAP,))


@pytest.mark.parametrize(
    ("facts", "block", "permission"),
    [
        ({"paused": True}, Block.PAUSED, Permission.SKIP),
        ({"last_done": NOW - timedelta(minutes=59)}, Block.COOLDOWN, Permission.SKIP),
        ({"actions_last_hour": 10}, Block.RATE_LIMIT, Permission.SKIP),
        ({"busy": frozenset({"rse:B"})}, Block.TARGET_BUSY, Permission.SKIP),
        ({"proposed": frozenset({"link:A>B"})}, Block.OPEN_PROPOSAL, Permission.SKIP),
        ({"downtimes": frozenset({"rse:A"})}, Block.DOWNTIME, Permission.SKIP),
        ({"trust": 0.79}, Block.NOT_TRUSTED, Permission.ASK),
        ({"trust": float("nan")}, Block.NOT_TRUSTED, Permission.ASK),
        ({"best": False}, Block.NOT_BEST, Permission.ASK),
        ({"ineffective": 2}, Block.INEFFECTIVE_BEFORE, Permission.ASK),
        ({"unclear": True}, Block.UNCLEAR_BEFORE, Permission.ASK),
    ],
)
def test_each_fact_blocks_by_its_name(facts, block, permission):
    ruling = rule(CANDIDATE, SWITCH, INCIDENT, replace(EARNED, **facts), OPEN)
    assert (ruling.permission, ruling.blocks) == (permission, (block,))


def test_each_limit_blocks_by_its_name():
    def blocks(limits, candidate=CANDIDATE, card=SWITCH, an_incident=INCIDENT):
        return rule(candidate, card, an_incident, EARNED, limits).blocks

    assert blocks(replace(OPEN, disabled=frozenset({"switch_source"}))) == (Block.DISABLED,)
    assert blocks(replace(OPEN, blast_radius_cap=BlastRadius.TRANSFER)) == (Block.BLAST_RADIUS_CAP,)
    assert blocks(replace(OPEN, safety_cap=Safety.READ_ONLY)) == (Block.SAFETY_CAP,)
    assert blocks(OPEN, an_incident=replace(INCIDENT, confidence=0.69)) == (Block.LOW_CONFIDENCE,)
    assert blocks(OPEN, candidate=replace(CANDIDATE, targets=())) == (Block.TARGETS_EMPTY,)
    wide = replace(CANDIDATE, targets=tuple(f"rule:{n}" for n in range(21)))
    assert blocks(OPEN, candidate=wide) == (Block.TARGETS_TOO_MANY,)


def test_waiting_is_only_held_back_by_what_holds_autonomy_back():
    busy = frozenset({"link:A>B"})
    crowded = replace(EARNED, actions_last_hour=99, busy=busy, proposed=busy, downtimes=busy, last_done=NOW)
    assert rule(WAIT, CARDS[BASELINE], INCIDENT, crowded, OPEN).permission is Permission.AUTO
    paused = rule(WAIT, CARDS[BASELINE], INCIDENT, replace(crowded, paused=True), OPEN)
    assert (paused.permission, paused.blocks) == (Permission.ASK, (Block.PAUSED,))


def test_a_ticket_may_be_opened_while_something_settles():
    ticket = replace(CANDIDATE, remedy="open_ticket")
    facts = replace(EARNED, busy=frozenset({"link:A>B"}))
    assert rule(ticket, CARDS["open_ticket"], INCIDENT, facts, OPEN).permission is Permission.AUTO


def test_every_block_is_used():
    source = __import__("inspect").getsource(__import__("remedies.policy", fromlist=["policy"]))
    assert [block for block in Block if f"yield Block.{block.name}" not in source] == []


def action(
    remedy="switch_source", targets=("link:A>B",), minutes=10.0, status=ActionStatus.APPLIED, **fields
) -> Action:
    at = NOW - timedelta(minutes=minutes)
    candidate = Candidate(remedy=remedy, params={}, targets=targets, summary="x")
    return Action(
        id=f"{remedy}{minutes}", incident_id="i", candidate=candidate, status=status, due_at=at, started_at=at, **fields
    )


def fold(*actions: Action, candidate: Candidate = CANDIDATE) -> Standing:
    return standing(candidate, actions, cards=CARDS, now=NOW)


def test_nothing_done_nothing_stands():
    assert fold() == Standing(now=NOW)


def test_a_cooldown_is_of_one_remedy_on_one_target():
    facts = fold(
        action(minutes=90),
        action(minutes=50, status=ActionStatus.FAILED),
        action("throttle_link"),
        action(targets=("rse:A",)),
    )
    assert facts.last_done == NOW - timedelta(minutes=50)
    assert fold(action(targets=("rule:1", "link:A>B"))).last_done == NOW - timedelta(minutes=10)


def test_all_but_waiting_count_for_the_hour():
    done = [action(minutes=59), action("open_ticket"), action(BASELINE), action(minutes=60), action(minutes=61)]
    assert fold(*done).actions_last_hour == 2


def test_a_clock_that_was_set_back_lifts_no_limit():
    later = fold(action(minutes=-30))
    assert later.actions_last_hour == 1
    assert rule(CANDIDATE, SWITCH, INCIDENT, replace(later, trust=1.0, best=True), OPEN).blocks == (Block.COOLDOWN,)


@pytest.mark.parametrize(
    ("done", "busy"),
    [
        (action(status=ActionStatus.DUE), True),
        (action(status=ActionStatus.RUNNING, minutes=60 * 24), True),
        (action(judge_at=NOW + timedelta(minutes=1)), True),
        (action(judge_at=NOW), False),
        (action(judge_at=NOW + timedelta(minutes=1), outcome=Outcome.FIXED), False),
        (action(status=ActionStatus.FAILED), False),
        (action(status=ActionStatus.UNCLEAR, judge_at=NOW + timedelta(minutes=1)), False),
        (action(status=ActionStatus.UNDONE), False),
        (action(BASELINE, status=ActionStatus.RUNNING), False),
        (action("open_ticket", judge_at=NOW + timedelta(minutes=1)), False),
        (action("a remedy that is gone", judge_at=NOW + timedelta(minutes=1)), True),
    ],
)
def test_a_target_is_busy_while_an_action_is_in_flight_or_settles(done, busy):
    assert bool(fold(done).busy) is busy


def test_what_did_not_help_counts_until_something_does():
    bad = {"outcome": Outcome.UNCHANGED}
    done = [action(minutes=40, **bad), action("throttle_link", minutes=30, outcome=Outcome.WORSE)]
    assert fold(*done).ineffective == 2
    assert fold(*reversed(done), action(minutes=20, outcome=Outcome.UNKNOWN)).ineffective == 2
    assert fold(*done, action(minutes=20, outcome=Outcome.FIXED)).ineffective == 0
    assert fold(*done, action(minutes=35, outcome=Outcome.FIXED)).ineffective == 1
    assert fold(action(BASELINE, **bad), action("open_ticket", **bad)).ineffective == 0
    assert fold(action(targets=("rse:Z",), **bad)).ineffective == 0
    assert fold(action(minutes=LOOK_BACK.total_seconds() / 60, **bad)).ineffective == 0, "it expires"


def test_an_unclear_action_on_the_target_goes_to_a_human():
    assert fold(action(status=ActionStatus.UNCLEAR)).unclear
    assert not fold(action(status=ActionStatus.UNCLEAR, targets=("rse:Z",))).unclear


def test_a_link_has_to_do_with_its_ends():
    assert overlap(["link:A>B"], ["rse:A"])
    assert overlap(["rse:B"], ["link:A>B"])
    assert not overlap(["link:A>B"], ["link:B>A", "rse:C", "network:A>B"])
    assert not overlap([], ["rse:A"])


def test_the_hash_names_the_limits():
    assert policy_hash(Limits()) == policy_hash(Limits())
    several = [
        Limits(),
        Limits(autonomy=True),
        Limits(min_trust=0.9),
        Limits(safety_cap=Safety.READ_ONLY),
        Limits(disabled=frozenset({"a", "b"})),
    ]
    assert len({policy_hash(each) for each in several}) == len(several)
    assert policy_hash(Limits(disabled=frozenset("abc"))) == policy_hash(Limits(disabled=frozenset("cba")))


def test_a_card_of_every_built_in_is_ruled_on():
    for card in CARDS.values():
        assert isinstance(card, RemedyCard)
        assert rule(replace(CANDIDATE, remedy=card.name), card, INCIDENT, EARNED, OPEN).permission is Permission.AUTO
