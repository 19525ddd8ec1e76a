"""Incidents: anomalous transfers grouped under one culprit, opened with hysteresis, grown, and closed when it recovers.

Works in event time. The window of the last half hour is looked at once a minute, at whole minutes, so that incidents do not
depend on how the stream was cut into polls. A fold over observed rows: a restart gives the same book.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.covers import Covers
from detectors.degraded import doubt, findings_of, known_ill, still_ill
from detectors.deletions import evidence_of
from detectors.evidence import gather
from detectors.kinship import akin, lies_within, same_place
from detectors.localisation import (
    COLUMNS,
    DOUBTED_BAD,
    Roles,
    Suspect,
    localise,
)
from detectors.naming import Name, name_of
from detectors.recognition import Found, Recognition, of_deletions, part_of, role_of, share, young
from detectors.usual import HOUR_S, Usual
from detectors.weather import Weather
from detectors.window import DELETING, SIGNALS, WINDOW_S, Ends, Look, Recent, Signal, Window, signal_of
from models.columns import Rows
from models.domain import EntityKind, Evidence, Incident, IncidentKind, IncidentStatus, Share

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

STEP_S = 60.0
SHORTER_S = (300.0, 900.0)  # what has just begun is clear in a short time, what is rare in the whole window
RECOVERED_S = 900.0  # the culprit's transfers of this long must look healthy before an incident closes
RECOVERED_MIN = 5  # of them, at least
OTHERS_MIN = 20  # on other paths than the worst, at least, to say that only that one is ill still
ABANDONED_S = 1800.0  # without any transfer of the culprit, nothing can be said any more
REOPEN_S = 2700.0
AMIDST_S = 240.0  # that a suspect has to last while another incident is young
LASTING_S = 90.0  # between the first and the last of a suspect's bad transfers: what befell all at once may be over
NOTHING = Covers()
NO_ROWS = pd.DataFrame({"due_at": np.empty(0), "ended_at": np.empty(0)})

Windows = Mapping[Signal, Window]


class IncidentBook:
    """Open incidents and the window that they are judged by."""

    def __init__(self, weather: Weather | None = None) -> None:
        self._weather = weather or Weather()
        self._usual = {signal: Usual(signal.expected) for signal in SIGNALS}
        self._recognition = Recognition(self._usual, self._weather)
        self._deaf: Callable[[float], bool] = lambda _: False
        self.reset(incidents=(), observed=None, until=None)

    def reset(
        self,
        *,
        incidents: Sequence[Incident],
        observed: Rows | None,
        until: float | None,
        deletions: Rows | None = None,
        covers: Covers = NOTHING,
    ) -> None:
        """Start from the ledger: its open and lately closed incidents, its observed rows, those of deletions that ended, and how
        far they were judged.
        """
        self._incidents = {incident.id: incident for incident in incidents}
        for usual in self._usual.values():
            usual.reset()
        self._recent = Recent(None if observed is None else _uncovered(observed, covers))
        self._deleted = Recent(None if deletions is None else _uncovered(deletions, covers))
        self._untold: dict[str, float] = {}  # minute as of which an incident's evidence is to be gathered, by incident
        self._until = until
        if until is not None:
            self._trim()

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def blamed(self, observed: Rows, covers: Covers = NOTHING, *, deletions: bool = False) -> Flags:
        """Which transfers the culprit of an open incident, or what is covered, took part in: they do not calibrate. Shape (n,).

        With `deletions`, of rows of deletions that ended.
        """
        blamed = _covered(observed, covers, np.asarray(observed["ended_at"], dtype=np.float64))
        if self.open:
            roles = Roles.of(observed)
            for incident in self.open:
                if deletions or not of_deletions(incident):
                    blamed |= roles.touched(incident.culprit)
        return blamed

    def advance(
        self,
        observed: Rows | None,
        *,
        until: float,
        overdue: pd.DataFrame = NO_ROWS,
        deletions: Rows = NO_ROWS,
        undeleted: pd.DataFrame = NO_ROWS,
        covers: Covers = NOTHING,
        deaf: Callable[[float], bool] = lambda _: False,
    ) -> list[Incident]:
        """Take in new rows and judge every whole minute up to `until` (event time); return the incidents that changed.

        `overdue` are all that are under way and were due before `until`, with the columns of `detectors.stalls.UnderWay`;
        `deletions` that ended and `undeleted` are the same of deletions, as `detectors.deletions` makes them. What `covers` cover is
        evidence against nobody, and nothing is over because nothing was heard of when we were `deaf`.
        """
        self._deaf = deaf
        if observed is not None:
            self._recent.add(_uncovered(observed, covers))
        self._deleted.add(_uncovered(deletions, covers))
        overdue, undeleted = (
            rows[~_covered(rows, covers, np.full(len(rows), until))] if len(rows) else rows
            for rows in (overdue, undeleted)
        )
        if self._until is None:
            ended = [recent.column("ended_at", np.float64) for recent in (self._recent, self._deleted)]
            self._until = math.floor(float(np.concatenate(ended).min(initial=until)) / STEP_S) * STEP_S
        changed: dict[str, None] = {}
        judged = self._until + STEP_S <= until
        if judged:
            transfers, deleted = Window(self._recent, overdue), Window(self._deleted, undeleted)
            windows = {signal: deleted if signal is DELETING else transfers for signal in SIGNALS}
            while self._until + STEP_S <= until:
                self._until = self._next_step(windows, until)
                changed |= dict.fromkeys(self._judge(windows, self._until))
            for incident_id in changed:
                self._tell(windows, incident_id)
        told = [self._incidents[incident_id] for incident_id in changed]
        if judged:
            self._trim()
        return told

    @property
    def until(self) -> float | None:
        """Event time up to which the book has judged."""
        return self._until

    def _next_step(self, windows: Windows, until: float) -> float:
        """The next minute worth judging: over a gap without transfers, deletions and incidents, straight to its end."""
        assert self._until is not None  # noqa: S101 - set by `advance` before its loop
        step = self._until + STEP_S
        if self.open:
            return step
        when = np.concatenate([np.minimum(window.ends.ended, window.ends.due) for window in set(windows.values())])
        first = float(when[when >= self._until].min(initial=until))
        return min(max(step, math.ceil(first / STEP_S) * STEP_S), math.floor(until / STEP_S) * STEP_S)

    def _trim(self) -> None:
        if self._until is not None:
            for rows in self._recent.forget(self._until - WINDOW_S):
                self._remember(rows, [signal for signal in SIGNALS if signal is not DELETING])
            for rows in self._deleted.forget(self._until - WINDOW_S):
                self._remember(rows, [DELETING])
        forgotten = [
            i.id for i in self._incidents.values() if i.closed_at and self._age(i.closed_at) > REOPEN_S + WINDOW_S
        ]
        for incident_id in forgotten:
            del self._incidents[incident_id]

    def _remember(self, rows: Rows, signals: Sequence[Signal]) -> None:
        """What nobody is blamed for is what is usual."""
        ends, roles = Ends.of(rows), Roles.of(rows)
        size = np.nan_to_num(np.asarray(rows["bytes"], dtype=np.float64))
        blamed = np.zeros(len(ends.ended), dtype=np.bool_)
        for incident in self._incidents.values():
            if of_deletions(incident) and DELETING not in signals:
                continue
            closed = math.inf if incident.closed_at is None else incident.closed_at.timestamp()
            lived = (ends.ended >= incident.opened_at.timestamp() - WINDOW_S) & (ends.ended < closed)
            blamed |= lived & roles.touched(incident.culprit)
        for signal in signals:
            takes_part, bad = ends.split(signal)
            rest = np.flatnonzero(takes_part & ~blamed)
            self._usual[signal].absorb(roles.take(rest), bad[rest], ends.ended[rest], size[rest])

    def _age(self, moment: datetime) -> float:
        return (self._until or 0.0) - moment.timestamp()

    def _judge(self, windows: Windows, at: float) -> list[str]:
        """Open, grow and close as of a whole minute; return the ids of the incidents that changed."""
        changed: list[str] = []
        for signal, window in windows.items():
            look = Look(window, signal, at)
            if not self._of(signal) and np.count_nonzero(look.bad) < DOUBTED_BAD:
                continue
            changed += self._grow(look)
            if (look.bad & look.since(STEP_S)).any():
                changed += self._blame([look, *(look.within(horizon) for horizon in SHORTER_S)])
            changed += self._widen(look)
            changed += self._close_recovered(look)
        return changed

    def _grow(self, look: Look) -> list[str]:
        fresh = look.bad & look.since(STEP_S)
        if not fresh.any():
            return []
        grown = []
        for incident in self._of(look.signal):
            new = int((fresh & look.roles.badly(incident, look.blame)).sum())
            if new:
                grown.append(self._seen(incident, look.at, new=new))
        return grown

    def _widen(self, look: Look) -> list[str]:
        """Put down to a site what perfSONAR now sees on most of its paths: the incidents of single ones are parts of it."""
        changed = []
        for incident in self._of_network(look.signal):
            if incident.culprit.kind is not EntityKind.NETWORK or self._incidents[incident.id].closed:
                continue
            site = self._weather.blamed(incident.culprit.name, look.at)
            if site == incident.culprit:
                continue
            wider = replace(incident, culprit=site, evidence=replace(incident.evidence, role=""))
            parts = [one for one in self._of_network(look.signal) if one != incident and lies_within(one.culprit, site)]
            oldest, *others = sorted([wider, *parts], key=_age_order)
            changed.append(self._seen(replace(oldest, culprit=site, evidence=wider.evidence), look.at, new=0))
            for other in others:
                self._untold.pop(other.id, None)
                changed.append(self._keep(_merged(other, self._incidents[oldest.id], look.at)))
        return changed

    def _blame(self, looks: Sequence[Look]) -> list[str]:
        """Find who explains the bad transfers; see in them what is open, and open an incident for one that is not."""
        found = [one for look in looks for one in self._found(look)]
        found.sort(key=lambda one: -one.suspect.ratio)
        changed: list[str] = []
        strangers = [one for one in found if not self._recognised(one, changed)]
        # One at a time: what else there is may be the same, which is seen a minute later.
        lasting = next((one for one in strangers if self._lasts(one)), None)
        if lasting is not None:
            changed.append(self._opened(lasting))
        return changed

    def _found(self, look: Look) -> list[Found]:
        """Suspects by name. What befell all of a suspect's transfers at once may be over."""
        found = []
        for suspect, own in self._suspects(look):
            load = self._usual[look.signal].load(suspect.column, suspect.entity.name, look.at)
            expected = None if load is None else load * (look.horizon / HOUR_S)
            lasting = np.ptp(look.when[own]) >= LASTING_S or known_ill(suspect, look, self._weather)
            name = name_of(suspect, look, self._weather, expected=expected) if lasting else None
            if name is not None:
                found.append(Found(name=name, suspect=suspect, own=own, look=look))
        return found

    def _suspects(self, look: Look) -> list[tuple[Suspect, Flags]]:
        """Who explains the bad transfers, and which."""
        unspent = np.flatnonzero(~self._spent(look))
        if np.count_nonzero(look.bad[unspent]) < DOUBTED_BAD:
            return []
        roles, found = look.roles.take(unspent), []
        columns, blame = look.signal.columns, look.blame.take(unspent)
        usual = self._usual[look.signal].shares(roles, look.at, columns)
        for suspect in localise(
            roles, blame, usual, columns=columns, doubt=lambda path: doubt(path, look, self._weather)
        ):
            explained = np.zeros(len(look.members), dtype=np.bool_)
            explained[unspent] = suspect.explains
            found.append((suspect, explained))
        return found

    def _recognised(self, found: Found, changed: list[str]) -> bool:
        """Whether a suspect is of the same cause as what is open; that is then seen as what the suspect says of it."""
        known = [incident for incident in self.open if self._recognition.one_cause(incident, found)]
        if not known:
            return False
        oldest, *others = sorted(known, key=_age_order)
        renamed = self._recognition.renamed(oldest, found)
        if renamed is not oldest:
            turned = of_deletions(oldest) and not of_deletions(renamed)
            changed.append(self._seen(renamed, found.look.at, new=int(found.own.sum()) if turned else 0))
        for other in others:
            bad = found.look.roles.badly(other, found.look.blame)
            if akin(other.culprit, renamed.culprit) or share(bad, found.own) >= part_of(other, found.look.at):
                self._untold.pop(other.id, None)  # nothing is to be told of it any more
                changed.append(self._keep(_merged(other, renamed, found.look.at)))
        return True

    def _lasts(self, found: Found) -> bool:
        """Whether there was a suspect already that is, or was a part of, what is to be opened now.

        A minute before; and some minutes before while another incident is young, for what looks new may be the same cause.
        """
        moments = (STEP_S, AMIDST_S) if any(young(incident, found.look.at) for incident in self.open) else (STEP_S,)
        return all(
            any(akin(suspect.entity, found.name.culprit) for suspect, _ in self._suspects(found.look.before(seconds)))
            for seconds in moments
        )

    def _opened(self, found: Found) -> str:
        incident = self._reopened(found.name) or _new(found.name, found.suspect, found.look.at)
        confident = replace(incident, confidence=found.name.confidence)
        return self._seen(confident, found.look.at, new=int(found.own.sum()))

    def _spent(self, look: Look) -> Flags:
        """Transfers of an incident that has closed since: the window still holds them, and they are no news."""
        spent = np.zeros(len(look.members), dtype=np.bool_)
        for incident in self._incidents.values():
            if incident.closed_at is not None and (look.signal is DELETING or not of_deletions(incident)):
                spent |= look.own(incident.culprit) & (look.since_submission < incident.closed_at.timestamp())
        return spent

    def _reopened(self, name: Name) -> Incident | None:
        lately = [
            (incident.closed_at, incident.id)
            for incident in self._incidents.values()
            if incident.closed_at is not None
            and self._age(incident.closed_at) <= REOPEN_S
            and signal_of(incident.kind) is signal_of(name.kind)
            and same_place(incident.culprit, name.culprit)
        ]
        if not lately:
            return None
        return replace(self._incidents[max(lately)[1]], status=IncidentStatus.OPEN, closed_at=None)

    def _close_recovered(self, look: Look) -> list[str]:
        closed = []
        for incident in self._of(look.signal):
            own = look.roles.in_part_of(incident) & look.since(RECOVERED_S)
            sick = own & look.roles.badly(incident, look.blame)
            total, usual = int(own.sum()), self._usually(incident, look)
            healthy = _healthy(own, sick, usual) or (
                incident.culprit.kind in {EntityKind.SITE, EntityKind.FTS, EntityKind.RSE}
                and _healthy(*_without_worst(own, sick, look.roles.codes["network"]), usual, least=OTHERS_MIN)
            )
            if incident.kind is IncidentKind.DEGRADED_NETWORK and self._age(incident.opened_at) >= RECOVERED_S:
                healthy = self._network_well(incident, look, healthy=healthy)
            unseen = look.at - incident.updated_at.timestamp() >= ABANDONED_S
            abandoned = total == 0 and unseen and not self._deaf(look.at)
            if abandoned or (healthy and look.at - incident.opened_at.timestamp() >= RECOVERED_S):
                closed.append(self._keep(replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(look.at))))
        return closed

    def _network_well(self, incident: Incident, look: Look, *, healthy: bool) -> bool:
        """Whether the network is, too. Once perfSONAR says so, what still goes badly has waited meanwhile, or another reason."""
        if self._weather.recovered(incident.culprit, look.at):
            return True
        own = look.roles.in_part_of(incident)
        well = _healthy(own, own & look.roles.badly(incident, look.blame), self._usually(incident, look))
        return healthy and (well or not still_ill(incident.culprit, self._weather, look.at))

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

    def _tell(self, windows: Windows, incident_id: str) -> None:
        """Gather the evidence that an incident still lacks."""
        at = self._untold.pop(incident_id, None)
        signal = signal_of(self._incidents[incident_id].kind)
        if at is None or signal is None:
            return
        incident, deletions = self._incidents[incident_id], Look(windows[DELETING], DELETING, at)
        if signal is DELETING:
            evidence = evidence_of(incident, deletions, windows[DELETING])
        else:
            own = deletions.roles.in_part_of(incident)
            share = Share(anomalous=int((own & deletions.bad).sum()), total=int(own.sum()))
            window = windows[signal]
            evidence = gather(incident, Look(window, signal, at), window, self._weather)
            findings = findings_of(incident.culprit, evidence, self._weather, at)
            evidence = replace(evidence, deletions=share, findings=findings)
        severity = round(1.0 - math.exp(-evidence.anomalous / 40.0), 3)
        self._keep(replace(incident, severity=severity, evidence=evidence))

    def _of_network(self, signal: Signal) -> list[Incident]:
        return [incident for incident in self._of(signal) if incident.kind is IncidentKind.DEGRADED_NETWORK]

    def _of(self, signal: Signal) -> list[Incident]:
        return [incident for incident in self.open if incident.kind in signal.kinds]

    def _keep(self, incident: Incident) -> str:
        self._incidents[incident.id] = incident
        return incident.id


