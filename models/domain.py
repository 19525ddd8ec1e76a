"""The words that every package shares. Standard library only; nothing here reads a clock, a file or a network.

All times are aware datetimes in UTC. A culprit is written `kind:name`, a link `A>B`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any


class GridmedicError(Exception):
    """Base of every error that we raise on purpose; its message says what, where and what to do."""


class ConfigError(GridmedicError):
    """The configuration cannot be used."""


class SourceError(GridmedicError):
    """Events or measurements cannot be read now; nothing is lost, the next poll tries again."""


class LedgerError(GridmedicError):
    """The ledger cannot be opened or does not hold what it should."""


class GridError(GridmedicError):
    """A call to the grid failed or was refused; it did not have its effect."""


class GridUnreachable(GridError):
    """The grid did not answer: whether the call had its effect is not known."""


class RemedyError(GridmedicError):
    """A remedy broke its contract, could not be loaded, or ran past its deadline."""


class AnswerRefused(GridmedicError):
    """An operator's answer cannot be taken; the message tells the operator why."""


class ModelError(GridmedicError):
    """A forecaster's directory cannot be used by this version."""


def aware(moment: datetime) -> datetime:
    """Return `moment`; raise ValueError if it carries no time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; every time here is an aware datetime in UTC")
    return moment


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """A pair of storage elements (RSEs) that files travel between."""

    source: str
    destination: str

    def __str__(self) -> str:
        return f"{self.source}>{self.destination}"


class EntityKind(enum.StrEnum):
    """What can be to blame."""

    RSE = "rse"
    LINK = "link"
    SITE = "site"
    FTS = "fts"
    NETWORK = "network"  # between two sites, written S>T
    ACTIVITY = "activity"
    FEED = "feed"  # a source of events or measurements: when it falls silent, the grid is not to blame


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """One thing that can be to blame, written `rse:X`, `link:A>B`, `site:S`, `fts:H`, `network:S>T`, `activity:A`.

    >>> Entity.parse("link:A>B").link
    Link(source='A', destination='B')
    >>> str(Entity(EntityKind.RSE, "CERN-PROD_DATADISK"))
    'rse:CERN-PROD_DATADISK'
    """

    kind: EntityKind
    name: str

    @classmethod
    def parse(cls, text: str) -> Entity:
        """Read `kind:name`; raise ValueError naming the text if it is not of that form."""
        kind, colon, name = text.partition(":")
        if not colon or not name or kind not in list(EntityKind):
            known = ", ".join(EntityKind)
            raise ValueError(f"{text!r} is not an entity; write kind:name with a kind out of {known}")
        entity = cls(EntityKind(kind), name)
        if entity.kind in {EntityKind.LINK, EntityKind.NETWORK} and ">" not in name:
            raise ValueError(f"{text!r} needs two ends, written {kind}:A>B")
        return entity

    @property
    def link(self) -> Link:
        """The two ends of a link or network; raise ValueError for any other kind."""
        if self.kind not in {EntityKind.LINK, EntityKind.NETWORK}:
            raise ValueError(f"{self} has no two ends")
        source, _, destination = self.name.partition(">")
        return Link(source, destination)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


class IncidentKind(enum.StrEnum):
    """What is wrong, as operators say it. Closed: a remedy names the kinds that it addresses."""

    SLOW_TRANSFERS = "slow-transfers"
    FAILING_TRANSFERS = "failing-transfers"
    STALLED_TRANSFERS = "stalled-transfers"
    FAILING_DELETIONS = "failing-deletions"
    DEGRADED_NETWORK = "degraded-network"
    CLOCK_OFF = "clock-off"
    SILENT_FEED = "silent-feed"


class IncidentStatus(enum.StrEnum):
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One transfer that a person can look up."""

    request_id: str
    link: str
    ended_at: datetime | None  # None: under way
    duration_s: float | None = None
    expected_s: float | None = None  # the forecast's median
    threshold_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of the transfers that something took part in were anomalous."""

    anomalous: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a person needs to check an incident: numbers of the window in which it was last seen."""

    summary: str
    window_s: float
    anomalous: int  # transfers of the culprit in the window that were anomalous
    total: int  # transfers of the culprit in the window
    background: float  # share of anomalous transfers that the culprit took no part in, 0..1
    as_source: Share = Share(anomalous=0, total=0)
    as_destination: Share = Share(anomalous=0, total=0)
    deletions: Share = Share(anomalous=0, total=0)  # of the culprit, where the incident is of transfers
    links: Mapping[str, int] = field(default_factory=dict)  # anomalous transfers per link, the worst first
    activities: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)  # classes of error
    rules: tuple[str, ...] = ()  # Rucio rules whose requests are affected, as far as the events name them
    network: Mapping[str, float] = field(default_factory=dict)  # perfSONAR's numbers; `usual_…`: those of the last day
    limits: Mapping[str, float] = field(default_factory=dict)  # what limits are made of: medians in seconds
    findings: tuple[str, ...] = ()  # what perfSONAR alone shows of the paths concerned, and lasts: one sentence each
    examples: tuple[Example, ...] = ()
    role: str = ""  # in which the culprit is blamed: a column of `detectors.localisation`, "" for any


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that is wrong, since when, and who is thought to be to blame. `opened_at` is event time."""

    id: str
    kind: IncidentKind
    culprit: Entity
    status: IncidentStatus = IncidentStatus.OPEN
    opened_at: datetime
    updated_at: datetime  # event time of the last evidence
    closed_at: datetime | None = None
    anomalous: int = 0  # anomalous transfers since it was opened
    confidence: float  # that the culprit is the right one, 0..1
    severity: float  # 0..1, from the transfers affected
    evidence: Evidence

    @property
    def closed(self) -> bool:
        return self.status is IncidentStatus.CLOSED


@functools.total_ordering
class _Ordered(enum.Enum):
    """An enum whose members compare in the order in which they are written."""

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        members = list(type(self))
        return members.index(self) < members.index(other)


class Safety(_Ordered):
    """What an action can break, from nothing to what cannot be restored."""

    READ_ONLY = "read-only"
    REVERSIBLE = "reversible"
    DISRUPTIVE = "disruptive"
    DESTRUCTIVE = "destructive"


class BlastRadius(_Ordered):
    """How far an action reaches."""

    TRANSFER = "transfer"
    LINK = "link"
    SITE = "site"
    GRID = "grid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyCard:
    """What is known of a remedy without running it: what its author declared."""

    name: str
    title: str  # what it does, in an operator's words
    spec: str  # module:Class
    builtin: bool
    addresses: frozenset[IncidentKind]
    safety: Safety
    blast_radius: BlastRadius
    cooldown: timedelta
    settle_time: timedelta
    prior: float  # the author's guess of how often it is the right thing to do, 0..1
    params_schema: Mapping[str, Any] = field(default_factory=dict)  # JSON schema, every field described


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A remedy planned for one incident: what exactly would be done, and to what."""

    remedy: str
    params: Mapping[str, Any]  # JSON
    targets: tuple[str, ...]  # everything that would be touched: entities, or `rule:ID`
    summary: str  # one line: what happens if it is approved


