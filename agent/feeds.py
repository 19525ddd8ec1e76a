"""The feeds that the loop polls, and the incidents of those that have fallen silent.

What is known of a feed is a setting of the ledger, written with every pass: a daemon that is started again knows how its feeds
usually come, and its own absence is no silence of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import numpy as np
import numpy.typing as npt
import structlog

from agent.calendar import Calendar
from detectors.silence import UPDATE_S, Feed, dump, incident_of, load
from models.domain import Incident, IncidentStatus
from models.events import Page
from storage.ledger import Transaction

log = structlog.get_logger()

FEEDS = "feeds"  # setting of the ledger: by name, what is known of each feed


class Feeds:
    """One `Feed` for each source of events or measurements, by its name. The loop owns it."""

    def __init__(self, names: Iterable[str], calendar: Calendar) -> None:
        """Of a feed that the calendar covers no incident is opened."""
        self._feeds = {name: Feed() for name in names}
        self._calendar = calendar
        self._incidents: dict[str, Incident] = {}  # the latest of each feed

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def silent(self, at: float) -> frozenset[str]:
        """The feeds that told nothing of a time (event time, in seconds since 1970), because they were silent or stood still.

        A time before the silence was noticed is covered, too: it begins with the last document and ends with the next.
        """
        return frozenset(name for name, feed in self._feeds.items() if feed.is_silent(at))

    def polled(self, name: str, page: Page, times: npt.NDArray[np.float64], now: datetime) -> None:
        """A source has answered. `times` are the own times of the page's documents that are no known repeats, shape (n,)."""
        read = max(page.read, len(times))
        self._feeds[name].polled(now.timestamp(), read=read, times=times, caught_up=page.caught_up)

    def review(self, now: datetime) -> list[Incident]:
        """Open, update and close the incidents; return those that changed."""
        changed = []
        for name in dict.fromkeys([*self._feeds, *self._incidents]):
            before = self._incidents.get(name)
            after = self._reviewed(name, before, now)
            if after is not None and after != before:
                self._incidents[name] = after
                changed.append(after)
                if after.closed:
                    log.info("feed-recovered", feed=name, incident=after.id)
                elif before is None or before.closed:
                    log.warning("feed-silent", feed=name, said=after.evidence.summary)
        return changed

    def record(self, tx: Transaction) -> None:
        """Note in the ledger what is known of each feed."""
        tx.set_setting(FEEDS, {name: dump(feed) for name, feed in self._feeds.items()})

    def restore(self, tx: Transaction, incidents: Iterable[Incident]) -> None:
        """Take everything from the ledger; `incidents` are its silent feeds', in any order."""
        known = tx.setting(FEEDS) or {}
        self._feeds = {name: load(known.get(name)) for name in self._feeds}
        by_age = sorted(incidents, key=lambda incident: (not incident.closed, incident.opened_at))
        self._incidents = {incident.culprit.name: incident for incident in by_age}

    def _reviewed(self, name: str, before: Incident | None, now: datetime) -> Incident | None:
        """The feed's incident as it stands now. One of a feed that is no longer read has nobody to wait for."""
        silence = self._feeds[name].silence if name in self._feeds else None
        is_open = before is not None and not before.closed
        if silence is None:
            return replace(before, status=IncidentStatus.CLOSED, closed_at=now) if before and is_open else before
        if before and is_open and silence.at - before.updated_at.timestamp() < UPDATE_S:
            return before
        after = incident_of(name, silence, before)
        covered = self._calendar.covers.of(after.culprit, silence.at, after=0.0)
        return before if covered and not is_open else after
