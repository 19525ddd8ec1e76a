"""Where events and measurements come from. Each source has a name and a cursor of its own; the ledger keeps the cursor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pandas as pd

from models import events, measurements
from models.events import Page, Refusal

Decoded = tuple[pd.DataFrame, list[Refusal]]


class Source(Protocol):
    """What the loop polls. A source may keep what it likes in memory, but only a cursor says what has been read."""

    name: str

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:
        """Return at most `limit` documents after `cursor` (None: from the start), in the order of their times.

        The same cursor again gives the same documents again, or later ones besides. Raise SourceError if nothing can be
        read now; its message says what to do.
        """

    def close(self) -> None:
        """Let go of files and connections, at the end."""


class _Decode(Protocol):
    def __call__(self, documents: Sequence[object], *, now: datetime) -> Decoded: ...


class _DecodeTable(Protocol):
    def __call__(self, table: pd.DataFrame, *, now: datetime) -> Decoded: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """How the documents of a source become rows: transfer events, or perfSONAR readings."""

    what: str  # as messages say it
    documents: _Decode
    table: _DecodeTable
    empty: Callable[[], pd.DataFrame]
    time: str  # the column that a file's page is sorted by
    marks: frozenset[str]  # a table without any of these columns holds something else


EVENTS = Decoder(
    what="transfer events",
    documents=events.decode,
    table=events.decode_table,
    empty=events.empty_events,
    time="created_at",
    marks=frozenset((*events.ALIASES["request_id"], *events.ALIASES["destination"], "event_type", "event-type")),
)
READINGS = Decoder(
    what="perfSONAR readings",
    documents=measurements.decode_readings,
    table=measurements.decode_readings_table,
    empty=measurements.empty_readings,
    time="at",
    marks=frozenset(
        ("quantity", *itertools.chain.from_iterable(measurements.READING_ALIASES[q] for q in measurements.QUANTITIES))
    ),
)