def _covered(rows: Rows, covers: Covers, ended: Floats) -> Flags:
    """Which of the rows are covered by what was announced, at any time from their submission on."""
    if not len(covers) or not len(ended):
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
    blank = Evidence(role=role_of(name, suspect), summary="", window_s=WINDOW_S, anomalous=0, total=0, background=0.0)
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


def _healthy(own: Flags, sick: Flags, usual: float, *, least: int = RECOVERED_MIN) -> bool:
    """Whether enough transfers say that no more are bad than two standard deviations above the usual share."""
    total = np.count_nonzero(own)
    most = total * usual + 2.0 * math.sqrt(total * usual * (1.0 - usual))
    return bool(total >= least and np.count_nonzero(sick) <= most)


def _without_worst(own: Flags, sick: Flags, paths: npt.NDArray[np.int64]) -> tuple[Flags, Flags]:
    """The same without the path on which most are bad: if all the others are well, that alone is ill."""
    if not sick.any():
        return own, sick
    rest = paths != np.bincount(paths[sick]).argmax()
    return own & rest, sick & rest


def _age_order(incident: Incident) -> tuple[datetime, str]:
    return incident.opened_at, incident.id


def _merged(incident: Incident, into: Incident, at: float) -> Incident:
    evidence = replace(incident.evidence, summary=f"the same cause as {into.id} ({into.culprit})")
    return replace(incident, status=IncidentStatus.CLOSED, closed_at=_utc(at), evidence=evidence)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
