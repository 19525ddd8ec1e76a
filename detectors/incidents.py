"""Incidents: anomalous transfers grouped under one culprit, opened with hysteresis, grown, and closed when it recovers.

Works in event time. The window of the last half hour is looked at once a minute, at whole minutes, so that incidents do not
depend on how the stream was cut into polls. A fold over observed rows: a restart gives the same book.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.covers import Covers
from detectors.evidence import gather
from detectors.localisation import COLUMNS, COLUMNS_OF, DOUBTED_BAD, Roles, Suspect, bayes_factor, localise, site_of
from detectors.naming import Name, name_of
from detectors.usual import HOUR_S, Usual
from detectors.weather import Weather
from detectors.window import SIGNALS, WINDOW_S, Ends, Look, Recent, Signal, Window, signal_of
from models.columns import Rows
from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind, IncidentStatus

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

STEP_S = 60.0
HORIZONS_S = (300.0, 900.0, WINDOW_S)  # what has just begun is clear in the first, what is rare in the second
RECOVERED_S = 900.0  # the culprit's transfers of this long must look healthy before an incident closes
RECOVERED_MIN = 5  # of them, at least
ABANDONED_S = 3600.0  # without any transfer of the culprit, nothing can be said any more
REOPEN_S = 1800.0
PART_OF_YOUNG = 0.5  # the same, as long as little is known of the incident
PART_OF = 0.7  # share of an incident's bad transfers that a suspect has, to be what the incident is a part of
SAME_CAUSE = 0.6  # share of a suspect's bad transfers that an open incident already explains
TOGETHER_S = 900.0  # between the first signs of one cause in several places
LASTING_S = 90.0  # between the first and the last of a suspect's bad transfers: what befell all at once may be over
BETTER = 4.0  # log of Bayes's factor that another culprit has to explain more before an incident is put down to it
NOTHING = Covers()
NO_ROWS = pd.DataFrame({"due_at": np.empty(0)})


class IncidentBook:
    """Open incidents and the window that they are judged by."""

    def __init__(self, weather: Weather | None = None) -> None:
        self._weather = weather or Weather()
        self._usual = {signal: Usual(signal.expected) for signal in SIGNALS}
        self._deaf: Callable[[float], bool] = lambda _: False
        self.reset(incidents=(), observed=None, until=None)

    def reset(
        self,
        *,
        incidents: Sequence[Incident],
        observed: Rows | None,
        until: float | None,
        covers: Covers = NOTHING,
    ) -> None:
        """Start from the ledger: its open and lately closed incidents, its observed rows, and how far they were judged."""
        self._incidents = {incident.id: incident for incident in incidents}
        for usual in self._usual.values():
            usual.reset()
        self._recent = Recent(None if observed is None else _uncovered(observed, covers))
        self._untold: dict[str, float] = {}  # minute as of which an incident's evidence is to be gathered, by incident
        self._until = until
        if until is not None:
            self._trim()

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def blamed(self, observed: Rows, covers: Covers = NOTHING) -> Flags:
        """Which transfers the culprit of an open incident, or what is covered, took part in: they do not calibrate. Shape (n,)."""
        blamed = _covered(observed, covers, np.asarray(observed["ended_at"], dtype=np.float64))
        if self.open:
            roles = Roles.of(observed)
            for incident in self.open:
                blamed |= roles.touched(incident.culprit)
        return blamed

    def advance(
        self,
        observed: Rows,
        *,
        until: float,
        overdue: pd.DataFrame = NO_ROWS,
        covers: Covers = NOTHING,
        deaf: Callable[[float], bool] = lambda _: False,
    ) -> list[Incident]:
        """Take in new rows and judge every whole minute up to `until` (event time); return the incidents that changed.

        `overdue` are all that are under way and were due before `until`, with the columns of `detectors.stalls.UnderWay`. What
        `covers` cover is evidence against nobody, and nothing is over because nothing was heard of when we were `deaf`.
        """
        self._deaf = deaf
        self._recent.add(_uncovered(observed, covers))
        overdue = overdue[~_covered(overdue, covers, np.full(len(overdue), until))] if len(overdue) else overdue
        if self._until is None:
            first = float(self._recent.column("ended_at", np.float64).min(initial=until))
            self._until = math.floor(first / STEP_S) * STEP_S
        changed: dict[str, None] = {}
        if self._until + STEP_S <= until:
            window = Window(self._recent, overdue)
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
        when = np.minimum(window.ends.ended, window.ends.due)
        first = float(when[when >= self._until].min(initial=until))
        return min(max(step, math.ceil(first / STEP_S) * STEP_S), math.floor(until / STEP_S) * STEP_S)

    def _trim(self) -> None:
        if self._until is not None:
            for rows in self._recent.forget(self._until - WINDOW_S):
                self._remember(rows)
        forgotten = [
            i.id for i in self._incidents.values() if i.closed_at and self._age(i.closed_at) > REOPEN_S + WINDOW_S
        ]
        for incident_id in forgotten:
            del self._incidents[incident_id]

    def _remember(self, rows: Rows) -> None:
        """What nobody is blamed for is what is usual."""
        ends, roles = Ends.of(rows), Roles.of(rows)
        blamed = np.zeros(len(ends.ended), dtype=np.bool_)
        for incident in self._incidents.values():
            closed = math.inf if incident.closed_at is None else incident.closed_at.timestamp()
            lived = (ends.ended >= incident.opened_at.timestamp() - WINDOW_S) & (ends.ended < closed)
            blamed |= lived & roles.touched(incident.culprit)
        for signal, usual in self._usual.items():
            takes_part, bad = ends.split(signal)
            rest = np.flatnonzero(takes_part & ~blamed)
            usual.absorb(roles.take(rest), bad[rest], ends.ended[rest])

    def _age(self, moment: datetime) -> float:
        return (self._until or 0.0) - moment.timestamp()

    def _judge(self, window: Window, at: float) -> list[str]:
        """Open, grow and close as of a whole minute; return the ids of the incidents that changed."""
        changed: list[str] = []
        for signal in SIGNALS:
            look = Look(window, signal, at)
            if not self._of(signal) and np.count_nonzero(look.bad) < DOUBTED_BAD:
                continue
            changed += self._grow(look)
            if (look.bad & look.since(STEP_S)).any():
                for horizon in HORIZONS_S:
                    changed += self._blame(look if horizon == WINDOW_S else Look(window, signal, at, horizon=horizon))
            changed += self._close_recovered(look)
        return changed

    def _grow(self, look: Look) -> list[str]:
        fresh = look.bad & look.since(STEP_S)
        if not fresh.any():
            return []
        grown = []
        for incident in self._of(look.signal):
            new = int((fresh & _own(incident, look)).sum())
            if new:
                grown.append(self._seen(incident, look.at, new=new))
        return grown

    def _blame(self, look: Look) -> list[str]:
        """Find who explains the bad transfers; open an incident, or see in it one that is open."""
        unspent = np.flatnonzero(~self._spent(look))
        if np.count_nonzero(look.bad[unspent]) < DOUBTED_BAD:
            return []
        roles, changed = look.roles.take(unspent), []
        usual = self._usual[look.signal].shares(roles, look.at)
        for suspect in localise(roles, look.blame.take(unspent), usual, doubtful=lambda path: self._ill(path, look)):
            explained = np.zeros(len(look.members), dtype=np.bool_)
            explained[unspent] = suspect.explains
            changed += self._suspect(suspect, explained, look)
        return changed

    def _ill(self, path: str, look: Look) -> bool:
        return not look.signal.failing and self._weather.of(path, look.at).sure

    def _suspect(self, suspect: Suspect, own: Flags, look: Look) -> list[str]:
        load = self._usual[look.signal].load(suspect.column, suspect.entity.name, look.at)
        expected = None if load is None else load * look.horizon / HOUR_S
        lasting = np.ptp(look.when[own]) >= LASTING_S
        name = name_of(suspect, look, self._weather, expected=expected) if lasting else None
        if name is None:
            return []
        known = [incident for incident in self.open if self._one_cause(incident, name, suspect, own, look)]
        if not known:
            incident = self._reopened(name) or _new(name, suspect, look.at)
            return [self._seen(replace(incident, confidence=name.confidence), look.at, new=int(own.sum()))]
        oldest, *others = sorted(known, key=_age_order)
        changed = []
        renamed = self._renamed(oldest, name, suspect, own, look)
        if renamed is not oldest:
            changed.append(self._seen(renamed, look.at, new=0))
        parts = [
            other
            for other in others
            if _akin(other.culprit, renamed.culprit) or _share(_own(other, look) & look.bad, own) >= self._part(other)
        ]
        for part in parts:
            self._untold.pop(part.id, None)  # nothing is to be told of it any more
        return changed + [self._keep(_merged(part, renamed, look.at)) for part in parts]

    def _one_cause(self, incident: Incident, name: Name, suspect: Suspect, own: Flags, look: Look) -> bool:
        """Whether an open incident already explains the suspect's bad transfers, or is itself a part of what the suspect is."""
        if _akin(incident.culprit, name.culprit) or _akin(incident.culprit, suspect.entity):
            return True
        if self._sibling(incident, name):
            return True
        known = _own(incident, look) & look.bad
        # What fails for a reason of its own may be late through another's fault.
        of_kind = signal_of(incident.kind) is look.signal
        return _share(own, known) >= SAME_CAUSE or (of_kind and _share(known, own) >= self._part(incident))

    def _part(self, incident: Incident) -> float:
        """Which share of an incident's bad transfers a suspect must have, to be what the incident is a part of."""
        return PART_OF_YOUNG if self._age(incident.opened_at) <= TOGETHER_S else PART_OF

    def _sibling(self, incident: Incident, name: Name) -> bool:
        """Whether another storage element of the suspect's site began to fail just before: then it is the site."""
        both = incident.culprit.kind is name.culprit.kind is EntityKind.RSE
        failing = incident.kind is name.kind is IncidentKind.FAILING_TRANSFERS
        young = self._age(incident.opened_at) <= TOGETHER_S
        return both and failing and young and site_of(incident.culprit.name) == site_of(name.culprit.name)

    def _renamed(self, incident: Incident, name: Name, suspect: Suspect, own: Flags, look: Look) -> Incident:
        """The incident as it is seen now: of another kind, or put down to who explains it much better."""
        if signal_of(incident.kind) is not look.signal:
            return incident
        if name.culprit != incident.culprit and self._sibling(incident, name):
            site = Entity(EntityKind.SITE, site_of(name.culprit.name))
            return replace(incident, culprit=site, evidence=replace(incident.evidence, role=""))
        known = _own(incident, look) & look.bad
        says_more = _outranks(name.kind, incident.kind)
        if name.culprit == incident.culprit:
            return replace(incident, kind=name.kind) if says_more else incident
        better = (
            known.any()
            and suspect.ratio >= self._ratio(incident.culprit, look) + BETTER
            and _share(known, own) >= self._part(incident)
            and np.count_nonzero(own) >= np.count_nonzero(known)
        )
        network = name.kind is incident.kind is IncidentKind.DEGRADED_NETWORK
        wider = network and _lies_within(incident.culprit, name.culprit)
        if not (better or wider or (says_more and _akin(incident.culprit, name.culprit))):
            return incident
        evidence = replace(incident.evidence, role=_role(name, suspect))
        return replace(incident, culprit=name.culprit, kind=name.kind, confidence=name.confidence, evidence=evidence)

    def _ratio(self, culprit: Entity, look: Look) -> float:
        """How well a culprit explains what is bad, in the role in which it does so best."""
        shares, found = self._usual[look.signal].shares(look.roles, look.at), [0.0]
        for column in COLUMNS_OF[culprit.kind]:
            known = look.roles.known(column)
            if culprit.name in known:
                code = known.index(culprit.name)
                own = look.roles.touch(column, code)
                bad, total = np.array([np.count_nonzero(own & look.bad)]), np.array([np.count_nonzero(own)])
                found.append(float(bayes_factor(bad, total, shares[column][[code]])[0]))
        return max(found)

    def _spent(self, look: Look) -> Flags:
        """Transfers of an incident that has closed since: the window still holds them, and they are no news."""
        spent = np.zeros(len(look.members), dtype=np.bool_)
        for incident in self._incidents.values():
            if incident.closed_at is not None:
                spent |= look.own(incident.culprit) & (look.since_submission < incident.closed_at.timestamp())
        return spent

    def _reopened(self, name: Name) -> Incident | None:
        lately = [
            (incident.closed_at, incident.id)
            for incident in self._incidents.values()
            if incident.closed_at is not None
            and self._age(incident.closed_at) <= REOPEN_S
            and signal_of(incident.kind) is signal_of(name.kind)
            and _akin(incident.culprit, name.culprit)
        ]
        if not lately:
            return None
        return replace(self._incidents[max(lately)[1]], status=IncidentStatus.OPEN, closed_at=None)

    def _close_recovered(self, look: Look) -> list[str]:
        closed = []
        for incident in self._of(look.signal):
            late = _own(incident, look) & look.since(RECOVERED_S)
            total, sick = int(late.sum()), int(look.bad[late].sum())
            healthy = total >= RECOVERED_MIN and sick <= _as_usual(total, self._usually(incident, look))
            unseen = look.at - incident.updated_at.timestamp() >= ABANDONED_S
            abandoned = total == 0 and unseen and not self._deaf(look.at)
            if abandoned or (healthy and look.at - incident.opened_at.timestamp() >= RECOVERED_S):
                closed.append(self._keep(replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(look.at))))
        return closed

    def _usually(self, incident: Incident, look: Look) -> float:
        """The share of the culprit's transfers that is usually bad."""
        column = incident.evidence.role or incident.culprit.kind.value
        known = look.roles.known(column) if column in COLUMNS else ()
        if incident.culprit.name not in known:
            return look.signal.expected
        shares = self._usual[look.signal].shares(look.roles, look.at)
        return float(shares[column][known.index(incident.culprit.name)])

    def _seen(self, incident: Incident, at: float, *, new: int) -> str:
        """Keep an incident that was seen to go on. Only its last evidence of a pass is ever read, so that can wait."""
        self._untold[incident.id] = at
        return self._keep(replace(incident, updated_at=_utc(at), anomalous=incident.anomalous + new))

    def _tell(self, window: Window, incident_id: str) -> None:
        """Gather the evidence that an incident still lacks."""
        at = self._untold.pop(incident_id, None)
        signal = signal_of(self._incidents[incident_id].kind)
        if at is None or signal is None:
            return
        incident = self._incidents[incident_id]
        evidence = gather(incident, Look(window, signal, at), window)
        severity = round(1.0 - math.exp(-evidence.anomalous / 40.0), 3)
        self._keep(replace(incident, severity=severity, evidence=evidence))

    def _of(self, signal: Signal) -> list[Incident]:
        return [incident for incident in self.open if incident.kind in signal.kinds]

    def _keep(self, incident: Incident) -> str:
        self._incidents[incident.id] = incident
        return incident.id


