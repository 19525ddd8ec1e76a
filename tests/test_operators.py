"""An operator's answer, from the outbreak to the outcome: over Slack, the console and the command line, with the real loop."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from contextlib import ExitStack, closing, contextmanager

import httpx
import pytest

from agent.desk.answers import Operators, give, option_of
from agent.desk.console import build_app, serve_in_thread
from models.domain import ActionStatus, Answer, AnswerKind, FeedbackSource, IncidentStatus, Outcome, Rating
from remedies.catalog import Catalog
from storage.ledger import Ledger
from tests.console_browser import Browser
from tests.slack_workspace import buttons, connected, desk_for, wait_until
from tests.worlds import SICK_SITE, SickWorld, acting

CARDS = Catalog.load([]).cards
OUTCOMES = {
    Outcome.FIXED: "it helped",
    Outcome.UNCHANGED: "it did not help enough",
    Outcome.WORSE: "it got worse afterwards",
    Outcome.UNKNOWN: "nobody can tell whether it helped",
}


@pytest.fixture(scope="module")
def eve(tmp_path_factory):
    """A world on the eve of its fault and the ledger of the agent that has watched it; whoever uses them copies both."""
    path = tmp_path_factory.mktemp("eve") / "ledger.db"
    world = SickWorld()
    with ExitStack() as stack:
        world.live(world.agent(stack, f"sqlite:///{path}"), hours=3)
    return world, path


class Story:
    """A world of one's own, an agent that watches it, and the proposal for the incident that breaks out."""

    def __init__(self, eve, directory, stack):
        world, path = eve
        self.path = directory / "ledger.db"
        shutil.copy(path, self.path)
        self.world = copy.deepcopy(world)
        self.agent = self.world.agent(stack, f"sqlite:///{self.path}")

    def break_out(self):
        self.world.live(self.agent, hours=0.5)
        with self.read() as tx:
            (self.incident,) = tx.incidents(status=IncidentStatus.OPEN)
            self.decision = tx.newest_decision(self.incident.id)
        self.names = [option.candidate.remedy for option in self.decision.options]

    def read(self):
        return self.agent.ledger.begin(write=False)

    def pass_once(self):
        self.agent.run_once(self.world.now)

    def cost(self, remedy):
        """What the bandit expects of a remedy in this incident."""
        ranking = self.agent._chooser.experience.bandit.rank(self.decision.context, self.names)
        return ranking.expected_costs[self.names.index(remedy)]

    def action(self):
        with self.read() as tx:
            return tx.action(self.decision.id)

    def rows(self):
        """All that answers leave in the ledger, but for where they came in."""
        with self.read() as tx:
            incidents, actions, feedback = tx.incidents(), tx.actions(), tx.feedback()
            decisions = [tx.newest_decision(incident.id) for incident in incidents]
        with closing(sqlite3.connect(self.path)) as connection:
            answers = connection.execute(
                "SELECT row, by, kind, decision_id, option, rating, settled_at, note FROM answers ORDER BY row"
            ).fetchall()
        return {
            "incidents": incidents,
            "decisions": decisions,
            "actions": actions,
            "feedback": feedback,
            "answers": answers,
        }


@pytest.fixture
def story(eve, tmp_path):
    with ExitStack() as stack:
        yield Story(eve, tmp_path, stack)


class CommandLine:
    """Gives answers as `gridmedic approve` and `gridmedic rate` do, from a process with a ledger of its own."""

    def __init__(self, story):
        self.story = story

    def approve(self, remedy):
        return self._say(AnswerKind.APPROVE, remedy)

    def rate(self, remedy, rating):
        return self._say(AnswerKind.RATE, remedy, rating)

    def _say(self, kind, remedy, rating=None):
        ledger = Ledger.open(f"sqlite:///{self.story.path}")
        decision = self.story.decision.id
        answer = Answer(
            key=f"cli:{kind}",
            by="ada",
            via="cli",
            kind=kind,
            decision_id=decision,
            option=option_of(ledger, decision, remedy),
            rating=rating,
        )
        said = give(ledger, answer, operators=Operators.local("ada"))
        ledger.close()
        return said


class Console:
    """Gives answers by the forms of the page."""

    def __init__(self, story, browser):
        self.story, self.browser = story, browser

    def approve(self, remedy):
        return self.browser.press(self._form("approve", remedy)).text

    def rate(self, remedy, rating):
        return self.browser.press(self._form("rate", remedy), ("rating", rating.value)).text

    def _form(self, kind, remedy):
        option = str(self.story.names.index(remedy))
        return self.browser.look().form(kind=kind, decision=self.story.decision.id, option=option)


