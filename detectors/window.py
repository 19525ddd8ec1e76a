"""The transfers of the last half hour, as a minute of judgement sees them: arrays, and no rows.

A transfer counts once: when it ended, or when it was overdue if that came first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.failures import is_timeout, sides
from detectors.localisation import COLUMNS, Blame, Roles
from detectors.usual import Load
from models.columns import Rows
from models.domain import Entity, IncidentKind

Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

WINDOW_S = 1800.0
HISTORY_COLUMNS = (
    "source",
    "destination",
    "fts",
    "activity",
    "ended_at",
    "due_at",
    "failed",
    "slow",
    "reason",
    "bytes",
)
_LARGE = 4096  # rows: what is left of a part with more of them is worth a copy
_DTYPES: dict[str, type] = {
    "failed": np.bool_,
    "slow": np.bool_,
    "due_at": np.float64,
    "reason": object,
    "ended_at": np.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One way in which transfers go badly, the kinds of incident that it makes, which share of bad ones is usual on any grid, and by
    what they can be blamed.
    """

    kinds: frozenset[IncidentKind]
    expected: float
    columns: tuple[str, ...] = COLUMNS

    @property
    def failing(self) -> bool:
        return IncidentKind.FAILING_TRANSFERS in self.kinds


FAILING = Signal(kinds=frozenset({IncidentKind.FAILING_TRANSFERS}), expected=0.02)
LATE = Signal(
    kinds=frozenset({IncidentKind.SLOW_TRANSFERS, IncidentKind.STALLED_TRANSFERS, IncidentKind.DEGRADED_NETWORK}),
    expected=0.05,
)
DELETING = Signal(kinds=frozenset({IncidentKind.FAILING_DELETIONS}), expected=0.03, columns=("rse", "site"))
SIGNALS = (FAILING, LATE, DELETING)


