"""Incidents: anomalous transfers grouped under one culprit, opened with hysteresis, grown, and closed when it recovers.

Works in event time. The window of the last half hour is looked at once a minute, at whole minutes, so that incidents do not
depend on how the stream was cut into polls. A fold over observed rows: a restart gives the same book.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from detectors.evidence import gather
from detectors.localisation import MIN_BAD, Roles, Suspect, localise, site_of
from detectors.window import SIGNALS, WINDOW_S, Look, Recent, Window
from models.columns import Rows
from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind, IncidentStatus

Flags = npt.NDArray[np.bool_]

STEP_S = 60.0
RECOVERED_S = 900.0  # the culprit's transfers of this long must look healthy before an incident closes
RECOVERED_MIN = 5  # of them, at least
ABANDONED_S = 3600.0  # without any transfer of the culprit, nothing can be said any more
REOPEN_S = 1800.0
WIDER = 0.9  # an incident that explains less than this share of a suspect's bad transfers is widened to it
SAME_CAUSE = 0.6  # share of a suspect's bad transfers that an open incident already explains


class IncidentBook:
    """Open incidents and the window that they are judged by."""

    def __init__(self) -> None:
        self.reset(incidents=(), observed=None, until=None)

    def reset(self, *, incidents: Sequence[Incident], observed: Rows | None, until: float | None) -> None:
        """Start from the ledger: its open and lately closed incidents, its observed rows, and how far they were judged."""
        self._incidents = {incident.id: incident for incident in incidents}
        self._recent = Recent(observed)
        self._untold: dict[str, float] = {}  # minute as of which an incident's evidence is to be gathered, by incident
        self._until = until
        if until is not None:
            self._trim()

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def covers(self, observed: Rows) -> Flags:
        """Which transfers the culprit of an open incident took part in: they do not calibrate. Shape (n,)."""
        covered = np.zeros(len(observed["source"]), dtype=np.bool_)
        if self.open:
            roles = Roles.of(observed)
            for incident in self.open:
                covered |= roles.touched(incident.culprit)
        return covered

    def advance(self, observed: Rows, *, until: float) -> list[Incident]:
        """Take in new rows and judge every whole minute up to `until` (event time); return the incidents that changed."""
        self._recent.add(observed)
        if self._until is None:
            first = float(self._recent.column("ended_at", np.float64).min(initial=until))
            self._until = math.floor(first / STEP_S) * STEP_S
        changed: dict[str, None] = {}
        if self._until + STEP_S <= until:
            window = Window(self._recent)
            while self._until + STEP_S <= until:
                self._until = self._next_step(window, until)
                changed |= dict.fromkeys(self._judge(window, self._until))
            for incident_id in changed:
                self._tell(window, incident_id)
        told = [self._incidents[incident_id] for incident_id in changed]
        self._trim()
        return told

    @property
    def until(self) -> float | None:
        """Event time up to which the book has judged."""
        return self._until

    def _next_step(self, window: Window, until: float) -> float:
        """The next minute worth judging: over a gap without transfers and incidents, straight to its end."""
        assert self._until is not None  # noqa: S101 - set by `advance` before its loop
        step = self._until + STEP_S
        if self.open:
            return step
        first = float(window.ended[window.ended >= self._until].min(initial=until))
        return min(max(step, math.ceil(first / STEP_S) * STEP_S), math.floor(until / STEP_S) * STEP_S)

    def _trim(self) -> None:
        if self._until is not None:
            self._recent.forget(self._until - WINDOW_S)
        forgotten = [i.id for i in self._incidents.values() if i.closed_at and self._age(i.closed_at) > REOPEN_S]
        for incident_id in forgotten:
            del self._incidents[incident_id]

    def _age(self, moment: datetime) -> float:
        return (self._until or 0.0) - moment.timestamp()

    def _judge(self, window: Window, at: float) -> list[str]:
        """Open, grow and close as of a whole minute; return the ids of the incidents that changed."""
        changed: list[str] = []
        for signal in SIGNALS:
            look = Look(window, signal, at)
            if not self._of(signal.kind) and np.count_nonzero(look.bad) < MIN_BAD:
                continue
            changed += self._grow(look)
            changed += self._open_new(look)
            changed += self._merge(window, look)
            changed += self._close_recovered(look)
        return changed

    def _grow(self, look: Look) -> list[str]:
        fresh = look.bad & look.since(STEP_S)
        if not fresh.any():
            return []
        grown = []
        for incident in self._of(look.signal.kind):
            new = int((fresh & look.own(incident.culprit)).sum())
            if new:
                grown.append(self._seen(incident, look, new=new))
        return grown

    def _open_new(self, look: Look) -> list[str]:
        if not (look.bad & look.since(STEP_S)).any():
            return []
        opened, kind = [], look.signal.kind
        unspent = np.flatnonzero(~self._spent(look))
        if np.count_nonzero(look.bad[unspent]) < MIN_BAD:
            return []
        for suspect in localise(look.roles.take(unspent), look.bad[unspent], expected_share=look.signal.usual):
            own = look.own(suspect.entity) & look.bad
            known = [incident for incident in self._of(kind) if _one_cause(incident, suspect, look)]
            akin = self._of_one_end(kind, suspect.entity) if not known else None
            if akin is not None:
                opened.append(self._seen(akin, look, new=int(own.sum())))
                continue
            if not known:
                incident = self._reopened(kind, suspect.entity) or _new(kind, suspect.entity, look.at)
                opened.append(self._seen(replace(incident, confidence=suspect.confidence), look, new=int(own.sum())))
                continue
            oldest = min(known, key=_age_order)
            if int((look.own(oldest.culprit) & own).sum()) < WIDER * int(own.sum()):
                wider = replace(oldest, culprit=suspect.entity, confidence=suspect.confidence)
                opened.append(self._seen(wider, look, new=0))
        return opened

    def _merge(self, window: Window, look: Look) -> list[str]:
        """No two open incidents for one cause: what lies within another's culprit is that incident."""
        merged: list[str] = []
        by_age = sorted(self._of(look.signal.kind), key=_age_order)
        for young in reversed(by_age):
            into = next((i for i in by_age if i.id != young.id and _lies_within(young.culprit, i.culprit)), None)
            if into is not None:
                by_age.remove(young)
                self._tell(window, young.id)
                merged.append(self._keep(_merged(self._incidents[young.id], into, look.at)))
        return merged

    def _spent(self, look: Look) -> Flags:
        """Transfers of an incident that has closed since: the window still holds them, and they are no news."""
        spent = np.zeros(len(look.members), dtype=np.bool_)
        for incident in self._incidents.values():
            if incident.kind is look.signal.kind and incident.closed_at is not None:
                spent |= look.own(incident.culprit) & (look.ended < incident.closed_at.timestamp())
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

    def _close_recovered(self, look: Look) -> list[str]:
        closed = []
        for incident in self._of(look.signal.kind):
            late = look.own(incident.culprit) & look.since(RECOVERED_S)
            total, sick = int(late.sum()), int(look.bad[late].sum())
            healthy = total >= RECOVERED_MIN and sick <= _as_usual(total, look.signal.usual)
            abandoned = total == 0 and look.at - incident.updated_at.timestamp() >= ABANDONED_S
            if abandoned or (healthy and look.at - incident.opened_at.timestamp() >= RECOVERED_S):
                closed.append(self._keep(replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(look.at))))
        return closed

    def _seen(self, incident: Incident, look: Look, *, new: int) -> str:
        """Keep an incident that was seen to go on. Only its last evidence of a pass is ever read, so that can wait."""
        self._untold[incident.id] = look.at
        return self._keep(replace(incident, updated_at=_utc(look.at), anomalous=incident.anomalous + new))

    def _tell(self, window: Window, incident_id: str) -> None:
        """Gather the evidence that an incident still lacks."""
        at = self._untold.pop(incident_id, None)
        if at is None:
            return
        incident = self._incidents[incident_id]
        look = Look(window, next(signal for signal in SIGNALS if signal.kind is incident.kind), at)
        evidence = gather(incident.culprit, look, window)
        severity = round(1.0 - math.exp(-evidence.anomalous / 40.0), 3)
        self._keep(replace(incident, severity=severity, evidence=evidence))

    def _of(self, kind: IncidentKind) -> list[Incident]:
        return [incident for incident in self.open if incident.kind is kind]

    def _keep(self, incident: Incident) -> str:
        self._incidents[incident.id] = incident
        return incident.id


