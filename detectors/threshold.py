"""How long a transfer may take before it counts as anomalous: expected durations, calibrated online.

Two expectations of log1p(duration) stand side by side. The forecast knows what happened just now, so it is the sharper one,
and it gets used to a fault within a dozen transfers. The norm is what transfers of this size take on this link in the long run,
and transfers inside open incidents do not change it: a threshold that learns to sleep through a fault is worse than none. A
residual is how many scales a transfer lies above an expectation:

    z = (log1p(duration) - expected) / scale

Links differ in how far they stray, and most are seen too rarely to say how far. So a link's mean and spread of z shrink to
those of its source and destination, and these to those of all (empirical Bayes with a prior worth `PRIOR_WEIGHT` transfers;
Efron and Morris 1973). What is left, r = (z - mean) / spread, is alike on all links. The score of a transfer is the larger of its two
r; the quantiles of the score over all transfers give two limits: `alarm`, which a share of `alarm_budget` passes, and `slow`, which
five in a hundred pass. An alarm is worth a look by itself; slow transfers mean something only in numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from models.columns import Rows
from models.history import Codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]

PRIOR_WEIGHT = 16.0  # transfers that a parent's statistics are worth against a child's own
MEMORY = 256.0  # transfers after which a link's older residuals count for little
SLOW_SHARE = 0.05
ALARM_PRIOR, SLOW_PRIOR = 8.0, 3.0  # limits on the score before anything was seen: real transfers have heavy tails
LIMIT_PRIOR_WEIGHT = 2_000.0  # transfers that these are worth
LIMIT_HALF_LIFE = 100_000.0  # transfers
SPREAD_FLOOR = 0.1
OUTLYING = 4.0  # residuals beyond this count as this much: one stuck transfer must not move a link's mean
SCALE_FLOOR = 0.08  # in log seconds: whole seconds cannot be told apart more finely than this
WORTH_S = 60.0  # nobody is called for less than this above the median ...
WORTH_RATIO = 1.5  # ... nor for less than this times the median
SLOW_WORTH_S = 15.0
MSS_BYTES = 1460
STREAMS = 8  # parallel TCP streams that a transfer is assumed to have
NETWORK_SLACK = 2.0  # a transfer may take this many times what the measured network allows
BLOCK = 256  # transfers that are learned from at once

_CALIBRATION = ("source", "destination", "bytes", "started_at", "ended_at", "q50", "q95")
_SIZE_EDGES = np.log(10.0 ** np.arange(4.0, 10.6, 0.5))  # of classes of sizes, bytes
_EDGES = np.linspace(-8.0, 40.0, 2401)


def fts_timeout(size: Floats) -> Floats:
    """Seconds after which FTS itself gives up: 600 s and 2 s for each MiB. `size` in bytes; NaN counts as none.

    >>> fts_timeout(np.array([0.0, 1024.0**3]))
    array([ 600., 2648.])
    """
    return 600.0 + 2.0 * np.nan_to_num(size) / 1024.0**2


def mathis_rate(loss: Floats, rtt_ms: Floats) -> Floats:
    """Bytes/s that `STREAMS` TCP streams reach at most: C * MSS / (RTT * sqrt(loss)), C = sqrt(3/2).

    Mathis, Semke, Mahdavi and Ott, «The macroscopic behavior of the TCP congestion avoidance algorithm», 1997. NaN where
    loss or RTT is not known; infinite without loss.

    >>> mathis_rate(np.array([0.01]), np.array([100.0])).round(-3)
    array([1431000.])
    """
    with np.errstate(divide="ignore"):
        rate: Floats = STREAMS * np.sqrt(1.5) * MSS_BYTES / (rtt_ms / 1e3 * np.sqrt(loss))
    return rate


def network_seconds(ended: Rows) -> Floats:
    """Seconds that the path needs at least by what perfSONAR last said; 0 where nothing is known. Shape (n,)."""
    size, loss, delay_ms, throughput = (
        np.asarray(ended[name], dtype=np.float64)
        for name in ("bytes", "path_loss", "path_delay_ms", "path_throughput_bps")
    )
    rate = mathis_rate(loss, 2.0 * delay_ms)
    measured = throughput / 8.0
    allowed = np.fmin(rate, measured)
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds: Floats = np.nan_to_num(size / allowed, nan=0.0, posinf=0.0)
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Transfers as arrays, each of shape (n,): what they are grouped by, as small whole numbers, and log1p of seconds."""

    everything: Ints
    source: Ints
    destination: Ints
    link: Ints
    size: Ints
    took: Floats
    median: Floats  # of the forecast
    scale: Floats  # of the forecast

    def block(self, start: int) -> _Batch:
        """`BLOCK` of them."""
        return _Batch(**{one.name: getattr(self, one.name)[start : start + BLOCK] for one in fields(self)})


