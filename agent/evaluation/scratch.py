"""A ledger that nobody reads again: what the agent writes with every pass stays in memory as it is.

Decisions, actions, answers and feedback lie in SQLite as ever, in memory. Rows of streams, cursors, keys, counts and settings, which a
pass writes whether anything happens or not, are kept as objects; a transaction that fails does not take these back, and
nothing can be recovered after a crash. An evaluation ends with its first error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.pool import StaticPool

from models.events import Refusal
from storage.database import Database
from storage.ledger import Ledger, Transaction


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the transactions of one ledger share."""

    rows: dict[str, list[pd.DataFrame]] = field(default_factory=lambda: defaultdict(list))
    greatest: dict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )  # of a column, by part
    lengths: Counter[str] = field(default_factory=Counter)  # of the streams, in rows
    keys: dict[str, list[NDArray[np.uint64]]] = field(default_factory=lambda: defaultdict(list))
    cursors: dict[str, tuple[dict[str, Any], float | None]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    settings: dict[str, Any] = field(default_factory=dict)


class _Transaction(Transaction):
    def __init__(self, connection: Connection, database: Database, kept: _Kept) -> None:
        super().__init__(connection, database)
        self._kept = kept

    def cursor(self, source: str) -> dict[str, Any] | None:
        return self._kept.cursors.get(source, (None, None))[0]

    def watermark(self, source: str) -> float | None:
        return self._kept.cursors.get(source, (None, None))[1]

    def move_cursor(self, source: str, cursor: Mapping[str, object], watermark: float | None) -> None:
        self._kept.cursors[source] = (dict(cursor), watermark)

    def remember_keys(self, source: str, keys: NDArray[np.uint64], newest: float) -> None:  # noqa: ARG002 - nothing is forgotten
        self._kept.keys[source].append(keys)

    def known_keys(self, source: str) -> NDArray[np.uint64]:
        return np.concatenate([np.empty(0, dtype=np.uint64), *self._kept.keys[source]])

    def forget_keys(self, source: str, before: float) -> None:
        """Nothing: a run ends before its keys are too many."""

    def quarantine(self, source: str, refused: Sequence[Refusal], at: datetime | None) -> None:  # noqa: ARG002 - only counted
        self._kept.counts[source].update(f"refused:{refusal.reason}" for refusal in refused)

    def count(self, source: str, words: Mapping[str, int]) -> None:
        self._kept.counts[source].update(words)

    def counts(self) -> dict[tuple[str, str], int]:
        return {(source, word): n for source, words in self._kept.counts.items() for word, n in words.items()}

    def append_rows(self, stream: str, rows: pd.DataFrame) -> None:
        if len(rows):
            self._kept.rows[stream].append(rows)
            self._kept.lengths[stream] += len(rows)

    def rows(self, stream: str) -> pd.DataFrame:
        parts = self._kept.rows[stream]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def rows_since(self, stream: str, column: str, least: float) -> pd.DataFrame:
        every, greatest = self._kept.rows[stream], self._kept.greatest[stream, column]
        greatest += [float(rows[column].max()) for rows in every[len(greatest) :]]
        parts = [rows[rows[column] >= least] for rows, newest in zip(every, greatest, strict=True) if newest >= least]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def row_count(self, stream: str) -> int:
        return self._kept.lengths[stream]

    def replace_rows(self, stream: str, rows: pd.DataFrame) -> None:
        self._kept.rows[stream], self._kept.lengths[stream] = [rows], len(rows)
        self._kept.greatest.clear()

    def setting(self, key: str) -> Any:  # noqa: ANN401 - as the ledger's own
        return self._kept.settings.get(key)

    def set_setting(self, key: str, value: object) -> None:
        self._kept.settings[key] = value


class ScratchLedger(Ledger):
    """For one thread: all transactions share one connection, so that none may begin within another."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._kept = _Kept()

    @classmethod
    def in_memory(cls) -> ScratchLedger:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        event.listen(engine, "connect", _begin_by_hand)
        return cls.over(Database(engine=engine, insert=insert, begin_reading=("BEGIN",), begin_writing=("BEGIN",)))

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        with self._database.begin(write=write) as connection:
            yield _Transaction(connection, self._database, self._kept)


def _begin_by_hand(connection: Any, _record: object) -> None:  # noqa: ANN401 - the event's signature: a driver's connection
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
