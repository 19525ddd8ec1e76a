"""Lessons laid into lanes that run in parallel, link by link, and cut into windows: what training steps through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import ones
from models.history import Floats, Ints
from models.lessons import Lessons


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many lanes of so many steps, a multiple of `window`."""

    lanes: int
    length: int
    window: int

    @classmethod
    def for_rows(cls, rows: int, *, lanes: int, window: int) -> Shape:
        """As long as it takes."""
        return cls(lanes=lanes, length=max(1, -(-rows // (lanes * window))) * window, window=window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window of all lanes: transfers [m] to forecast, and what the net is fed with.

    The feed has the outcomes [lanes, window, OUTCOMES]; `begins` [lanes, window] where a link begins, and `brought` which of
    the states `carried` [k, 2 x units] it begins with; `numbers`, `names`, `log_duration` and `weight` of the transfers;
    `places` [m], where among the window's states (lanes x window, and the carried ones after these) the one stands that each
    could know; and `ends` [e], the places of the last completions of the links `ended` [e].
    """

    feed: Mapping[str, NDArray[Any]]
    transfers: Ints  # rows of the lessons
    completions: int
    ended: Ints


def laid(lessons: Lessons, weight: Floats, states: Floats, links: Ints, shape: Shape) -> Iterator[Window]:
    """All windows of the lessons, in turn, with links in the order of `links` (a permutation of all).

    Transfers of no `weight` [n] are not forecast. `states` [1 + links, 2 x units] are those that links bring along from
    earlier lessons; the first one is the empty state.
    """
    lanes, length, window = shape.lanes, shape.length, shape.window
    rank = np.empty(len(links), dtype=np.int64)
    rank[links] = np.arange(len(links))
    order = np.argsort(rank[lessons["link"]], kind="stable")
    link = lessons["link"][order].astype(np.int64)
    at = np.arange(len(order))
    starts = np.flatnonzero(np.diff(link, prepend=-1))
    runs = np.diff(starts, append=len(order))
    grid = np.full(lanes * length, -1, dtype=np.int64)
    grid[at] = order
    begins = np.zeros(lanes * length, dtype=bool)
    begins[starts] = begins[::length] = True
    brought = np.zeros(lanes * length, dtype=np.int64)
    brought[at] = link + 1
    brought[~begins] = 0
    known, before = lessons["known"][order], np.repeat(lessons["place"][order[starts]], runs)
    stepped = known > before  # what a transfer could know of last is among these lessons
    stands = np.where(stepped, np.repeat(starts, runs) + known - before - 1, at)
    place = stands // length * window + stands % length % window
    carried = np.where((known == before) & (known > 0), link + 1, 0)
    asked = np.flatnonzero(weight[order] > 0)
    turn = stands[asked] % length // window
    asked = asked[np.argsort(turn, kind="stable")]
    cuts = np.searchsorted(np.sort(turn), np.arange(length // window + 1))
    ends = starts + runs - 1
    told_by = np.concatenate([lessons, np.zeros(1, dtype=lessons.dtype)])  # the last row for where a lane has ended
    in_lanes = {
        name: array.reshape(lanes, length) for name, array in (("rows", grid), ("begins", begins), ("brought", brought))
    }
    for i in range(length // window):
        steps, part = slice(i * window, (i + 1) * window), asked[cuts[i] : cuts[i + 1]]
        closing = ends[ends % length // window == i]
        elsewhere = ~stepped[part]
        there = {name: array[:, steps] for name, array in in_lanes.items()}
        needed = np.unique(np.concatenate([[0], there["brought"].ravel(), carried[part][elsewhere]]))
        rows = order[part]
        yield Window(
            feed={
                "outcomes": told_by["outcomes"][there["rows"]],
                "begins": there["begins"],
                "brought": np.searchsorted(needed, there["brought"]).astype(np.int32),
                "carried": states[needed],
                "numbers": lessons["numbers"][rows],
                "names": ones(lessons["names"][rows]),
                "log_duration": lessons["log_duration"][rows],
                "weight": weight[rows],
                "places": np.where(
                    elsewhere, lanes * window + np.searchsorted(needed, carried[part]), place[part]
                ).astype(np.int32),
                "ends": (closing // length * window + closing % length % window).astype(np.int32),
            },
            transfers=rows,
            completions=int((there["rows"] >= 0).sum()),
            ended=link[closing],
        )
