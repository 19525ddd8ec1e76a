"""Simulated operators at the agent's desk: they approve, reject and rate by the code that every desk uses."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import datetime
from typing import Final

from agent.desk.answers import Operators, give
from agent.evaluation.arena import Arena, seconds
from agent.evaluation.worth import WAITS, worth
from agent.grid.dry_run import Act, DryRun
from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    AnswerRefused,
    Decision,
    DecisionStatus,
    Option,
    Rating,
)
from remedies.catalog import Catalog
from remedies.contract import BASELINE
from remedies.executors import InProcess
from remedies.runner import Runner
from simulator.operators import Crew, Reply
from storage.ledger import Ledger

DAY_S: Final = 86_400.0
_NAME, _VIA = "shift", "evaluation"


class Desk:
    """Hands proposals to the crew, and its answers to the ledger."""

    def __init__(self, arena: Arena, ledger: Ledger, catalog: Catalog, crew: Crew) -> None:
        self._arena = arena
        self._ledger = ledger
        self._catalog = catalog
        self._crew = crew
        self._operators = Operators.local(_NAME)
        self._waiting: dict[str, tuple[int, float]] = {}  # number of the question, and when it is answered; by decision
        self.questions = 0
        self.first_choices: list[tuple[int, bool]] = []  # day of the question, and whether what it recommends is right

    def ask(self, now: datetime) -> None:
        """Put the proposals that are new before the crew."""
        with self._ledger.begin(write=False) as tx:
            proposed = tx.open_decisions()
        for decision in proposed:
            if decision.id in self._waiting:
                continue
            at = seconds(now, self._arena)
            self._waiting[decision.id] = (self.questions, at + self._crew.delay(self.questions))
            self.questions += 1
            values = self._worth(decision)
            right = values[decision.eligible.index(decision.recommended)] > 0
            self.first_choices.append((math.ceil(at / DAY_S) - 1, right))

    def answer(self, now: datetime) -> None:
        """Give the answers that are due."""
        at = seconds(now, self._arena)
        due = [(decision_id, question) for decision_id, (question, when) in self._waiting.items() if when <= at]
        for decision_id, question in due:
            self._waiting[decision_id] = (question, float("inf"))
            with self._ledger.begin(write=False) as tx:
                decision = tx.decision(decision_id)
            if decision.status is DecisionStatus.OPEN:
                self._say(decision, self._crew.reply(question, self._worth(decision)))

    def _say(self, decision: Decision, reply: Reply) -> None:
        for option, rating in zip(decision.eligible, reply.ratings, strict=True):
            self._give(decision, AnswerKind.RATE, option=option, rating=rating)
        if reply.choice is None:
            self._give(decision, AnswerKind.REJECT)
        else:
            self._give(decision, AnswerKind.APPROVE, option=decision.eligible[reply.choice])

    def _give(
        self, decision: Decision, kind: AnswerKind, *, option: int | None = None, rating: Rating | None = None
    ) -> None:
        answer = Answer(
            key=f"{_VIA}:{decision.id}:{kind}:{option}",
            by=_NAME,
            via=_VIA,
            kind=kind,
            decision_id=decision.id,
            option=option,
            rating=rating,
        )
        with suppress(AnswerRefused):  # as for everybody: it came too late
            give(self._ledger, answer, operators=self._operators)

    def _worth(self, decision: Decision) -> list[float]:
        """What each eligible option is truly worth now; waiting is right where nothing else would help."""
        running, topology = self._arena.running(), self._arena.world.topology
        options = [decision.options[place] for place in decision.eligible]
        values = [worth(self._acts(option, decision), running, topology) for option in options]
        rest = WAITS if max(values, default=0.0) <= 0 else 0.0
        return [
            rest if option.candidate.remedy == BASELINE else value
            for option, value in zip(options, values, strict=True)
        ]

    def _acts(self, option: Option, decision: Decision) -> list[Act]:
        """What the option would do to the grid."""
        dry = DryRun(self._arena.grid)
        action = Action(
            id=f"{decision.id}/tried",
            incident_id=decision.incident_id,
            candidate=option.candidate,
            status=ActionStatus.RUNNING,
            due_at=decision.made_at,
        )
        Runner(InProcess(grid=dry)).carry_out(action, self._catalog.cards[option.candidate.remedy], keep=lambda _: None)
        return dry.acts
