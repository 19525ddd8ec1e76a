"""The rule that everything here began with: a transfer is flagged when it took 600 s more or less than was forecast.

Each link with a flag is an incident of its own, the link is to blame, and the remedy is always the same.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import pandas as pd

from agent.evaluation.cases import Case, Casebook, by_key
from agent.intake import SeenKeys, ended_columns
from detectors.failures import error_classes
from models.columns import Rows
from models.domain import Entity, EntityKind, IncidentKind
from models.events import event_keys
from models.forecaster import Forecaster
from models.measurements import Paths

OFF_S: Final = 600.0


class SeedRule:
    """Looks at ended transfers that were forecast. Give it each stretch of them once, in order."""

    def __init__(self) -> None:
        self.book = Casebook("seed", IncidentKind.SLOW_TRANSFERS, lambda link: Entity(EntityKind.LINK, link))
        self.flagged: list[str] = []

    @property
    def cases(self) -> list[Case]:
        return self.book.cases

    def look(self, observed: Rows, now: datetime) -> list[Case]:
        """Return the cases that this opens."""
        started, ended, median = (np.asarray(observed[name], np.float64) for name in ("started_at", "ended_at", "q50"))
        off = np.flatnonzero(np.abs(ended - started - np.expm1(median)) > OFF_S)
        requests = requests_of(observed, off)
        self.flagged += requests
        return self.book.note(by_key(links_of(observed, off), requests), now)


class Forecasts:
    """Forecasts of what ended, for a rule that looks alone. Give it each stretch of events and readings once, in order."""

    def __init__(self, forecaster: Forecaster, paths: Paths) -> None:
        self._forecaster = forecaster
        self._paths = paths
        self._seen = SeenKeys(np.empty(0, dtype=np.uint64))

    def of(self, events: pd.DataFrame, readings: pd.DataFrame) -> Rows:
        """What ended, each transfer once, with the column `q50`."""
        if len(readings):
            self._paths.absorb(readings)
        keys = event_keys(events)
        new = self._seen.unseen(keys)
        self._seen.add(keys[new])
        ended = ended_columns(events[new], lambda ids: ids, error_classes)
        return ended | {"q50": self._forecaster.score(ended | self._paths.of(ended))[:, 2]}


def links_of(observed: Rows, places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[str]:
    """The links of some of the transfers, as source>destination."""
    ends = (np.asarray(observed[name], dtype=object)[places] for name in ("source", "destination"))
    return [f"{source}>{destination}" for source, destination in zip(*ends, strict=True)]


def requests_of(observed: Rows, places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[str]:
    """The request ids of some of the transfers."""
    found: list[str] = np.asarray(observed["request_id"], dtype=object)[places].tolist()
    return found
