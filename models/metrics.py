"""How good forecasts are, and the two baselines that any forecast must beat on the same transfers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.history import History, Pile
from models.registry import QUANTILES

Table = NDArray[np.float64]

LINK_SAMPLE = 50
NEAR_S = 180.0

# What a baseline says before anything has ended: a minute, give or take what is common on a grid.
_NOTHING_KNOWN = np.log1p([5.0, 20.0, 60.0, 180.0, 1800.0])
_WIDTH = 1 / 400  # of a bin, in log1p seconds
_BINS = 8_000
_CHUNK = 16_384
_NEWS = 1.005  # the constant is taken anew when so many times more transfers have ended


def forecast_metrics(actual_s: Table, quantiles_log1p: Table) -> dict[str, float]:
    """Errors of forecasts [n, 5] of durations [n] in seconds; the median is the point forecast. NaN throughout for n = 0."""
    count = len(actual_s)
    if not count:
        nothing = ("mae_s", "median_ae_s", "median_ape", "mae_log1p", "within_180s", "pinball", "coverage90")
        return {"n": 0, **dict.fromkeys(nothing, float("nan"))}
    actual = np.log1p(actual_s)
    error_s = np.abs(np.expm1(quantiles_log1p[:, 2]) - actual_s)
    inside = (quantiles_log1p[:, 0] <= actual) & (actual <= quantiles_log1p[:, 4])
    return {
        "n": count,
        "mae_s": float(error_s.mean()),
        "median_ae_s": float(np.median(error_s)),
        "median_ape": float(np.median(error_s / np.maximum(actual_s, 1.0))),
        "mae_log1p": float(np.abs(quantiles_log1p[:, 2] - actual).mean()),
        "within_180s": float((error_s <= NEAR_S).mean()),
        "pinball": pinball(actual, quantiles_log1p),
        "coverage90": float(inside.mean()),
    }


def pinball(actual_log1p: Table, quantiles_log1p: Table) -> float:
    """Mean over transfers [n] of their quantile losses, in log1p seconds."""
    return float(pinball_losses(actual_log1p, quantiles_log1p).mean())


def pinball_losses(actual_log1p: Table, quantiles_log1p: Table) -> Table:
    """The quantile loss of each transfer [n], the mean over its quantiles [n, 5], in log1p seconds."""
    beyond = actual_log1p[:, None] - quantiles_log1p
    levels = np.array(QUANTILES)
    return np.asarray(np.maximum(levels * beyond, (levels - 1) * beyond).mean(axis=1), dtype=np.float64)


def surprise(actual_log1p: Table, quantiles_log1p: Table) -> Table:
    """How many forecast scales each transfer [n] was slower than its median: near 1.64 at its 95 % quantile."""
    scale = np.maximum((quantiles_log1p[:, 4] - quantiles_log1p[:, 2]) / 1.645, 0.05)
    return np.asarray((actual_log1p - quantiles_log1p[:, 2]) / scale, dtype=np.float64)


class Baselines:
    """`constant` (all that has ended so far) and `link_median` (the link's last 50), each as of a transfer's start.

    A fold over finished transfers in stream order, as the forecaster is.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._history = History()
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self._seen_from = 0  # the latest time from which all that was counted may be seen
        self._latest_start = 0
        self._times = Pile(dtype=np.int64)  # when the constant was taken anew, and what it was
        self._constants = Pile((len(QUANTILES),), dtype=np.float64)
        self._next_news = 1

    def absorb(self, finished: pd.DataFrame) -> None:
        """Fold finished transfers in, without forecasting them."""
        self.score(finished)

    def score(self, finished: pd.DataFrame) -> dict[str, Table]:
        """Quantiles of log1p seconds [n, 5] by baseline for finished transfers, which are absorbed."""
        parts = [self._score(finished.iloc[i : i + _CHUNK]) for i in range(0, max(len(finished), 1), _CHUNK)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _score(self, finished: pd.DataFrame) -> dict[str, Table]:
        coded = self._history.code(finished, learn=True)
        self._history.absorb(coded)
        self._count(coded.log_duration, coded.started_ms, coded.ended_ms)
        constant = self._constant(coded.started_ms)
        timeline = self._history.timelines["link"]
        slots, there = timeline.last(timeline.before(coded.link, coded.started_ms), LINK_SAMPLE)
        enough = there.sum(axis=1) >= 2
        sample = np.where(there[enough], self._history.log_duration[slots[enough]], np.nan).astype(np.float64)
        link = constant.copy()
        link[enough] = _quantiles_of_rows(sample)
        return {"constant": constant, "link_median": link}

    def _count(
        self, log_duration: NDArray[np.float32], started_ms: NDArray[np.int64], ended_ms: NDArray[np.int64]
    ) -> None:
        """Count durations in stream order, and take the constant anew wherever enough have been added."""
        if not len(log_duration):
            return
        starts = np.maximum(np.maximum.accumulate(started_ms), self._latest_start)
        seen = np.maximum(np.maximum.accumulate(np.maximum(ended_ms, starts)), self._seen_from)
        self._latest_start, self._seen_from = int(starts[-1]), int(seen[-1])
        bins = np.minimum((log_duration.astype(np.float64) / _WIDTH).round().astype(np.int64), _BINS - 1)
        counted, total = 0, len(self._history) - len(bins)
        while self._next_news <= total + len(bins):
            upto = self._next_news - total
            np.add.at(self._bins, bins[counted:upto], 1)
            counted = upto
            self._times.grow(1)[0] = seen[upto - 1]
            self._constants.grow(1)[0] = self._quantiles(self._next_news)
            self._next_news = max(self._next_news + 1, int(self._next_news * _NEWS))
        np.add.at(self._bins, bins[counted:], 1)

    def _quantiles(self, total: int) -> Table:
        wanted = np.array(QUANTILES) * (total - 1)
        places = np.searchsorted(np.cumsum(self._bins), np.floor(wanted).astype(np.int64), side="right")
        return np.asarray(places * _WIDTH, dtype=np.float64)

    def _constant(self, started_ms: NDArray[np.int64]) -> Table:
        taken = np.searchsorted(self._times.rows, started_ms, side="left") - 1
        known = np.vstack([_NOTHING_KNOWN, self._constants.rows])
        return known[taken + 1]


def _quantiles_of_rows(sample: Table) -> Table:
    """Quantiles of what is not NaN in each row [n, k], at least one; linear between values, as numpy's; [n, 5]."""
    rows = np.sort(sample, axis=1)
    at = np.array(QUANTILES) * ((~np.isnan(rows)).sum(axis=1, keepdims=True) - 1)
    below = np.floor(at).astype(np.int64)
    low = np.take_along_axis(rows, below, axis=1)
    high = np.take_along_axis(rows, np.ceil(at).astype(np.int64), axis=1)
    return np.asarray(low + (high - low) * (at - below), dtype=np.float64)
