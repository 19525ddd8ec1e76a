"""The straight path, one pass of it: settle, poll, observe, decide, record, carry out.

Decisions are durable before any effect, and the cursors move in the transaction that uses what was read. So a crash
anywhere replays nothing twice and loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import structlog

from agent.archive import Archive
from agent.calendar import Calendar
from agent.choice import Chooser
from agent.feeds import Feeds
from agent.incumbent import Incumbent
from agent.intake import KEPT_KEYS_S, Keys, SeenKeys, document_time
from agent.outbox import Outbox
from agent.settlement import SEEN_UNTIL, Settlement
from agent.sources import Source
from agent.watch import NOTHING, Observation, Watch
from detectors.findings import Finding, Turn, sentence
from models.domain import IncidentKind, IncidentStatus, SourceError
from models.drift import Alarm
from models.events import Page, event_keys
from models.history import RETAINED, retained
from models.measurements import lately
from storage.ledger import Ledger, Transaction

log = structlog.get_logger()

OBSERVED, READINGS, REQUESTS, DELETIONS = (
    "observed",
    "readings",
    "requests",
    "deletions",
)  # streams of rows in the ledger
JUDGED_UNTIL = "judged-until"
ARCHIVED = "archived-transfers"  # how many have left the ledger for the archive
KEPT = "observed-kept"  # rows that the last compaction left: of many rare links that may be more than the newest
MOST_KEYS = 8_000_000  # in memory; more than a busy experiment's in `KEPT_KEYS_S`


@dataclass(kw_only=True)
class Pass:
    """What one pass did. `observed` are the rows of the transfers that ended."""

    read: int = 0
    scored: int = 0
    used: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    incidents: int = 0
    decisions: int = 0
    actions: int = 0
    caught_up: bool = True
    unreachable: list[str] = field(default_factory=list)  # sources that could not be read, and why
    observed: pd.DataFrame | None = None

    def numbers(self) -> dict[str, int]:
        """The counts, for the log."""
        shown = {name: value for name, value in asdict(self).items() if isinstance(value, int) and value}
        shown.pop("caught_up", None)
        return shown | ({"refused": self.refused.total()} if self.refused else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one pass read and observed, to be recorded as a whole."""

    readings: Sequence[tuple[Source, Page]]
    pages: Sequence[tuple[Source, Page]]
    keys: Mapping[str, Keys]  # of the documents that were new, by source
    observation: Observation


