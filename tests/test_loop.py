"""The straight path over a simulated world: from a fault to a remedy that ran, was judged and was learned from."""

from __future__ import annotations

import copy
import shutil
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from agent.desk.answers import Operators, give, set_paused
from models.domain import (
    ActionStatus,
    Answer,
    AnswerKind,
    DecisionStatus,
    FeedbackSource,
    IncidentKind,
    IncidentStatus,
    Rating,
    SourceError,
)
from models.forecaster import Forecaster
from models.registry import default_model
from storage.ledger import Ledger
from tests.worlds import EAGER, SICK_SITE, SickWorld, acting


def say(ledger, kind, decision, option=None, rating=None):
    answer = Answer(
        key=f"{kind} {decision} {option} {rating}",
        by="ada",
        via="cli",
        kind=kind,
        decision_id=decision,
        option=option,
        rating=rating,
    )
    return give(ledger, answer, operators=Operators.local("ada"))


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def fallen_ill(tmp_path_factory):
    """A world half an hour into its fault, and the ledger of an agent that has watched it from the start."""
    path, world = tmp_path_factory.mktemp("sick") / "ledger.db", SickWorld()
    with ExitStack() as stack:
        world.live(world.agent(stack, f"sqlite:///{path}"), hours=3.5)
    return world, path


@pytest.fixture
def sick(fallen_ill, stack, tmp_path):
    """Such a world and its agent, each test's own."""
    world, path = copy.deepcopy(fallen_ill[0]), tmp_path / "ledger.db"
    shutil.copy(fallen_ill[1], path)
    return world, world.agent(stack, f"sqlite:///{path}")


def read(agent):
    return agent.ledger.begin(write=False)


def test_from_a_fault_to_a_remedy_that_ran_was_judged_and_learned_from(stack, ledger_url):
    world = SickWorld()
    agent = world.agent(stack, ledger_url)
    world.live(agent, hours=3.5)
    with read(agent) as tx:
        (incident,) = tx.incidents(status=IncidentStatus.OPEN)
        decision = tx.newest_decision(incident.id)
    assert incident.kind is IncidentKind.SLOW_TRANSFERS
    assert SICK_SITE in str(incident.culprit)
    assert decision.status is DecisionStatus.OPEN
    assert abs(sum(option.probability for option in decision.options) - 1.0) < 1e-6
    assert decision.propensity == decision.options[decision.recommended].probability
    names = [option.candidate.remedy for option in decision.options]
    assert {"wait", "open_ticket"} <= set(names)

    chosen = names.index(acting(names))
    say(agent.ledger, AnswerKind.RATE, decision.id, names.index("wait"), Rating.WRONG)
    say(agent.ledger, AnswerKind.APPROVE, decision.id, chosen)
    assert world.grid.effects == 0
    agent.run_once(world.now)
    assert world.grid.effects > 0
    with read(agent) as tx:
        action = tx.action(decision.id)
        assert tx.decision(decision.id).chosen_by == "ada"
        assert tx.unsettled_answers() == []
        before = {(row.source, row.value) for row in tx.feedback()}
    assert action.status is ActionStatus.APPLIED
    assert action.judge_at is not None
    assert action.memory
    assert {(FeedbackSource.RATING, "wrong"), (FeedbackSource.CHOICE, "chosen")} <= before

    world.live(agent, hours=1)
    with read(agent) as tx:
        action = tx.action(decision.id)
        rows = tx.feedback()
        rated = tx.proposal(decision.id).ratings
    assert action.outcome is not None
    assert action.outcome_note
    assert next(row.value for row in rows if row.source is FeedbackSource.OUTCOME) == str(action.outcome)
    assert rated == {names.index("wait"): Rating.WRONG}


def test_nothing_runs_by_itself_unless_it_is_told_so(sick):
    world, _ = sick
    assert world.grid.effects == 0


def test_with_autonomy_the_best_and_recommended_remedy_runs_by_itself(stack, tmp_path):
    world = SickWorld()
    agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db", limits=EAGER)
    world.live(agent, hours=4)
    with read(agent) as tx:
        decisions = [tx.decision(action.id) for action in tx.actions()]
    assert decisions
    for decision in decisions:
        assert decision.chosen_by == "autonomy"
        assert decision.chosen == decision.recommended
        costs = [decision.options[place].expected_cost for place in decision.eligible]
        assert decision.options[decision.chosen].expected_cost == min(costs)


def test_a_pause_holds_decisions_and_actions(sick):
    world, agent = sick
    with read(agent) as tx:
        (incident,) = tx.incidents(status=IncidentStatus.OPEN)
        decision = tx.newest_decision(incident.id)
    say(agent.ledger, AnswerKind.APPROVE, decision.id, 0)
    set_paused(agent.ledger, True, "ada")
    agent.run_once(world.now)
    assert world.grid.effects == 0
    set_paused(agent.ledger, False, "ada")
    agent.run_once(world.now)
    with read(agent) as tx:
        assert tx.decision(decision.id).status is not DecisionStatus.OPEN or tx.unsettled_answers() == []


def test_the_second_of_two_choices_is_told_so(sick):
    world, agent = sick
    with read(agent) as tx:
        (incident,) = tx.incidents(status=IncidentStatus.OPEN)
        decision = tx.newest_decision(incident.id)
    late = Answer(key="late", by="bob", via="cli", kind=AnswerKind.REJECT, decision_id=decision.id)
    say(agent.ledger, AnswerKind.APPROVE, decision.id, 0)
    with agent.ledger.begin(write=True) as tx:
        tx.add_answer(late)  # as if it had come in the same instant
    agent.run_once(world.now)
    with read(agent) as tx:
        assert tx.decision(decision.id).status is DecisionStatus.TAKEN
        assert tx.decision(decision.id).chosen_by == "ada"


