"""The transfers of the last half hour, as a minute of judgement sees them: arrays, and no rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.localisation import Roles
from detectors.threshold import SLOW_SHARE
from models.columns import Rows
from models.domain import Entity, IncidentKind

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

WINDOW_S = 1800.0
_LARGE = 4096  # rows: what is left of a part with more of them is worth a copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One kind of trouble: which transfers take part, which are bad, and which share of bad ones is usual."""

    kind: IncidentKind
    usual: float

    def split(self, failed: Flags, slow: Flags) -> tuple[Flags, Flags]:
        """Which transfers take part, and which of all are bad."""
        if self.kind is IncidentKind.FAILING_TRANSFERS:
            return np.ones(len(failed), dtype=np.bool_), failed
        return ~failed, slow


SIGNALS = (
    Signal(kind=IncidentKind.SLOW_TRANSFERS, usual=SLOW_SHARE),
    Signal(kind=IncidentKind.FAILING_TRANSFERS, usual=0.05),
)


class _Part:
    """Observed rows that came together, and the places of those that still count."""

    def __init__(self, rows: Rows, places: Places) -> None:
        self._rows = rows
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self.places = places

    def column(self, name: str, dtype: type) -> npt.NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = np.asarray(self._rows[name], dtype=dtype)
        return self._columns[name][self.places]

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

    def forget(self, before: float) -> None:
        """Let go of what ended before that time."""
        kept = [part.since(before) for part in self._parts]
        self._parts = [part for part in kept if len(part.places)]

    def column(self, name: str, dtype: type) -> npt.NDArray[Any]:
        """The rows' values of a column, in the order in which they came."""
        parts = [part.column(name, dtype) for part in self._parts]
        return np.concatenate(parts) if parts else np.empty(0, dtype)


class Window:
    """The rows of the last half hour, as arrays that every minute is judged by."""

    def __init__(self, recent: Recent) -> None:
        self.ended = recent.column("ended_at", np.float64)
        self.failed = recent.column("failed", np.bool_)
        self.slow = recent.column("slow", np.bool_)
        self._recent = recent

    @functools.cached_property
    def roles(self) -> Roles:
        return Roles.of_names(*(self._recent.column(name, object) for name in ("source", "destination", "fts")))

    def texts(self, name: str, places: Places) -> list[str]:
        """What stands in a column of text, of some of the rows."""
        found: list[str] = self._recent.column(name, object)[places].tolist()
        return found

    def numbers(self, name: str, places: Places) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = self._recent.column(name, np.float64)[places]
        return found


class Look:
    """The window as one signal sees it at one whole minute. `members` are the places in the window of those that take part."""

    def __init__(self, window: Window, signal: Signal, at: float) -> None:
        takes_part, bad = signal.split(window.failed, window.slow)
        self.signal = signal
        self.at = at
        self.members = np.flatnonzero(takes_part & (window.ended < at) & (window.ended >= at - WINDOW_S))
        self.ended = window.ended[self.members]
        self.bad = bad[self.members]
        self._window = window
        self._own: dict[Entity, Flags] = {}

    @functools.cached_property
    def roles(self) -> Roles:
        return self._window.roles.take(self.members)

    def own(self, entity: Entity) -> Flags:
        """Which of the members the entity took part in."""
        if entity not in self._own:
            self._own[entity] = self.roles.touched(entity)
        return self._own[entity]

    def since(self, seconds: float) -> Flags:
        """Which of the members ended in the last so many seconds."""
        late: Flags = self.ended >= self.at - seconds
        return late