class _Group:
    """Running mean and spread of the residuals of each key of one kind."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 3))  # count, mean, spread

    def absorb(self, keys: Ints, z: Floats) -> None:
        self._grow(int(keys.max()) + 1)
        distinct, place, n = np.unique(keys, return_inverse=True, return_counts=True)
        known, mean, spread = self._table[distinct].T
        weight = np.maximum(n / (known + n), 1.0 - (1.0 - 1.0 / MEMORY) ** n)
        mean = mean * (1.0 - weight) + np.bincount(place, z) / n * weight
        away = np.bincount(place, np.abs(z - mean[place])) / n
        spread = np.where(known > 0, spread * (1.0 - weight) + away * weight, away)
        self._table[distinct] = np.column_stack([np.minimum(known + n, MEMORY), mean, spread])

    def shrunk(self, keys: Ints, mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
        """Means and spreads of `keys`, shrunk to their parents' `mean` and `spread`."""
        self._grow(int(keys.max(initial=-1)) + 1)
        own = self._table[keys]
        share = own[:, 0] / (own[:, 0] + PRIOR_WEIGHT)
        return share * own[:, 1] + (1.0 - share) * mean, share * own[:, 2] + (1.0 - share) * spread

    def _grow(self, size: int) -> None:
        if size > len(self._table):
            more = max(size, 2 * len(self._table)) - len(self._table)
            self._table = np.vstack([self._table, np.zeros((more, 3))])