def test_what_is_proposed_for_another_kind_of_incident_is_proposed_anew(sick):
    world, agent = sick
    with agent.ledger.begin(write=True) as tx:
        (incident,) = tx.incidents(status=IncidentStatus.OPEN)
        before = tx.newest_decision(incident.id)
        assert agent._chooser.prepare(tx, [incident], world.now) == []
        renamed = replace(incident, kind=IncidentKind.STALLED_TRANSFERS)
        assert agent._chooser.decide(tx, agent._chooser.prepare(tx, [renamed], world.now), [renamed], world.now) == 1
        after = tx.newest_decision(incident.id)
        assert tx.decision(before.id).status is DecisionStatus.EXPIRED
        assert agent._chooser.prepare(tx, [renamed], world.now) == []
    offered = [{option.candidate.remedy for option in decision.options} for decision in (before, after)]
    assert "throttle_link" in offered[0] - offered[1]
    assert "exclude_storage" in offered[1] - offered[0]


def test_each_document_counts_once_and_is_accounted_for(sick):
    world, agent = sick
    with read(agent) as tx:
        counts = tx.counts()
        observed = tx.rows("observed")
    assert counts["events", "read"] == len(world.events)
    assert not observed["request_id"].duplicated().any()
    assert np.isfinite(observed.loc[~observed["failed"], "q50"]).all()


def test_a_restart_at_every_pass_changes_nothing(tmp_path):
    """A new agent for each pass, against one that runs on: forecasts, verdicts, decisions and probabilities are equal."""
    with ExitStack() as stack:
        world = SickWorld()
        one = world.agent(stack, f"sqlite:///{tmp_path}/one.db")
        for step in range(10):
            world.advance(minutes=21)
            one.run_once(world.now)
            with ExitStack() as short:
                other = world.agent(short, f"sqlite:///{tmp_path}/other.db")
                other.run_once(world.now)
            assert step >= 0
        with one.ledger.begin(write=False) as tx:
            expected = tx.rows("observed"), tx.incidents(), [tx.newest_decision(i.id) for i in tx.incidents()]
        other = Ledger.open(f"sqlite:///{tmp_path}/other.db")
        stack.callback(other.close)
        with other.begin(write=False) as tx:
            found = tx.rows("observed"), tx.incidents(), [tx.newest_decision(i.id) for i in tx.incidents()]
    pd.testing.assert_frame_equal(found[0], expected[0], rtol=1e-4)
    assert [i.id for i in found[1]] == [i.id for i in expected[1]]
    assert expected[1]
    assert [a is None for a in found[2]] == [b is None for b in expected[2]]  # what was over before it was decided on
    for a, b in ((a, b) for a, b in zip(found[2], expected[2], strict=True) if a is not None):
        assert [o.candidate for o in a.options] == [o.candidate for o in b.options]
        assert np.allclose([o.probability for o in a.options], [o.probability for o in b.options], atol=1e-4)


def test_forecasts_are_those_of_one_uninterrupted_look_at_the_stream(sick):
    _, agent = sick
    with read(agent) as tx:
        observed = tx.rows("observed")
    quantiles = Forecaster.load(default_model()).score(observed)
    done = ~observed["failed"].to_numpy()
    assert np.allclose(quantiles[done][:, 2], observed["q50"][done], atol=1e-4)


def test_a_pass_that_breaks_leaves_the_ledger_whole_and_is_made_up_for(sick, monkeypatch):
    world, agent = sick
    world.advance(minutes=5)
    with read(agent) as tx:
        before = tx.cursor("events"), tx.row_count("observed")
    with monkeypatch.context() as patch:
        patch.setattr(agent, "_record", lambda *_: (_ for _ in ()).throw(RuntimeError("the disk is full")))
        with pytest.raises(RuntimeError):
            agent.run_once(world.now)
    with read(agent) as tx:
        assert (tx.cursor("events"), tx.row_count("observed")) == before
    done = agent.run_once(world.now)
    assert done.read > 0
    with read(agent) as tx:
        assert not tx.rows("observed")["request_id"].duplicated().any()


def test_a_source_that_is_away_stops_nothing(sick, monkeypatch):
    world, agent = sick
    world.advance(minutes=5)

    def away(*_, **__):
        raise SourceError("not there; start it")

    monkeypatch.setattr(world.readings, "poll", away)
    done = agent.run_once(world.now)
    assert done.unreachable == ["not there; start it"]
    assert done.read > 0


def test_rows_are_cut_to_what_is_needed_and_everything_goes_on(sick, monkeypatch):
    world, agent = sick
    monkeypatch.setattr("agent.loop.RETAINED", 1000)
    monkeypatch.setattr("models.history.RETAINED", 1000)
    world.advance(minutes=5)
    agent.run_once(world.now)
    with read(agent) as tx:
        observed = tx.rows("observed")
    assert 1000 <= len(observed) < 8000
    world.advance(minutes=5)
    done = agent.run_once(world.now)
    assert done.scored > 0
    assert done.observed["q50"].notna().any()


def test_an_incident_that_closes_takes_its_proposal_with_it(stack, tmp_path):
    world = SickWorld(hours=0.7)
    agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db")
    world.live(agent, hours=6)
    with read(agent) as tx:
        incidents = tx.incidents()
        decisions = [tx.newest_decision(incident.id) for incident in incidents]
    assert incidents
    assert all(i.closed for i in incidents if SICK_SITE in str(i.culprit))
    assert all(d.status is DecisionStatus.EXPIRED for d, i in zip(decisions, incidents, strict=True) if i.closed)
    assert all(i.closed_at - i.opened_at < timedelta(hours=3) for i in incidents if i.closed)
