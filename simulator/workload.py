"""What the experiment wants moved and deleted, hour by hour: rules, each for a dataset of files that have some replicas.

What arrives is a function of the seed, the hour, the load and the disturbances, never of how the grid is doing. The files of
a rule, their sizes and their routes have long tails. They are spread evenly over consecutive rules of an activity
(`simulator.sequence`), so that one day of a grid that is well is much like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from simulator.activities import ACTIVITIES, Kind
from simulator.draws import Draws, FloatArray, For
from simulator.faults import Disturbance, DisturbanceKind
from simulator.routes import Places, Routes, Wheel
from simulator.sequence import DIMENSIONS, evenly
from simulator.topology import IntArray, Topology

if TYPE_CHECKING:  # it builds on what stands here
    from simulator.scenario import Load

HOUR = 3600.0
MOST_FILES = 1000  # in a rule
LEAST_BYTES, MOST_BYTES = 5.0, 1e10
DELETIONS = 0.3  # for each transfer, where the load does not say
PERIOD_ROOM = 1 << 20  # numbers of rules, and of deletions, that a period has

RULE = np.dtype(
    [
        ("number", "i8"),
        ("at", "f8"),
        ("activity", "u1"),
        ("priority", "u1"),
        ("stagein", "u1"),
        ("brokered", "u1"),
        ("first", "i8"),  # its first file in `Period.bytes`
        ("files", "i4"),
    ],
    align=True,
)
DELETION = np.dtype([("number", "i8"), ("at", "f8"), ("rse", "i2"), ("activity", "u1"), ("bytes", "i8")], align=True)
Rows = npt.NDArray[np.void]

LARGEST_RULE = 0.0025  # most files of a rule, as a share of its activity's day
WAVE = 0.2  # how much the hours differ
BURST = 6.0  # rules that come together
BURST_S = 120.0  # mean time from a burst's begin to a rule of it
_USUAL_ROOM = 1 << 19  # of these, the usual rules have the first; the busy times of a period share the rest
_EVERY = np.arange(len(ACTIVITIES))
_MEDIAN = np.array([each.files for each in ACTIVITIES])
_SIGMA = np.array([each.files_sigma for each in ACTIVITIES])
_PRIORITY = np.array([each.priority for each in ACTIVITIES])
_STAGEIN = np.array([each.stagein for each in ACTIVITIES])
_BROKERED = np.array([each.brokered for each in ACTIVITIES])
_BULK = np.array([each.bulk for each in ACTIVITIES])
_SIZES = 4096  # sizes of datasets that an activity has


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What arrives in one hour, in the order of time. Places that nothing fills hold -1."""

    rules: Rows  # RULE[n]
    destinations: Places  # [n, 3]; where it may go, in the order drawn
    sources: Places  # [n, 4]; where the dataset is, none of them a candidate
    bytes: IntArray  # [m]; of the files, rule by rule
    deletions: Rows  # DELETION[k]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Datasets:
    """n datasets that are wanted in a period, with numbers between 0 and 1 that stand for files, sizes, destination and source."""

    activity: IntArray  # [n]
    index: IntArray  # [n]; which of the activity's, for ever
    number: IntArray  # [n]
    quantiles: FloatArray  # [n, DIMENSIONS]
    busy: IntArray  # [n]; of the busy time that it belongs to, -1: it comes anyway

    def of(self, kept: npt.NDArray[np.bool_]) -> _Datasets:
        """Some of them."""
        return _Datasets(
            activity=self.activity[kept],
            index=self.index[kept],
            number=self.number[kept],
            quantiles=self.quantiles[kept],
            busy=self.busy[kept],
        )