class _Scale:
    """Means and spreads of one kind of residual on each link, shrunk to its ends and to all."""

    def __init__(self) -> None:
        self._all, self._sources, self._destinations, self._links = _Group(), _Group(), _Group(), _Group()

    def centre(self, batch: _Batch) -> tuple[Floats, Floats]:
        """Mean and spread of z for each transfer; both of shape (n,)."""
        n = len(batch.link)
        mean, spread = self._all.shrunk(batch.everything, np.zeros(n), np.ones(n))
        of_source = self._sources.shrunk(batch.source, mean, spread)
        of_destination = self._destinations.shrunk(batch.destination, mean, spread)
        parent = [(a + b) / 2.0 for a, b in zip(of_source, of_destination, strict=True)]
        return self._links.shrunk(batch.link, parent[0], parent[1])

    def absorb(self, batch: _Batch, z: Floats) -> None:
        z = np.clip(z, -OUTLYING, OUTLYING)
        self._all.absorb(batch.everything, z)
        self._sources.absorb(batch.source, z)
        self._destinations.absorb(batch.destination, z)
        self._links.absorb(batch.link, z)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the threshold says of ended transfers; every array has shape (n,)."""

    threshold_s: Floats  # beyond it a transfer is flagged
    slow_s: Floats  # beyond it a transfer is slow
    expected_s: Floats  # the norm
    network_s: Floats  # what the path needs at least by what perfSONAR last said
    flagged: npt.NDArray[np.bool_]
    slow: npt.NDArray[np.bool_]


class DynamicThreshold:
    """The threshold of every link. A fold over observed rows: `judge` a batch, then `absorb` it."""

    def __init__(self, *, alarm_budget: float) -> None:
        self.alarm_budget = alarm_budget
        self.reset()

    def reset(self) -> None:
        self._rses, self._links = Codes(), Codes()
        self._forecast, self._norm, self._sizes = _Scale(), _Scale(), _Group()
        self._histogram = np.zeros(len(_EDGES) - 1)
        self._waiting: list[Columns] = []
        self.alarm, self.slow = ALARM_PRIOR, SLOW_PRIOR

    def judge(self, done: Rows) -> Verdicts:
        """`done`: finished transfers with quantiles and path columns; those without a forecast are never flagged."""
        rows = _columns(done, slice(None))
        seconds = rows["ended_at"] - rows["started_at"]
        centres = self._centres(self._batch(rows))
        alarm = np.minimum.reduce([_seconds(mean + spread * self.alarm) for mean, spread in centres])
        slow = np.minimum.reduce([_seconds(mean + spread * self.slow) for mean, spread in centres])
        expected = _seconds(centres[1][0])
        network = network_seconds(done)
        worth = np.maximum(expected + WORTH_S, expected * WORTH_RATIO)
        threshold = np.maximum.reduce([alarm, worth, NETWORK_SLACK * network])
        threshold = np.minimum(threshold, fts_timeout(rows["bytes"]))
        slow_worth = np.maximum(expected + SLOW_WORTH_S, expected * WORTH_RATIO)
        # A slow network excuses one transfer, not many: else a path that begins to lose packets would hide what it does.
        slow = np.minimum(np.maximum(slow, slow_worth), threshold)
        return Verdicts(
            threshold_s=threshold,
            slow_s=slow,
            expected_s=expected,
            network_s=network,
            flagged=np.greater(seconds, threshold),
            slow=np.greater(seconds, slow),
        )

    def absorb(self, observed: Rows) -> None:
        """Learn from the observed rows that calibrate, in whole blocks, so that it does not matter how they were cut."""
        usable = np.asarray(observed["calibrates"], dtype=np.bool_) & ~np.isnan(np.asarray(observed["q50"], np.float64))
        self._waiting.append(_columns(observed, np.flatnonzero(usable)))
        count = sum(len(rows["q50"]) for rows in self._waiting)
        if count < BLOCK:
            return
        waiting = {name: np.concatenate([rows[name] for rows in self._waiting]) for name in _CALIBRATION}
        whole = count - count % BLOCK
        batch = self._batch(waiting)
        for start in range(0, whole, BLOCK):
            self._absorb_block(batch.block(start))
        self._waiting = [{name: values[whole:] for name, values in waiting.items()}]

    def _absorb_block(self, batch: _Batch) -> None:
        score = np.maximum.reduce([(batch.took - mean) / spread for mean, spread in self._centres(batch)])
        decay = 0.5 ** (BLOCK / LIMIT_HALF_LIFE)
        self._histogram = decay * self._histogram + np.histogram(np.clip(score, _EDGES[0], _EDGES[-1]), _EDGES)[0]
        self.alarm = self._limit(self.alarm_budget, ALARM_PRIOR)
        self.slow = self._limit(SLOW_SHARE, SLOW_PRIOR)
        self._forecast.absorb(batch, (batch.took - batch.median) / batch.scale)
        self._sizes.absorb(batch.size, batch.took)
        self._norm.absorb(batch, batch.took - self._size_mean(batch))

    def _limit(self, share: float, prior: float) -> float:
        """The score that `share` of the transfers pass, with the prior's weight."""
        seen = float(self._histogram.sum())
        above = np.cumsum(self._histogram[::-1])[::-1]
        place = int(np.searchsorted(-above, -share * seen))
        measured = float(_EDGES[min(place + 1, len(_EDGES) - 1)])
        return (seen * measured + LIMIT_PRIOR_WEIGHT * prior) / (seen + LIMIT_PRIOR_WEIGHT)

    def _centres(self, batch: _Batch) -> list[tuple[Floats, Floats]]:
        """Where forecast and norm expect log1p(duration), and how far transfers stray from there."""
        mean, spread = self._forecast.centre(batch)
        usual, stray = self._norm.centre(batch)
        return [
            (batch.median + batch.scale * mean, batch.scale * np.maximum(spread, SPREAD_FLOOR)),
            (self._size_mean(batch) + usual, np.maximum(stray, SPREAD_FLOOR)),
        ]

    def _size_mean(self, batch: _Batch) -> Floats:
        # The forecast is all that is known of a size that was never seen.
        return self._sizes.shrunk(batch.size, batch.median, np.ones(len(batch.size)))[0]

    def _batch(self, rows: Columns) -> _Batch:
        source, destination = self._rses.learn(rows["source"]), self._rses.learn(rows["destination"])
        size = np.log(np.maximum(np.nan_to_num(rows["bytes"]), 1.0))
        median = rows["q50"]
        return _Batch(
            everything=np.zeros(len(median), dtype=np.int64),
            source=source,
            destination=destination,
            link=self._links.learn((source << 32) | destination),
            size=np.digitize(size, _SIZE_EDGES).astype(np.int64),
            took=np.log1p(rows["ended_at"] - rows["started_at"]),
            median=median,
            scale=np.maximum((rows["q95"] - median) / 1.645, SCALE_FLOOR),
        )


def _columns(rows: Rows, which: Ints | slice) -> Columns:
    """What is judged and learned by, of some of the rows."""
    return {
        name: np.asarray(rows[name], dtype=object if name in {"source", "destination"} else np.float64)[which]
        for name in _CALIBRATION
    }


def _seconds(log_seconds: Floats) -> Floats:
    """Seconds of log1p(seconds), bounded: beyond a fortnight they say nothing more."""
    seconds: Floats = np.expm1(np.minimum(log_seconds, 14.0))
    return seconds
