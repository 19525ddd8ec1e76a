"""The straight path, one pass of it: settle, poll, observe, decide, record, carry out.

Decisions are durable before any effect, and the cursors move in the transaction that uses what was read. So a crash
anywhere replays nothing twice and loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import pandas as pd
import structlog

from agent.choice import Chooser
from agent.intake import KEPT_KEYS_S, SeenKeys, document_time
from agent.outbox import Outbox
from agent.settlement import Settlement
from agent.sources import Source
from agent.watch import Observation, Watch
from models.domain import IncidentStatus, SourceError
from models.events import Page, event_keys
from models.history import RETAINED, retained
from storage.ledger import Ledger, Transaction

log = structlog.get_logger()

OBSERVED, READINGS, REQUESTS = "observed", "readings", "requests"  # streams of rows in the ledger
JUDGED_UNTIL = "judged-until"


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
    ) -> None:
        """`outbox` is None where nothing may be acted on: then decisions are recorded, and that is all."""
        self.ledger = ledger
        self._events = events
        self._measurements = measurements
        self._watch = watch
        self._settlement = settlement
        self._chooser = chooser
        self._outbox = outbox
        self._limit = limit
        self._keys: dict[str, SeenKeys] = {}
        self._stale = True

    def run_once(self, now: datetime) -> Pass:
        """Make one pass at `now`. An error leaves the ledger as it was after the last transaction that ended."""
        done = Pass()
        with self._caches():
            if self._outbox is not None:
                self._settlement.settle(now)
            readings, pages = self._poll(now, done)
            with self.ledger.begin(write=True) as tx:
                self._measure(tx, readings)
                observation = self._observe(tx, pages, done)
                done.decisions = self._chooser.decide(tx, observation.changed, now)
            self._compact(now)
        if self._outbox is not None:
            done.actions = self._outbox.carry_out(now)
        return done

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
            until = tx.setting(JUDGED_UNTIL)
            incidents = tx.incidents(status=IncidentStatus.OPEN) + tx.incidents(status=IncidentStatus.CLOSED, limit=200)
            self._keys = {source.name: SeenKeys(tx.known_keys(source.name)) for source in self._events}
        self._watch.reset(
            observed=observed, readings=readings, requests=requests, incidents=incidents, until=_number(until)
        )
        self._settlement.rebuild()
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

    def _measure(self, tx: Transaction, pages: Sequence[tuple[Source, Page]]) -> None:
        for source, page in pages:
            if len(page.rows):
                tx.append_rows(READINGS, page.rows)
                self._watch.measure(page.rows)
            newest = float(page.rows["at"].max()) if len(page.rows) else None
            self._account(tx, source, page, newest)

    def _observe(self, tx: Transaction, pages: Sequence[tuple[Source, Page]], done: Pass) -> Observation:
        fresh = [self._fresh(tx, source, page, done) for source, page in pages]
        events = pd.concat(fresh, ignore_index=True) if len(fresh) > 1 else fresh[0] if fresh else None
        if events is None or events.empty:
            return Observation(observed=pd.DataFrame(), requests=pd.DataFrame())
        until = document_time(events).max()
        known = _number(tx.setting(JUDGED_UNTIL))
        observation = self._watch.observe(events, until=max(float(until), known or 0.0))
        for stream, rows in ((OBSERVED, observation.observed), (REQUESTS, observation.requests)):
            if len(rows):
                tx.append_rows(stream, rows)
        for incident in observation.changed:
            tx.save_incident(incident)
        tx.set_setting(JUDGED_UNTIL, self._watch.book.until)
        done.observed = observation.observed
        done.scored = observation.scored
        done.used = len(events) - observation.scored
        done.incidents = len(observation.changed)
        return observation

    def _fresh(self, tx: Transaction, source: Source, page: Page, done: Pass) -> pd.DataFrame:
        """Rows of a page that were not taken before; the page is accounted for and its cursor moved."""
        keys = event_keys(page.rows)
        new = self._keys[source.name].unseen(keys)
        newest = document_time(page.rows).max() if len(page.rows) else None
        if new.any():
            self._keys[source.name].add(keys[new])
            tx.remember_keys(source.name, keys[new], float(newest) if pd.notna(newest) else 0.0)
        repeated = int((~new).sum())
        done.read += page.read
        done.repeated += repeated
        done.refused.update(refusal.reason for refusal in page.refusals)
        tx.count(source.name, {"repeated": repeated} if repeated else {})
        self._account(tx, source, page, float(newest) if pd.notna(newest) else None)
        return page.rows[new]

    def _account(self, tx: Transaction, source: Source, page: Page, newest: float | None) -> None:
        tx.quarantine(source.name, page.refusals, None)
        tx.count(source.name, {"read": page.read} if page.read else {})
        if newest is None and page.cursor == tx.cursor(source.name):
            return
        known = tx.watermark(source.name)
        tx.move_cursor(source.name, dict(page.cursor), max(filter(None, (newest, known)), default=None))

    def _compact(self, now: datetime) -> None:
        """Drop the rows that nothing needs any more, and start all caches afresh from those that stay."""
        with self.ledger.begin(write=True) as tx:
            for source in self._events:
                mark = tx.watermark(source.name)
                if mark is not None:
                    tx.forget_keys(source.name, mark - KEPT_KEYS_S)
            long = {stream for stream in (OBSERVED, READINGS, REQUESTS) if tx.row_count(stream) > 2 * RETAINED}
            for stream in long:
                rows = tx.rows(stream)
                tx.replace_rows(stream, rows[retained(rows)] if stream == OBSERVED else rows.tail(RETAINED))
        if long:
            log.info("rows-compacted", streams=sorted(long), at=now.astimezone(UTC).isoformat())
            self._rebuild()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
