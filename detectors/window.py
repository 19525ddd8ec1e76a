"""The transfers of the last half hour, as a minute of judgement sees them: arrays, and no rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.localisation import Roles
from detectors.threshold import SLOW_SHARE
from models.domain import Entity, IncidentKind

Flags = npt.NDArray[np.bool_]

WINDOW_S = 1800.0


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


class Window:
    """The rows of the last half hour, as arrays that every minute is judged by."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        self.ended = rows["ended_at"].to_numpy(np.float64)
        self.failed = rows["failed"].to_numpy(np.bool_)
        self.slow = rows["slow"].to_numpy(np.bool_)
        self.roles = Roles.of(rows)


class Look:
    """The window as one signal sees it at one whole minute. `members` are the places in the window of those that take part."""

    def __init__(self, window: Window, signal: Signal, at: float) -> None:
        takes_part, bad = signal.split(window.failed, window.slow)
        self.signal = signal
        self.at = at
        self.members = np.flatnonzero(takes_part & (window.ended < at) & (window.ended >= at - WINDOW_S))
        self.ended = window.ended[self.members]
        self.bad = bad[self.members]
        self.roles = window.roles.take(self.members)
        self._own: dict[Entity, Flags] = {}

    def own(self, entity: Entity) -> Flags:
        """Which of the members the entity took part in."""
        if entity not in self._own:
            self._own[entity] = self.roles.touched(entity)
        return self._own[entity]

    def since(self, seconds: float) -> Flags:
        """Which of the members ended in the last so many seconds."""
        late: Flags = self.ended >= self.at - seconds
        return late
