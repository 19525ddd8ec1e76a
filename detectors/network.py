"""What perfSONAR shows of the network: lasting changes of single paths, put down to a path, a site's network or a site's clock.

A fold over readings in the order in which they come: however that is cut, the same is found, and a restart that reads the rows
again is where the process was. Readings that are older than one already taken of their series are counted and left out. Memory is
bounded: a series that is silent for `FORGET_S` is forgotten.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from detectors.causes import Case, Series, Track, agrees, akin, alike, near, one_cause, within
from detectors.delays import STEP_MS, DelaySeries
from detectors.findings import QUANTITY, Finding, Symptom, Trouble, Turn, confidence
from detectors.series import DAY_S, LossSeries, ThroughputSeries
from models.columns import Rows
from models.domain import Entity, EntityKind

FORGET_S = 60 * DAY_S
MOST_SERIES = 1 << 17
SILENT_S = {"packet_loss": DAY_S, "delay_mean": DAY_S, "throughput": 10 * DAY_S}  # nothing can be said any more
PEERS = 3  # that agree, before a site is blamed
PEERS_SHARE = 0.6  # of those measured
LIKE = 0.1  # displacements by one clock differ by less than this share
CLOCK_PATHS, CLOCK_ODDS = 2, 4  # other paths that show it, at least, and against those that do not
SWEEP_S = 3600.0
_KINDS: dict[str, type[Series]] = {
    "packet_loss": LossSeries,
    "delay_mean": DelaySeries,
    "throughput": ThroughputSeries,
}


class NetworkDetector:
    """Finds what is wrong on paths and at sites. `counts` says what became of the readings."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts: Counter[str] = Counter()
        self._tracks: dict[tuple[str, str, str], Track] = {}
        self._of_site: dict[str, dict[tuple[str, str, str], None]] = {}
        self._cases: list[Case] = []
        self._now = -np.inf
        self._swept = -np.inf
        self._told: list[Finding] = []

    @property
    def open(self) -> list[Finding]:
        """What is open, the oldest first."""
        return [self._finding(case, Turn.OPENED) for case in self._cases]

    def absorb(self, readings: Rows) -> list[Finding]:
        """Take readings with located sites; return every turn of a finding, in order."""
        columns = [
            np.asarray(readings[name]).tolist()
            for name in (
                *("source_site", "destination_site", "source_host", "destination_host"),
                *("quantity", "value", "at"),
            )
        ]
        self._told = []
        for reading in zip(*columns, strict=True):
            self._take(*reading)
        return self._told

    def _take(
        self,
        source: str,
        destination: str,
        source_host: str,
        destination_host: str,
        quantity: str,
        value: float,
        at: float,
    ) -> None:
        self.counts["read"] += 1
        jitter = quantity == "delay_sd"
        if not source or not destination or source == destination:
            self.counts["unplaced"] += 1
            return
        if quantity not in _KINDS and not jitter:
            self.counts["unused"] += 1
            return
        if not _possible(quantity, value, at):
            self.counts["impossible"] += 1
            return
        key = (
            "delay_mean" if jitter else quantity,
            (source_host or source).casefold(),
            (destination_host or destination).casefold(),
        )
        if jitter:
            measured = self._tracks.get(key)
            of_last = isinstance(series := measured and measured.series, DelaySeries) and series.take_jitter(at, value)
            self.counts["unmatched"] += not of_last
            return
        self._count_and_judge(key, source, destination, value, at)

    def _count_and_judge(
        self, key: tuple[str, str, str], source: str, destination: str, value: float, at: float
    ) -> None:
        track = self._track(key, source, destination)
        if at <= track.series.last:
            self.counts["repeated" if at in track.times else "late"] += 1
            return
        if value < 0:
            self.counts["negative"] += 1
        self._now = max(self._now, at)
        track.times.append(at)
        first = track.series.last == -np.inf
        if track.series.take(at, value) and not first:
            self.counts["gaps"] += 1
        self._compare(track, at)
        if self._now >= self._swept + SWEEP_S:
            self._sweep()

    def _track(self, key: tuple[str, str, str], source: str, destination: str) -> Track:
        track = self._tracks.get(key)
        if track is None:
            track = Track(quantity=key[0], source=source, destination=destination, series=_KINDS[key[0]]())
            self._tracks[key] = track
        elif (track.source, track.destination) == (source, destination):
            return track
        else:
            if (track.source.casefold(), track.destination.casefold()) != (source.casefold(), destination.casefold()):
                self.counts["renamed"] += 1
            for site in (track.source, track.destination):
                self._of_site[site].pop(key, None)
            track.source, track.destination = source, destination
        for site in (source, destination):
            self._of_site.setdefault(site, {})[key] = None
        return track

    def _compare(self, track: Track, at: float) -> None:
        """Whether a series begins, goes on or ceases to show something."""
        was, now = track.symptom, track.series.symptom
        if was is not now:
            if was is not None:
                self._leave(track, "another level" if now is not None else "recovered")
            track.symptom = now
            if now is not None:
                self._join(track, now, at)
        elif now is not None and now.trouble is Trouble.FIREWALL:
            self._escalate(track, at)

    def _escalate(self, track: Track, at: float) -> None:
        """Name what began as loss a firewall, once all of it is."""
        case = self._case_of(track)
        if case is None or case.trouble is Trouble.FIREWALL:
            return
        if all(one.symptom is not None and one.symptom.trouble is Trouble.FIREWALL for one in case.tracks):
            case.trouble = Trouble.FIREWALL
            self._tell(case, Turn.CHANGED, at)

    def _join(self, track: Track, symptom: Symptom, at: float) -> None:
        trouble, culprit = self._blame(track, symptom)
        known = next((case for case in self._cases if one_cause(case, track, trouble, culprit, symptom)), None)
        if known is None:
            known = Case(
                id=_id(trouble, culprit, at),
                trouble=trouble,
                culprit=culprit,
                opened_at=at,
                tracks=[track],
                seen={track.path: None},
                first=symptom,
            )
            self._cases.append(known)
            self._tell(known, Turn.OPENED, at)
            return
        new = track.path not in known.seen
        known.tracks.append(track)
        known.seen[track.path] = None
        wider = known.culprit.kind is EntityKind.NETWORK and culprit.kind is EntityKind.SITE
        renamed = known.trouble is Trouble.DELAY and trouble is Trouble.CLOCK
        known.culprit = culprit if wider else known.culprit
        known.trouble = trouble if renamed else known.trouble
        if wider or renamed or new:
            self._tell(known, Turn.CHANGED, at)
        if known.culprit.kind is EntityKind.SITE:
            self._merge_into(known, at)

    def _merge_into(self, case: Case, at: float) -> None:
        """No two open findings for one cause: those of paths of the site that began then are this one."""
        for other in [one for one in self._cases if one is not case]:
            same = akin(other.trouble, case.trouble) and near(other, case.first)
            same &= (
                other.trouble is not case.trouble
                or other.trouble is not Trouble.DELAY
                or alike(other.first, case.first)
            )
            if same and within(other, case.culprit.name):
                case.tracks += other.tracks
                case.seen |= other.seen
                other.tracks = []
                self._close(other, f"the same cause as {case.id}", at)

    def _leave(self, track: Track, why: str) -> None:
        case = self._case_of(track)
        track.symptom = None
        if case is not None:
            case.tracks.remove(track)
            if not case.tracks:
                self._close(case, why, track.series.last)

    def _case_of(self, track: Track) -> Case | None:
        return next((case for case in self._cases if track in case.tracks), None)

    def _blame(self, track: Track, symptom: Symptom) -> tuple[Trouble, Entity]:
        """Name what a new symptom is, and the path or the site that it is to be put down to."""
        path = Entity(EntityKind.NETWORK, track.path)
        if isinstance(track.series, DelaySeries) and symptom.before is not None:
            step = symptom.now - symptom.before
            mirrored, site, alone = self._clock(track, step, symptom.since)
            if alone and step > 0:
                symptom.trouble = Trouble.DELAY  # however far: a clock would be off on the other paths, too
            if mirrored or symptom.trouble is Trouble.CLOCK:
                return Trouble.CLOCK, Entity(EntityKind.SITE, site) if site else path
        agreed = self._site(track, symptom)
        return symptom.trouble, Entity(EntityKind.SITE, agreed) if agreed else path

    def _clock(self, track: Track, step: float, since: float) -> tuple[bool, str, bool]:
        """Whether other paths are displaced as by a clock of one end, of which end, and whether it is this path alone that is.

        A clock that goes ahead by d at a host takes d off the delays that it is the source of, and adds d to those that
        it is the destination of. Routes that move at once mirror each other too, but not on all paths of a site.
        """
        found = []
        mirrored, alone = False, True
        for site, ahead in ((track.source, -step), (track.destination, step)):
            agreeing = opposing = 0
            both_ways = False
            for other in self._others(track, site):
                if not isinstance(other.series, DelaySeries):
                    continue
                away = other.series.displacement(since)
                expected = -ahead if other.source == site else ahead
                alike = away is not None and abs(away - expected) <= max(LIKE * abs(step), STEP_MS / 2.0)
                both_ways |= alike and expected * step < 0
                if {other.source, other.destination} != {track.source, track.destination} and away is not None:
                    agreeing, opposing = agreeing + alike, opposing + (not alike)
            if agreeing > opposing:
                found.append((agreeing - opposing, site))
            mirrored |= both_ways and agreeing >= max(CLOCK_PATHS, CLOCK_ODDS * opposing)
            alone &= opposing >= max(CLOCK_PATHS, CLOCK_ODDS * agreeing)
        return mirrored, max(found)[1] if found else "", alone

    def _site(self, track: Track, symptom: Symptom) -> str:
        """The end most of whose peers see the same, or begin to; "" if there is none."""
        found = []
        for site in (track.source, track.destination):
            agreeing, measured = {track.peer(site)}, {track.peer(site)}
            for other in self._others(track, site):
                if other.series.last >= self._now - SILENT_S[track.quantity]:
                    measured.add(other.peer(site))
                    if agrees(other, symptom):
                        agreeing.add(other.peer(site))
            if len(agreeing) >= PEERS and len(agreeing) >= PEERS_SHARE * len(measured):
                found.append((len(agreeing) / len(measured), len(agreeing), site))
        return max(found)[2] if found else ""

    def _others(self, track: Track, site: str) -> Iterable[Track]:
        """The other series of that quantity to and from a site."""
        tracks = (self._tracks[key] for key in self._of_site.get(site, {}) if key[0] == track.quantity)
        return (other for other in tracks if other is not track)

    def _sweep(self) -> None:
        """Close what has fallen silent, and forget what has been so for long."""
        self._swept = self._now
        for track in [track for case in self._cases for track in case.tracks]:
            if self._now - track.series.last > SILENT_S[track.quantity]:
                track.series.symptom = None
                self._leave(track, "no more readings")
        stale = [key for key, track in self._tracks.items() if self._now - track.series.last > FORGET_S]
        if len(self._tracks) - len(stale) > MOST_SERIES:
            stale = sorted(self._tracks, key=lambda key: (self._tracks[key].series.last, key))[: -MOST_SERIES // 2]
        for key in stale:
            self._forget(key)

    def _forget(self, key: tuple[str, str, str]) -> None:
        self.counts["forgotten"] += 1
        track = self._tracks.pop(key)
        if track.symptom is not None:
            self._leave(track, "no more readings")
        for site in (track.source, track.destination):
            self._of_site[site].pop(key, None)
            if not self._of_site[site]:
                del self._of_site[site]

    def _close(self, case: Case, why: str, at: float) -> None:
        self._cases.remove(case)
        self._tell(case, Turn.CLOSED, at, why)

    def _tell(self, case: Case, turn: Turn, at: float, note: str = "") -> None:
        self._told.append(self._finding(case, turn, at, note))

    def _finding(self, case: Case, turn: Turn, at: float | None = None, note: str = "") -> Finding:
        symptoms = [track.symptom for track in case.tracks if track.symptom is not None] or [case.first]
        shown, readings = (sum(getattr(one, name) for one in symptoms) for name in ("shown", "readings"))
        return Finding(
            id=case.id,
            turn=turn,
            trouble=case.trouble,
            culprit=case.culprit,
            since=_utc(case.first.since),
            opened_at=_utc(case.opened_at),
            updated_at=_utc(max(one.last for one in symptoms) if at is None else at),
            closed_at=_utc(at) if turn is Turn.CLOSED and at is not None else None,
            quantity=QUANTITY[case.trouble],
            before=case.first.before,
            now=case.first.now,
            readings=readings,
            confidence=confidence(shown, readings),
            paths=tuple(case.seen),
            note=note,
        )


def _possible(quantity: str, value: float, at: float) -> bool:
    if not (np.isfinite(value) and np.isfinite(at)):
        return False
    match quantity:
        case "packet_loss":
            return 0.0 <= value <= 1.0
        case "delay_mean":
            return True
        case _:
            return value >= 0.0


def _id(trouble: Trouble, culprit: Entity, at: float) -> str:
    return f"net-{hashlib.blake2b(f'{trouble} {culprit} {at}'.encode(), digest_size=4).hexdigest()}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
