"""Recorded files in the order of time, whatever order their rows are in: what a replay reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from agent.sources import Source
from models.domain import SourceError
from models.events import Page, Refusal, event_keys

WINDOW = 200_000  # rows: whatever lies no further out of order than this comes in its place
_READ = 20_000  # rows read at once

Places = npt.NDArray[np.intp]


class InOrder:
    """Rows of a source in an order that does not depend on that of its files.

    Up to twice WINDOW rows are held. What comes later than that is late, as documents may be in life. The place in the
    source is kept here, not in the cursor: a replay is made in one go.
    """

    def __init__(self, source: Source, order: Callable[[pd.DataFrame], Places]) -> None:
        self.name = source.name
        self._source = source
        self._order = order
        self._cursor: Mapping[str, object] = {}
        self._ended = False
        self._ready = pd.DataFrame()  # in order, to go out
        self._held = pd.DataFrame()  # in order, but earlier rows may still come
        self._refusals: list[Refusal] = []
        self._read = 0

    @property
    def over(self) -> bool:
        return self._ended and self._ready.empty and self._held.empty

    def waiting(self, now: datetime) -> pd.DataFrame:
        """The rows that come next, in order, as far as they are known. Raise SourceError as the source does."""
        if self._ready.empty and not self.over:
            self._read_on(now)
        return self._ready

    def take(self, count: int) -> Page:
        """The next `count` of the rows that are waiting, and all refusals so far."""
        rows, self._ready = self._ready.iloc[:count].reset_index(drop=True), self._ready.iloc[count:]
        page = Page(rows=rows, refusals=tuple(self._refusals), caught_up=self.over, read=self._read)
        self._refusals, self._read = [], 0
        return page

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:  # noqa: ARG002 - see above
        self.waiting(now)
        return self.take(limit)

    def close(self) -> None:
        self._source.close()

    def _read_on(self, now: datetime) -> None:
        parts = [self._held]
        while not self._ended and sum(map(len, parts)) < 2 * WINDOW and len(self._refusals) < _READ:
            page = self._source.poll(self._cursor, limit=_READ, now=now)
            parts.append(page.rows)
            self._refusals += page.refusals
            self._read += page.read
            self._cursor, self._ended = page.cursor, page.caught_up
        rows = pd.concat([part for part in parts if len(part)] or parts[-1:], ignore_index=True)
        rows = rows.iloc[self._order(rows)]
        ready = len(rows) if self._ended else max(len(rows) - WINDOW, 0)
        self._ready, self._held = rows.iloc[:ready], rows.iloc[ready:]


class RecordedEvents(InOrder):
    """Events in the order in which transfers ended: who may know of whom does not depend on when documents were written."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, _by_end)

    def newest_start(self, limit: int, now: datetime) -> float:
        """When the last to start among the next `limit` events did; NaN if none of them says."""
        return float(self.waiting(now)["started_at"].iloc[:limit].max())


class RecordedReadings(InOrder):
    """Readings up to the starts of the events that come next: none too late, and none so early that it was forgotten."""

    def __init__(self, source: Source, events: RecordedEvents) -> None:
        super().__init__(source, _by_time)
        self._events = events
        self._any = False

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:  # noqa: ARG002 - see above
        until = self._events.newest_start(limit, now)
        pages = [self.take(0)]
        while not np.isnan(until) and (known := int(np.searchsorted(self._times(now), until))):
            pages.append(self.take(known))
        return Page(
            rows=pd.concat([page.rows for page in pages], ignore_index=True),
            refusals=tuple(itertools.chain.from_iterable(page.refusals for page in pages)),
            read=sum(page.read for page in pages),
        )

    def _times(self, now: datetime) -> npt.NDArray[np.float64]:
        """When the readings that are waiting were made; raise SourceError if there is none in all files."""
        waiting = self.waiting(now)
        self._any = self._any or len(waiting) > 0
        if self._ended and not self._any:
            why = f" ({self._refusals[0].detail})" if self._refusals else ""
            raise SourceError(f"there is no perfSONAR reading in the measurements{why}; name files that hold some")
        return waiting["at"].to_numpy()


def _by_end(events: pd.DataFrame) -> Places:
    """Events without an end stand where they were written; equal times stand in an order of their contents."""
    return np.lexsort((event_keys(events), events["ended_at"].fillna(events["created_at"])))


def _by_time(readings: pd.DataFrame) -> Places:
    return np.argsort(readings["at"].to_numpy(), kind="stable")
