"""Carrying out what the ledger says is due.

An action is marked RUNNING before its remedy starts, so that after a crash it is known that it was in flight; then it is
looked at before it may be done again, and if that cannot tell, a human is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from agent.guards import PAUSED
from models.domain import Action, ActionStatus, RemedyCard
from remedies.executors import Keep
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
            if tx.setting(PAUSED):
                return 0
            waiting = tx.actions(statuses=[ActionStatus.RUNNING, ActionStatus.DUE])
        waiting.sort(key=lambda action: (action.status is ActionStatus.DUE, action.due_at, action.id))
        for action in waiting:
            card = self._cards.get(action.candidate.remedy)
            if card is None:
                self._save(
                    replace(action, status=ActionStatus.FAILED, message="the remedy is no longer in the catalogue")
                )
            elif action.status is ActionStatus.RUNNING:
                self._resume(action, card, now)
            else:
                self._run(action, card, now)
        return len(waiting)

    def _run(self, action: Action, card: RemedyCard, now: datetime) -> None:
        running = replace(action, status=ActionStatus.RUNNING, started_at=now, attempts=action.attempts + 1)
        self._save(running)
        log.info("action-started", action=action.id, remedy=card.name, targets=list(action.candidate.targets))
        self._finish(running, card, self._runner.carry_out(running, card, keep=self._keeper(running)), now)

    def _resume(self, action: Action, card: RemedyCard, now: datetime) -> None:
        """An action that was in flight when the daemon died."""
        log.warning("action-was-in-flight", action=action.id, remedy=card.name)
        again = replace(action, attempts=action.attempts + 1)
        self._save(again)
        self._finish(again, card, self._runner.resume(again, card, keep=self._keeper(again)), now)

    def _finish(self, action: Action, card: RemedyCard, result: Result, now: datetime) -> None:
        if result.retry and action.memory:
            # Remembered by an attempt that was cut off and may have had a part of its effect: what stands now is not what
            # stood before, and nobody may say that nothing was done.
            result = replace(result, status=ActionStatus.UNCLEAR, memory=action.memory)
        applied = result.status is ActionStatus.APPLIED
        again = result.retry and action.attempts < MAX_ATTEMPTS
        ended = replace(
            action,
            status=ActionStatus.DUE if again else result.status,
            finished_at=None if again else now,
            message=result.message,
            memory=result.memory,
            judge_at=now + card.settle_time if applied else None,
        )
        self._save(ended)
        log.info("action-ended", action=action.id, remedy=card.name, status=str(ended.status), message=result.message)

    def _keeper(self, action: Action) -> Keep:
        """Makes durable what a remedy remembers, before its effect."""
        return lambda memory: self._save(replace(action, memory=memory))

    def _save(self, action: Action) -> None:
        with self._ledger.begin(write=True) as tx:
            tx.save_action(action)
