"""What a forecaster learns from: finished transfers as the net sees them, laid out in lanes for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.domain import ModelError
from models.events import FINISHED
from models.features import Features, outcomes
from models.history import Flags, Floats, History, Ints, Timeline
from models.measurements import PATH_COLUMNS

_HELD_OUT = 0.2  # the last part of each stream in time
_FEWEST = 50  # finished transfers that a stream must have
_CHUNK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Finished transfers as the net sees them, in the order of their streams; each [n] or [n, width]."""

    numbers: Floats
    names: Floats
    outcomes: Floats
    log_duration: Floats
    link: Ints
    known: Ints  # completions of its link that a transfer could know of when it started
    held_out: Flags
    weight: Floats


def finished_transfers(events: pd.DataFrame, *, number: int = 0) -> pd.DataFrame:
    """Pick the finished transfers with usable times, in the order in which they ended."""
    timed = events["started_at"].notna() & (events["ended_at"] >= events["started_at"])
    rows = events[timed & events["type"].isin(FINISHED)].sort_values("ended_at", kind="stable", ignore_index=True)
    if len(rows) < _FEWEST:
        raise ModelError(
            f"stream {number} has {len(rows)} finished transfers with start and end, fewer than {_FEWEST}; give more data"
        )
    return rows.assign(**{name: np.nan for name in PATH_COLUMNS if name not in rows})


def held_out(rows: int) -> Flags:
    """Which rows of a stream are held out."""
    return np.arange(rows) >= round(rows * (1 - _HELD_OUT))


def lessons_of(rows: pd.DataFrame) -> Lessons:
    history, states = History(), Timeline(in_order=True)
    features = Features(history)
    parts = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.iloc[start : start + _CHUNK]
        coded = history.code(chunk, learn=True)
        slots = history.absorb(coded)
        states.insert(coded.link, coded.started_ms, coded.ended_ms, slots)
        sight = states.before(coded.link, coded.started_ms)
        numbers = features.numbers(chunk, coded)
        told = outcomes(numbers, coded.log_duration)
        parts.append((numbers, features.names(chunk), told, coded.log_duration, coded.link, sight.stop - sight.first))
    numbers, names, told, log_duration, link, known = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Lessons(
        numbers=numbers,
        names=names,
        outcomes=told,
        log_duration=log_duration,
        link=link,
        known=known,
        held_out=held_out(len(rows)),
        weight=np.full(
            len(rows), len(rows) ** -0.5, dtype=np.float32
        ),  # so that a long stream does not drown a short one
    )


def joined(parts: Sequence[Lessons]) -> Lessons:
    """One after the other, with links of their own."""
    ends = np.cumsum([part.link.max() + 1 for part in parts])
    links = [part.link + end - (part.link.max() + 1) for part, end in zip(parts, ends, strict=True)]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("numbers", "names", "outcomes", "log_duration", "known", "held_out", "weight")
    }
    columns["weight"] /= columns["weight"].mean()
    return Lessons(link=np.concatenate(links), **columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One step of training: completions [lanes, window] to step through, and transfers [m] to forecast."""

    outcome_rows: Ints  # -1 where a lane has ended
    begins: Flags  # the first completion of a link (or of a lane)
    transfer_rows: Ints
    states: Ints  # place of each transfer's state among lanes x window, lanes x window for none


def windows(lessons: Lessons, links: Ints, *, lanes: int, window: int) -> Iterator[Window]:
    """Lay all completions into lanes, link by link in the order of `links`."""
    rank = np.empty(len(links), dtype=np.int64)
    rank[links] = np.arange(len(links))
    order = np.argsort(rank[lessons.link], kind="stable")
    count = len(order)
    length = -(-count // (lanes * window)) * window
    rows = np.full(lanes * length, -1, dtype=np.int64)
    rows[:count] = order
    link = lessons.link[order]
    starts = np.flatnonzero(np.diff(link, prepend=-1))
    begins = np.zeros(lanes * length, dtype=bool)
    begins[starts] = begins[::length] = True
    first = np.repeat(starts, np.diff(starts, append=count))
    known = lessons.known[order]
    place = np.where(known > 0, first + known - 1, np.arange(count))  # where the state that a transfer knows stands
    lane, offset = place // length, place % length
    turn = offset // window
    state = np.where(known > 0, lane * window + offset % window, lanes * window)
    by_turn = np.argsort(turn, kind="stable")
    cuts = np.searchsorted(turn[by_turn], np.arange(length // window + 1))
    grid, grid_begins = rows.reshape(lanes, length), begins.reshape(lanes, length)
    for i in range(length // window):
        part, steps = by_turn[cuts[i] : cuts[i + 1]], slice(i * window, (i + 1) * window)
        yield Window(
            outcome_rows=grid[:, steps], begins=grid_begins[:, steps], transfer_rows=order[part], states=state[part]
        )