class Agent:
    """One process's view of the grid. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Sequence[Source],
        measurements: Sequence[Source],
        watch: Watch,
        settlement: Settlement,
        chooser: Chooser,
        outbox: Outbox | None,
        limit: int,
        calendar: Calendar,
        feeds: Feeds,
        incumbent: Incumbent | None = None,
        archive: Archive | None = None,
    ) -> None:
        """`outbox` is None where nothing may be acted on: then decisions are recorded, and that is all.

        `incumbent` is None where the forecaster stays the one that `watch` began with, `archive` where nobody trains on what
        the ledger no longer keeps.
        """
        self.ledger = ledger
        self._events = events
        self._measurements = measurements
        self._watch = watch
        self._settlement = settlement
        self._chooser = chooser
        self._outbox = outbox
        self._limit = limit
        self._calendar = calendar
        self._feeds = feeds
        self._incumbent = incumbent
        self._archive = archive
        self._watch.deaf = self._deaf
        self._keys: dict[str, SeenKeys] = {}
        self._stale = True

    def run_once(self, now: datetime) -> Pass:
        """Make one pass at `now`. An error leaves the ledger as it was after the last transaction that ended."""
        done = Pass()
        successor = self._incumbent.successor() if self._incumbent is not None else None
        if successor is not None:
            self._watch.serve(successor)
            self._stale = True
        with self._caches():
            self._calendar.refresh(now)
            self._watch.covers = self._calendar.covers
            if self._outbox is not None:
                self._settlement.settle(now)
            readings, pages = self._poll(now, done)
            taken = self._take(readings, pages, now, done)
            # Whoever acts looks at the present: an incident of hours ago may be over on the next page.
            present = [*self._watch.open, *self._feeds.open]
            if self._outbox is not None and not done.caught_up:
                present = []
            with self.ledger.begin(write=False) as tx:
                prepared = self._chooser.prepare(tx, present, now)
            with self.ledger.begin(write=True) as tx:
                self._record(tx, taken, now)
                done.decisions = self._chooser.decide(tx, prepared, taken.observation.changed, now)
            self._calendar.recorded()
            self._compact(now)
        if self._outbox is not None:
            done.actions = self._outbox.carry_out(now)
        return done

    @property
    def drift(self) -> Alarm | None:
        """The alarm that stands, if the forecasts no longer fit."""
        return self._watch.drift.alarm

    def _deaf(self, at: float) -> bool:
        """Whether no transfer could be heard of at that time, in seconds."""
        return self._feeds.silent(at).issuperset(source.name for source in self._events)

    @contextmanager
    def _caches(self) -> Iterator[None]:
        """Caches that fit the ledger: recomputed at the start and after whatever went wrong."""
        if self._stale:
            self._rebuild()
        self._stale = True
        yield
        self._stale = False

    def _rebuild(self) -> None:
        with self.ledger.begin(write=False) as tx:
            observed, readings, requests = tx.rows(OBSERVED), tx.rows(READINGS), tx.rows(REQUESTS)
            deletions = tx.rows(DELETIONS)
            until = tx.setting(JUDGED_UNTIL)
            incidents = tx.incidents(status=IncidentStatus.OPEN) + tx.incidents(status=IncidentStatus.CLOSED, limit=200)
            self._keys = {source.name: SeenKeys(tx.known_keys(source.name)) for source in self._events}
            self._calendar.restore(tx)
            self._feeds.restore(tx, [one for one in incidents if one.kind is IncidentKind.SILENT_FEED])
        self._watch.covers = self._calendar.covers
        of_transfers = [one for one in incidents if one.kind is not IncidentKind.SILENT_FEED]
        self._watch.reset(
            observed=observed,
            readings=readings,
            requests=requests,
            deletions=deletions,
            incidents=of_transfers,
            until=_number(until),
        )
        log.debug("caches-rebuilt", observed=len(observed), readings=len(readings))

    def _poll(self, now: datetime, done: Pass) -> tuple[list[tuple[Source, Page]], list[tuple[Source, Page]]]:
        """The next page of each source; a source that cannot be read is left for the next pass."""
        with self.ledger.begin(write=False) as tx:
            cursors = {source.name: tx.cursor(source.name) for source in (*self._measurements, *self._events)}
        readings = self._pages(self._measurements, cursors, now, done)
        pages = self._pages(self._events, cursors, now, done)
        done.caught_up = all(page.caught_up for _, page in (*readings, *pages))
        return readings, pages

    def _pages(
        self, sources: Sequence[Source], cursors: Mapping[str, dict[str, object] | None], now: datetime, done: Pass
    ) -> list[tuple[Source, Page]]:
        pages = []
        for source in sources:
            try:
                pages.append((source, source.poll(cursors[source.name], limit=self._limit, now=now)))
            except SourceError as error:
                done.unreachable.append(str(error))
                log.warning("source-unreachable", source=source.name, error=str(error))
        return pages

    def _take(
        self, readings: Sequence[tuple[Source, Page]], pages: Sequence[tuple[Source, Page]], now: datetime, done: Pass
    ) -> Taken:
        """Observe what was read. Nothing is written yet: should the pass break, the caches are recomputed."""
        for source, page in readings:
            if len(page.rows):
                _log_found(self._watch.measure(page.rows))
            self._feeds.polled(source.name, page, _reading_times(page), now)
        fresh, keys = [], {}
        for source, page in pages:
            found = event_keys(page.rows)
            new = self._keys[source.name].unseen(found)
            self._keys[source.name].add(found[new])
            keys[source.name] = found[new]
            self._feeds.polled(source.name, page, document_time(page.rows)[new], now)
            fresh.append(page.rows if new.all() else page.rows[new])
            done.read += page.read
            done.repeated += int((~new).sum())
            done.refused.update(refusal.reason for refusal in page.refusals)
        events = pd.concat(fresh, ignore_index=True) if len(fresh) > 1 else next(iter(fresh), pd.DataFrame())
        observation = self._watch.observe(events, now) if len(events) else NOTHING
        observation = replace(observation, changed=[*observation.changed, *self._feeds.review(now)])
        done.observed = observation.observed
        done.scored = observation.scored
        done.used = len(events) - observation.scored
        done.incidents = len(observation.changed)
        return Taken(readings=readings, pages=pages, keys=keys, observation=observation)

    def _record(self, tx: Transaction, taken: Taken, now: datetime) -> None:
        """What was taken in, in the transaction that moves the cursors."""
        observation = taken.observation
        self._calendar.record(tx, now)
        self._feeds.record(tx)
        kept = {OBSERVED: observation.observed, REQUESTS: observation.requests, DELETIONS: observation.deletions}
        for stream, rows in kept.items():
            if len(rows):
                tx.append_rows(stream, rows)
        for incident in observation.changed:
            tx.save_incident(incident)
        if self._watch.book.until is not None:
            tx.set_setting(JUDGED_UNTIL, self._watch.book.until)
        told = [source for source, page in taken.pages if page.caught_up]
        silent = self._feeds.silent(now.timestamp())
        if len(told) == len(self._events) and silent.isdisjoint(source.name for source in told):
            tx.set_setting(SEEN_UNTIL, now.isoformat())
        for source, page in taken.readings:
            newest = None
            if len(page.rows):
                tx.append_rows(READINGS, page.rows)
                newest = _newest(_reading_times(page))
            self._account(tx, source, page, newest, now)
        for source, page in taken.pages:
            newest = _newest(document_time(page.rows))
            keys = taken.keys[source.name]
            if len(keys):
                tx.remember_keys(source.name, keys, newest or 0.0)
            self._account(tx, source, page, newest, now)

    def _account(self, tx: Transaction, source: Source, page: Page, newest: float | None, now: datetime) -> None:
        tx.quarantine(source.name, page.refusals, now)
        if page.read:
            tx.count(source.name, {"read": page.read})
        known = tx.watermark(source.name)
        tx.move_cursor(source.name, page.cursor, max(filter(None, (newest, known)), default=None))

    def _compact(self, now: datetime) -> None:
        """Drop what nothing needs any more, and start all caches afresh from what stays."""
        with self.ledger.begin(write=False) as tx:
            marks = {source.name: tx.watermark(source.name) for source in self._events}
            most = dict.fromkeys((READINGS, REQUESTS, DELETIONS), 2 * RETAINED)
            most[OBSERVED] = RETAINED + max(RETAINED, int(tx.setting(KEPT) or 0))
            long = [stream for stream, rows in most.items() if tx.row_count(stream) > rows]
        many = [name for name, keys in self._keys.items() if len(keys) > MOST_KEYS]
        if not long and not many:
            return
        with self.ledger.begin(write=True) as tx:
            for name, mark in marks.items():
                if mark is not None:
                    tx.forget_keys(name, mark - KEPT_KEYS_S)
            for stream in long:
                rows = tx.rows(stream)
                if stream != OBSERVED:
                    tx.replace_rows(stream, rows[lately(rows, RETAINED)] if stream == READINGS else rows.tail(RETAINED))
                    continue
                keep = retained(rows)
                self._put_by(tx, rows[~keep])
                tx.set_setting(KEPT, int(keep.sum()))
                tx.replace_rows(stream, rows[keep])
        log.info("ledger-compacted", streams=long, keys_of=many, at=now.isoformat())
        self._rebuild()

    def _put_by(self, tx: Transaction, dropped: pd.DataFrame) -> None:
        """Archive what is about to leave the ledger. Watching goes before training: without space it just leaves."""
        if self._archive is None:
            return
        first = int(tx.setting(ARCHIVED) or 0)
        try:
            tx.set_setting(ARCHIVED, self._archive.keep(dropped, first=first))
        except OSError as error:
            log.error(  # noqa: TRY400 - no trace of ours says more than this
                "archive-failed",
                error=str(error),
                lost=len(dropped),
                cure="make space in the state directory; retraining does without these transfers",
            )


def _log_found(findings: Sequence[Finding]) -> None:
    """What perfSONAR alone shows is no incident by itself: operators care for transfers. But it is told."""
    for finding in findings:
        if finding.turn is not Turn.CHANGED:
            log.info("network-finding", turn=str(finding.turn), found=sentence(finding), note=finding.note)


def _reading_times(page: Page) -> npt.NDArray[np.float64]:
    """When each reading was made, shape (n,), in seconds."""
    return page.rows["at"].to_numpy(np.float64) if len(page.rows) else np.empty(0)


def _newest(times: npt.NDArray[np.float64]) -> float | None:
    """The newest of the times, shape (n,), that are known."""
    known = times[~np.isnan(times)]
    return float(known.max()) if len(known) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
