"""What may be done: AUTO, ASK or SKIP, and why. Pure, and monotone: more danger, less trust, more that is going on or a stricter
limit never gives more permission.

The policy is asked twice: before the ranking, to take out what may not be done at all, and after it, with the trust and the
rank that a candidate has earned. These lift NOT_TRUSTED and NOT_BEST, and no other block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import Enum

from models.domain import (
    Action,
    ActionStatus,
    BlastRadius,
    Block,
    Candidate,
    EntityKind,
    Incident,
    Outcome,
    Permission,
    RemedyCard,
    Safety,
)
from remedies.contract import BASELINE, LONGEST

LOOK_BACK = LONGEST  # how old an action may be and still count; `standing` needs the actions since now - LOOK_BACK

_SKIPS = frozenset(
    {
        Block.PAUSED,
        Block.COOLDOWN,
        Block.RATE_LIMIT,
        Block.TARGETS_EMPTY,
        Block.TARGETS_TOO_MANY,
        Block.TARGET_BUSY,
        Block.OPEN_PROPOSAL,
        Block.DOWNTIME,
        Block.DISABLED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the configuration allows. With the defaults nothing runs unasked."""

    autonomy: bool = False
    safety_cap: Safety = Safety.REVERSIBLE  # the most dangerous that may run unasked; a destructive remedy never does
    blast_radius_cap: BlastRadius = BlastRadius.LINK
    min_trust: float = 0.8  # lower confidence bound, 0..1
    min_confidence: float = 0.7  # that the culprit is the right one, 0..1
    max_actions_per_hour: int = 10
    max_targets: int = 20  # of one action
    ineffective_before: int = 2  # actions on a target that did not help, before a human is asked
    disabled: frozenset[str] = frozenset()  # remedies by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the ledger knows that bears on one candidate, as of `now`; and what it has earned, once it is ranked."""

    now: datetime
    paused: bool = False
    last_done: datetime | None = None  # when this remedy was last begun on one of these targets
    actions_last_hour: int = 0  # of all remedies but waiting
    busy: frozenset[str] = frozenset()  # targets of actions that are due, running or settling
    proposed: frozenset[str] = frozenset()  # targets for which this remedy waits for an answer in another incident
    downtimes: frozenset[str] = frozenset()  # entities in a declared downtime or silence
    ineffective: int = 0  # actions in a row that did not help, on the worst of these targets
    unclear: bool = False  # of an action on one of these targets nobody knows whether it had its effect
    trust: float = 0.0  # lower confidence bound that this remedy is right in this context, 0..1
    best: bool = False  # it is both the recommendation and the best-scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the policy says of a candidate, and every reason against it."""

    permission: Permission
    blocks: tuple[Block, ...] = ()


def rule(candidate: Candidate, card: RemedyCard, incident: Incident, standing: Standing, limits: Limits) -> Ruling:
    """Say whether the candidate may run by itself (AUTO), if an operator wants it (ASK), or not now (SKIP)."""
    blocks = (*_skips(candidate, card, incident, standing, limits), *_asks(card, incident, standing, limits))
    if any(block in _SKIPS for block in blocks) and candidate.remedy != BASELINE:
        return Ruling(permission=Permission.SKIP, blocks=blocks)
    return Ruling(permission=Permission.ASK if blocks else Permission.AUTO, blocks=blocks)


def _skips(
    candidate: Candidate, card: RemedyCard, incident: Incident, standing: Standing, limits: Limits
) -> Iterator[Block]:
    if standing.paused:
        yield Block.PAUSED
    if candidate.remedy == BASELINE:
        # It touches nothing: nothing can be too much of it or too soon, and there must be something to choose always.
        return
    if standing.last_done is not None and standing.now - standing.last_done < card.cooldown:
        yield Block.COOLDOWN
    if standing.actions_last_hour >= limits.max_actions_per_hour:
        yield Block.RATE_LIMIT
    if not candidate.targets:
        yield Block.TARGETS_EMPTY
    if len(candidate.targets) > limits.max_targets:
        yield Block.TARGETS_TOO_MANY
    if card.safety is not Safety.READ_ONLY and overlap(candidate.targets, standing.busy):
        yield Block.TARGET_BUSY
    if standing.proposed & set(candidate.targets):
        yield Block.OPEN_PROPOSAL
    if overlap((*candidate.targets, str(incident.culprit)), standing.downtimes):
        yield Block.DOWNTIME
    if candidate.remedy in limits.disabled:
        yield Block.DISABLED


