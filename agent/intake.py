"""Taking pages in: repeats are dropped by a durable key, and ended transfers get the rows that everything else works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.events import FAILED, FINISHED, GIVEN_UP, NUMBER_COLUMNS, SUBMITTED, are_among

Keys = npt.NDArray[np.uint64]
Words = npt.NDArray[np.object_]

SUBMITTED_COLUMNS = ("request_id", "source", "destination", "fts", "activity")

KEPT_KEYS_S = 6 * 3600.0  # how long a repeat is recognised, in the documents' own time

ENDED_COLUMNS = (
    "request_id",
    "source",
    "destination",
    "activity",
    "protocol",
    "source_type",
    "destination_type",
    "fts",
    "rule_id",
    "reason",
    "bytes",
    "submitted_at",
    "started_at",
    "ended_at",
)


class SeenKeys:
    """Keys of the documents taken from one source lately; a cache of the ledger's."""

    def __init__(self, keys: Keys) -> None:
        # Sorted runs, the longest first and each more than twice as long as the next: to put a few keys into one long
        # array with every pass would move millions.
        self._runs = [np.unique(keys)]

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def unseen(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of `keys` (shape (n,)) are new, counting only the first of those that repeat among themselves."""
        first = np.zeros(len(keys), dtype=np.bool_)
        first[np.unique(keys, return_index=True)[1]] = True
        known = np.zeros(len(keys), dtype=np.bool_)
        for run in self._runs:
            place = np.searchsorted(run, keys)
            inside = place < len(run)
            known[inside] |= run[place[inside]] == keys[inside]
        return first & ~known

    def add(self, keys: Keys) -> None:
        run = np.sort(keys[self.unseen(keys)])
        while self._runs and 2 * len(run) >= len(self._runs[-1]):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def document_time(events: pd.DataFrame) -> npt.NDArray[np.float64]:
    """When each document was written, or else when its transfer ended, in seconds; NaN where neither is known."""
    written, ended, queued = (events[name].to_numpy(np.float64) for name in ("created_at", "ended_at", "queued_at"))
    known = np.where(np.isnan(written), ended, written)
    return np.where(np.isnan(known), queued, known)


def ended_flags(events: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of the events say that a transfer ended, and when; shape (n,)."""
    kinds = events["type"].to_numpy(dtype=object)
    ended: npt.NDArray[np.bool_] = are_among(kinds, FINISHED + FAILED) & events["ended_at"].notna().to_numpy()
    return ended


def ended_columns(
    events: pd.DataFrame, rules: Callable[[Words], Words], classes: Callable[[Words], Words]
) -> dict[str, npt.NDArray[Any]]:
    """Columns of the transfers that ended, in stream order; `rules` finds requests' rules, `classes` the classes of errors."""
    kinds, places = events["type"].to_numpy(dtype=object), np.flatnonzero(ended_flags(events))
    rows = {
        name: events[name].to_numpy(np.float64 if name in NUMBER_COLUMNS else object)[places] for name in ENDED_COLUMNS
    }
    rows["failed"] = failed = are_among(kinds[places], FAILED)
    untold, reason = rows["rule_id"] == "", np.full(len(places), "", dtype=object)
    rows["rule_id"][untold] = rules(rows["request_id"][untold])
    reason[failed] = classes(rows["reason"][failed])
    return rows | {"reason": reason}


def submitted_columns(events: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Columns of the transfers that were submitted, in stream order; `submitted_at` is when that was written down."""
    named = (events["source"] != "") & (events["destination"] != "")
    rows = np.flatnonzero(are_among(events["type"].to_numpy(dtype=object), SUBMITTED) & named.to_numpy(np.bool_))
    columns = {name: events[name].to_numpy(dtype=object)[rows] for name in SUBMITTED_COLUMNS}
    return columns | {
        "bytes": events["bytes"].to_numpy(np.float64)[rows],
        "submitted_at": document_time(events)[rows],
    }


def given_up(events: pd.DataFrame) -> Words:
    """Ids of the requests that will never end, by what was written down."""
    rows = np.flatnonzero(are_among(events["type"].to_numpy(dtype=object), GIVEN_UP))
    return events["request_id"].to_numpy(dtype=object)[rows]


def ended_transfers(
    events: pd.DataFrame, rules: Callable[[Words], Words], classes: Callable[[Words], Words]
) -> pd.DataFrame:
    """The same as rows."""
    return as_rows(ended_columns(events, rules, classes))


def as_rows(columns: Mapping[str, npt.NDArray[Any]]) -> pd.DataFrame:
    """Columns as a frame; those of objects are text."""
    return pd.DataFrame(
        {name: pd.array(values, dtype="str") if values.dtype == object else values for name, values in columns.items()},
        copy=False,
    )
