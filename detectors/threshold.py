"""How long a transfer may take before it counts as anomalous: the forecast's own scale, calibrated online.

A residual is how many of the forecast's own scales a transfer lies above its median, in log duration:

    z = (log1p(duration) - q50) / scale,   scale = (q95 - q50) / 1.645

Links differ in how far they stray from their forecast, and most are seen too rarely to say how far. So a link's mean
and spread of z shrink to those of its source and destination, and these to those of all (empirical Bayes with a
prior worth `PRIOR_WEIGHT` transfers; Efron and Morris 1973). What is left, r = (z - mean) / spread, is alike on all
links, and the quantile 1 - budget of r over all of them is the limit that keeps the alarm budget. Transfers inside open
incidents do not calibrate: a threshold that learns to sleep through a fault is worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

PRIOR_WEIGHT = 16.0  # transfers that a parent's statistics are worth against a child's own
MEMORY = 256.0  # transfers after which a link's older residuals count for little
LIMIT_PRIOR = 4.0  # limit on r before anything was seen: one in 1,000 of the heavy-tailed residuals of real transfers
LIMIT_PRIOR_WEIGHT = 2_000.0
LIMIT_HALF_LIFE = 100_000.0  # transfers
SCALE_FLOOR = 0.08  # in log seconds: whole seconds cannot be told apart more finely than this
WORTH_S = 60.0  # nobody is called for less than this above the median ...
WORTH_RATIO = 1.5  # ... nor for less than this times the median
MSS_BYTES = 1460
STREAMS = 8  # parallel TCP streams that a transfer is assumed to have
NETWORK_SLACK = 2.0  # a transfer may take this many times what the measured network allows
BLOCK = 256  # transfers that are learned from at once

_CALIBRATION = ("source", "destination", "started_at", "ended_at", "q50", "q95")
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


def network_seconds(ended: pd.DataFrame) -> Floats:
    """Seconds that the path needs at least by what perfSONAR last said; 0 where nothing is known. Shape (n,)."""
    size = np.nan_to_num(ended["bytes"].to_numpy(np.float64))
    rate = mathis_rate(ended["path_loss"].to_numpy(np.float64), 2.0 * ended["path_delay_ms"].to_numpy(np.float64))
    measured = ended["path_throughput_bps"].to_numpy(np.float64) / 8.0
    allowed = np.fmin(rate, measured)
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds: Floats = np.nan_to_num(size / allowed, nan=0.0, posinf=0.0)
    return seconds


class _Group:
    """Running mean and spread of the residuals of each key of one kind."""

    def __init__(self) -> None:
        self._table = pd.DataFrame({"count": [], "mean": [], "spread": []}, dtype=np.float64)

    def absorb(self, keys: pd.Series, z: Floats) -> None:
        batch = pd.DataFrame({"n": 1.0, "mean": z}).groupby(keys.to_numpy()).agg({"n": "sum", "mean": "mean"})
        old = self._table.reindex(batch.index)
        known = old["count"].fillna(0.0)
        weight = np.maximum(batch["n"] / (known + batch["n"]), 1.0 - (1.0 - 1.0 / MEMORY) ** batch["n"])
        mean = old["mean"].fillna(0.0) * (1.0 - weight) + batch["mean"] * weight
        away = pd.Series(np.abs(z - keys.map(mean).to_numpy(np.float64))).groupby(keys.to_numpy()).mean()
        spread = old["spread"].fillna(away) * (1.0 - weight) + away * weight
        new = pd.DataFrame({"count": np.minimum(known + batch["n"], MEMORY), "mean": mean, "spread": spread})
        self._table = pd.concat([self._table.drop(index=new.index, errors="ignore"), new])

    def shrunk(self, keys: pd.Series, mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
        """Means and spreads of `keys`, shrunk to their parents' `mean` and `spread`."""
        own = self._table.reindex(keys.to_numpy()).fillna(0.0).to_numpy(np.float64)
        share = own[:, 0] / (own[:, 0] + PRIOR_WEIGHT)
        return share * own[:, 1] + (1.0 - share) * mean, share * own[:, 2] + (1.0 - share) * spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the threshold says of ended transfers; every array has shape (n,)."""

    threshold_s: Floats
    expected_s: Floats
    network_s: Floats
    flagged: npt.NDArray[np.bool_]


class DynamicThreshold:
    """The threshold of every link. A fold over observed rows: `judge` a batch, then `absorb` it."""

    def __init__(self, *, alarm_budget: float) -> None:
        self.alarm_budget = alarm_budget
        self.reset()

    def reset(self) -> None:
        self._links, self._sources, self._destinations = _Group(), _Group(), _Group()
        self._all = _Group()
        self._histogram = np.zeros(len(_EDGES) - 1)
        self._waiting: list[pd.DataFrame] = []
        self.limit = LIMIT_PRIOR

    def judge(self, done: pd.DataFrame) -> Verdicts:
        """`done`: finished transfers with quantiles and path columns; those without a forecast are never flagged."""
        median, scale = _median_and_scale(done)
        mean, spread = self._centre(done)
        by_forecast = np.expm1(np.minimum(median + scale * (mean + spread * self.limit), 14.0))
        expected = np.expm1(median)
        network = network_seconds(done)
        worth = np.maximum(expected + WORTH_S, expected * WORTH_RATIO)
        threshold = np.maximum.reduce([by_forecast, worth, NETWORK_SLACK * network])
        threshold = np.minimum(threshold, fts_timeout(done["bytes"].to_numpy(np.float64)))
        seconds = (done["ended_at"] - done["started_at"]).to_numpy(np.float64)
        flagged = np.greater(seconds, threshold) & np.isfinite(threshold)
        return Verdicts(threshold_s=threshold, expected_s=expected, network_s=network, flagged=flagged)

    def absorb(self, observed: pd.DataFrame) -> None:
        """Learn from the observed rows that calibrate, in whole blocks, so that it does not matter how they were cut."""
        rows = observed.loc[observed["calibrates"] & observed["q50"].notna(), list(_CALIBRATION)]
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) < BLOCK:
            return
        waiting = pd.concat(self._waiting, ignore_index=True)
        whole = len(waiting) - len(waiting) % BLOCK
        for start in range(0, whole, BLOCK):
            self._absorb_block(waiting.iloc[start : start + BLOCK])
        self._waiting = [waiting.iloc[whole:]]

    def _absorb_block(self, rows: pd.DataFrame) -> None:
        median, scale = _median_and_scale(rows)
        z = (np.log1p((rows["ended_at"] - rows["started_at"]).to_numpy(np.float64)) - median) / scale
        mean, spread = self._centre(rows)
        r = (z - mean) / spread
        decay = 0.5 ** (BLOCK / LIMIT_HALF_LIFE)
        self._histogram = decay * self._histogram + np.histogram(np.clip(r, _EDGES[0], _EDGES[-1]), _EDGES)[0]
        clipped = np.clip(z, -4.0, 4.0)
        for group, keys in self._groups(rows):
            group.absorb(keys, clipped)
        self.limit = self._new_limit()

    def _new_limit(self) -> float:
        seen = float(self._histogram.sum())
        above = np.cumsum(self._histogram[::-1])[::-1]
        place = int(np.searchsorted(-above, -self.alarm_budget * seen))
        measured = float(_EDGES[min(place + 1, len(_EDGES) - 1)])
        return (seen * measured + LIMIT_PRIOR_WEIGHT * LIMIT_PRIOR) / (seen + LIMIT_PRIOR_WEIGHT)

    def _groups(self, rows: pd.DataFrame) -> list[tuple[_Group, pd.Series]]:
        everything = pd.Series("all", index=rows.index)
        link = rows["source"] + ">" + rows["destination"]
        return [
            (self._all, everything),
            (self._sources, rows["source"]),
            (self._destinations, rows["destination"]),
            (self._links, link),
        ]

    def _centre(self, rows: pd.DataFrame) -> tuple[Floats, Floats]:
        (_, everything), (_, source), (_, destination), (_, link) = self._groups(rows)
        n = len(rows)
        mean, spread = self._all.shrunk(everything, np.zeros(n), np.ones(n))
        of_source = self._sources.shrunk(source, mean, spread)
        of_destination = self._destinations.shrunk(destination, mean, spread)
        parent = [(a + b) / 2.0 for a, b in zip(of_source, of_destination, strict=True)]
        return self._links.shrunk(link, parent[0], parent[1])


def _median_and_scale(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    median = rows["q50"].to_numpy(np.float64)
    scale = np.maximum((rows["q95"].to_numpy(np.float64) - median) / 1.645, SCALE_FLOOR)
    return median, scale