def _covered(rows: Rows, covers: Covers, ended: Floats) -> Flags:
    """Which of the rows are covered by what was announced, at any time from their submission on."""
    if not len(covers):
        return np.zeros(len(ended), dtype=np.bool_)
    return covers.touched(Roles.of(rows), ended, np.asarray(rows["submitted_at"], dtype=np.float64))


def _uncovered(rows: Rows, covers: Covers) -> Rows:
    covered = _covered(rows, covers, np.asarray(rows["ended_at"], dtype=np.float64))
    if not covered.any():
        return rows
    return {str(name): np.asarray(values)[~covered] for name, values in rows.items()}


def _new(name: Name, suspect: Suspect, at: float) -> Incident:
    moment = _utc(at)
    digest = hashlib.blake2b(f"{name.kind} {name.culprit} {at}".encode(), digest_size=4).hexdigest()
    blank = Evidence(role=_role(name, suspect), summary="", window_s=WINDOW_S, anomalous=0, total=0, background=0.0)
    return Incident(
        id=f"inc-{digest}",
        kind=name.kind,
        culprit=name.culprit,
        opened_at=moment,
        updated_at=moment,
        confidence=0.0,
        severity=0.0,
        evidence=blank,
    )


_RANK = {IncidentKind.STALLED_TRANSFERS: 0, IncidentKind.SLOW_TRANSFERS: 1, IncidentKind.DEGRADED_NETWORK: 2}


