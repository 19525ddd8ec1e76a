"""Which share of an entity's transfers is usually bad: its own history of the last day, shrunk to that of all.

Counts of hours, so that the order in which transfers came makes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.localisation import COLUMNS, Roles

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

HOUR_S = 3600.0
HOURS = 24
ALL_WEIGHT = 500.0  # transfers that what was known beforehand of all is worth
WHOLE_SHARE = 0.1  # of the transfers of the busiest hour: with fewer it is a remnant
OWN_WEIGHT = 30.0  # transfers that all the others are worth against an entity's own


@dataclass(frozen=True, slots=True)
class Load:
    """What an entity moves in a time."""

    transfers: float
    bytes: float

    def __mul__(self, times: float) -> Load:
        return Load(self.transfers * times, self.bytes * times)


class Usual:
    """History of one signal. `expected` is the share that is bad before anything is known."""

    def __init__(self, expected: float) -> None:
        self._expected = expected
        self.reset()

    def reset(self) -> None:
        self._places: dict[str, dict[str, int]] = {column: {} for column in COLUMNS}
        self._counts = {column: np.zeros((HOURS, 0, 3)) for column in COLUMNS}
        self._hours = np.full(HOURS, -1, dtype=np.int64)

    def absorb(self, roles: Roles, bad: Flags, at: Floats, size: Floats) -> None:
        """Take in transfers that nobody is blamed for, at the times at which they count, with their bytes."""
        hours = np.floor(at / HOUR_S).astype(np.int64)
        for hour in np.unique(hours).tolist():
            slot = hour % HOURS
            if hour < self._hours[slot]:
                continue
            if hour > self._hours[slot]:
                self._hours[slot] = hour
                for counts in self._counts.values():
                    counts[slot] = 0.0
            of_hour = hours == hour
            for column in COLUMNS:
                total, sick = roles.count(column, of_hour), roles.count(column, of_hour & bad)
                moved = roles.sum(column, np.where(of_hour, size, 0.0))
                there = np.flatnonzero(total)
                known = roles.known(column)
                rows = self._rows(column, [known[code] for code in there.tolist()])
                self._counts[column][slot, rows, 0] += total[there]
                self._counts[column][slot, rows, 1] += sick[there]
                self._counts[column][slot, rows, 2] += moved[there]

    def shares(self, roles: Roles, at: float, columns: Sequence[str] = COLUMNS) -> Mapping[str, Floats]:
        """The usual share of each name of each of the columns, as of a time."""
        late = self._hours > np.floor(at / HOUR_S) - HOURS
        total, bad = self._counts["fts"][late, :, :2].sum(axis=(0, 1)) if late.any() else np.zeros(2)
        of_all = (bad + ALL_WEIGHT * self._expected) / (total + ALL_WEIGHT)
        return {column: self._of(column, roles.known(column), late, float(of_all)) for column in columns}

    def load(self, column: str, name: str, at: float) -> Load | None:
        """What an entity moves in an hour, as a rule; None while there is no hour to tell by."""
        late = self._hours > np.floor(at / HOUR_S) - HOURS
        place = self._places[column].get(name)
        if not late.any():
            return None
        counts = self._counts
        # Rows of rare links reach further back than those of all: the hours that count are those that are whole.
        busy = counts["fts"][late, :, 0].sum(axis=1)
        whole = np.flatnonzero(late)[busy >= WHOLE_SHARE * busy.max()]
        if place is None:
            return Load(0.0, 0.0)
        transfers, _, moved = counts[column][whole, place].mean(axis=0).tolist()
        return Load(transfers, moved)

    def _of(self, column: str, names: Sequence[str], late: Flags, of_all: float) -> Floats:
        places = self._places[column]
        rows = np.fromiter((places.get(name, -1) for name in names), dtype=np.int64, count=len(names))
        found = np.zeros((len(names), 2))
        known = rows >= 0
        hours = self._counts[column][late][:, rows[known], :2]
        found[known] = hours.sum(axis=0)
        share: Floats = (found[:, 1] + OWN_WEIGHT * of_all) / (found[:, 0] + OWN_WEIGHT)
        if hours.size:  # some have an hour now and then in which much goes badly, and are none the worse for it
            worst = ((hours[..., 1] + OWN_WEIGHT * of_all) / (hours[..., 0] + OWN_WEIGHT)).max(axis=0)
            share[known] = np.maximum(share[known], worst)
        return share

    def _rows(self, column: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
        places = self._places[column]
        rows = np.fromiter((places.setdefault(name, len(places)) for name in names), dtype=np.int64, count=len(names))
        counts = self._counts[column]
        if len(places) > counts.shape[1]:
            more = np.zeros((HOURS, max(len(places), 2 * counts.shape[1]) - counts.shape[1], 3))
            self._counts[column] = np.concatenate([counts, more], axis=1)
        return rows
