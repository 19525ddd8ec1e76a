"""What every desk shows of an incident and of the proposal for it, in an operator's words.

Plain text in small pieces, one line each, free of control characters: a desk lays them out and escapes them in its
own way. There are no ages ("5 minutes ago") in them: the same ledger gives the same words, so a desk can tell
by comparing whether there is anything new to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from agent.desk.phrases import OUTCOME, PLACE, PROBLEM, REACH, SAFETY, reasons
from agent.desk.quantities import readings, times
from agent.desk.text import clean, duration, moment, percent
from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    Decision,
    DecisionStatus,
    Entity,
    EntityKind,
    Incident,
    IncidentKind,
    Option,
    Outcome,
    Permission,
    Proposal,
    RemedyCard,
    Safety,
)

AUTONOMY = "autonomy"  # what `Decision.chosen_by` says when nobody was asked

State = Literal["waits", "runs", "fixed", "trouble", "quiet", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentWords:
    """What is broken, how sure we are, and what a person needs to check it."""

    id: str
    headline: str
    gauge: str  # severity, confidence and since when, in one line
    severity: Literal["high", "medium", "low"]
    summary: str
    facts: tuple[tuple[str, str], ...]  # (label, text), what matters most first
    examples: tuple[str, ...]
    closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyWords:
    """One option of a decision: what happens if it is approved, and why it stands where it stands."""

    index: int  # in `Decision.options`
    name: str
    title: str
    what: str  # what exactly happens
    touches: str  # everything that it acts on, "" if `what` names it
    why: str
    safety: str
    blocked: str  # why it cannot be approved, "" if it can
    rating: str  # the latest, "" if there is none
    recommended: bool
    chosen: bool
    approvable: bool
    ratable: bool
    risky: bool  # worth asking twice


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalWords:
    """A proposal as a desk shows it: the remedies in the order in which to show them."""

    incident: IncidentWords
    decision_id: str
    status: str  # what waits for whom, or what has happened
    state: State
    asks: str  # why nothing was done unasked, "" if that is not the question
    remedies: tuple[RemedyWords, ...]
    rejectable: bool


def entity(culprit: Entity | str) -> str:
    """Return a culprit or target without its kind; `A>B` with an arrow."""
    text = culprit.name if isinstance(culprit, Entity) else culprit
    kind, colon, name = text.partition(":")
    name = name if colon and kind in list(EntityKind) else text
    return clean(name.replace(">", " → ") if name.count(">") == 1 else name, 120)


def title(remedy: str, cards: Mapping[str, RemedyCard]) -> str:
    """Return what a remedy does in an operator's words; its name where no card is known."""
    card = cards.get(remedy)
    return clean(card.title if card else remedy.replace("_", " ").capitalize(), 80)


def of_incident(incident: Incident) -> IncidentWords:
    """Put an incident into words."""
    severity: Literal["high", "medium", "low"] = (
        "high" if incident.severity >= 0.66 else "medium" if incident.severity >= 0.33 else "low"
    )
    until = f" to {moment(incident.closed_at)}" if incident.closed_at else f", last seen {moment(incident.updated_at)}"
    return IncidentWords(
        id=incident.id,
        headline=f"{PROBLEM[incident.kind]} {PLACE[incident.culprit.kind]} {entity(incident.culprit)}",
        gauge=(
            f"{severity} severity · {percent(incident.confidence)} sure who is to blame · "
            f"since {moment(incident.opened_at)}{until}"
        ),
        severity=severity,
        summary=clean(incident.evidence.summary),
        facts=tuple(_facts(incident)),
        examples=tuple(_examples(incident)),
        closed=incident.closed,
    )


def of_proposal(proposal: Proposal, cards: Mapping[str, RemedyCard], pending: Answer | None = None) -> ProposalWords:
    """Put a proposal into words.

    `cards` by name of remedy, for what their authors declared, as far as it is known; `pending` is the choice that an
    operator has made and that the loop has not settled yet.
    """
    decision = proposal.decision
    waits = decision.status is DecisionStatus.OPEN and not proposal.incident.closed and pending is None
    best = decision.options[decision.recommended] if decision.options else None
    asked = waits and best is not None and best.permission is Permission.ASK
    return ProposalWords(
        incident=of_incident(proposal.incident),
        decision_id=decision.id,
        status=_pending(pending, decision, cards) if pending else _status(proposal, cards),
        state="runs" if pending else _state(proposal),
        asks=reasons(best) if asked and best else "",
        remedies=tuple(_remedy(proposal, index, cards, waits=waits) for index in order(decision)),
        rejectable=waits and bool(decision.eligible),
    )


def order(decision: Decision) -> tuple[int, ...]:
    """Return indexes of options as a desk shows them: the recommendation, the other eligible ones, the rest."""

    def rank(index: int) -> tuple[bool, bool]:
        return decision.options[index].permission is Permission.SKIP, index != decision.recommended

    return tuple(sorted(range(len(decision.options)), key=rank))


