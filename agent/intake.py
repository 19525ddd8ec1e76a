"""Taking pages in: repeats are dropped by a durable key, and ended transfers get the rows that everything else works on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.events import FAILED, FINISHED

Keys = npt.NDArray[np.uint64]

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
        self._keys = np.unique(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def unseen(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of `keys` (shape (n,)) are new, counting only the first of those that repeat among themselves."""
        first = np.zeros(len(keys), dtype=np.bool_)
        first[np.unique(keys, return_index=True)[1]] = True
        place = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), dtype=np.bool_)
        inside = place < len(self._keys)
        known[inside] = self._keys[place[inside]] == keys[inside]
        return first & ~known

    def add(self, keys: Keys) -> None:
        new = np.sort(keys[self.unseen(keys)])
        self._keys = np.insert(self._keys, np.searchsorted(self._keys, new), new)


def document_time(events: pd.DataFrame) -> pd.Series:
    """When each document was written, or else when its transfer ended, in seconds; NaN where neither is known."""
    return events["created_at"].fillna(events["ended_at"]).fillna(events["queued_at"])


def ended_transfers(
    events: pd.DataFrame, rules: Callable[[pd.Series], pd.Series], classes: Callable[[pd.Series], pd.Series]
) -> pd.DataFrame:
    """Rows of the transfers that ended, in stream order; `rules` finds a request's rule, `classes` an error's class."""
    ended = events[events["type"].isin(FINISHED + FAILED) & events["ended_at"].notna()].reset_index(drop=True)
    rows = ended[list(ENDED_COLUMNS)].copy()
    rows["failed"] = ended["type"].isin(FAILED)
    rows["rule_id"] = rows["rule_id"].where(rows["rule_id"] != "", rules(rows["request_id"]))
    rows["reason"] = classes(rows["reason"]).where(rows["failed"], "")
    return rows