def _asks(card: RemedyCard, incident: Incident, standing: Standing, limits: Limits) -> Iterator[Block]:
    if not limits.autonomy:
        yield Block.AUTONOMY_OFF
    if card.safety > limits.safety_cap or card.safety is Safety.DESTRUCTIVE:
        yield Block.SAFETY_CAP
    if card.blast_radius > limits.blast_radius_cap:
        yield Block.BLAST_RADIUS_CAP
    if not standing.trust >= limits.min_trust:  # so written, a trust that is no number is none
        yield Block.NOT_TRUSTED
    if not standing.best:
        yield Block.NOT_BEST
    if not incident.confidence >= limits.min_confidence:
        yield Block.LOW_CONFIDENCE
    if standing.unclear:
        yield Block.UNCLEAR_BEFORE
    if standing.ineffective >= limits.ineffective_before:
        yield Block.INEFFECTIVE_BEFORE


def standing(
    candidate: Candidate,
    actions: Iterable[Action],
    *,
    cards: Mapping[str, RemedyCard],
    now: datetime,
    paused: bool = False,
    proposed: frozenset[str] = frozenset(),
    downtimes: frozenset[str] = frozenset(),
) -> Standing:
    """Fold past actions, at least those since `now - LOOK_BACK`, into what bears on the candidate.

    `cards` tell which remedies only read; one that is no longer there is taken to have acted.
    """
    acted = [a for a in actions if a.candidate.remedy != BASELINE and _begun(a) > now - LOOK_BACK]
    on_target = [a for a in acted if set(a.candidate.targets) & set(candidate.targets)]
    changing = [a for a in acted if _changes(a, cards)]
    return Standing(
        now=now,
        paused=paused,
        last_done=max((_begun(a) for a in on_target if a.candidate.remedy == candidate.remedy), default=None),
        actions_last_hour=sum(_begun(a) > now - timedelta(hours=1) for a in acted),
        busy=frozenset(target for a in changing if _busy(a, now) for target in a.candidate.targets),
        proposed=proposed,
        downtimes=downtimes,
        ineffective=max((_ineffective(target, changing) for target in candidate.targets), default=0),
        unclear=any(a.status is ActionStatus.UNCLEAR for a in on_target if _changes(a, cards)),
    )


def overlap(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two sets of targets have to do with each other: a link has, with each of its two ends.

    >>> overlap(["link:A>B"], ["rse:B"]), overlap(["link:A>B"], ["link:A>C"])
    (True, False)
    """
    some, others = set(some), set(others)
    return bool(some & _with_ends(others) or others & _with_ends(some))


def policy_hash(limits: Limits) -> str:
    """Names the policy in the ledger: the same hash, the same rulings on the same facts."""
    shown = json.dumps(asdict(limits), default=_plain, sort_keys=True)
    return hashlib.blake2b(f"{_RULES} {shown}".encode(), digest_size=8).hexdigest()


_RULES = 1  # of the rules above; raise it with every change that gives another ruling on the same facts


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else sorted(value) if isinstance(value, frozenset) else str(value)


def _with_ends(targets: set[str]) -> set[str]:
    ends: set[str] = set()
    for target in targets:
        kind, _, name = target.partition(":")
        if kind == EntityKind.LINK:
            source, _, destination = name.partition(">")
            ends |= {f"{EntityKind.RSE}:{source}", f"{EntityKind.RSE}:{destination}"}
    return targets | ends


def _begun(action: Action) -> datetime:
    return action.started_at or action.due_at


def _changes(action: Action, cards: Mapping[str, RemedyCard]) -> bool:
    card = cards.get(action.candidate.remedy)
    return card is None or card.safety is not Safety.READ_ONLY


def _busy(action: Action, now: datetime) -> bool:
    """In flight, or its effect settles. What was never judged does not block for ever."""
    if action.status in {ActionStatus.DUE, ActionStatus.RUNNING}:
        return True
    settling = action.outcome is None and action.judge_at is not None and now < action.judge_at
    return action.status is ActionStatus.APPLIED and settling


def _ineffective(target: str, changing: Iterable[Action]) -> int:
    """How many of the actions on the target that were judged since one last helped did not help."""
    judged = sorted((a for a in changing if target in a.candidate.targets and a.outcome is not None), key=_begun)
    n = 0
    for action in judged:
        if action.outcome is Outcome.FIXED:
            n = 0
        elif action.outcome in {Outcome.UNCHANGED, Outcome.WORSE}:
            n += 1
    return n