class Permission(enum.StrEnum):
    """What the policy says of a candidate."""

    AUTO = "auto"
    ASK = "ask"
    SKIP = "skip"


class Block(enum.StrEnum):
    """Why a candidate may not run by itself (ASK) or not at all (SKIP)."""

    # SKIP
    PAUSED = "paused"
    COOLDOWN = "cooldown"
    RATE_LIMIT = "rate-limit"
    TARGETS_EMPTY = "targets-empty"
    TARGETS_TOO_MANY = "targets-too-many"
    TARGET_BUSY = "target-busy"  # another action on one of the targets is in flight or settling
    OPEN_PROPOSAL = "open-proposal"
    DOWNTIME = "downtime"
    DISABLED = "disabled"
    # ASK
    AUTONOMY_OFF = "autonomy-off"
    SAFETY_CAP = "safety-cap"
    BLAST_RADIUS_CAP = "blast-radius-cap"
    NOT_TRUSTED = "not-trusted"
    NOT_BEST = "not-best"
    LOW_CONFIDENCE = "low-confidence"
    INEFFECTIVE_BEFORE = "ineffective-before"
    UNCLEAR_BEFORE = "unclear-before"  # of an earlier action on a target nobody knows whether it had its effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A candidate as it stood in one decision."""

    candidate: Candidate
    permission: Permission
    blocks: tuple[Block, ...] = ()
    probability: float = 0.0  # that the bandit recommends it, over the eligible slate; 0 for SKIP
    expected_cost: float = 1.0  # the bandit's prediction, 0 (helps) .. 1
    trust: float = 0.0  # lower confidence bound that it is right in this context, 0..1
    samples: int = 0  # how many answers and outcomes stand behind `trust`


