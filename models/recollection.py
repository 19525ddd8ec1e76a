"""What a key's last completions say of a transfer that starts: the arithmetic of `models.features`, compiled."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from models.history import Floats, Ints

STATISTICS: Final = (
    "count",
    "load",
    "age",
    "mean",
    "spread",
    "fading",  # mean of the last ones, the newest first of all
    "least",
    "most",
    "size",
    "pace",
    "alike",  # mean of those of like size
    "alikeness",
    "alike_now",  # and recent ones
    "line",  # what a line through sizes and durations says for this size
    "line_spread",
)
_MOMENT: Final = 2  # the first statistic that `_moment` gives
_BY_SIZE: Final = 10  # the first one that `_by_size` gives

_RECENT: Final = 16  # completions for what is of the moment
_FAR: Final = 64  # completions for what depends on size
_SIZE_REACH: Final = np.float32(0.7)  # how far apart in log bytes two transfers are still alike
_AGE_REACH_S: Final = np.float32(900.0)  # over how many seconds a completion loses most of its weight
_FADING: Final = np.float32(0.8)  # what a completion weighs beside the next newer one
_UNLIKE: Final = np.float32(3.0)  # how far apart sizes are taken to be where one is not known
_SLOPE: Final = np.float32(0.6)  # of log duration over log bytes, before anything is known
_FAITH: Final = np.float32(4.0)  # how much spread of sizes it takes to believe in another
_NOTHING: Final = np.float32(0.0)
_TINY: Final = np.float32(1e-9)  # weighs in only where nothing is alike: then the mean is all there is


@njit(cache=True, nogil=True)
def recollect(
    first: Ints,
    stop: Ints,
    load: Ints,
    slots: Ints,
    log_duration: Floats,
    log_bytes: Floats,
    ended_ms: Ints,
    at_ms: Ints,
    size: Floats,
) -> Floats:
    """Statistics of the completions in places `first` to before `stop` [n] of a timeline; float32 [n, STATISTICS].

    `slots` are those of the timeline; the next three arrays go by slot. `load` [n] is the place of the first completion within
    the load's window; `at_ms` and `size` (log1p bytes, NaN unknown) are of the transfers that start. NaN where there is no
    completion.
    """
    table = np.full((len(stop), len(STATISTICS)), np.nan, dtype=np.float32)
    for i in range(len(stop)):
        seen = min(stop[i] - first[i], _FAR)
        if seen > 0:
            mine = slots[stop[i] - seen : stop[i]]
            table[i, 0] = np.log1p(np.float32(seen))
            table[i, 1] = np.log1p(np.float32(stop[i] - max(load[i], first[i])))
            _moment(mine[-_RECENT:], log_duration, log_bytes, ended_ms, at_ms[i], table[i, _MOMENT:])
            _by_size(mine, log_duration, log_bytes, ended_ms, at_ms[i], size[i], table[i, _BY_SIZE:])
    return table


@njit(cache=True, nogil=True)
def _moment(slots: Ints, log_duration: Floats, log_bytes: Floats, ended_ms: Ints, at_ms: int, table: Floats) -> None:
    """Age of the last one, mean, spread, fading, least, most, size and pace of the last ones, the oldest first."""
    count = np.float32(len(slots))
    total = squares = fading = fades = sizes = moved = _NOTHING
    least, most = np.float32(np.inf), _NOTHING
    for slot in slots:
        took, bytes_ = log_duration[slot], log_bytes[slot]
        total += took
        squares += took * took
        fading = _FADING * fading + took
        fades = _FADING * fades + np.float32(1.0)
        least, most = min(least, took), max(most, took)
        if not np.isnan(bytes_):
            sizes += bytes_
            moved += np.exp(bytes_) - np.float32(1.0)
    mean = total / count
    table[0] = np.log1p(_age(ended_ms[slots[-1]], at_ms))
    table[1] = mean
    table[2] = np.sqrt(max(squares / count - mean * mean, _NOTHING))
    table[3] = fading / fades
    table[4], table[5] = least, most
    table[6] = sizes / count
    table[7] = np.log1p(moved / max(_age(ended_ms[slots[0]], at_ms), np.float32(1.0)))


@njit(cache=True, nogil=True)
def _by_size(
    slots: Ints,
    log_duration: Floats,
    log_bytes: Floats,
    ended_ms: Ints,
    at_ms: int,
    size: np.float32,
    table: Floats,
) -> None:
    """What those of like size took, how alike they are, what recent ones of them took; a line, and how far it is off."""
    alike = alikes = now = nows = total = _NOTHING
    w = wx = wy = wxx = wxy = wyy = _NOTHING
    for k in range(len(slots)):
        slot = slots[len(slots) - 1 - k]
        took, x = log_duration[slot], log_bytes[slot] - size
        total += took
        apart = _UNLIKE if np.isnan(x) else abs(x)
        likeness = np.exp(-apart / _SIZE_REACH)
        alike += likeness * took
        alikes += likeness
        fresh = likeness * np.exp(-_age(ended_ms[slot], at_ms) / _AGE_REACH_S)
        now += fresh * took
        nows += fresh
        if not np.isnan(x):
            weight = np.float32(1.0) / (np.float32(1.0) + np.float32(k) / np.float32(_RECENT))
            w += weight
            wx += weight * x
            wy += weight * took
            wxx += weight * x * x
            wxy += weight * x * took
            wyy += weight * took * took
    mean = total / np.float32(len(slots))
    table[0] = (alike + _TINY * mean) / (alikes + _TINY)
    table[1] = np.log(alikes + np.float32(1e-3))
    table[2] = (now + _TINY * mean) / (nows + _TINY)
    if w > _NOTHING:
        mx, my = wx / w, wy / w
        sxx, sxy, syy = wxx - w * mx * mx, wxy - w * mx * my, wyy - w * my * my
        slope = (sxy + _FAITH * _SLOPE) / (max(sxx, _NOTHING) + _FAITH)
        table[3] = my - slope * mx
        table[4] = np.sqrt(max(syy - np.float32(2.0) * slope * sxy + slope * slope * sxx, _NOTHING) / w)


@njit(cache=True, nogil=True)
def _age(ended_ms: int, at_ms: int) -> np.float32:
    """Seconds."""
    return np.float32(max(at_ms - ended_ms, 0)) * np.float32(0.001)
