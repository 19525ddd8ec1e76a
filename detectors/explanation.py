"""Why a transfer was judged as it was: each ingredient of its limits in numbers. Logarithms are natural, of 1 + seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from detectors.residuals import Part
from models.columns import Rows


class By(StrEnum):
    """What sets a limit."""

    FORECAST = "forecast"
    NORM = "norm"
    WORTH = "worth"
    LOSS = "loss"
    THROUGHPUT = "throughput"
    FTS_TIMEOUT = "fts-timeout"
    ALARM = "alarm"  # slow is never more than what raises an alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What one of the two expects of a transfer: the forecast, or the norm (what transfers of this size take on the link)."""

    by: By
    median_s: float  # before residuals are taken into account: the forecast's median, or the mean of the size
    scale: float  # a residual of 1 is so many log seconds
    mean: float  # of the residuals on the link, as shrunk
    spread: float
    parts: tuple[Part, ...]  # what the two are made of
    expected_s: float
    slow_s: float  # where the limits of the score lie
    alarm_s: float
    score: float  # of the transfer: spreads above what was expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one kind of perfSONAR's measurements allows."""

    by: By
    readings: int  # 0: nothing is known, and nothing is allowed
    age_s: float | None  # of the oldest that is needed
    weight: float
    needs_s: float  # what the path needs at least; 0 where it sets no bound
    raised_s: float  # the limit of the alarm as raised by this


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that the limits of one transfer are made of. Whatever ends in _s is seconds."""

    source: str
    destination: str
    bytes: float | None
    duration_s: float
    q05_s: float | None  # the forecast's quantiles
    q50_s: float
    q95_s: float
    expectations: tuple[Expectation, Expectation]
    alarm_budget: float
    alarm: float  # the limit of the score for all links
    link_alarm: float  # ... and for this one
    tail_ratio: float  # how many times the usual share of its transfers lies in the tail, as shrunk
    slow_limit: float  # of the score
    worth_s: float  # no alarm for less
    slow_worth_s: float  # not slow for less
    loss: float | None  # share, mean of the last hour
    delay_ms: float | None
    rtt_ms: float | None
    throughput_bps: float | None  # mean of the last day
    measured: tuple[Measured, Measured]
    timeout_s: float  # of FTS
    network_s: float
    threshold_s: float
    threshold_by: By
    slow_s: float
    slow_by: By
    flagged: bool
    slow: bool


def known(rows: Rows, *names: str) -> float | None:
    """The first of these columns that the one row has a number in."""
    for name in names:
        if name in rows:
            number = float(np.asarray(rows[name], dtype=np.float64)[0])
            if np.isfinite(number):
                return number
    return None


def medians(rows: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    """The medians of what is known of some transfers, by name, in seconds; what is known of none of them is left out.

    Every array has shape (n,).

    >>> medians({"expected_s": np.array([10.0, 30.0]), "network_s": np.array([0.0, 8.0]), "slow_s": np.array([np.nan])})
    {'expected_s': 20.0, 'network_s': 8.0}
    """
    found = {}
    for name, column in rows.items():
        values = np.asarray(column, dtype=np.float64)
        told = values[np.isfinite(values) & (values > 0)]  # a path of which nothing is known needs 0 s
        if len(told):
            found[name] = round(float(np.median(told)), 1)
    return found
