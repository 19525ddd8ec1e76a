"""A feed that has fallen silent or stands still, told apart from a quiet night: a test on how long nothing new has come.

A gap is measured by how many documents would usually have come in it (`gaps.py` says when that is too many), by the rate of the hour
of the day and by the feed's own pace just before. Pure: the time of a poll is an argument, and what is known of a feed is JSON.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.gaps import MIN_POLLS, Gap
from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind, IncidentStatus

Floats = npt.NDArray[np.float64]

LEAST_S = 900.0  # no shorter gap is one
YOUNG_S = 6 * 3600.0  # of a feed watched for so long, a gap must be twice that; for a quarter of it, five times
HISTORY_S = 3600.0  # watched for less than this, nothing is usual yet
MIN_DOCUMENTS = 100.0  # fewer in all, or in a day, tell nothing: a test, a trickle
LIVE_S = 86_400.0  # what was older than this when it came is a recording, and recordings end
STEP_S = 600.0  # of the time between two polls no more counts: the rest was no watching
MEMORY_S = 14 * 86_400.0  # watched time after which what was seen counts a third
RECENT_S = 3600.0  # a feed that has just slowed down is quiet: for so long back its own pace counts
SHRINK_H = 1.0  # an hour of the day counts as if the rate of the whole day had been seen in it for so long
UPDATE_S = 300.0  # between two words on an incident that goes on
REOPEN_S = 1800.0
MOST_SPANS = 16
_VERSION = 1


class Still(enum.StrEnum):
    """In which way nothing new comes, while the source answers."""

    SILENT = "silent"  # no document is read
    FROZEN = "frozen"  # documents are read, but none is newer than what was known


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What is to be said of a feed that brings nothing new. Times in seconds since 1970."""

    still: Still
    since: float  # when something new came last
    at: float  # the latest poll that was answered
    newest: float  # the newest document's own time
    usual: float  # documents in an hour, at this time of day
    repeated: int  # documents read since then
    chance: float


