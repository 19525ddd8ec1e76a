"""Incidents: anomalous transfers grouped under one culprit, opened with hysteresis, grown, and closed when it recovers.

Works in event time. The window of the last half hour is looked at once a minute, at whole minutes, so that incidents do not
depend on how the stream was cut into polls. A fold over observed rows: a restart gives the same book.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from detectors.localisation import MIN_BAD, NEW_ROLES, ROLE_COLUMNS, Suspect, localise, partners, roles, touches
from detectors.threshold import SLOW_SHARE
from models.domain import Entity, EntityKind, Evidence, Example, Incident, IncidentKind, IncidentStatus, Share

WINDOW_S = 1800.0
STEP_S = 60.0
RECOVERED_S = 900.0  # the culprit's transfers of this long must look healthy before an incident closes
RECOVERED_MIN = 5  # of them, at least
ABANDONED_S = 3600.0  # without any transfer of the culprit, nothing can be said any more
REOPEN_S = 1800.0
WIDER = 0.9  # an incident that explains less than this share of a suspect's bad transfers is widened to it
SAME_CAUSE = 0.6  # share of a suspect's bad transfers that an open incident already explains
MAX_EXAMPLES = 5
MAX_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signal:
    """One kind of trouble: which transfers take part, which are bad, and which share of bad ones is usual."""

    kind: IncidentKind
    usual: float

    def select(self, observed: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
        if self.kind is IncidentKind.FAILING_TRANSFERS:
            return observed, observed["failed"]
        done = observed[~observed["failed"]]
        return done, done["slow"]


SIGNALS = (
    _Signal(kind=IncidentKind.SLOW_TRANSFERS, usual=SLOW_SHARE),
    _Signal(kind=IncidentKind.FAILING_TRANSFERS, usual=0.05),
)


class IncidentBook:
    """Open incidents and the window that they are judged by."""

    def __init__(self) -> None:
        self.reset(incidents=(), observed=None, until=None)

    def reset(self, *, incidents: Sequence[Incident], observed: pd.DataFrame | None, until: float | None) -> None:
        """Start from the ledger: its open and lately closed incidents, its observed rows, and how far they were judged."""
        self._incidents = {incident.id: incident for incident in incidents}
        self._window = _with_roles(observed) if observed is not None else pd.DataFrame()
        self._until = until
        if until is not None:
            self._trim()

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def covers(self, observed: pd.DataFrame) -> pd.Series:
        """Which transfers the culprit of an open incident took part in: they do not calibrate."""
        covered = pd.Series(data=False, index=observed.index)
        if self.open:
            role = roles(observed)
            for incident in self.open:
                covered |= touches(incident.culprit, role)
        return covered

    def advance(self, observed: pd.DataFrame, *, until: float) -> list[Incident]:
        """Take in new rows and judge every whole minute up to `until` (event time); return the incidents that changed."""
        fresh = _with_roles(observed)
        self._window = pd.concat([self._window, fresh], ignore_index=True) if len(self._window) else fresh
        if self._until is None:
            first = self._window["ended_at"].min() if len(self._window) else until
            self._until = math.floor(first / STEP_S) * STEP_S
        changed: dict[str, Incident] = {}
        while self._until + STEP_S <= until:
            self._until = self._next_step(until)
            for incident in self._judge(self._until):
                changed[incident.id] = incident
        self._trim()
        return list(changed.values())

    @property
    def until(self) -> float | None:
        """Event time up to which the book has judged."""
        return self._until

    def _next_step(self, until: float) -> float:
        """The next minute worth judging: over a gap without transfers and incidents, straight to its end."""
        assert self._until is not None  # noqa: S101 - set by `advance` before its loop
        step = self._until + STEP_S
        if self.open:
            return step
        waiting = self._window.loc[self._window["ended_at"] >= self._until, "ended_at"]
        first = waiting.min() if len(waiting) else until
        return min(max(step, math.ceil(first / STEP_S) * STEP_S), math.floor(until / STEP_S) * STEP_S)

    def _trim(self) -> None:
        if self._until is not None and len(self._window):
            self._window = self._window[self._window["ended_at"] >= self._until - WINDOW_S].reset_index(drop=True)
        forgotten = [i.id for i in self._incidents.values() if i.closed_at and self._age(i.closed_at) > REOPEN_S]
        for incident_id in forgotten:
            del self._incidents[incident_id]

    def _age(self, moment: datetime) -> float:
        return (self._until or 0.0) - moment.timestamp()

    def _judge(self, at: float) -> list[Incident]:
        ended = self._window["ended_at"].to_numpy(np.float64)
        recent = self._window[(ended < at) & (ended >= at - WINDOW_S)]
        changed: list[Incident] = []
        for signal in SIGNALS:
            members, bad = signal.select(recent)
            if not self._of(signal.kind) and int(bad.sum()) < MIN_BAD:
                continue
            role = members[list(ROLE_COLUMNS)]
            changed += self._grow(signal, members, bad, role, at)
            changed += self._open_new(signal, members, bad, role, at)
            changed += self._close_recovered(signal, members, bad, role, at)
        return changed

    def _grow(
        self, signal: _Signal, members: pd.DataFrame, bad: pd.Series, role: pd.DataFrame, at: float
    ) -> list[Incident]:
        grown = []
        for incident in self._of(signal.kind):
            fresh = bad & touches(incident.culprit, role) & (members["ended_at"] >= at - STEP_S)
            if not fresh.any():
                continue
            grown.append(self._keep(self._with_evidence(incident, members, bad, role, at, new=int(fresh.sum()))))
        return grown

    def _open_new(
        self, signal: _Signal, members: pd.DataFrame, bad: pd.Series, role: pd.DataFrame, at: float
    ) -> list[Incident]:
        if not (bad & (members["ended_at"] >= at - STEP_S)).any():
            return []
        opened = []
        unspent = ~self._spent(signal.kind, members, role)
        for suspect in localise(role[unspent], bad[unspent], expected_share=signal.usual):
            own = touches(suspect.entity, role) & bad
            known = [incident for incident in self._of(signal.kind) if _one_cause(incident, suspect, role, bad)]
            akin = self._of_one_end(signal.kind, suspect.entity) if not known else None
            if akin is not None:
                opened.append(self._keep(self._with_evidence(akin, members, bad, role, at, new=int(own.sum()))))
                continue
            if not known:
                incident = self._reopened(signal.kind, suspect.entity) or self._new(signal.kind, suspect.entity, at)
                incident = replace(incident, confidence=suspect.confidence)
                opened.append(self._keep(self._with_evidence(incident, members, bad, role, at, new=int(own.sum()))))
                continue
            oldest, *others = sorted(known, key=lambda incident: (incident.opened_at, incident.id))
            if int((touches(oldest.culprit, role) & own).sum()) < WIDER * int(own.sum()):
                wider = replace(oldest, culprit=suspect.entity, confidence=suspect.confidence)
                opened.append(self._keep(self._with_evidence(wider, members, bad, role, at, new=0)))
            opened += [self._keep(_merged(other, oldest, at)) for other in others]
        return opened

    def _spent(self, kind: IncidentKind, members: pd.DataFrame, role: pd.DataFrame) -> pd.Series:
        """Transfers of an incident that has closed since: the window still holds them, and they are no news."""
        spent = pd.Series(data=False, index=role.index)
        for incident in self._incidents.values():
            if incident.kind is kind and incident.closed_at is not None:
                spent |= touches(incident.culprit, role) & (members["ended_at"] < incident.closed_at.timestamp())
        return spent

    def _of_one_end(self, kind: IncidentKind, suspect: Entity) -> Incident | None:
        """The open incident of another link with the same end, blamed on that end: two bad links have that in common."""
        for incident in self._of(kind):
            end = _common_end(incident.culprit, suspect)
            if end is not None:
                return replace(incident, culprit=end)
        return None

    def _reopened(self, kind: IncidentKind, culprit: Entity) -> Incident | None:
        for incident in self._incidents.values():
            if incident.closed and incident.kind is kind and incident.culprit == culprit:
                return replace(incident, status=IncidentStatus.OPEN, closed_at=None)
        return None

    def _new(self, kind: IncidentKind, culprit: Entity, at: float) -> Incident:
        moment = _utc(at)
        digest = hashlib.blake2b(f"{kind} {culprit} {at}".encode(), digest_size=4).hexdigest()
        blank = Evidence(summary="", window_s=WINDOW_S, anomalous=0, total=0, background=0.0)
        return Incident(
            id=f"inc-{digest}",
            kind=kind,
            culprit=culprit,
            opened_at=moment,
            updated_at=moment,
            confidence=0.0,
            severity=0.0,
            evidence=blank,
        )

    def _close_recovered(
        self, signal: _Signal, members: pd.DataFrame, bad: pd.Series, role: pd.DataFrame, at: float
    ) -> list[Incident]:
        closed = []
        for incident in self._of(signal.kind):
            late = touches(incident.culprit, role) & (members["ended_at"] >= at - RECOVERED_S)
            total, sick = int(late.sum()), int(bad[late].sum())
            healthy = total >= RECOVERED_MIN and sick <= _as_usual(total, signal.usual)
            abandoned = total == 0 and at - incident.updated_at.timestamp() >= ABANDONED_S
            if abandoned or (healthy and at - incident.opened_at.timestamp() >= RECOVERED_S):
                closed.append(self._keep(replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(at))))
        return closed

    def _with_evidence(
        self, incident: Incident, members: pd.DataFrame, bad: pd.Series, role: pd.DataFrame, at: float, *, new: int
    ) -> Incident:
        evidence = gather(incident.kind, incident.culprit, members, bad, role)
        severity = 1.0 - math.exp(-evidence.anomalous / 40.0)
        return replace(
            incident,
            updated_at=_utc(at),
            anomalous=incident.anomalous + new,
            severity=round(severity, 3),
            evidence=evidence,
        )

    def _of(self, kind: IncidentKind) -> list[Incident]:
        return [incident for incident in self.open if incident.kind is kind]

    def _keep(self, incident: Incident) -> Incident:
        self._incidents[incident.id] = incident
        return incident


def _as_usual(total: int, usual: float) -> float:
    """The most bad ones among `total` transfers that are no news: two standard deviations above the usual share."""
    return total * usual + 2.0 * math.sqrt(total * usual * (1.0 - usual))


def _with_roles(observed: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([observed, roles(observed)[list(NEW_ROLES)]], axis=1)


def _one_cause(incident: Incident, suspect: Suspect, role: pd.DataFrame, bad: pd.Series) -> bool:
    """Whether an open incident already explains the suspect's bad transfers, or is itself explained by them."""
    if incident.culprit == suspect.entity:
        return True
    theirs, own = touches(incident.culprit, role) & bad, touches(suspect.entity, role) & bad
    shared = float((theirs & own).sum())
    return shared >= SAME_CAUSE * float(own.sum()) or 0.0 < SAME_CAUSE * float(theirs.sum()) <= shared


