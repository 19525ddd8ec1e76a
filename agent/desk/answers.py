"""The one place where operators' answers come in, whichever desk they were given at.

A desk only appends answers to the ledger; the loop settles them. So what is said here is what is known at that
moment, and everything is checked again when it is carried out.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass

from agent.desk.phrases import reasons
from agent.desk.text import clean
from models.domain import (
    Answer,
    AnswerKind,
    AnswerRefused,
    Decision,
    DecisionStatus,
    LedgerError,
)
from storage.ledger import Ledger, Transaction

SLACK = "slack"  # what `Answer.via` says of the Slack desk


class Right(enum.StrEnum):
    """What an operator may do."""

    APPROVE = "approve"  # and reject
    RATE = "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Somebody who may answer. `name` is what the ledger calls them."""

    name: str
    rights: frozenset[Right] = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Operators:
    """Who may answer at a desk, by what that desk calls them (in Slack the user id). Nobody else may."""

    people: Mapping[str, Operator]

    @classmethod
    def local(cls, name: str) -> Operators:
        """Return the operator of the console or the command line: who can use them owns this machine's ledger."""
        return cls({name: Operator(name=name)})

    @classmethod
    def named(cls, names: Mapping[str, str]) -> Operators:
        """Return operators with every right from a mapping of what a desk calls them to their names."""
        return cls({known_as: Operator(name=name) for known_as, name in names.items()})

    def admit(self, answer: Answer) -> Answer:
        """Return `answer` by the operator's name; raise AnswerRefused if they have no right to it."""
        operator = self.people.get(answer.by)
        needed = Right.RATE if answer.kind is AnswerKind.RATE else Right.APPROVE
        if operator is None:
            raise AnswerRefused(
                f"Nothing was done: {clean(answer.by, 40)} is not among gridmedic's operators for {answer.via}. Whoever "
                f"runs it can add {clean(answer.by, 40)} under desk.{answer.via}.operators in its config.yaml."
            )
        if needed not in operator.rights:
            raise AnswerRefused(f"Nothing was done: {operator.name} has no right to {answer.kind} in {answer.via}.")
        return dataclasses.replace(answer, by=operator.name)


def give(ledger: Ledger, answer: Answer, *, operators: Operators) -> str:
    """Check an operator's answer, add it to the ledger, and return a sentence that says so.

    The same key twice is one answer. Raises AnswerRefused, whose message is for the operator, when they may not
    give it or it comes too late; then the ledger is as it was.
    """
    answer = operators.admit(answer)
    with ledger.begin(write=True) as tx:
        decision = _decision(tx, answer.decision_id)
        pending = tx.pending_choice(answer.decision_id)
        # Added first, so that an answer that is delivered again is known as such however far the first one has come.
        if not tx.add_answer(answer):
            return "This was noted already."
        if answer.kind is AnswerKind.RATE:
            return _rate(answer, decision)
        return _choose(tx, answer, decision, pending)


def option_of(ledger: Ledger, decision_id: str, remedy: str | None) -> int:
    """Return the index of the option of that remedy, of the recommended one without a name.

    Raises AnswerRefused if there is no such proposal, or none of that name in it.
    """
    with ledger.begin(write=False) as tx:
        decision = _decision(tx, decision_id)
    if remedy is None:
        return decision.recommended
    names = [option.candidate.remedy for option in decision.options]
    if remedy not in names:
        known = ", ".join(names) or "none"
        raise AnswerRefused(f"Nothing was done: proposal {decision.id} has no remedy {remedy!r}; it has {known}.")
    return names.index(remedy)


def set_paused(ledger: Ledger, paused: bool, by: str) -> str:  # noqa: FBT001 - pause and resume are one act
    """Pause or resume everything that acts; return a sentence that says so."""
    with ledger.begin(write=True) as tx:
        before = paused_by(tx)
        tx.set_setting("paused", {"by": by} if paused else None)
    if paused:
        return "gridmedic is paused: it goes on watching, and nothing is carried out until somebody resumes it."
    return f"gridmedic goes on (it was paused by {before})." if before else "gridmedic was not paused."


def paused_by(tx: Transaction) -> str | None:
    """Return the name of who paused gridmedic; None if it is not paused."""
    setting = tx.setting("paused")
    return clean(str(setting.get("by") or "somebody"), 60) if isinstance(setting, dict) else None


def _decision(tx: Transaction, decision_id: str) -> Decision:
    try:
        decision = tx.decision(decision_id)
    except LedgerError:
        raise AnswerRefused(f"Nothing was done: there is no proposal {clean(decision_id, 80)!r}.") from None
    if decision.status is DecisionStatus.SHADOW:
        raise AnswerRefused("Nothing was done: this proposal was only recorded, by a replay or a dry run.")
    return decision


def _rate(answer: Answer, decision: Decision) -> str:
    remedy = _remedy(answer, decision)
    if answer.rating is None:
        raise AnswerRefused(f"Nothing was done: say how to rate {remedy}: good, wrong or not applicable.")
    return f"Noted: {answer.by} finds {remedy} {answer.rating.replace('-', ' ')}."


def _choose(tx: Transaction, answer: Answer, decision: Decision, pending: Answer | None) -> str:
    if decision.status is DecisionStatus.TAKEN or decision.status is DecisionStatus.REJECTED:
        word = "rejected" if decision.status is DecisionStatus.REJECTED else "chosen"
        raise AnswerRefused(f"Nothing was done: this was {word} already, by {decision.chosen_by or 'somebody'}.")
    if decision.status is DecisionStatus.EXPIRED:
        raise AnswerRefused(
            "Nothing was done: this proposal has expired, because its incident closed or has a new one."
        )
    newest = tx.newest_decision(decision.incident_id)
    if newest is not None and newest.id != decision.id:
        raise AnswerRefused("Nothing was done: there is a newer proposal for this incident; please look at that one.")
    if pending is not None:
        word = "rejected" if pending.kind is AnswerKind.REJECT else "approved"
        raise AnswerRefused(f"Nothing was done: {pending.by} has {word} already; it takes effect with the next pass.")
    if answer.kind is AnswerKind.REJECT:
        return f"Noted: {answer.by} rejects every remedy of this proposal."
    remedy = _remedy(answer, decision)
    by = paused_by(tx)
    if by is not None:
        raise AnswerRefused(f"Nothing was done: gridmedic is paused by {by}; resume it first.")
    if answer.option not in decision.eligible:
        why = reasons(decision.options[answer.option or 0]) or "the policy forbids it"
        raise AnswerRefused(f"Nothing was done: {remedy} cannot be approved: {why}.")
    return f"Noted: {answer.by} approves {remedy}; it starts with the next pass."


def _remedy(answer: Answer, decision: Decision) -> str:
    if answer.option is None or not 0 <= answer.option < len(decision.options):
        raise AnswerRefused(
            f"Nothing was done: {answer.option!r} is none of the {len(decision.options)} remedies of this proposal."
        )
    return clean(decision.options[answer.option].candidate.remedy, 80)