class Slack:
    """Gives answers by clicks on the buttons of the incident's message."""

    def __init__(self, story, desk, workspace):
        self.story, self.desk, self.workspace = story, desk, workspace

    def approve(self, remedy):
        return self._click("approve", remedy)

    def rate(self, remedy, rating):
        return self._click(f"rate:{rating}", remedy)

    def message(self):
        self.desk.publish()
        return min(
            self.workspace.messages(), key=lambda message: message["ts"]
        )  # the first: the others are of later incidents

    def thread(self):
        return [reply["text"] for reply in self.workspace.messages(thread=self.message()["ts"])]

    def _click(self, action, remedy):
        wanted = {"decision": self.story.decision.id, "option": self.story.names.index(remedy)}
        found = [
            button for button in buttons(self.message()["blocks"], action) if json.loads(button["value"]) == wanted
        ]
        told = len(self.workspace.ephemeral())
        self.workspace.click(found[0])
        wait_until(lambda: len(self.workspace.ephemeral()) > told)
        return self.workspace.ephemeral()[-1][1]


@contextmanager
def console_of(story):
    server = serve_in_thread(build_app(story.agent.ledger, "ada", cards=CARDS), "127.0.0.1", 0)
    with httpx.Client(base_url=server.url, trust_env=False, follow_redirects=True) as client:
        yield Console(story, Browser(client))
    server.stop()


def answer_and_settle(story, door):
    """Rate one remedy, approve another, and let the agent act on it."""
    assert story.world.grid.effects == 0
    before = story.cost("wait")
    assert "ada finds wait wrong" in door.rate("wait", Rating.WRONG)
    chosen = acting(story.names)
    assert f"ada approves {chosen}; it starts with the next pass" in door.approve(chosen)
    assert story.world.grid.effects == 0
    story.pass_once()
    assert story.world.grid.effects > 0
    assert story.action().status is ActionStatus.APPLIED
    assert story.cost("wait") > before
    with story.read() as tx:
        fed = {(row.source, row.value, story.names[row.option], row.by) for row in tx.feedback()}
        assert tx.proposal(story.decision.id).ratings == {story.names.index("wait"): Rating.WRONG}
    assert {
        (FeedbackSource.RATING, "wrong", "wait", "ada"),
        (FeedbackSource.CHOICE, "chosen", chosen, "ada"),
    } <= fed


def live_to_the_outcome(story):
    """Let the settle time pass; return the outcome."""
    story.world.live(story.agent, hours=0.75)
    action = story.action()
    assert action.outcome is not None
    with story.read() as tx:
        assert str(action.outcome) in {row.value for row in tx.feedback() if row.source is FeedbackSource.OUTCOME}
    return action.outcome


@pytest.fixture(scope="module")
def expected(eve, tmp_path_factory):
    """What the ledger holds when the answers were given on the command line."""
    with ExitStack() as stack:
        story = Story(eve, tmp_path_factory.mktemp("expected"), stack)
        story.break_out()
        answer_and_settle(story, CommandLine(story))
        live_to_the_outcome(story)
        return story.rows()


def test_the_command_line(expected):
    assert [answer[1:6] for answer in expected["answers"]] == [
        ("ada", "rate", expected["answers"][0][3], expected["answers"][0][4], "wrong"),
        ("ada", "approve", expected["answers"][1][3], expected["answers"][1][4], None),
    ]
    assert [answer[-1] for answer in expected["answers"]] == ["recorded", "approved"]


def test_the_console_from_an_outbreak_to_the_outcome(story, expected):
    with console_of(story) as door:
        assert "Nothing is wrong that gridmedic knows of." in door.browser.look().text
        story.break_out()
        page = door.browser.look()
        assert "1 waits for you · 1 open" in page.text
        assert SICK_SITE in page.text
        answer_and_settle(story, door)
        page = door.browser.look()
        assert "was approved by ada. It was done" in page.text
        assert page.form(kind="approve") is None
        outcome = live_to_the_outcome(story)
        assert OUTCOMES[outcome] in door.browser.look().text
    assert story.rows() == expected


@pytest.mark.slack
def test_slack_from_an_outbreak_to_the_outcome(story, expected, emulator):
    desk = desk_for(story.agent.ledger, emulator.web, cards=CARDS)
    with connected(desk):
        door = Slack(story, desk, emulator)
        desk.publish()
        assert emulator.messages() == []
        story.break_out()
        first = door.message()
        assert SICK_SITE in first["text"]
        assert "Waits for an operator" in first["text"]
        answer_and_settle(story, door)
        done = door.message()
        assert done["ts"] == first["ts"]
        assert "was approved by ada. It was done" in done["text"]
        assert not buttons(done["blocks"], "approve")
        assert [line for line in door.thread() if "was done at" in line]
        outcome = live_to_the_outcome(story)
        assert [line for line in door.thread() if OUTCOMES[outcome] in line]
        assert door.message()["ts"] == first["ts"]
    assert story.rows() == expected