def _new(kind: IncidentKind, culprit: Entity, at: float) -> Incident:
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


def _as_usual(total: int, usual: float) -> float:
    """The most bad ones among `total` transfers that are no news: two standard deviations above the usual share."""
    return total * usual + 2.0 * math.sqrt(total * usual * (1.0 - usual))


def _one_cause(incident: Incident, suspect: Suspect, look: Look) -> bool:
    """Whether an open incident already explains the suspect's bad transfers, or is itself a part of what the suspect is."""
    if _lies_within(incident.culprit, suspect.entity):
        return True
    own = look.own(suspect.entity) & look.bad
    shared = look.own(incident.culprit) & own
    return float(shared.sum()) >= SAME_CAUSE * float(own.sum())


def _age_order(incident: Incident) -> tuple[datetime, str]:
    return incident.opened_at, incident.id


def _lies_within(inner: Entity, outer: Entity) -> bool:
    """Whether `outer` is the same, an end of the link, or the site of it."""
    ends = [inner.link.source, inner.link.destination] if inner.kind is EntityKind.LINK else [inner.name]
    match outer.kind:
        case EntityKind.RSE:
            return outer.name in ends
        case EntityKind.SITE:
            return outer.name in {*ends, *map(site_of, ends)}
        case _:
            return inner == outer


def _common_end(one: Entity, other: Entity) -> Entity | None:
    if one.kind is not EntityKind.LINK or other.kind is not EntityKind.LINK:
        return None
    shared = {one.link.source, one.link.destination} & {other.link.source, other.link.destination}
    # Two links with both ends in common are one pair in its two directions: neither end is the worse.
    return Entity(EntityKind.RSE, shared.pop()) if len(shared) == 1 else None


def _merged(incident: Incident, into: Incident, at: float) -> Incident:
    evidence = replace(incident.evidence, summary=f"the same cause as {into.id} ({into.culprit})")
    return replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(at), evidence=evidence)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
