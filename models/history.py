"""What has finished so far, and what of it could be known when a transfer started.

Everything here is a fold over finished transfers in stream order (the order in which they arrived). A transfer is seen by
another only if it ended strictly before the other started and arrived before it, however late it came and however the
stream was cut into batches.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.columns import Rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Values: TypeAlias = "pd.Series | NDArray[Any]"

RETAINED = 262_144
RETAINED_PER_LINK = 64

_FEW = 512  # completions that are put into a timeline one by one
_TIME_BITS = 43  # of milliseconds since 1970: until 2248, beside a million keys
_TIME_MASK = np.int64((1 << _TIME_BITS) - 1)


def retained(observed: pd.DataFrame) -> Flags:
    """Say which observed rows to keep: the newest by order, and each link's last however old; bool [n]."""
    keep = np.zeros(len(observed), dtype=bool)
    keep[-RETAINED:] = True
    if len(observed) > RETAINED:
        later_of_link = observed.groupby(["source", "destination"], sort=False).cumcount(ascending=False)
        keep |= later_of_link.to_numpy() < RETAINED_PER_LINK
    return keep


def milliseconds(seconds: NDArray[np.float64]) -> Ints:
    """Whole milliseconds since 1970, rounded down so that strictly before stays strictly before."""
    times = np.floor(seconds * 1000)
    whole: Ints = np.clip(times, 0, float(_TIME_MASK)).astype(np.int64)
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """A batch of transfers in stream order: codes of their keys, and what their own history keeps of them; each [n]."""

    link: Ints
    source: Ints
    destination: Ints
    grid: Ints  # one code for all
    started_ms: Ints
    ended_ms: Ints
    log_duration: Floats  # log1p of seconds; NaN while it runs
    log_bytes: Floats  # log1p; NaN where not known


class Codes:
    """Small whole numbers for names, in order of appearance."""

    def __init__(self) -> None:
        self._codes: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def learn(self, values: Values) -> Ints:
        """Code every value, new ones too; int64 [n]."""
        places, unique = _distinct(values)
        codes = [self._codes.setdefault(name, len(self._codes)) for name in unique]
        return np.array(codes, dtype=np.int64)[places]

    def find(self, values: Values) -> Ints:
        """Code every value that was learnt; all others share the next code, which has no history; int64 [n]."""
        places, unique = _distinct(values)
        codes = [self._codes.get(name, len(self._codes)) for name in unique]
        return np.array(codes, dtype=np.int64)[places]


def _distinct(values: Values) -> tuple[Ints, list[Hashable]]:
    places, unique = pd.factorize(values)
    return places.astype(np.int64), cast("list[Hashable]", unique.tolist())


