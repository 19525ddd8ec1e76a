"""Transfers that should have ended by now: how long they may take from their submission, and which are under way.

How long is learned from those that ended: log1p of the seconds from submission to end, by size, and by link, source and destination
as in `detectors.residuals`. A transfer is overdue once it is beyond what all but `OVERDUE_SHARE` of them took, so that a link whose
queues are long is given long. It counts then, and not when it ends, if it ever does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.residuals import Floats, Group, Keys, Places, Quantiles, Scale
from models.columns import Rows
from models.history import Codes

OVERDUE_SHARE: Final = 0.05
EXPECTED_S, EXPECTED_SPREAD = 120.0, 1.2  # from submission to end, before anything was seen: median, spread of the log
LEAST_SPREAD: Final = 0.1
LEAST_S, LEAST_RATIO = 120.0, 2.0  # nobody is late by less than this, nor by less than this times what was expected
LONGEST: Final = 14.0  # log seconds: beyond a fortnight they say nothing more
BLOCK: Final = 256  # transfers after which limits are made anew
MOST_UNDER_WAY: Final = 262_144
MOST_OVER: Final = 65_536  # requests of which it is remembered that they ended before their submission was heard of
UNSEEN_S: Final = 1.0

UNDER_WAY_COLUMNS: Final = (
    "request_id",
    "source",
    "destination",
    "fts",
    "activity",
    "bytes",
    "submitted_at",
    "due_at",
)
_SIZE_EDGES = np.log(10.0 ** np.arange(4.0, 10.6, 0.5))  # of classes of sizes, bytes
_LEARNED: Final = ("source", "destination", "bytes", "submitted_at", "ended_at")


class Patience:
    """How long transfers take from their submission. A fold over observed rows."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rses, self._links = Codes(), Codes()
        self._sizes, self._scale, self._scores = Group(), Scale(), Quantiles()
        self._waiting: list[dict[str, npt.NDArray[Any]]] = []
        (self.limit,) = self._scores.limits(OVERDUE_SHARE)

    def due(self, submitted: Rows) -> Floats:
        """When each of the transfers is overdue, in seconds; shape (n,)."""
        at = np.asarray(submitted["submitted_at"], dtype=np.float64)
        mean, spread = self._centre(self._places(submitted), _sizes(submitted))
        expected = np.expm1(np.minimum(mean, LONGEST))
        patience = np.expm1(np.minimum(mean + spread * self.limit, LONGEST))
        due: Floats = at + np.maximum.reduce([patience, expected + LEAST_S, LEAST_RATIO * expected])
        return due

    def due_unseen(self, ended: Rows) -> Floats:
        """The same of transfers that have ended and were never seen under way, by when they say that they were submitted.

        Those that were overdue are so from just before their end: nobody knew of them before. NaN where a row does not say.
        """
        due, end = self.due(ended), np.asarray(ended["ended_at"], dtype=np.float64)
        found: Floats = np.where(due < end, np.maximum(due, end - UNSEEN_S), due)
        return found

    def absorb(self, observed: Rows) -> None:
        """Learn from the observed rows that calibrate, in the same blocks as `detectors.threshold`."""
        texts = ("source", "destination")
        rows = {name: np.asarray(observed[name], object if name in texts else np.float64) for name in _LEARNED}
        calibrates = np.asarray(observed["calibrates"], dtype=np.bool_)
        rows["usable"] = calibrates & (rows["ended_at"] - rows["submitted_at"] >= 0)
        self._waiting.append(rows)
        count = sum(len(part["bytes"]) for part in self._waiting)
        if count < BLOCK:
            return
        waiting = {name: np.concatenate([part[name] for part in self._waiting]) for name in rows}
        whole = count - count % BLOCK
        for start in range(0, whole, BLOCK):
            usable = start + np.flatnonzero(waiting["usable"][start : start + BLOCK])
            if len(usable):
                self._absorb_block({name: waiting[name][usable] for name in _LEARNED})
        self._waiting = [{name: values[whole:] for name, values in waiting.items()}]

    def _absorb_block(self, rows: Rows) -> None:
        places, sizes = self._places(rows), _sizes(rows)
        took = np.log1p(rows["ended_at"] - rows["submitted_at"])
        mean, spread = self._centre(places, sizes)
        self._scores.absorb((took - mean) / spread)
        (self.limit,) = self._scores.limits(OVERDUE_SHARE)
        self._sizes.absorb(Keys(sizes), took)
        self._scale.absorb(places.grouped(), took - self._of_size(sizes))

    def _centre(self, places: Places, sizes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        mean, spread = self._scale.centre(places)
        return self._of_size(sizes) + mean, np.maximum(spread, LEAST_SPREAD)

    def _of_size(self, sizes: npt.NDArray[np.int64]) -> Floats:
        n = len(sizes)
        return self._sizes.shrunk(sizes, np.full(n, np.log1p(EXPECTED_S)), np.full(n, EXPECTED_SPREAD))[0]

    def _places(self, rows: Rows) -> Places:
        source, destination = (
            self._rses.learn(np.asarray(rows[end], dtype=object)) for end in ("source", "destination")
        )
        return Places(source=source, destination=destination, link=self._links.learn((source << 32) | destination))


def _sizes(rows: Rows) -> npt.NDArray[np.int64]:
    size = np.log(np.maximum(np.nan_to_num(np.asarray(rows["bytes"], np.float64)), 1.0))
    return np.digitize(size, _SIZE_EDGES).astype(np.int64)


class UnderWay:
    """Transfers that were submitted and have not ended, with the time at which each is overdue. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self.reset()

    def __len__(self) -> int:
        return len(self._rows)

    def reset(self) -> None:
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._over: dict[str, None] = {}

    def add(self, submitted: Rows) -> None:
        """Take note of rows with `UNDER_WAY_COLUMNS`, but of those that are known to have ended."""
        columns = [np.asarray(submitted[name]).tolist() for name in UNDER_WAY_COLUMNS]
        for row in zip(*columns, strict=True):
            if row[0] not in self._over:
                self._rows[row[0]] = row
        while len(self._rows) > MOST_UNDER_WAY:
            del self._rows[next(iter(self._rows))]

    def end(self, request_ids: npt.NDArray[np.object_]) -> Floats:
        """They have ended; return when each was due, NaN where its submission was not seen. Shape (n,)."""
        rows = [self._rows.pop(request, None) for request in request_ids]
        self._over |= {request: None for request, row in zip(request_ids, rows, strict=True) if row is None}
        while len(self._over) > MOST_OVER:
            del self._over[next(iter(self._over))]
        return np.array([np.nan if row is None else row[-1] for row in rows], dtype=np.float64)

    def overdue(self, since: float, until: float) -> pd.DataFrame:
        """Those that were due in [since, until)."""
        rows = [row for row in self._rows.values() if since <= row[-1] < until]
        return pd.DataFrame(rows, columns=list(UNDER_WAY_COLUMNS))