def _common_end(one: Entity, other: Entity) -> Entity | None:
    if one.kind is not EntityKind.LINK or other.kind is not EntityKind.LINK:
        return None
    for first, second in ((one.link.source, other.link.source), (one.link.destination, other.link.destination)):
        if first == second:
            return Entity(EntityKind.RSE, first)
    return None


def _merged(incident: Incident, into: Incident, at: float) -> Incident:
    evidence = replace(incident.evidence, summary=f"the same cause as {into.id} ({into.culprit})")
    return replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(at), evidence=evidence)


def gather(kind: IncidentKind, culprit: Entity, members: pd.DataFrame, bad: pd.Series, role: pd.DataFrame) -> Evidence:
    """Evidence of one incident from the transfers of a window: `members`, which of them are `bad`, their `roles`."""
    own = touches(culprit, role)
    guilty = own & bad
    others = ~own
    rows = members[guilty]
    background = float(bad[others].mean()) if others.any() else 0.0
    worst = rows.sort_values("ended_at").tail(MAX_EXAMPLES)
    paths = {"loss": "path_loss", "delay_ms": "path_delay_ms", "throughput_bps": "path_throughput_bps"}
    network = {name: float(rows[column].median()) for name, column in paths.items() if rows[column].notna().any()}
    rules = [rule for rule in rows["rule_id"].unique() if rule]
    return Evidence(
        summary=_summary(kind, culprit, int(guilty.sum()), int(own.sum()), background),
        window_s=WINDOW_S,
        anomalous=int(guilty.sum()),
        total=int(own.sum()),
        background=round(background, 5),
        as_source=_share(role["source"], culprit, bad),
        as_destination=_share(role["destination"], culprit, bad),
        links={str(link): n for link, n in list(partners(culprit, role, bad).items())[:MAX_LISTED]},
        activities=_counts(rows["activity"]),
        reasons=_counts(rows.loc[rows["failed"], "reason"]),
        rules=tuple(rules[:MAX_LISTED]),
        network=network,
        examples=tuple(_example(row) for row in worst.to_dict("records")),
    )


def _summary(kind: IncidentKind, culprit: Entity, bad: int, total: int, background: float) -> str:
    what = "failed" if kind is IncidentKind.FAILING_TRANSFERS else "took longer than their link allows now"
    return f"{bad} of {total} transfers of {culprit} {what} in the last 30 minutes; elsewhere {background:.1%} did"


def _share(column: pd.Series, culprit: Entity, bad: pd.Series) -> Share:
    own = column == culprit.name
    return Share(anomalous=int((own & bad).sum()), total=int(own.sum()))


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(n) for name, n in values.value_counts().head(MAX_LISTED).items()}


def _example(row: dict[object, object]) -> Example:
    started, ended = _number(row["started_at"]), _number(row["ended_at"])
    median = _number(row["q50"])
    return Example(
        request_id=str(row["request_id"]),
        link=f"{row['source']}>{row['destination']}",
        ended_at=_utc(ended),
        duration_s=None if np.isnan(started) else round(ended - started, 1),
        expected_s=None if np.isnan(median) else round(math.expm1(median), 1),
        threshold_s=None if np.isnan(_number(row["slow_s"])) else round(_number(row["slow_s"]), 1),
        reason=str(row["reason"]),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