def signal_of(kind: IncidentKind) -> Signal | None:
    return next((signal for signal in SIGNALS if kind in signal.kinds), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How transfers ended, or that they are under way; every array has shape (n,)."""

    ended: Times  # infinity while under way
    due: Times  # infinity where it is not known
    failed: Flags
    timed_out: Flags  # it failed for no other reason than that it took too long
    slow: Flags
    side: npt.NDArray[np.int8]  # at which end it failed: 1 at the source, 2 at the destination, 0 at neither or both

    @classmethod
    def of(cls, rows: Rows) -> Ends:
        """Of observed rows; what they do not say of being overdue is not held against anyone."""
        failed = np.asarray(rows["failed"], dtype=np.bool_)
        reason = np.asarray(rows["reason"], dtype=object)
        due = np.asarray(rows["due_at"], dtype=np.float64) if "due_at" in rows else np.full(len(failed), np.nan)
        return cls(
            ended=np.asarray(rows["ended_at"], dtype=np.float64),
            due=np.where(np.isnan(due), np.inf, due),
            failed=failed,
            timed_out=failed & is_timeout(reason),
            slow=np.asarray(rows["slow"], dtype=np.bool_),
            side=sides(reason),
        )

    def at(self, signal: Signal) -> Times:
        """When each counts, in seconds."""
        return self.ended if signal.failing else np.minimum(self.ended, self.due)

    def split(self, signal: Signal) -> tuple[Flags, Flags]:
        """Which take part in a signal, and which of all are bad."""
        if signal is DELETING:
            return np.ones(len(self.ended), dtype=np.bool_), self.failed | self.waited | self.slow
        if signal.failing:
            return ~self.timed_out & np.isfinite(self.ended), self.failed & ~self.timed_out
        return ~self.failed | self.timed_out, self.waited | self.slow | self.timed_out

    def blame(self, signal: Signal) -> Blame:
        """Who may be blamed for those that are bad. What is under way is only known to be overdue, whatever comes of it later."""
        bad = self.split(signal)[1]
        side = self.side if signal.failing else np.zeros(len(bad), dtype=np.int8)
        return Blame(source=bad & (side != 2), destination=bad & (side != 1))

    @property
    def waited(self) -> Flags:
        """Which were overdue before they ended."""
        late: Flags = self.due < self.ended
        return late


class _Part:
    """Observed rows that came together, and the places of those that still count."""

    def __init__(self, rows: Rows, places: Places) -> None:
        self._rows = rows
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self.places = places

    def column(self, name: str, dtype: type) -> npt.NDArray[Any]:
        if name not in self._columns:
            values = self._rows[name] if name in self._rows else np.full(len(self._rows["ended_at"]), np.nan)
            self._columns[name] = np.asarray(values, dtype=dtype)
        return self._columns[name][self.places]

    def until(self, at: float) -> Rows:
        """Those of the rows that still count that ended before a time."""
        early = self.places[self.column("ended_at", np.float64) < at]
        if not len(early):
            return {"ended_at": np.empty(0)}
        return {name: np.asarray(self._rows[name])[early] for name in HISTORY_COLUMNS if name in self._rows}

    def since(self, at: float) -> _Part:
        late = self.places[self.column("ended_at", np.float64) >= at]
        known = len(self._rows["ended_at"])
        if known > _LARGE and 2 * len(late) < known:
            fewer = {str(name): np.asarray(values)[late] for name, values in self._rows.items()}
            return _Part(fewer, np.arange(len(late)))
        self.places = late
        return self


class Recent:
    """Observed rows of the last half hour in the parts in which they came: to make one frame of them with every pass would
    cost more than all judging.
    """

    def __init__(self, observed: Rows | None = None) -> None:
        self._parts: list[_Part] = []
        if observed is not None:
            self.add(observed)

    def add(self, observed: Rows) -> None:
        count = len(observed["ended_at"])
        if count:
            self._parts.append(_Part(observed, np.arange(count)))

    def forget(self, before: float) -> list[Rows]:
        """Let go of what ended before that time, and return it."""
        gone = [rows for rows in (part.until(before) for part in self._parts) if len(rows["ended_at"])]
        kept = [part.since(before) for part in self._parts]
        self._parts = [part for part in kept if len(part.places)]
        return gone

    def column(self, name: str, dtype: type) -> npt.NDArray[Any]:
        """The rows' values of a column, in the order in which they came."""
        parts = [part.column(name, dtype) for part in self._parts]
        return np.concatenate(parts) if parts else np.empty(0, dtype)


class Window:
    """The rows of the last half hour and what is under way and overdue, as arrays that every minute is judged by."""

    def __init__(self, recent: Recent, overdue: Rows) -> None:
        self._recent, self._overdue = recent, overdue
        self._ended = len(recent.column("ended_at", np.float64))
        names = ("failed", "slow", "due_at", "reason", "ended_at")
        blank = {"failed": False, "slow": False, "reason": "", "ended_at": np.inf}
        under_way = len(overdue["due_at"])
        columns = {}
        for name in names:
            ended = recent.column(name, _DTYPES[name])
            more = (
                np.asarray(overdue[name]) if name == "due_at" else np.full(under_way, blank[name], dtype=_DTYPES[name])
            )
            columns[name] = np.concatenate([ended, more.astype(_DTYPES[name])])
        self.ends = Ends.of(columns)

    @property
    def failed(self) -> Flags:
        return self.ends.failed

    @property
    def ended(self) -> Times:
        return self.ends.ended

    @functools.cached_property
    def roles(self) -> Roles:
        return Roles.of_names(*(self._column(name) for name in ("source", "destination", "fts", "activity")))

    def texts(self, name: str, places: Places) -> list[str]:
        """What stands in a column of text, of some of the rows; "" where that is not known."""
        found: list[str] = self._column(name)[places].tolist()
        return found

    def numbers(self, name: str, places: Places) -> Times:
        """The same of a column of numbers, NaN where it is not known."""
        ended = self._recent.column(name, np.float64)
        if name == "ended_at":
            return self.ends.ended[places]
        more = self._overdue[name] if name in self._overdue else np.full(len(self._overdue["due_at"]), np.nan)
        found: Times = np.concatenate([ended, np.asarray(more, dtype=np.float64)])[places]
        return found

    def _column(self, name: str) -> npt.NDArray[np.object_]:
        ended = self._recent.column(name, object)
        more = self._overdue[name] if name in self._overdue else [""] * len(self._overdue["due_at"])
        return np.concatenate([ended, np.asarray(more, dtype=object)])


class Look:
    """The window as one signal sees it at one whole minute. `members` are the places in the window of those that take part."""

    def __init__(self, window: Window, signal: Signal, at: float, *, horizon: float = WINDOW_S) -> None:
        ends = window.ends
        when, (takes_part, bad) = ends.at(signal), ends.split(signal)
        self.signal = signal
        self.at = at
        self.horizon = horizon
        self.members = np.flatnonzero(takes_part & (when < at) & (when >= at - horizon))
        self.when = when[self.members]
        self.bad = bad[self.members]
        self.blame = ends.blame(signal).take(self.members)
        self._ended = ends.ended[self.members]
        self._timed_out = ends.timed_out[self.members]
        self.ran_slow = (ends.slow | ends.timed_out)[self.members] & (self._ended < at)
        self._window = window
        self._own: dict[Entity, Flags] = {}

    def before(self, seconds: float) -> Look:
        """The same as it was so much earlier."""
        return Look(self._window, self.signal, self.at - seconds, horizon=self.horizon)

    def within(self, horizon: float) -> Look:
        """The same of a shorter time."""
        return Look(self._window, self.signal, self.at, horizon=horizon)

    @functools.cached_property
    def roles(self) -> Roles:
        return self._window.roles.take(self.members)

    @functools.cached_property
    def since_submission(self) -> Times:
        """When each of the members was submitted; when it counts where that is not known."""
        submitted = self._window.numbers("submitted_at", self.members)
        return np.where(np.isnan(submitted), self.when, submitted)

    @property
    def over(self) -> Flags:
        """Which of the members have ended."""
        over: Flags = self._ended < self.at
        return over

    @functools.cached_property
    def excess(self) -> Times:
        """How many times as long as would have been slow each of the members ran; NaN where that is not known.

        What timed out would have run for ever.
        """
        started, slow_s = (self._window.numbers(name, self.members) for name in ("started_at", "slow_s"))
        ran: Times = np.where(self.over, self._ended - started, np.nan) / slow_s
        return np.where(self.over & self._timed_out, np.inf, ran)

    def role(self, column: str, name: str) -> Flags:
        """Which of the members have that name in a column of `detectors.localisation`."""
        return self.roles.of_name(column, name)

    def own(self, entity: Entity) -> Flags:
        """Which of the members the entity took part in."""
        if entity not in self._own:
            self._own[entity] = self.roles.touched(entity)
        return self._own[entity]

    def since(self, seconds: float) -> Flags:
        """Which of the members count in the last so many seconds."""
        late: Flags = self.when >= self.at - seconds
        return late

    def drained(self, column: str, name: str) -> Load:
        """What of that name in a column has ended well within the horizon, however late."""
        ends = self._window.ends
        well = (ends.ended >= self.at - self.horizon) & (ends.ended < self.at) & ~ends.failed
        own = np.flatnonzero(well & self._window.roles.of_name(column, name))
        return Load(len(own), float(np.nansum(self._window.numbers("bytes", own))))