def story(incident: Incident, actions: Iterable[Action], cards: Mapping[str, RemedyCard]) -> list[tuple[str, str]]:
    """Return what has been done about an incident and what came of it: (key, sentence), the oldest first.

    A key stays the same for the same event, so that a desk can tell which sentences it has told.
    """
    told = []
    for action in sorted(actions, key=lambda action: (action.due_at, action.id)):
        what = f"«{title(action.candidate.remedy, cards)}»"
        if action.status is ActionStatus.RUNNING:
            told.append((f"{action.id}:running", f"{what} has started: {clean(action.candidate.summary)}"))
        elif action.status is not ActionStatus.DUE:
            told.append((f"{action.id}:{action.status}", f"{what} {_result(action)}"))
        if action.outcome is not None:
            told.append((f"{action.id}:outcome", f"{what}: {_outcome(action)}"))
    if incident.closed_at is not None:
        told.append((f"{incident.id}:closed", f"The incident closed at {moment(incident.closed_at)}."))
    return told


def _facts(incident: Incident) -> Iterable[tuple[str, str]]:
    evidence = incident.evidence
    noun = "deletions" if incident.kind is IncidentKind.FAILING_DELETIONS else "transfers"
    if evidence.total and f"{evidence.anomalous} of {evidence.total}" not in evidence.summary:
        here, elsewhere = percent(evidence.anomalous / evidence.total), percent(evidence.background)
        counted = f"{evidence.anomalous} of {evidence.total} {noun} in {duration(evidence.window_s)} were anomalous"
        yield "Share", f"{counted}, {here}; of the others {elsewhere}"
    if evidence.reasons:
        yield "Errors", _counts(evidence.reasons)
    roles = [("source", evidence.as_source), ("destination", evidence.as_destination)]
    if any(share.total for _, share in roles) and incident.culprit.kind in {EntityKind.RSE, EntityKind.SITE}:
        yield "Role", " · ".join(f"as {role} {share.anomalous} of {share.total}" for role, share in roles)
    if evidence.limits:
        yield "Times (medians)", " · ".join(times(evidence.limits))
    if evidence.deletions.anomalous:
        deletions = f"{evidence.deletions.anomalous} of {evidence.deletions.total}"
        yield "Deletions", f"{deletions} there failed, crawled or waited, too"
    if evidence.network:
        yield "Network", " · ".join(readings(evidence.network))
    if evidence.findings:
        yield "perfSONAR", " · ".join(clean(finding, 200) for finding in evidence.findings)
    if evidence.links:
        yield "Links", _counts(evidence.links)
    if evidence.activities:
        yield "Activities", _counts(evidence.activities)
    if evidence.rules:
        more = f" and {len(evidence.rules) - 3} more" if len(evidence.rules) > 3 else ""
        yield "Rules", clean(", ".join(evidence.rules[:3])) + more


def _counts(counts: Mapping[str, int], most: int = 5) -> str:
    worst = sorted(counts.items(), key=lambda item: -item[1])
    more = f" · and {len(worst) - most} more" if len(worst) > most else ""
    return " · ".join(f"{count} × {entity(name)}" for name, count in worst[:most]) + more  # noqa: RUF001 - times, not x


def _examples(incident: Incident) -> Iterable[str]:
    under_way = "not carried out" if incident.kind is IncidentKind.FAILING_DELETIONS else "still under way"
    for example in incident.evidence.examples[:5]:
        end = under_way if example.ended_at is None else f"ended {moment(example.ended_at)}"
        pieces = [f"{example.request_id} on {entity(example.link)}, {end}"]
        if example.duration_s is not None:
            pieces.append(f"took {duration(example.duration_s)}")
        if example.expected_s is not None:
            pieces.append(f"expected {duration(example.expected_s)}")
        if example.threshold_s is not None:
            pieces.append(f"alarm above {duration(example.threshold_s)}")
        if example.reason:
            pieces.append(example.reason)
        yield clean(" · ".join(pieces), 400)


def _remedy(proposal: Proposal, index: int, cards: Mapping[str, RemedyCard], *, waits: bool) -> RemedyWords:
    decision, option = proposal.decision, proposal.decision.options[index]
    card = cards.get(option.candidate.remedy)
    skipped = option.permission is Permission.SKIP
    rating = proposal.ratings.get(index)
    # After an incident is over, the one question left is whether what was done was right.
    ratable = decision.status is not DecisionStatus.SHADOW and (
        not proposal.incident.closed or index == decision.chosen
    )
    return RemedyWords(
        index=index,
        name=clean(option.candidate.remedy, 80),
        title=title(option.candidate.remedy, cards),
        what=clean(option.candidate.summary),
        touches=_touches(option.candidate.targets),
        why="" if skipped else _why(option, card),
        safety=_safety(card),
        blocked=reasons(option) if skipped else "",
        rating=rating.replace("-", " ") if rating else "",
        recommended=index == decision.recommended and not skipped,
        chosen=index == decision.chosen,
        approvable=waits and not skipped,
        ratable=ratable,
        risky=card is None or card.safety >= Safety.DISRUPTIVE,
    )