class Pile:
    """An array that grows at its end; `rows` is a view of what it holds."""

    def __init__(self, width: tuple[int, ...] = (), dtype: type[np.generic] = np.float32) -> None:
        self._space: NDArray[Any] = np.zeros((0, *width), dtype=dtype)
        self._size = 0

    @property
    def rows(self) -> NDArray[Any]:
        return self._space[: self._size]

    def keep(self, rows: Flags) -> None:
        """Drop all other rows."""
        self._space = self.rows[rows]
        self._size = len(self._space)

    def grow(self, count: int) -> NDArray[Any]:
        """Add `count` rows of zeros and return them as a view to fill."""
        needed = self._size + count
        if needed > len(self._space):
            space = np.zeros((max(needed, 2 * len(self._space), 1024), *self._space.shape[1:]), self._space.dtype)
            space[: self._size] = self.rows
            self._space = space
        self._size = needed
        return self._space[needed - count : needed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of a key as of a time: places `first` to before `stop` of its timeline, the oldest first; each [n]."""

    first: Ints
    stop: Ints


class Timeline:
    """The completions of every key, in order of the time from which they may be seen.

    A completion is seen by whoever starts after its end. One that comes late, when others of its key that started after
    its end have been looked at already, is seen only by whoever starts after all of those: nothing that was forecast
    would have been different, so it does not matter where the stream was cut.
    """

    def __init__(self, *, in_order: bool = False) -> None:
        """With `in_order` each key's completions also stay in stream order: none is seen before an earlier one."""
        self._in_order = in_order
        self._space = np.zeros((2, 1024), dtype=np.int64)  # keys and slots, with room for more
        self._size = 0
        self._begins = np.zeros(1, dtype=np.int64)  # place of each code's first completion
        self._forgotten = np.zeros(0, dtype=np.int64)  # completions of each code that were there and are no more
        self._latest_start = np.zeros(0, dtype=np.int64)
        self._latest_seen = np.zeros(0, dtype=np.int64)

    def insert(self, codes: Ints, started_ms: Ints, ended_ms: Ints, slots: Ints) -> None:
        """Add completions in stream order. `slots` are their numbers in the history."""
        known = int(codes.max(initial=-1)) + 1
        self._latest_start = _padded(self._latest_start, known)
        self._latest_seen = _padded(self._latest_seen, known)
        seen_from = np.maximum(ended_ms, _running_maximum(codes, started_ms, self._latest_start))
        if self._in_order:
            seen_from = _running_maximum(codes, seen_from, self._latest_seen)
        keys = (codes << _TIME_BITS) | seen_from
        order = np.argsort(keys, kind="stable")
        self._merge(keys[order], slots[order])
        counts = _padded(np.diff(self._begins), known) + np.bincount(codes, minlength=len(self._latest_start))
        self._begins = np.concatenate([[0], np.cumsum(counts)])
        self._forgotten = _padded(self._forgotten, len(counts))

    def forget(self, keep: Flags, renumbered: Ints) -> None:
        """Drop the completions whose slots are not to be kept; those that stay get the numbers in `renumbered`, by slot."""
        stay = keep[self.slots]
        codes = self._keys >> _TIME_BITS
        counts = np.bincount(codes[stay], minlength=len(self._begins) - 1)
        self._forgotten = self._forgotten + np.diff(self._begins) - counts
        self._space = np.stack([self._keys[stay], renumbered[self.slots[stay]]])
        self._size = self._space.shape[1]
        self._begins = np.concatenate([[0], np.cumsum(counts)])

    def latest(self, count: int) -> Flags:
        """Which places are among the last `count` of their key; bool [places]."""
        ends = np.repeat(self._begins[1:], np.diff(self._begins))
        return np.asarray(np.arange(self._size) >= ends - count)

    def forgotten(self, codes: Ints) -> Ints:
        """How many completions of each code, [n], were forgotten."""
        return _padded(self._forgotten, int(codes.max(initial=-1)) + 1)[codes]

    @property
    def _keys(self) -> Ints:
        """Code and time in one number, so that one search finds both."""
        return self._space[0, : self._size]

    @property
    def slots(self) -> Ints:
        """By place."""
        return self._space[1, : self._size]

    def _merge(self, keys: Ints, slots: Ints) -> None:
        places = np.searchsorted(self._keys, keys, side="right")
        size, self._size = self._size, self._size + len(keys)
        more = np.stack([keys, slots])
        if self._size > self._space.shape[1] or len(keys) > _FEW:
            old = np.ones(self._size, dtype=bool)
            old[places + np.arange(len(keys))] = False
            space = np.empty((2, max(2 * self._size, 1024)), dtype=np.int64)
            space[:, : self._size][:, ~old] = more
            space[:, : self._size][:, old] = self._space[:, :size]
            self._space = space
            return
        end = size
        for new in range(len(keys) - 1, -1, -1):  # moves whole stretches, which costs less than picking every number
            place = int(places[new])
            self._space[:, place + new + 1 : end + new + 1] = self._space[:, place:end]
            self._space[:, place + new] = more[:, new]
            end = place

    def before(self, codes: Ints, at_ms: Ints) -> Sight:
        """What is seen of each code strictly before each time."""
        first = self._begins[np.minimum(codes, len(self._begins) - 1)]
        wanted = (codes << _TIME_BITS) | at_ms
        order = np.argsort(wanted)  # neighbours in the search are neighbours in memory
        stop = np.empty(len(codes), dtype=np.int64)
        stop[order] = np.searchsorted(self._keys, wanted[order], side="left")
        return Sight(first=first, stop=np.maximum(stop, first))

    def last(self, sight: Sight, count: int) -> tuple[Ints, Flags]:
        """Return the slots of the last `count` seen, the newest first, and which of them there are; each [n, count]."""
        places = sight.stop[:, None] - 1 - np.arange(count)
        there = places >= sight.first[:, None]
        if not len(self.slots):
            return np.zeros(places.shape, dtype=np.int64), there
        return self.slots[np.where(there, places, 0)], there


def _padded(values: Ints, size: int) -> Ints:
    return values if len(values) >= size else np.concatenate([values, np.zeros(size - len(values), dtype=np.int64)])


def _running_maximum(codes: Ints, values: Ints, state: Ints) -> Ints:
    """The largest value of each code so far, itself included; `state` [codes] carries it from batch to batch."""
    order = np.argsort(codes, kind="stable")
    grouped = codes[order]
    group = np.cumsum(np.diff(grouped, prepend=grouped[:1]) != 0)
    largest = np.empty_like(values)
    largest[order] = np.maximum.accumulate((group << _TIME_BITS) | values[order]) & _TIME_MASK
    largest = np.maximum(largest, state[codes])
    np.maximum.at(state, codes, values)
    return largest


class History:
    """All finished transfers absorbed so far, by link, by source, by destination, and on the whole grid."""

    KEYS = ("link", "source", "destination", "grid")

    def __init__(self) -> None:
        self._names = Codes()
        self._pairs = Codes()
        self.timelines = {key: Timeline() for key in self.KEYS}
        self._log_duration = Pile()
        self._log_bytes = Pile()
        self._ended_ms = Pile(dtype=np.int64)

    def __len__(self) -> int:
        return len(self._log_duration.rows)

    @property
    def links(self) -> int:
        return len(self._pairs)

    @property
    def log_duration(self) -> Floats:
        """By slot."""
        return self._log_duration.rows

    @property
    def log_bytes(self) -> Floats:
        """By slot; NaN where not known."""
        return self._log_bytes.rows

    @property
    def ended_ms(self) -> Ints:
        """By slot."""
        return self._ended_ms.rows

    def forget(self) -> tuple[Flags, Ints]:
        """Keep what a restart would start from; return which slots stay, and the numbers that they get, by slot."""
        links = self.timelines["link"]
        keep = np.zeros(len(self), dtype=bool)
        keep[-RETAINED:] = True
        keep[links.slots[links.latest(RETAINED_PER_LINK)]] = True
        renumbered = np.cumsum(keep) - 1
        for timeline in self.timelines.values():
            timeline.forget(keep, renumbered)
        for pile in (self._log_duration, self._log_bytes, self._ended_ms):
            pile.keep(keep)
        return keep, renumbered

    def code(self, rows: Rows, *, learn: bool) -> Transfers:
        """Code a batch; without `learn` names that are new leave no trace. `ended_at` may be NaN while a transfer runs."""
        code_names = self._names.learn if learn else self._names.find
        source, destination = code_names(rows["source"]), code_names(rows["destination"])
        pair = (source << 31) | destination
        started, ended = (np.asarray(rows[name], dtype=np.float64) for name in ("started_at", "ended_at"))
        sizes = np.asarray(rows["bytes"], dtype=np.float64) if "bytes" in rows else np.full(len(started), np.nan)
        return Transfers(
            link=self._pairs.learn(pair) if learn else self._pairs.find(pair),
            source=source,
            destination=destination,
            grid=np.zeros_like(source),
            started_ms=milliseconds(started),
            ended_ms=milliseconds(np.where(np.isnan(ended), 0.0, ended)),
            log_duration=np.log1p(np.maximum(ended - started, 0)).astype(np.float32),
            log_bytes=np.log1p(np.where(sizes >= 0, sizes, np.nan)).astype(np.float32),
        )

    def absorb(self, finished: Transfers) -> Ints:
        """Add a batch of finished transfers and return their slots, int64 [n]."""
        slots = len(self) + np.arange(len(finished.link))
        self._log_duration.grow(len(slots))[:] = finished.log_duration
        self._log_bytes.grow(len(slots))[:] = finished.log_bytes
        self._ended_ms.grow(len(slots))[:] = finished.ended_ms
        for key, timeline in self.timelines.items():
            timeline.insert(getattr(finished, key), finished.started_ms, finished.ended_ms, slots)
        return slots
