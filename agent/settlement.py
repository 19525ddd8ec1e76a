"""What came in since the last pass: operators' answers, and the verdicts on actions whose settle time is over.

Answers are settled in the order in which they came; the first choice on a decision counts, later ones are told so.
Everything becomes feedback rows in the ledger, and the bandit learns from those rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from agent.experience import Experience
from agent.guards import Guards
from detectors.judgement import judge
from detectors.window import WINDOW_S
from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    Decision,
    DecisionStatus,
    FeedbackSource,
    Incident,
    IncidentKind,
    Permission,
    RemedyCard,
)
from ranking.reward import CHOSEN, REJECTED
from remedies.contract import lower
from remedies.runner import Runner
from storage.ledger import Ledger, Transaction

log = structlog.get_logger()

SEEN_UNTIL = "seen-until"  # setting of the ledger: up to when the events of every source have been read


class Settlement:
    """Turns answers and verdicts into feedback, and feedback into what the bandit knows."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        cards: Mapping[str, RemedyCard],
        runner: Runner,
        guards: Guards,
        experience: Experience,
        dry_run: bool,
    ) -> None:
        """`dry_run`: nothing was done to the grid, so what happens afterwards teaches nothing."""
        self._ledger = ledger
        self._cards = cards
        self._runner = runner
        self._guards = guards
        self._experience = experience
        self._dry_run = dry_run

    def settle(self, now: datetime) -> None:
        """Settle what is due. No verdict is given before the events of its settle time have been read."""
        with self._ledger.begin(write=False) as tx:
            answers = tx.unsettled_answers()
            applied = tx.actions(statuses=[ActionStatus.APPLIED])
            seen = _moment(tx.setting(SEEN_UNTIL))
        due = [a for a in applied if seen and a.outcome is None and a.judge_at is not None and a.judge_at <= seen]
        if not answers and not due:
            return
        judged = self._judged(due, now)
        with self._ledger.begin(write=True) as tx:
            for row, answer in answers:
                note = self._take(tx, answer, now)
                tx.settle_answer(row, note, now)
                log.info("answer-settled", decision=answer.decision_id, by=answer.by, kind=str(answer.kind), note=note)
            for action in judged:
                self._conclude(tx, action, now)
        with self._ledger.begin(write=False) as tx:
            self._experience.catch_up(tx)

    def _judged(self, due: Sequence[Action], now: datetime) -> list[Action]:
        """Actions with their outcome: the core's own verdict, which the remedy itself may lower and never raise."""
        if not due:
            return []
        since = min(_applied_at(action) for action in due) - timedelta(seconds=WINDOW_S)
        with self._ledger.begin(write=False) as tx:
            observed = tx.rows_since("observed", "ended_at", since.timestamp())
            deletions = tx.rows_since("deletions", "ended_at", since.timestamp())
            incidents = {action.id: tx.incident(action.incident_id) for action in due}
        judged = []
        for action in due:
            # As of when it was due: a daemon that was away then comes to the same verdict.
            incident = incidents[action.id]
            rows = deletions if incident.kind is IncidentKind.FAILING_DELETIONS else observed
            verdict, note = judge(incident, rows, applied_at=_applied_at(action), now=action.judge_at or now)
            card = self._cards.get(action.candidate.remedy)
            said = None if card is None or self._dry_run else self._runner.verify(action, card)
            outcome = lower(verdict, said)
            if outcome is not verdict:
                note += f"; the remedy itself says {said}"
            judged.append(replace(action, outcome=outcome, outcome_note=note))
        return judged

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
        # Much may have happened since the proposal was made, so the policy is asked again.
        candidate = decision.options[answer.option].candidate
        ruling = self._guards.ruling(tx, candidate, incident, now=now)
        if ruling.permission is Permission.SKIP:
            return f"may not be done now: {', '.join(ruling.blocks)}"
        take(tx, decision, answer.option, by=answer.by, now=now)
        self._feed(tx, decision, answer.option, FeedbackSource.CHOICE, CHOSEN, answer.by, now)
        if answer.option != decision.recommended:
            # What was passed over would stay first for ever if nothing were said of it.
            self._feed(tx, decision, decision.recommended, FeedbackSource.CHOICE, REJECTED, answer.by, now)
        return "approved"

    def _reject(self, tx: Transaction, decision: Decision, answer: Answer, now: datetime) -> str:
        refusal = _not_open(decision, tx.incident(decision.incident_id))
        if refusal:
            return refusal
        rejected = replace(decision, status=DecisionStatus.REJECTED, chosen_by=answer.by, chosen_at=now)
        tx.update_decision(rejected)
        self._feed(tx, decision, decision.recommended, FeedbackSource.CHOICE, REJECTED, answer.by, now)
        return "rejected"

    def _conclude(self, tx: Transaction, action: Action, now: datetime) -> None:
        tx.save_action(action)
        log.info("action-judged", action=action.id, remedy=action.candidate.remedy, outcome=str(action.outcome))
        decision = tx.decision(action.id)
        if decision.chosen is not None and not self._dry_run:
            self._feed(tx, decision, decision.chosen, FeedbackSource.OUTCOME, str(action.outcome), "core", now)

    def _feed(
        self,
        tx: Transaction,
        decision: Decision,
        option: int,
        source: FeedbackSource,
        value: str,
        by: str,
        now: datetime,
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


def _applied_at(action: Action) -> datetime:
    return action.finished_at or action.due_at


def _moment(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None


def _not_open(decision: Decision, incident: Incident) -> str:
    """Why a decision can no longer be answered; empty if it can."""
    if decision.status is DecisionStatus.TAKEN:
        return f"{decision.chosen_by} had already chosen"
    if decision.status is not DecisionStatus.OPEN:
        return f"the proposal was {decision.status} already"
    if incident.closed:
        return "the incident has closed"
    return ""
