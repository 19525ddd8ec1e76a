"""A measure over all runs, and how far it would be off if other seeds had been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

RESAMPLES: Final = 2000
INTERVAL: Final = (2.5, 97.5)  # percentiles

Measure = Mapping[str, float | int | None]
UNSAID: Final[Measure] = {"mean": None, "low": None, "high": None, "n": 0}


def interval(parts: Sequence[Sequence[float]], middle: Callable[[Any], Any] = np.mean) -> Measure:
    """`middle` of the values of all runs together, between which it lies when the runs are drawn anew, and how many values
    there are. `parts` are the values of each run; what is not finite is None.
    """
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
    n = sum(map(len, arrays))
    if not n:
        return UNSAID
    draws = np.random.default_rng(0).integers(len(arrays), size=(RESAMPLES, len(arrays)))
    sampled = (np.concatenate([arrays[run] for run in row]) for row in draws)
    spread = np.array([middle(sample) for sample in sampled if len(sample)])
    low, high = np.percentile(spread, INTERVAL, method="nearest")
    return {"mean": _sayable(middle(np.concatenate(arrays))), "low": _sayable(low), "high": _sayable(high), "n": n}


def shown(measure: Measure) -> str:
    """The same for people, in a few characters."""
    if not measure["n"]:
        return "-"
    mean, low, high = (
        "never" if value is None else f"{value:.4g}" for value in (measure["mean"], measure["low"], measure["high"])
    )
    return f"{mean} [{low}, {high}]"


def _sayable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
