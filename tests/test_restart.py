"""Started again after a crash or an absence, the daemon says and does what it would have said and done."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import replace

from agent.desk.answers import Operators, give
from agent.outbox import Outbox
from models.domain import Action, ActionStatus, Answer, AnswerKind, Candidate, GridUnreachable, Link, Outcome
from models.grid import RSE
from remedies.catalog import Catalog
from remedies.executors import InProcess
from remedies.runner import Runner
from remedies.testing import FakeGrid
from storage.ledger import Ledger
from tests import desk_stories as stories
from tests.worlds import SickWorld


def test_a_daemon_that_was_away_comes_to_the_same_verdict(tmp_path):
    """Nothing is said of a settle time whose events were not read yet, and then what would have been said at its end."""
    with ExitStack() as stack:
        world = SickWorld()
        there = world.agent(stack, f"sqlite:///{tmp_path}/there.db")
        world.live(there, hours=3.5)
        with there.ledger.begin(write=False) as tx:
            decision = tx.newest_decision(tx.incidents()[0].id)
        remedies = [option.candidate.remedy for option in decision.options]
        answer = Answer(
            key="a",
            by="ada",
            via="cli",
            kind=AnswerKind.APPROVE,
            decision_id=decision.id,
            option=remedies.index("wait"),
        )
        give(there.ledger, answer, operators=Operators.local("ada"))
        there.run_once(world.now)
        with (
            closing(sqlite3.connect(tmp_path / "there.db")) as one,
            closing(sqlite3.connect(tmp_path / "away.db")) as other,
        ):
            one.backup(other)
        world.live(there, hours=0.75)
        away = world.agent(stack, f"sqlite:///{tmp_path}/away.db", page=500)
        passes = 1
        while not away.run_once(world.now).caught_up:
            with away.ledger.begin(write=False) as tx:
                assert tx.action(decision.id).outcome is None
            passes += 1
        assert passes > 5
        away.run_once(world.now)
        found = []
        for agent in (there, away):
            with agent.ledger.begin(write=False) as tx:
                found.append(tx.action(decision.id).outcome)
        assert found[0] in {Outcome.FIXED, Outcome.UNCHANGED, Outcome.WORSE}
        assert found[1] is found[0]


class Faltering:
    """A grid that answers so many calls and then is away."""

    def __init__(self, grid, answers):
        self._grid, self._left = grid, answers

    def __getattr__(self, name):
        self._left -= 1
        if self._left < 0:
            raise GridUnreachable("no answer")
        return getattr(self._grid, name)


def test_what_a_cut_off_attempt_remembered_outlives_a_grid_that_is_away(tmp_path):
    """The daemon died between two acts; looking then works, going on does not. The first act's own effect is not taken for
    what stood before it.
    """
    near, far = Link("A_DISK", "B_DISK"), Link("A_DISK", "C_DISK")
    before = {str(near): 1, str(far): 2}
    rses = [RSE(name=name, site=name, kind="DISK", read=True, write=True, delete=True) for name in "ABC"]
    grid = FakeGrid(rses=rses, distances={near: 1, far: 2})
    grid.set_distance("A_DISK", "B_DISK", 100, key="dec-1")
    candidate = Candidate(
        remedy="switch_source",
        params={"links": [str(near), str(far)], "distance": 100},
        targets=(f"link:{near}", f"link:{far}"),
        summary="",
    )
    action = Action(
        id="dec-1",
        incident_id="inc-1",
        candidate=candidate,
        status=ActionStatus.RUNNING,
        due_at=stories.NOW,
        attempts=1,
        memory={"distances": before},
    )
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    stories.record(ledger, stories.incident(), stories.decision(), action)
    cards = Catalog.load([]).cards

    def attempt(calls):
        runner = Runner(InProcess(grid=Faltering(grid, calls)))
        Outbox(ledger=ledger, cards=cards, runner=runner).carry_out(stories.NOW)
        with ledger.begin(write=False) as tx:
            return tx.action("dec-1")

    try:
        again = attempt(calls=2)
        assert (again.status, again.memory) == (ActionStatus.DUE, {"distances": before})
        with ledger.begin(write=True) as tx:
            tx.save_action(replace(again, attempts=3))
        assert attempt(calls=0).status is ActionStatus.UNCLEAR
        with ledger.begin(write=True) as tx:
            tx.save_action(again)
        done = attempt(calls=100)
        assert (done.status, done.memory) == (ActionStatus.APPLIED, {"distances": before})
    finally:
        ledger.close()