@dataclass(slots=True, kw_only=True)
class Feed:
    """What is known of one feed: how it usually comes, and where it stands. Give it every poll that was answered, in order.

    >>> feed = Feed()
    >>> for minute in range(0, 1440, 5):  # a document a minute for a day
    ...     own = minute * 60.0 - np.arange(5) * 60.0
    ...     feed.polled(minute * 60.0, read=5, times=own, caught_up=True)
    >>> for minute in range(1440, 1460, 5):
    ...     feed.polled(minute * 60.0, read=0, times=np.empty(0), caught_up=True)
    >>> feed.silence.still, round(feed.silence.usual), feed.is_silent(86400.0)
    (<Still.SILENT: 'silent'>, 60, True)
    >>> feed.polled(87_900.0, read=1, times=np.array([87_890.0]), caught_up=True)
    >>> feed.silence is None, feed.is_silent(87_000.0), feed.is_silent(87_900.0)
    (True, True, False)
    """

    polled_at: float | None = None
    moved_at: float | None = None  # when the newest document came
    newest: float | None = None  # own time of a document; those ahead of the clock do not count
    since: float | None = None  # own time from which documents are counted
    watched: float = 0.0  # seconds
    history: float = 0.0  # of them, until something new came last
    counts: list[float] = field(default_factory=lambda: [0.0] * 24)  # documents by hour of the day
    hours: list[float] = field(default_factory=lambda: [0.0] * 24)  # in which these were written
    recent: float | None = None  # documents in an hour, before the gap
    lag: float | None = None  # seconds by which the newest document is usually older than the poll that brings it
    idle: Gap = field(default_factory=Gap)  # without any document
    stalled: Gap = field(default_factory=Gap)  # without a newer one
    echoes: int = 0  # polls since something new came that brought documents all the same
    repeated: int = 0  # these documents
    alarmed: bool = False
    spans: list[list[float | None]] = field(default_factory=list)  # own times between which it was silent

    def polled(self, at: float, *, read: int, times: Floats, caught_up: bool) -> None:
        """Take in a poll at `at` that read so many documents.

        `times` are the own times of those that can be used and are not known to be repeats, NaN where unknown; shape (n,).
        """
        step = self._step(at)
        missed = step * self._rate(at) / 3600.0
        known = times[times <= at]
        newest = float(known.max()) if len(known) else -math.inf
        moved = len(known) > 0 and (self.newest is None or newest > self.newest)
        if len(known) and not self.alarmed and (moved or self.stalled.seconds < LEAST_S):
            self._count(known, at, step)
        if read:
            self.idle.end(missed=missed, alarmed=self.alarmed)
        else:
            self.idle.grow(step, missed=missed)
        if moved:
            self._move(at, known, newest, missed=missed, caught_up=caught_up)
        else:
            self.stalled.grow(step, missed=missed)
            self.echoes += read > 0
            self.repeated += read
        if not self.alarmed and self.newest is not None and self._is_improbable(at, self.newest):
            self.alarmed = True
            self.idle.told, self.stalled.told = self.idle.missed, self.stalled.missed
            self.spans = [*self.spans, [self.newest, None]][-MOST_SPANS:]

    @property
    def silence(self) -> Silence | None:
        """What is to be said of it, as of the latest poll; None while it is well."""
        if not self.alarmed or self.newest is None or self.moved_at is None or self.polled_at is None:
            return None
        frozen = self.echoes >= MIN_POLLS and self.idle.seconds < LEAST_S
        return Silence(
            still=Still.FROZEN if frozen else Still.SILENT,
            since=self.moved_at,
            at=self.polled_at,
            newest=self.newest,
            usual=self._usual(self.polled_at),
            repeated=self.repeated,
            chance=min(self.idle.chance, self.stalled.chance),
        )

    def is_silent(self, at: float) -> bool:
        """Whether of that time, as documents tell it, nothing was to be had: since 1970, in seconds."""
        return any(start is not None and start <= at < (math.inf if end is None else end) for start, end in self.spans)

    def _step(self, at: float) -> float:
        """Seconds of watching since the poll before, which what is remembered fades by."""
        before, self.polled_at = self.polled_at, at
        if before is None:
            return 0.0
        if at < before:  # another clock: what it has not reached yet is not known
            self.newest = None if self.newest is None else min(self.newest, at)
            self.since = None if self.since is None else min(self.since, at)
            self.moved_at = None if self.moved_at is None else min(self.moved_at, at)
            return 0.0
        step = min(at - before, STEP_S)
        self.watched += step
        share = math.exp(-step / MEMORY_S)
        self.counts, self.hours = [n * share for n in self.counts], [n * share for n in self.hours]
        self.idle.fade(share)
        self.stalled.fade(share)
        return step

    def _count(self, known: Floats, at: float, step: float) -> None:
        if self.since is None:
            return
        counted = known[known > self.since]
        by_hour = np.bincount((counted // 3600).astype(np.int64) % 24, minlength=24)
        self.counts = [a + b for a, b in zip(self.counts, by_hour.tolist(), strict=True)]
        # A backlog says nothing of the pace at which documents come now.
        lately = int(np.count_nonzero(counted > at - (self.lag or 0.0) - 2 * RECENT_S))
        seconds = self.idle.seconds + step
        if lately and seconds > 0.0:
            pace = lately * 3600.0 / seconds
            weight = 1.0 - math.exp(-seconds / RECENT_S)
            self.recent = pace if self.recent is None else self.recent + weight * (pace - self.recent)

    def _move(self, at: float, known: Floats, newest: float, *, missed: float, caught_up: bool) -> None:
        """Something new has come."""
        if self.newest is None or self.since is None:
            self.since = newest  # how far back the first page reaches is chance
        elif self.alarmed:
            # What was not to be had is not learned as usual.
            self.spans = [*self.spans[:-1], [self.newest, float(known[known > self.newest].min())]]
            self.since = at
        else:
            self._lived(max(self.newest, self.since, newest - MEMORY_S), newest)
        if caught_up:
            weight = 1.0 - math.exp(-(at - (self.moved_at or at)) / LIVE_S)
            self.lag = at - newest if self.lag is None else self.lag + weight * (at - newest - self.lag)
        self.stalled.end(missed=missed, alarmed=self.alarmed)
        self.newest, self.moved_at, self.history = newest, at, self.watched
        self.echoes, self.repeated, self.alarmed = 0, 0, False

    def _lived(self, start: float, end: float) -> None:
        """Count the hours between two own times; none if they are the wrong way round."""
        while start < end:
            until = min(end, (start // 3600 + 1) * 3600)
            self.hours[int(start // 3600) % 24] += (until - start) / 3600.0
            start = until

    def _usual(self, at: float) -> float:
        """Documents an hour at that time of day, shrunk to those of the whole day."""
        documents, hours = sum(self.counts), sum(self.hours)
        if hours * 3600.0 < HISTORY_S:
            return 0.0
        hour = int(at // 3600) % 24
        return (self.counts[hour] + SHRINK_H * documents / hours) / (self.hours[hour] + SHRINK_H)

    def _rate(self, at: float) -> float:
        usual = self._usual(at)
        return usual if self.recent is None else min(usual, self.recent)

    def _is_improbable(self, at: float, newest: float) -> bool:
        documents, hours = sum(self.counts), sum(self.hours)
        few = documents < MIN_DOCUMENTS or 24.0 * documents < MIN_DOCUMENTS * hours
        recorded = self.moved_at is None or self.moved_at - newest > LIVE_S
        if few or recorded or self.history < HISTORY_S:
            return False
        least = LEAST_S * (1.0 + YOUNG_S / self.history)
        if self.idle.is_improbable(least):
            return True
        # A clock that is a little ahead lifts the newest time over those of the others for as long as they lag behind.
        return self.stalled.is_improbable(least) and at - newest >= (self.lag or 0.0) + least


def dump(feed: Feed) -> dict[str, Any]:
    """The feed as JSON."""
    return {"version": _VERSION, **asdict(feed)}


def load(document: Mapping[str, Any] | None) -> Feed:
    """The feed of what `dump` gave; a new one for nothing, or for what another version wrote.

    >>> load(dump(Feed(newest=5.0, idle=Gap(polls=2)))) == Feed(newest=5.0, idle=Gap(polls=2))
    True
    >>> load(None) == load({"version": 0}) == Feed()
    True
    """
    if not document or document.get("version") != _VERSION:
        return Feed()
    known = {key: value for key, value in document.items() if key != "version"}
    return Feed(**{**known, "idle": Gap(**known["idle"]), "stalled": Gap(**known["stalled"])})


def incident_of(name: str, silence: Silence, before: Incident | None) -> Incident:
    """The incident of a silent feed: a new one, or the one `before` that goes on or comes again within half an hour."""
    culprit = Entity(EntityKind.FEED, name)
    evidence = Evidence(
        summary=_summary(name, silence), window_s=silence.at - silence.since, anomalous=0, total=0, background=0.0
    )
    if before is None or (before.closed_at is not None and silence.at - before.closed_at.timestamp() > REOPEN_S):
        before = _new(culprit, silence.since, evidence)
    return replace(
        before,
        status=IncidentStatus.OPEN,
        closed_at=None,
        updated_at=_utc(silence.at),
        confidence=round(1.0 - silence.chance, 3),
        severity=round(1.0 - math.exp(-(silence.at - silence.since) / 1800.0), 3),
        evidence=evidence,
    )


def _new(culprit: Entity, since: float, evidence: Evidence) -> Incident:
    kind, moment = IncidentKind.SILENT_FEED, _utc(since)
    digest = hashlib.blake2b(f"{kind} {culprit} {since}".encode(), digest_size=4).hexdigest()
    return Incident(
        id=f"inc-{digest}",
        kind=kind,
        culprit=culprit,
        opened_at=moment,
        updated_at=moment,
        confidence=0.0,
        severity=0.0,
        evidence=evidence,
    )


def _summary(name: str, silence: Silence) -> str:
    lasts, newest = _duration(silence.at - silence.since), f"{_utc(silence.newest):%Y-%m-%d %H:%M:%S} UTC"
    usual = f"at this hour {silence.usual:.{0 if silence.usual >= 10 else 1}f} documents an hour are usual"
    if silence.still is Still.FROZEN:
        return f"{name}: {silence.repeated} documents in {lasts}, and none newer than {newest}; {usual}"
    return f"{name}: nothing new for {lasts}; {usual}; last document of {newest}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
