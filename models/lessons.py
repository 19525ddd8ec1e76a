"""What a forecaster learns from: finished transfers as the net sees them, prepared once, kept on disk, for training.

A stream is written in one pass over its pages and read chunk by chunk, so that memory does not depend on how long it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.domain import ModelError
from models.events import FINISHED
from models.features import FEATURES_VERSION, NAME_COLUMNS, NUMBERS, OUTCOMES, Features, outcomes
from models.history import RETAINED, Flags, History, Ints, Timeline
from models.measurements import PATH_COLUMNS
from models.registry import code_version

Lessons = NDArray[np.void]  # of dtype LESSON

LESSON = np.dtype(
    [
        ("numbers", np.float32, (len(NUMBERS),)),
        ("names", np.uint8, (len(NAME_COLUMNS),)),
        ("outcomes", np.float32, (len(OUTCOMES),)),
        ("log_duration", np.float32),
        ("link", np.int32),
        ("place", np.int32),  # completions of its link that came before it
        ("known", np.int32),  # completions of its link that a transfer could know of when it started
    ]
)
CHUNK = 131_072  # lessons in one file

_HELD_OUT = 0.2  # the last part of each stream in time,
_MOST_HELD_OUT = RETAINED  # but no more of it than this
_FEWEST = 50  # finished transfers that a stream must have
_PAGE = 16_384
_INDEX = "lessons.json"
_TAIL_COLUMNS = (
    *("source", "destination", *NAME_COLUMNS),
    *("bytes", "submitted_at", "started_at", "ended_at", *PATH_COLUMNS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Lessons of one stream on disk: chunks of CHUNK rows, the last one shorter, in stream order."""

    rows: int
    links: int
    first_start: float
    last_end: float
    hash: str

    @property
    def learnt(self) -> int:
        """Rows before the held-out ones."""
        return self.rows - min(round(self.rows * _HELD_OUT), _MOST_HELD_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """All streams' lessons, in one directory."""

    directory: Path
    streams: tuple[Stream, ...]

    @property
    def rows(self) -> int:
        return sum(stream.rows for stream in self.streams)

    @property
    def links(self) -> int:
        return sum(stream.links for stream in self.streams)

    def rows_before(self, block: int) -> int:
        """Rows of all streams in the blocks before that one."""
        return sum(min(stream.rows, block * CHUNK) for stream in self.streams)

    def tail(self, stream: int) -> pd.DataFrame:
        """The last finished transfers of a stream: all that are held out, and what a restart before them would look back on."""
        return pd.read_parquet(_tail_path(self.directory, stream))

    @property
    def blocks(self) -> int:
        """So many chunks has the longest stream."""
        return max(-(-stream.rows // CHUNK) for stream in self.streams)

    def block(self, number: int) -> tuple[Lessons, Ints]:
        """The chunk of that number of every stream that has one, with links numbered through; and each row's stream."""
        parts, owners, links = [], [], 0
        for owner, stream in enumerate(self.streams):
            if number * CHUNK < stream.rows:
                part = np.load(_path(self.directory, owner, number))
                part["link"] += links
                parts.append(part)
                owners.append(np.full(len(part), owner))
            links += stream.links
        return np.concatenate(parts), np.concatenate(owners)

    def learnt(self, number: int, owners: Ints) -> Flags:
        """Which rows of a block are not held out."""
        limits = np.array([stream.learnt - number * CHUNK for stream in self.streams])
        counts = np.bincount(owners, minlength=len(self.streams))
        places = np.concatenate([np.arange(count) for count in counts])
        return np.asarray(places < limits[owners])


def prepare(directory: Path, streams: Iterable[Iterable[pd.DataFrame]], *, task: str) -> Book:
    """Write the lessons of every stream, given as pages of events in stream order; other types of event are left out.

    Lessons of the same `task` (what the streams are, unless it is "") that were written to their end are taken as they are.
    Raise ModelError if there is no stream, or if one is too short.
    """
    if task and (found := _found(directory, task)):
        return found
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    written = tuple(_written(directory, number, pages) for number, pages in enumerate(streams))
    if not written:
        raise ModelError("there is no data to train on; give recorded events or hours of the simulated grid")
    index = {"task": _key(task), "streams": [asdict(stream) for stream in written]}
    unfinished = directory / f"{_INDEX}.part"
    unfinished.write_text(json.dumps(index), encoding="utf-8")
    unfinished.replace(directory / _INDEX)
    return Book(directory=directory, streams=written)


def _found(directory: Path, task: str) -> Book | None:
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        streams = tuple(Stream(**stream) for stream in index["streams"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Book(directory=directory, streams=streams) if index["task"] == _key(task) else None


def _key(task: str) -> list[object]:
    """What must be the same for lessons to be the same."""
    return [task, FEATURES_VERSION, code_version(), CHUNK]


def lessons_of(rows: pd.DataFrame) -> Lessons:
    """The lessons of finished transfers in stream order, [n]."""
    return Teacher().lessons(rows)


def finished_transfers(events: pd.DataFrame) -> pd.DataFrame:
    """Pick the finished transfers with usable times, with a column for each of PATH_COLUMNS."""
    timed = events["started_at"].notna() & (events["ended_at"] >= events["started_at"])
    rows = events[timed & events["type"].isin(FINISHED)]
    return rows.assign(**{name: np.nan for name in PATH_COLUMNS if name not in rows})


class Teacher:
    """Turns a stream into lessons, page by page. What is older than a restart would look back on is forgotten."""

    def __init__(self) -> None:
        self._history = History()
        self._states = Timeline(in_order=True)  # of links
        self._features = Features(self._history)
        self._counts = np.zeros(0, dtype=np.int64)  # completions of each link so far

    @property
    def links(self) -> int:
        return self._history.links

    def lessons(self, rows: pd.DataFrame) -> Lessons:
        """The lessons of the next finished transfers of the stream, [n]."""
        parts = [self._page(rows.iloc[start : start + _PAGE]) for start in range(0, len(rows), _PAGE)]
        return np.concatenate([np.empty(0, dtype=LESSON), *parts])

    def _page(self, rows: pd.DataFrame) -> Lessons:
        lessons = np.empty(len(rows), dtype=LESSON)
        coded = self._history.code(rows, learn=True)
        slots = self._history.absorb(coded)
        self._states.insert(coded.link, coded.started_ms, coded.ended_ms, slots)
        sight = self._states.before(coded.link, coded.started_ms)
        numbers = self._features.numbers(rows, coded)
        lessons["numbers"] = numbers
        lessons["names"] = self._features.buckets(rows)
        lessons["outcomes"] = outcomes(numbers, coded.log_duration)
        lessons["log_duration"] = coded.log_duration
        lessons["link"] = coded.link
        lessons["place"] = self._places(coded.link)
        lessons["known"] = self._states.forgotten(coded.link) + sight.stop - sight.first
        if len(self._history) > 2 * RETAINED:
            self._states.forget(*self._history.forget())
        return lessons

    def _places(self, links: Ints) -> Ints:
        more = self._history.links - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
        order = np.argsort(links, kind="stable")
        grouped = links[order]
        firsts = np.flatnonzero(np.diff(grouped, prepend=-1))
        turn = np.arange(len(links)) - np.repeat(firsts, np.diff(firsts, append=len(links)))
        places = np.empty(len(links), dtype=np.int64)
        places[order] = self._counts[grouped] + turn
        self._counts += np.bincount(links, minlength=len(self._counts))
        return places


def _path(directory: Path, stream: int, chunk: int) -> Path:
    return directory / f"lessons-{stream:02d}-{chunk:05d}.npy"


def _tail_path(directory: Path, stream: int) -> Path:
    return directory / f"tail-{stream:02d}.parquet"


def _written(directory: Path, number: int, pages: Iterable[pd.DataFrame]) -> Stream:
    teacher, digest = Teacher(), hashlib.sha256()
    waiting, tail, rows, chunks = [], deque[pd.DataFrame](), 0, 0
    first_start, last_end = np.inf, -np.inf
    for page in pages:
        finished = finished_transfers(page)
        if finished.empty:
            continue
        columns = finished[["source", "destination", "bytes", "started_at", "ended_at"]]
        digest.update(pd.util.hash_pandas_object(columns, index=False).to_numpy().tobytes())
        first_start = min(first_start, float(finished["started_at"].min()))
        last_end = max(last_end, float(finished["ended_at"].max()))
        tail.append(finished[list(_TAIL_COLUMNS)])
        while sum(map(len, tail)) - len(tail[0]) >= RETAINED + _MOST_HELD_OUT:
            tail.popleft()
        waiting.append(teacher.lessons(finished))
        rows += len(finished)
        while rows - chunks * CHUNK >= CHUNK:
            lessons = np.concatenate(waiting)
            np.save(_path(directory, number, chunks), lessons[:CHUNK])
            waiting, chunks = [lessons[CHUNK:]], chunks + 1
    if rows < _FEWEST:
        raise ModelError(
            f"stream {number} has {rows} finished transfers with start and end, fewer than {_FEWEST}; give more data"
        )
    if rows > chunks * CHUNK:
        np.save(_path(directory, number, chunks), np.concatenate(waiting))
    pd.concat(tail, ignore_index=True).to_parquet(_tail_path(directory, number), index=False)
    return Stream(rows=rows, links=teacher.links, first_start=first_start, last_end=last_end, hash=digest.hexdigest())