class DecisionStatus(enum.StrEnum):
    OPEN = "open"  # waits for an operator
    TAKEN = "taken"  # an option was chosen, by an operator or by autonomy
    REJECTED = "rejected"
    EXPIRED = "expired"  # its incident closed, or was decided anew
    SHADOW = "shadow"  # replay and dry run: recorded, never carried out


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was on the table for an incident, what was recommended with which probability, and what came of it.

    `options` is in the order shown; `recommended` and `chosen` are indexes into it. `propensity` is the
    recommendation's probability over the eligible options. `chosen_by` is `autonomy` or the operator's name.
    """

    id: str
    incident_id: str
    culprit: str = ""  # whom the incident blamed then
    made_at: datetime
    status: DecisionStatus
    options: tuple[Option, ...]
    recommended: int
    propensity: float
    context: Mapping[str, float | str]  # the features of the incident that the bandit saw
    model_hash: str
    catalogue_hash: str
    policy_hash: str
    chosen: int | None = None
    chosen_by: str | None = None
    chosen_at: datetime | None = None

    @property
    def eligible(self) -> tuple[int, ...]:
        return tuple(i for i, option in enumerate(self.options) if option.permission is not Permission.SKIP)


class ActionStatus(enum.StrEnum):
    DUE = "due"
    RUNNING = "running"
    APPLIED = "applied"
    FAILED = "failed"  # before its effect
    UNCLEAR = "unclear"  # nobody can tell whether it had its effect: a human must look
    UNDONE = "undone"


class Outcome(enum.StrEnum):
    """What the incident's own signal did in the settle time after an action (or a wait)."""

    FIXED = "fixed"
    UNCHANGED = "unchanged"
    WORSE = "worse"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A chosen option on its way through the outbox. Its id is the decision's: the key of its effect."""

    id: str
    incident_id: str
    candidate: Candidate
    status: ActionStatus
    due_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    message: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict)  # what was read before, for undo
    judge_at: datetime | None = None
    outcome: Outcome | None = None
    outcome_note: str = ""


class AnswerKind(enum.StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    RATE = "rate"


class Rating(enum.StrEnum):
    GOOD = "good"
    WRONG = "wrong"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an operator said about a decision. `option` is the index of the remedy meant."""

    key: str  # the same key twice is one answer: a click that was delivered again
    by: str
    via: str  # slack, console or cli
    kind: AnswerKind
    decision_id: str
    option: int | None = None
    rating: Rating | None = None


class FeedbackSource(enum.StrEnum):
    RATING = "rating"  # agreement: what operators say
    CHOICE = "choice"
    OUTCOME = "outcome"  # what the grid did afterwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One row that the bandit learns from. `row` is its place in the ledger; the bandit is a fold over rows.

    `propensity` is the logged probability where the option was the recommendation, else None: an operator's
    other choice is a label to learn from, never a row for off-policy estimates.
    """

    row: int
    at: datetime
    decision_id: str
    option: int
    source: FeedbackSource
    value: str  # the rating, `chosen`, `rejected`, or the outcome
    by: str
    propensity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a desk shows: an incident, the newest decision on it, and what has happened since."""

    incident: Incident
    decision: Decision
    action: Action | None = None
    ratings: Mapping[int, Rating] = field(default_factory=dict)  # the latest rating of each option
