"""What came in since the last pass: operators' answers, and the verdicts on actions whose settle time is over.

Answers are settled in the order in which they came; the first choice on a decision counts, later ones are told so.
Everything becomes feedback rows in the ledger, and the bandit learns from those rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from detectors.judgement import judge
from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    Decision,
    DecisionStatus,
    FeedbackSource,
    Incident,
    Outcome,
    Permission,
    RemedyCard,
)
from ranking.bandit import Bandit, Lesson
from storage.ledger import Ledger, Transaction

log = structlog.get_logger()


class Settlement:
    """Turns answers and verdicts into feedback, and feedback into what the bandit knows."""

    def __init__(self, *, ledger: Ledger, cards: Mapping[str, RemedyCard], bandit: Bandit) -> None:
        self._ledger = ledger
        self._cards = cards
        self._bandit = bandit

    def rebuild(self) -> None:
        """Fold the feedback rows that the bandit has not seen."""
        with self._ledger.begin(write=False) as tx:
            rows = tx.feedback(after=self._bandit.last_row)
            decisions = tx.decisions({row.decision_id for row in rows})
        lessons = []
        for row in rows:
            decision = decisions[row.decision_id]
            options = tuple((option.candidate.remedy, option.probability) for option in decision.options)
            lessons.append(Lesson(feedback=row, context=decision.context, options=options))
        if lessons:
            self._bandit.learn(lessons)

    def settle(self, now: datetime) -> None:
        with self._ledger.begin(write=False) as tx:
            answers = tx.unsettled_answers()
            applied = tx.actions(statuses=[ActionStatus.APPLIED])
        due = [a for a in applied if a.outcome is None and a.judge_at is not None and a.judge_at <= now]
        if not answers and not due:
            return
        with self._ledger.begin(write=True) as tx:
            for row, answer in answers:
                note = self._take(tx, answer, now)
                tx.settle_answer(row, note, now)
                log.info("answer-settled", decision=answer.decision_id, by=answer.by, kind=str(answer.kind), note=note)
            for action in due:
                self._judge(tx, action, now)
        self.rebuild()

    def _take(self, tx: Transaction, answer: Answer, now: datetime) -> str:
        """Apply one answer; return what became of it."""
        decision = tx.decision(answer.decision_id)
        match answer.kind:
            case AnswerKind.RATE:
                return self._rate(tx, decision, answer, now)
            case AnswerKind.APPROVE:
                return self._approve(tx, decision, answer, now)
            case AnswerKind.REJECT:
                return self._reject(tx, decision, answer, now)

    def _rate(self, tx: Transaction, decision: Decision, answer: Answer, now: datetime) -> str:
        if answer.option is None or answer.rating is None or not 0 <= answer.option < len(decision.options):
            return "names no remedy of this decision"
        self._feed(tx, decision, answer.option, FeedbackSource.RATING, str(answer.rating), answer.by, now)
        return "recorded"

    def _approve(self, tx: Transaction, decision: Decision, answer: Answer, now: datetime) -> str:
        incident = tx.incident(decision.incident_id)
        refusal = _not_open(decision, incident)
        if refusal:
            return refusal
        if answer.option is None or answer.option not in decision.eligible:
            return "names no remedy that may be approved"
        take(tx, decision, answer.option, by=answer.by, now=now)
        self._feed(tx, decision, answer.option, FeedbackSource.CHOICE, "chosen", answer.by, now)
        return "approved"

    def _reject(self, tx: Transaction, decision: Decision, answer: Answer, now: datetime) -> str:
        refusal = _not_open(decision, tx.incident(decision.incident_id))
        if refusal:
            return refusal
        rejected = replace(decision, status=DecisionStatus.REJECTED, chosen_by=answer.by, chosen_at=now)
        tx.update_decision(rejected)
        self._feed(tx, decision, decision.recommended, FeedbackSource.CHOICE, "rejected", answer.by, now)
        return "rejected"

    def _judge(self, tx: Transaction, action: Action, now: datetime) -> None:
        incident = tx.incident(action.incident_id)
        decision = tx.decision(action.id)
        applied_at = action.finished_at or action.due_at
        outcome, note = judge(incident, tx.rows("observed"), applied_at=applied_at, now=now)
        tx.save_action(replace(action, outcome=outcome, outcome_note=note))
        log.info("action-judged", action=action.id, remedy=action.candidate.remedy, outcome=str(outcome), note=note)
        if decision.chosen is not None and outcome is not Outcome.UNKNOWN:
            self._feed(tx, decision, decision.chosen, FeedbackSource.OUTCOME, str(outcome), "core", now)

    def _feed(
        self, tx: Transaction, decision: Decision, option: int, source: FeedbackSource, value: str, by: str, now: datetime
    ) -> None:
        propensity = decision.propensity if option == decision.recommended else None
        tx.add_feedback(
            at=now, decision_id=decision.id, option=option, source=source, value=value, by=by, propensity=propensity
        )


def take(tx: Transaction, decision: Decision, option: int, *, by: str, now: datetime) -> None:
    """Choose an option of an open decision: from here on its action is due."""
    chosen = replace(decision, status=DecisionStatus.TAKEN, chosen=option, chosen_by=by, chosen_at=now)
    tx.update_decision(chosen)
    tx.add_action(
        Action(
            id=decision.id,
            incident_id=decision.incident_id,
            candidate=decision.options[option].candidate,
            status=ActionStatus.DUE,
            due_at=now,
        )
    )


def _not_open(decision: Decision, incident: Incident) -> str:
    """Why a decision can no longer be answered; empty if it can."""
    if decision.status is DecisionStatus.TAKEN:
        return f"{decision.chosen_by} had already chosen"
    if decision.status is not DecisionStatus.OPEN:
        return f"the proposal was {decision.status} already"
    if incident.closed:
        return "the incident has closed"
    return ""


