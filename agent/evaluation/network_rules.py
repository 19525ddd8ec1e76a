"""The rules that operators alarm by today, for comparison: each looks at one quantity of one pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.findings import Trouble

Floats = NDArray[np.float64]

HOUR_S, DAY_S = 3600.0, 86_400.0
MEAN_LOSS = 0.02
FAR, CHANGE = 1.9, 0.5  # standard deviations, and share of the mean
MADS = 3.0
QUIET_S = 8 * HOUR_S  # while it holds again and again, an alarm is one
FEWEST = 3  # tests or hours to compare with


class Rule(Protocol):
    """Alarms when its condition begins to hold."""

    @property
    def trouble(self) -> Trouble:
        """What it calls what it finds."""

    @property
    def memory_s(self) -> float:
        """How long before a moment it looks."""

    def alarms(self, at: Floats, value: Floats, *, since: float) -> list[float]:
        """The times at which it begins to hold, of those not before `since`; `at` and `value` of shape (n,), in order."""


class MeanLoss:
    """The mean of 24 hours is 2 % or more."""

    trouble = Trouble.LOSS
    memory_s = 2 * DAY_S

    def alarms(self, at: Floats, value: Floats, *, since: float) -> list[float]:
        whole = np.concatenate([[0.0], np.cumsum(value)])
        first = np.searchsorted(at, at - DAY_S, side="right")
        place = np.arange(len(at))
        mean = (whole[place + 1] - whole[first]) / (place + 1 - first)
        return _beginnings(at, mean >= MEAN_LOSS - 1e-12, since)


class FarThroughput:
    """A test lies 1.9 standard deviations and half of the mean away from those of the 21 days before."""

    trouble = Trouble.THROUGHPUT
    memory_s = 43 * DAY_S

    def alarms(self, at: Floats, value: Floats, *, since: float) -> list[float]:
        far = np.zeros(len(at), dtype=np.bool_)
        for place in range(len(at)):
            past = value[np.searchsorted(at, at[place] - 21 * DAY_S) : place]
            if len(past) >= FEWEST:
                away = abs(value[place] - past.mean())
                far[place] = away >= FAR * past.std() and away >= CHANGE * past.mean()
        return _beginnings(at, far, since)


class HourlyDelay:
    """The mean of an hour lies more than 3 MAD away from the median of those of the 30 days before."""

    trouble = Trouble.DELAY
    memory_s = 31 * DAY_S

    def alarms(self, at: Floats, value: Floats, *, since: float) -> list[float]:
        hour, place = np.unique(np.floor(at / HOUR_S), return_inverse=True)
        mean = np.bincount(place, value) / np.bincount(place)
        ends = (hour + 1.0) * HOUR_S  # it is known at its end
        far = np.zeros(len(hour), dtype=np.bool_)
        for one in range(int(np.searchsorted(ends, since - QUIET_S)), len(hour)):
            past = mean[np.searchsorted(hour, hour[one] - 720) : one]
            if len(past) >= FEWEST:
                middle = np.median(past)
                far[one] = abs(mean[one] - middle) > MADS * np.median(np.abs(past - middle))
        return _beginnings(ends, far, since)


RULES: Sequence[Rule] = (MeanLoss(), FarThroughput(), HourlyDelay())


def _beginnings(at: Floats, holds: NDArray[np.bool_], since: float) -> list[float]:
    when = at[holds]
    begun = np.diff(when, prepend=-np.inf) > QUIET_S
    found: list[float] = when[begun & (when >= since)].tolist()
    return found