def _outranks(kind: IncidentKind, other: IncidentKind) -> bool:
    """Whether one says more than the other of what is late."""
    return _RANK.get(kind, 0) > _RANK.get(other, 0)


def _as_usual(total: int, usual: float) -> float:
    """The most bad ones among `total` transfers that are no news: two standard deviations above the usual share."""
    return total * usual + 2.0 * math.sqrt(total * usual * (1.0 - usual))


def _role(name: Name, suspect: Suspect) -> str:
    """In which role the culprit is blamed."""
    return suspect.column if name.culprit == suspect.entity else name.culprit.kind.value


def _own(incident: Incident, look: Look) -> Flags:
    """Which of the members the culprit took part in, in the role that it is blamed for."""
    return look.roles.in_part_of(incident)


def _share(part: Flags, whole: Flags) -> float:
    """Which share of the one lies in the other; 0 of nothing."""
    n = np.count_nonzero(part)
    return np.count_nonzero(part & whole) / n if n else 0.0


def _age_order(incident: Incident) -> tuple[datetime, str]:
    return incident.opened_at, incident.id


def _akin(one: Entity, other: Entity) -> bool:
    """Whether one of the two lies within the other."""
    return _lies_within(one, other) or _lies_within(other, one)


def _lies_within(inner: Entity, outer: Entity) -> bool:
    """Whether `outer` is the same, an end of the link, or the site or network of it."""
    if inner == outer:
        return True
    paired = inner.kind in {EntityKind.LINK, EntityKind.NETWORK}
    ends = [inner.link.source, inner.link.destination] if paired else [inner.name]
    match outer.kind:
        case EntityKind.RSE:
            return outer.name in ends
        case EntityKind.SITE:
            return outer.name in {*ends, *map(site_of, ends)}
        case EntityKind.NETWORK:
            return inner.kind is EntityKind.LINK and outer.name == ">".join(map(site_of, ends))
        case _:
            return False


def _merged(incident: Incident, into: Incident, at: float) -> Incident:
    evidence = replace(incident.evidence, summary=f"the same cause as {into.id} ({into.culprit})")
    return replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(at), evidence=evidence)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
