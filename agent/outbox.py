"""Carrying out what the ledger says is due.

An action is marked RUNNING before its remedy starts, so that after a crash it is known that it was in flight; then it is
looked at before it may be done again, and if that cannot tell, a human is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from models.domain import Action, ActionStatus, RemedyCard
from remedies.contract import Applied
from remedies.runner import Result, Runner
from storage.ledger import Ledger

log = structlog.get_logger()

MAX_ATTEMPTS = 3  # of an action that failed before its effect


class Outbox:
    """Runs due actions one after the other, each in a process of its own with a deadline."""

    def __init__(self, *, ledger: Ledger, cards: Mapping[str, RemedyCard], runner: Runner) -> None:
        self._ledger = ledger
        self._cards = cards
        self._runner = runner

    def carry_out(self, now: datetime) -> int:
        """Do all that is due; return how many actions were run or looked at."""
        with self._ledger.begin(write=False) as tx:
            waiting = tx.actions(statuses=[ActionStatus.RUNNING, ActionStatus.DUE])
        waiting.sort(key=lambda action: (action.status is ActionStatus.DUE, action.due_at, action.id))
        for action in waiting:
            card = self._cards.get(action.candidate.remedy)
            if card is None:
                self._save(replace(action, status=ActionStatus.FAILED, message="the remedy is no longer in the catalogue"))
            elif action.status is ActionStatus.RUNNING:
                self._resume(action, card, now)
            else:
                self._run(action, card, now)
        return len(waiting)

    def _run(self, action: Action, card: RemedyCard, now: datetime) -> None:
        running = replace(action, status=ActionStatus.RUNNING, started_at=now, attempts=action.attempts + 1)
        self._save(running)
        log.info("action-started", action=action.id, remedy=card.name, targets=list(action.candidate.targets))
        self._finish(running, card, self._runner.carry_out(running, card), now)

    def _resume(self, action: Action, card: RemedyCard, now: datetime) -> None:
        """An action that was in flight when the daemon died."""
        seen = self._runner.look(action, card)
        log.warning("action-was-in-flight", action=action.id, remedy=card.name, applied=str(seen))
        if seen is Applied.YES:
            self._finish(action, card, Result(status=ActionStatus.APPLIED, message="found applied after a restart"), now)
        elif seen is Applied.NO and action.attempts < MAX_ATTEMPTS:
            self._run(action, card, now)
        else:
            note = "it was in flight when the daemon died, and nobody can tell whether it had its effect: look at the grid"
            status = ActionStatus.FAILED if seen is Applied.NO else ActionStatus.UNCLEAR
            self._save(replace(action, status=status, finished_at=now, message=note))

    def _finish(self, action: Action, card: RemedyCard, result: Result, now: datetime) -> None:
        applied = result.status is ActionStatus.APPLIED
        ended = replace(
            action,
            status=result.status,
            finished_at=now,
            message=result.message,
            memory={**action.memory, **result.memory},
            judge_at=now + card.settle_time if applied else None,
        )
        self._save(ended)
        log.info("action-ended", action=action.id, remedy=card.name, status=str(result.status), message=result.message)

    def _save(self, action: Action) -> None:
        with self._ledger.begin(write=True) as tx:
            tx.save_action(action)
