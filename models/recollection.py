"""What a key's last completions say of a transfer that starts: the arithmetic of `models.features`, compiled."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from models.history import Floats, Ints

RECENT: Final = 16  # completions for what is of the moment
FAR: Final = 64  # completions for what depends on size
SIZE_REACH: Final = np.float32(0.7)  # how far apart in log bytes two transfers are still alike
AGE_REACH_S: Final = np.float32(900.0)  # over how many seconds a completion loses most of its weight
FADING: Final = np.float32(0.8)  # what a completion weighs beside the next newer one
SLOPE: Final = np.float32(0.6)  # of log duration over log bytes, before anything is known
SLOPE_FAITH: Final = np.float32(4.0)  # how much spread of sizes it takes to believe in another
UNLIKE: Final = np.float32(3.0)  # how far apart sizes are taken to be where one is not known

STATISTICS: Final = (
    "count",
    "load",
    "age",
    "mean",
    "spread",
    "fading",
    "alike",
    "alikeness",
    "alike_now",
    "least",
    "most",
    "size",
    "line",
    "line_spread",
    "pace",
)


@njit(cache=True, nogil=True, fastmath=False)
def recollect(
    first: Ints,
    stop: Ints,
    before: Ints,
    slots: Ints,
    log_duration: Floats,
    log_bytes: Floats,
    ended_ms: Ints,
    at_ms: Ints,
    size: Floats,
) -> Floats:
    """Statistics of the completions in places `first` to before `stop` [n] of a timeline; float32 [n, STATISTICS].

    `slots` are those of the timeline; the next three arrays go by slot. `before` is where the load's window begins, `at_ms` and
    `size` (log1p bytes, NaN unknown) are those of the transfers that start. NaN where there is no completion.
    """
    count = len(stop)
    table = np.full((count, len(STATISTICS)), np.nan, dtype=np.float32)
    one = np.float32(1.0)
    tiny = np.float32(1e-9)
    for i in range(count):
        seen = min(stop[i] - first[i], FAR)
        if seen <= 0:
            continue
        recent = min(seen, RECENT)
        own = size[i]
        total = np.float32(0.0)
        squares = np.float32(0.0)
        fade = one
        fades = np.float32(0.0)
        fading = np.float32(0.0)
        alike = np.float32(0.0)
        alikes = np.float32(0.0)
        now = np.float32(0.0)
        nows = np.float32(0.0)
        least = np.float32(np.inf)
        most = np.float32(-np.inf)
        sizes = np.float32(0.0)
        moved = np.float32(0.0)
        w = np.float32(0.0)
        wx = np.float32(0.0)
        wy = np.float32(0.0)
        wxx = np.float32(0.0)
        wxy = np.float32(0.0)
        wyy = np.float32(0.0)
        age = np.float32(0.0)
        base = log_bytes[slots[stop[i] - 1]]
        if np.isnan(base):
            base = np.float32(0.0)
        for k in range(seen):
            slot = slots[stop[i] - 1 - k]
            took = log_duration[slot]
            other = log_bytes[slot]
            age = np.float32(max(at_ms[i] - ended_ms[slot], 0)) * np.float32(0.001)
            apart = abs(other - own)
            if np.isnan(apart):
                apart = UNLIKE
            likeness = np.exp(-apart / SIZE_REACH)
            if k < recent:
                if k == 0:
                    table[i, 2] = np.log1p(age)
                total += took
                squares += took * took
                fading += fade * took
                fades += fade
                fade *= FADING
                fresh = likeness * np.exp(-age / AGE_REACH_S)
                now += fresh * took
                nows += fresh
                least = min(least, took)
                most = max(most, took)
                if not np.isnan(other):
                    sizes += other
                    moved += np.expm1(other)
                if k == recent - 1:
                    table[i, 14] = np.log1p(moved / max(age, one))
            alike += likeness * took
            alikes += likeness
            if not np.isnan(other):
                x = other - base
                g = one / (one + np.float32(k) * np.float32(1.0 / 16.0))
                w += g
                wx += g * x
                wy += g * took
                wxx += g * x * x
                wxy += g * x * took
                wyy += g * took * took
        mean = total / np.float32(recent)
        table[i, 0] = np.log1p(np.float32(seen))
        table[i, 1] = np.log1p(np.float32(stop[i] - max(before[i], first[i])))
        table[i, 3] = mean
        table[i, 4] = np.sqrt(max(squares / np.float32(recent) - mean * mean, np.float32(0.0)))
        table[i, 5] = fading / fades
        table[i, 6] = (alike + tiny * mean) / (alikes + tiny)
        table[i, 7] = np.log(alikes + np.float32(1e-3))
        table[i, 8] = (now + tiny * mean) / (nows + tiny)
        table[i, 9] = least
        table[i, 10] = most
        table[i, 11] = sizes / np.float32(recent)
        if w > 0 and not np.isnan(own):
            mx = wx / w
            my = wy / w
            sxx = max(wxx - w * mx * mx, np.float32(0.0))
            sxy = wxy - w * mx * my
            syy = max(wyy - w * my * my, np.float32(0.0))
            slope = (sxy + SLOPE_FAITH * SLOPE) / (sxx + SLOPE_FAITH)
            table[i, 12] = my + slope * (own - base - mx)
            left = syy - np.float32(2.0) * slope * sxy + slope * slope * sxx
            table[i, 13] = np.sqrt(max(left, np.float32(0.0)) / w)
    return table
