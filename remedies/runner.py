"""Carrying out what was decided: plan, apply, look, verify, undo, with an honest answer to «did it have its effect?».

A failure before any act leaves the grid as it was. After one that came later the grid is looked at: the answer is APPLIED,
FAILED (with what had been changed put back), or UNCLEAR, which is a human's to resolve. Nothing here is retried.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from pydantic import TypeAdapter

from models.domain import Action, ActionStatus, Candidate, Incident, Outcome, RemedyCard, RemedyError
from remedies.child import Job, load, planned
from remedies.contract import Applied
from remedies.executors import Executor, Keep, Report

log = structlog.get_logger()

MAX_PLAN_FAILURES = 3  # in a row; afterwards an outside remedy is not asked until the daemon starts anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of an action, to be put into the ledger.

    `retry`: nothing was done to the grid, the same action may be tried again.
    """

    status: ActionStatus
    message: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict)
    retry: bool = False


class Runner:
    """Runs remedies by means of an executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._plan_failures: dict[str, int] = {}

    def plan(self, card: RemedyCard, incident: Incident) -> Candidate | None:
        """What the remedy would do about the incident; None if nothing, or if it broke its contract (logged).

        Built-ins plan in process: they are pure, and this is done for each incident.
        """
        if self._plan_failures.get(card.name, 0) >= MAX_PLAN_FAILURES:
            return None
        try:
            value = planned(load(card.spec), incident) if card.builtin else self._plan_outside(card, incident)
            candidate = None if value is None else _candidate(card, value)
        except Exception as error:  # noqa: BLE001 - whatever one remedy raises, the others are still asked
            given_up = self._count_plan_failure(card)
            log.error(  # noqa: TRY400 - the author needs the message; the trace is of a child that is gone
                "remedy-plan-failed",
                remedy=card.name,
                incident=incident.id,
                error=str(error)[:1000],
                cure="mend the remedy and restart"
                if given_up
                else "mend the remedy: remedies.testing.check finds what is wrong",
                given_up=given_up,
            )
            return None
        self._plan_failures.pop(card.name, None)
        return candidate

    def carry_out(self, action: Action, card: RemedyCard, *, keep: Keep) -> Result:
        """Apply. `keep` makes durable what is remembered, before the effect; its errors pass through, and nothing is done.

        Give `action.memory` as the ledger has it: what an attempt that was cut off remembered is not read anew.
        """
        report = self._do("apply", action, card, key=action.id, keep=keep)
        if not report.failed:
            return Result(status=ActionStatus.APPLIED, memory=report.memory)
        if report.acts == 0:
            # The memory is dropped: should it be tried again, what stands then is what stood before.
            return Result(status=ActionStatus.FAILED, message=f"before it did anything: {report.message}", retry=True)
        return self._find_out(action, card, report)

    def resume(self, action: Action, card: RemedyCard, *, keep: Keep) -> Result:
        """Carry on with an action that was in flight when the daemon ended: look first, then complete it if it is not."""
        match self.look(action, card):
            case Applied.YES:
                return Result(
                    status=ActionStatus.APPLIED, message="found in place after a restart", memory=action.memory
                )
            case Applied.NO:
                return self.carry_out(action, card, keep=keep)
            case Applied.UNKNOWN:
                message = "was in flight at a restart, and nobody can tell whether it had its effect"
                return Result(status=ActionStatus.UNCLEAR, message=message, memory=action.memory)

    def look(self, action: Action, card: RemedyCard) -> Applied:
        """Whether the effect is in place; UNKNOWN also where looking failed (logged)."""
        return self._look(action, card, action.memory)

    def verify(self, action: Action, card: RemedyCard) -> Outcome | None:
        """What the remedy itself says of the outcome, to be combined by `contract.lower`; None where it says nothing."""
        report = self._do("verify", action, card, key=action.id)
        if not report.failed and (report.value is None or report.value in set(Outcome)):
            return None if report.value is None else Outcome(report.value)
        self._warn("remedy-verify-failed", action, report.message or f"it returned {report.value!r}, no Outcome")
        return None

    def undo(self, action: Action, card: RemedyCard, *, memory: Mapping[str, Any] | None = None) -> Result:
        """Put back what the action's memory holds: UNDONE, APPLIED where nothing was undone, or UNCLEAR."""
        memory = action.memory if memory is None else memory
        report = self._do("undo", action, card, key=f"{action.id}/undo", memory=memory)
        if not report.failed:
            return Result(status=ActionStatus.UNDONE, message="put back", memory=memory)
        status = ActionStatus.APPLIED if report.acts == 0 else ActionStatus.UNCLEAR
        return Result(status=status, message=f"undo failed: {report.message}", memory=memory, retry=report.acts == 0)

    def _count_plan_failure(self, card: RemedyCard) -> bool:
        """True: it has cost enough time. A built-in costs none, and what made it fail may be one incident's odd names."""
        if not card.builtin:
            self._plan_failures[card.name] = self._plan_failures.get(card.name, 0) + 1
        return self._plan_failures.get(card.name, 0) >= MAX_PLAN_FAILURES

    def _find_out(self, action: Action, card: RemedyCard, report: Report) -> Result:
        """The result of an `apply` that failed when it may have had its effect."""
        found = self._look(action, card, report.memory)
        if found is Applied.YES:
            message = f"in place, although it failed: {report.message}"
            return Result(status=ActionStatus.APPLIED, message=message, memory=report.memory)
        if found is Applied.NO and report.memory:
            # A part may be in place. It is not left behind: whoever reads FAILED takes the grid to be as it was.
            undone = self.undo(action, card, memory=report.memory)
            if undone.status is ActionStatus.UNDONE:
                message = f"failed, and what it had changed was put back: {report.message}"
                return Result(status=ActionStatus.FAILED, message=message)
            message = f"failed partway: {report.message}; {undone.message}"
            return Result(status=ActionStatus.UNCLEAR, message=message, memory=report.memory)
        if found is Applied.NO:
            return Result(status=ActionStatus.FAILED, message=f"is not in place: {report.message}")
        message = f"nobody can tell whether it is in place: {report.message}"
        return Result(status=ActionStatus.UNCLEAR, message=message, memory=report.memory)

    def _look(self, action: Action, card: RemedyCard, memory: Mapping[str, Any]) -> Applied:
        report = self._do("applied", action, card, key=action.id, memory=memory)
        if not report.failed and report.value in set(Applied):
            return Applied(report.value)
        self._warn("remedy-look-failed", action, report.message or f"it returned {report.value!r}, no Applied")
        return Applied.UNKNOWN

    def _do(
        self,
        what: Literal["apply", "applied", "verify", "undo"],
        action: Action,
        card: RemedyCard,
        *,
        key: str,
        memory: Mapping[str, Any] | None = None,
        keep: Keep = lambda _: None,
    ) -> Report:
        if card.name != action.candidate.remedy:
            raise ValueError(f"action {action.id!r} is of {action.candidate.remedy!r}, the card is of {card.name!r}")
        memory = action.memory if memory is None else memory
        job = Job(what=what, spec=card.spec, key=key, params=dict(action.candidate.params), memory=dict(memory))
        return self._executor.execute(job, keep=keep)

    def _plan_outside(self, card: RemedyCard, incident: Incident) -> Any:  # noqa: ANN401 - JSON, checked by _candidate
        shown = _adapter(Incident).dump_python(incident, mode="json")
        report = self._executor.execute(Job(what="plan", spec=card.spec, incident=shown), keep=lambda _: None)
        if report.failed:
            raise RemedyError(f"remedy {card.name}: plan {report.message}")
        return report.value

    @staticmethod
    def _warn(event: str, action: Action, error: str) -> None:
        log.warning(event, remedy=action.candidate.remedy, action=action.id, error=error, cure="look at the grid")


@functools.cache
def _adapter(of: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(of)


def _candidate(card: RemedyCard, value: Mapping[str, Any]) -> Candidate:
    candidate: Candidate = _adapter(Candidate).validate_python({"remedy": card.name, **value})
    return candidate
