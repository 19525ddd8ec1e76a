"""What the forecaster sees: of a transfer when it starts, and of a transfer when it has finished.

Numbers that are not known are NaN here; the net masks them. Names never seen before are hashed like all others, and no
storage element has a feature of its own: its history speaks for it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.columns import Rows
from models.history import Floats, History, Ints, Timeline, Transfers
from models.measurements import PATH_COLUMNS
from models.recollection import STATISTICS, recollect

FEATURES_VERSION = 2

LOAD_WINDOW_MS = 600_000

_NUMBERS = {
    "size": ("log_bytes",),
    "queue": ("log_queue",),
    "path": PATH_COLUMNS,
    "week": ("day_sin", "day_cos", "week_sin", "week_cos"),
    **{key: tuple(f"{key}_{name}" for name in STATISTICS) for key in History.KEYS},
}
_BUCKETS = {"activity": 16, "protocol": 8, "source_type": 4, "destination_type": 4, "fts": 8}

NUMBERS: tuple[str, ...] = tuple(name for names in _NUMBERS.values() for name in names)
NAMES: tuple[str, ...] = tuple(f"{column}_{i}" for column, size in _BUCKETS.items() for i in range(size))
OUTCOMES: tuple[str, ...] = (
    "log_duration",
    *(f"beyond_{key}" for key in History.KEYS),
    "log_bytes",
    "log_queue",
    "link_age",
)

NAME_COLUMNS: tuple[str, ...] = tuple(_BUCKETS)

_DAY_S = 86_400.0


def ones(buckets: NDArray[np.uint8]) -> Floats:
    """Buckets [n, NAME_COLUMNS] as one 1 each; float32 [n, NAMES]."""
    table = np.zeros((len(buckets), len(NAMES)), dtype=np.float32)
    np.put_along_axis(table, buckets.astype(np.int64), np.float32(1.0), axis=1)
    return table


def blocks() -> dict[str, slice]:
    """Which numbers stand and fall together: training hides whole blocks, as a real absence would."""
    ends = np.cumsum([len(names) for names in _NUMBERS.values()])
    return {
        block: slice(int(end) - len(names), int(end))
        for (block, names), end in zip(_NUMBERS.items(), ends, strict=True)
    }


class Features:
    """Turns transfers into numbers, given the history at hand."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._buckets: dict[tuple[str, int], int] = {}

    def numbers(self, rows: Rows, coded: Transfers) -> Floats:
        """What is known when each transfer starts, in the order of NUMBERS; float32 [n, NUMBERS], NaN unknown."""
        started, submitted = (np.asarray(rows[name], dtype=np.float64) for name in ("started_at", "submitted_at"))
        columns = [coded.log_bytes, np.log1p(np.maximum(started - submitted, 0)), *_paths(rows), *_week(started)]
        recollections = [
            self._recollection(timeline, getattr(coded, key), coded)
            for key, timeline in self._history.timelines.items()
        ]
        return np.concatenate([np.stack(columns, axis=1).astype(np.float32), *recollections], axis=1)

    def buckets(self, rows: Rows) -> NDArray[np.uint8]:
        """Where among NAMES each name stands, as its hash says; [n, NAME_COLUMNS]."""
        table = np.empty((len(rows["activity"]), len(_BUCKETS)), dtype=np.uint8)
        start = 0
        for i, (column, size) in enumerate(_BUCKETS.items()):
            places, unique = pd.factorize(rows[column])
            buckets = [start + zlib.crc32(str(name).encode()) % size for name in unique]
            table[:, i] = np.array(buckets, dtype=np.uint8)[places]
            start += size
        return table

    def names(self, rows: Rows) -> Floats:
        """One 1 for each name; float32 [n, NAMES]."""
        return ones(self.buckets(rows))

    def _recollection(self, timeline: Timeline, codes: Ints, coded: Transfers) -> Floats:
        """Statistics of what the key's last completions took, as of each start; float32 [n, STATISTICS]."""
        at, history = coded.started_ms, self._history
        sight = timeline.before(codes, at)
        table: Floats = recollect(
            sight.first,
            sight.stop,
            timeline.before(codes, np.maximum(at - LOAD_WINDOW_MS, 0)).stop,
            timeline.slots,
            history.log_duration,
            history.log_bytes,
            history.ended_ms,
            at,
            coded.log_bytes,
        )
        return table


def outcomes(numbers: Floats, log_duration: Floats) -> Floats:
    """What a finished transfer tells its link: how long it took, and how that compares; float32 [n, OUTCOMES]."""
    column = {name: numbers[:, i] for i, name in enumerate(NUMBERS)}
    beyond = [log_duration - column[f"{key}_alike"] for key in History.KEYS]
    return np.stack(
        [log_duration, *beyond, column["log_bytes"], column["log_queue"], column["link_age"]], axis=1, dtype=np.float32
    )


def _paths(rows: Rows) -> list[NDArray[Any]]:
    loss, delay, throughput = (np.asarray(rows[name], dtype=np.float64) for name in PATH_COLUMNS)
    return [np.log10(np.maximum(loss, 0) + 1e-5), np.log1p(np.maximum(delay, 0)), np.log10(np.maximum(throughput, 1))]


def _week(at: NDArray[np.float64]) -> list[NDArray[Any]]:
    day, week = 2 * np.pi * at / _DAY_S, 2 * np.pi * at / (7 * _DAY_S)
    return [np.sin(day), np.cos(day), np.sin(week), np.cos(week)]