class Workload:
    """Rules and deletions of a grid under a load."""

    def __init__(self, topology: Topology, draws: Draws, load: Load, disturbances: Sequence[Disturbance] = ()) -> None:
        self._topology = topology
        self._draws = draws
        self._load = load
        self._disturbances = disturbances
        self._routes = Routes(topology, draws, load.transfers_per_day)
        self._share = self._routes.share
        self._most = np.clip(load.transfers_per_day * self._share * LARGEST_RULE, 4, MOST_FILES)
        sizes = [_log_sizes(each.sizes) for each in ACTIVITIES]
        self._sizes, self._spreads = (np.stack(tables) for tables in zip(*sizes, strict=True))
        self._mean_files = self._files(_EVERY[:, None], _middles(8192)[None, :]).mean(axis=1)
        self._seeds = draws.words(For.RULE, 1, _EVERY[:, None], np.arange(DIMENSIONS)[None, :])
        self._offset = draws.uniforms(For.RULE, 9, _EVERY)
        disks = np.flatnonzero(~topology.tape)
        self._deletable = Wheel([(topology.weight * topology.site_weight[topology.rse_site])[disks]], [disks])
        self._activities = Wheel([self._share], [_EVERY])

    def period(self, number: int) -> Period:
        """What arrives in [3600 * number, 3600 * (number + 1)) seconds after the world's start."""
        busy, large = (
            self._disturbed(kind, number) for kind in (DisturbanceKind.BUSY_DAY, DisturbanceKind.LARGE_FILES)
        )
        datasets = self._datasets(number, busy)
        destinations, sources = self._routes.choose(datasets.activity, datasets.index, datasets.quantiles[:, 2:])
        kept = self._wanted(datasets, busy, destinations[:, 0])
        datasets, destinations, sources = datasets.of(kept), destinations[kept], sources[kept]
        activity, files = datasets.activity, self._files(datasets.activity, datasets.quantiles[:, 0]).astype(np.int64)
        rules = np.zeros(len(activity), dtype=RULE)
        rules["number"], rules["at"] = datasets.number, self._times(number, datasets, busy)
        rules["activity"], rules["priority"] = activity, _PRIORITY[activity]
        rules["stagein"], rules["brokered"], rules["files"] = _STAGEIN[activity], _BROKERED[activity], files
        order = np.argsort(rules["at"], kind="stable")
        rules = rules[order]
        rules["first"] = np.cumsum(rules["files"]) - rules["files"]
        destinations, sources = destinations[order], sources[order]
        return Period(
            rules=rules,
            destinations=destinations,
            sources=sources,
            bytes=self._bytes(rules, large, destinations[:, 0], datasets.quantiles[order, 1]),
            deletions=self._deletions(number),
        )

    def _disturbed(self, kind: DisturbanceKind, number: int) -> list[Disturbance]:
        """The disturbances of a kind that fall into a period."""
        begin, end = number * HOUR, (number + 1) * HOUR
        return [one for one in self._disturbances if one.kind is kind and one.start < end and begin < one.end]

    def _datasets(self, number: int, busy: Sequence[Disturbance]) -> _Datasets:
        """The datasets of a period: as many of each activity as make up its load, and those of busy days."""
        first, stop = self._until(number), self._until(number + 1)
        count = stop - first
        activity = np.repeat(_EVERY, count)
        index = np.arange(len(activity)) + np.repeat(first - (np.cumsum(count) - count), count)
        place = number * PERIOD_ROOM + np.arange(len(activity))
        which_busy = np.full(len(activity), -1)
        quantiles = evenly(index, self._seeds[activity])
        room = (PERIOD_ROOM - _USUAL_ROOM) // max(1, len(busy))
        for which, one in enumerate(busy):
            extra = np.repeat(_EVERY, np.minimum(self._extra(one, number, count), room // len(_EVERY)))
            more = number * PERIOD_ROOM + _USUAL_ROOM + which * room + np.arange(len(extra))
            activity, index = np.concatenate([activity, extra]), np.concatenate([index, -1 - more])
            place, which_busy = np.concatenate([place, more]), np.concatenate([which_busy, np.full(len(extra), which)])
            drawn = self._draws.uniforms(For.RULE, 10, more[:, None], np.arange(DIMENSIONS)[None, :])
            quantiles = np.concatenate([quantiles, drawn])
        quantiles = _in_bulk(quantiles, _BULK[activity])
        return _Datasets(activity=activity, index=index, number=place, quantiles=quantiles, busy=which_busy)

    def _wanted(self, datasets: _Datasets, busy: Sequence[Disturbance], destination: Places) -> npt.NDArray[np.bool_]:
        """Those that come anyway, and of a busy time those that it is about; [n]."""
        kept = datasets.busy < 0
        for which, one in enumerate(busy):
            kept |= (datasets.busy == which) & self._concerned(one, datasets.activity, destination)
        return kept

    def _until(self, number: int) -> IntArray:
        """How many rules of each activity have come before the period begins; [A]."""
        hourly, rhythm = self._load.transfers_per_day / 24, self._load.rhythm
        hours = number - 24 / (2 * np.pi) * rhythm * (
            np.cos(2 * np.pi * (number - 9) / 24) - np.cos(2 * np.pi * 9 / 24)
        )
        wave = WAVE * (1.0 - rhythm) * self._draws.uniforms(For.RULE, 11, _EVERY, number)
        rules = hourly * self._share / self._mean_files * (hours + wave)
        return np.floor(rules + self._offset).astype(np.int64)

    def _extra(self, busy: Disturbance, number: int, count: IntArray) -> IntArray:
        """Rules of each activity that come on top, if all of them are about what is busy; [A]."""
        overlap = min(busy.end, (number + 1) * HOUR) - max(busy.start, number * HOUR)
        extra = overlap / HOUR * max(0.0, busy.strength - 1.0) * count
        luck = self._draws.uniforms(For.RULE, 12, _EVERY, number)
        return np.floor(extra + luck).astype(np.int64)

    def _concerned(self, one: Disturbance, activity: IntArray, destination: Places) -> npt.NDArray[np.bool_]:
        """Which rules a disturbance is about: those of its activity, or those to its storage elements; [n]."""
        if one.where.startswith("activity:"):
            named = np.array([one.where == f"activity:{each.name}" for each in ACTIVITIES])
            return named[activity]
        return np.isin(destination, one.rses(self._topology))

    def _files(self, activity: IntArray, quantile: FloatArray) -> FloatArray:
        files = _MEDIAN[activity] * np.exp(_SIGMA[activity] * ndtri(quantile))
        return np.clip(np.rint(files), 1.0, np.floor(self._most[activity]))

    def _times(self, number: int, datasets: _Datasets, busy: Sequence[Disturbance]) -> FloatArray:
        """Rules come in bursts, the first of which are the largest; those of a busy day while it is busy."""
        activity, index = datasets.activity, datasets.index
        usual = np.bincount(activity[datasets.busy < 0], minlength=len(_EVERY))
        bursts = np.ceil(np.maximum(1, usual) / BURST)
        burst = np.floor(bursts[activity] * self._draws.uniforms(For.RULE, 13, activity, index) ** 1.5).astype(np.int64)
        begin = HOUR * self._draws.uniforms(For.RULE, 14, activity, number, burst)
        within = (begin + self._draws.exponentials(BURST_S, For.RULE, 15, activity, index)) % HOUR
        at = number * HOUR + within
        for which, one in enumerate(busy):
            low, high = max(one.start, number * HOUR), min(one.end, (number + 1) * HOUR)
            extra = datasets.busy == which
            at[extra] = low + (high - low) * within[extra] / HOUR
        return at

    def _bytes(self, rules: Rows, large: Sequence[Disturbance], destination: Places, quantile: FloatArray) -> IntArray:
        activity = rules["activity"].astype(np.int64)
        kind = (quantile * _SIZES).astype(np.int64)
        dataset, spread = self._sizes[activity, kind], self._spreads[activity, kind]
        for one in large:
            inside = (one.start <= rules["at"]) & (rules["at"] < one.end)
            inside &= self._concerned(one, activity, destination)
            dataset = dataset + np.where(inside, np.log(one.strength), 0.0)
        place = np.arange(rules["files"].sum()) - np.repeat(rules["first"], rules["files"])
        file = np.repeat(rules["number"], rules["files"]) * 1024 + place
        apart = np.repeat(spread, rules["files"]) * self._draws.normals(For.FILE, file, 1)
        sizes = np.exp(np.repeat(dataset, rules["files"]) + apart)
        return np.clip(sizes, LEAST_BYTES, MOST_BYTES).astype(np.int64)

    def _deletions(self, number: int) -> Rows:
        daily = self._load.deletions_per_day
        hourly = (DELETIONS * self._load.transfers_per_day if daily is None else daily) / 24
        count = int(hourly * (number + 1)) - int(hourly * number)
        rows = np.zeros(count, dtype=DELETION)
        rows["number"] = number * PERIOD_ROOM + np.arange(count)
        none, keys = np.zeros(count, dtype=np.int64), rows["number"]
        rows["at"] = HOUR * (number + self._draws.uniforms(For.DELETION, keys, 1))
        rows["rse"] = self._deletable.draw(none, self._draws.uniforms(For.DELETION, keys, 2))
        activity = self._activities.draw(none, self._draws.uniforms(For.DELETION, keys, 7))
        place = (self._draws.uniforms(For.DELETION, keys, 8) * _SIZES).astype(np.int64)
        rows["activity"] = activity
        rows["bytes"] = np.clip(np.exp(self._sizes[activity, place]), LEAST_BYTES, MOST_BYTES).astype(np.int64)
        return rows[np.argsort(rows["at"], kind="stable")]


def _middles(count: int) -> FloatArray:
    """Quantiles that stand for `count` equal parts."""
    return (np.arange(count) + 0.5) / count


def _in_bulk(quantiles: FloatArray, bulk: FloatArray) -> FloatArray:
    """Large data are more files, and go by popular routes: a Gaussian copula by `bulk` [n] of files, sizes and routes."""
    files, size, route = ndtri(quantiles[:, :3]).T
    rest = np.sqrt(1 - bulk**2)
    return np.stack(
        [ndtr(rest * files + bulk * size), quantiles[:, 1], ndtr(rest * route - bulk * size), quantiles[:, 3]], axis=1
    )


def _log_sizes(kinds: Sequence[Kind]) -> tuple[FloatArray, FloatArray]:
    """Logarithms of datasets' median sizes in order, and the spread of each one's files: equal parts of the mixture."""
    stops = np.rint(_SIZES * np.cumsum([kind[0] for kind in kinds])).astype(int)
    counts = np.diff(stops, prepend=0)
    parts = [
        np.log(median) + sigma * ndtri(_middles(count))
        for count, (_, median, sigma, _) in zip(counts, kinds, strict=True)
    ]
    medians, spreads = np.concatenate(parts), np.repeat([kind[3] for kind in kinds], counts)
    order = np.argsort(medians, kind="stable")
    return medians[order], spreads[order]