def _touches(targets: tuple[str, ...]) -> str:
    return clean(" · ".join(entity(target) for target in targets), 1000) if len(targets) > 1 else ""


def _why(option: Option, card: RemedyCard | None) -> str:
    pieces = [f"expected to help {percent(1 - option.expected_cost)}"]
    if option.samples:
        proven = (
            f"right at least {percent(option.trust)} of the time" if option.trust >= 0.01 else "not proven here yet"
        )
        pieces.append(f"{proven} (n = {option.samples})")
    else:
        guess = f", only its author's guess of {percent(card.prior)}" if card else ""
        pieces.append(f"no experience with it here yet{guess}")
    return " · ".join([*pieces, f"chance to be recommended {percent(option.probability)}"])


def _safety(card: RemedyCard | None) -> str:
    if card is None:
        return ""
    judged = f" · judged after {duration(card.settle_time.total_seconds())}" if card.settle_time > timedelta() else ""
    reach = f" · {REACH[card.blast_radius]}" if card.safety > Safety.READ_ONLY else ""
    return f"{SAFETY[card.safety]}{reach}{judged}"


def _pending(answer: Answer, decision: Decision, cards: Mapping[str, RemedyCard]) -> str:
    if answer.kind is AnswerKind.REJECT or answer.option is None:
        return f"Every remedy was rejected by {clean(answer.by, 60)}; it takes effect with the next pass."
    remedy = title(decision.options[answer.option].candidate.remedy, cards)
    return f"«{remedy}» was approved by {clean(answer.by, 60)}; it starts with the next pass."


def _status(proposal: Proposal, cards: Mapping[str, RemedyCard]) -> str:
    decision = proposal.decision
    if decision.status is DecisionStatus.SHADOW:
        return "Recorded only: a replay or a dry run carries nothing out."
    if decision.status is DecisionStatus.TAKEN and decision.chosen is not None:
        remedy = title(decision.options[decision.chosen].candidate.remedy, cards)
        if decision.chosen_by == AUTONOMY:
            return f"«{remedy}» was chosen by gridmedic itself. {_progress(proposal.action)}"
        return f"«{remedy}» was approved by {clean(decision.chosen_by or 'somebody', 60)}. {_progress(proposal.action)}"
    if decision.status is DecisionStatus.REJECTED:
        return f"Every remedy was rejected by {clean(decision.chosen_by or 'an operator', 60)}."
    if proposal.incident.closed:
        return "The incident closed before anything was chosen."
    if decision.status is DecisionStatus.EXPIRED:
        return "This proposal has expired; a new one comes if the incident goes on."
    if not decision.eligible:
        return "Nothing can be approved now; gridmedic decides anew when that changes."
    return "Waits for an operator: approve one remedy, or reject all of them."


def _progress(action: Action | None) -> str:
    if action is None or action.status is ActionStatus.DUE:
        return "It starts with the next pass."
    if action.status is ActionStatus.RUNNING:
        return f"It is running{f' since {moment(action.started_at)}' if action.started_at else ''}."
    if action.outcome is not None:
        outcome = _outcome(action)
        return f"It {_result(action)} {outcome[0].upper()}{outcome[1:]}"
    judged = f" Judged at {moment(action.judge_at)}." if action.judge_at else ""
    return f"It {_result(action)}{judged if action.status is ActionStatus.APPLIED else ''}"


def _result(action: Action) -> str:
    note = f": {clean(action.message).rstrip('.')}." if action.message else "."
    at = f" at {moment(action.finished_at)}" if action.finished_at else ""
    if action.status is ActionStatus.UNCLEAR:
        targets = ", ".join(entity(target) for target in action.candidate.targets)
        return clean(f"may or may not have had its effect{at}: please look at {targets}{note}", 500)
    done = {ActionStatus.APPLIED: "was done", ActionStatus.UNDONE: "was undone"}
    return f"{done.get(action.status, 'failed before it had an effect')}{at}{note}"


def _outcome(action: Action) -> str:
    note = f" ({clean(action.outcome_note).rstrip('.')})" if action.outcome_note else ""
    return f"{OUTCOME[action.outcome or Outcome.UNKNOWN]}{note}."


def _state(proposal: Proposal) -> State:
    decision, action = proposal.decision, proposal.action
    if proposal.incident.closed:
        return "closed"
    if decision.status is DecisionStatus.OPEN and decision.eligible:
        return "waits"
    if decision.status is not DecisionStatus.TAKEN:
        return "quiet"
    if action is None or (action.outcome is None and action.status not in {ActionStatus.FAILED, ActionStatus.UNCLEAR}):
        return "runs"
    return "fixed" if action.outcome is Outcome.FIXED else "trouble"
