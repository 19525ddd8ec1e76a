"""Random numbers by name: each is a function of the seed and of what it is drawn for, and of nothing that happened before.

So a call to the grid, or a fault, changes what it touches and leaves every other draw as it was: the same transfer has the
same size, the same luck and the same delays with and without it.
"""

from __future__ import annotations

import bisect
import enum
import math
from collections.abc import Sequence
from statistics import NormalDist

_MASK = (1 << 64) - 1
_NORMAL = NormalDist()


class For(enum.IntEnum):
    """What a number is drawn for: the first part of its name."""

    TOPOLOGY = 1
    RULE = 2
    FILE = 3
    REQUEST = 4
    DELETION = 5
    FAULT = 6
    PROBE = 7
    TICKET = 8
    DELIVERY = 9


def mix(state: int, *keys: int) -> int:
    """64 well-mixed bits out of whole numbers: a multiplication and a fold for each key, splitmix64's finaliser at the end."""
    for key in keys:
        state = ((state ^ key) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        state ^= state >> 32
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    return state ^ (state >> 27)


class Draws:
    """Draws of one seed. `keys` name the draw; equal names give equal numbers."""

    def __init__(self, seed: int) -> None:
        self._state = mix(0, seed)

    def bits(self, *keys: int) -> int:
        return mix(self._state, *keys)

    def hex(self, *keys: int) -> str:
        """32 hexadecimal digits, as Rucio writes its ids."""
        first = mix(self._state, *keys)
        return f"{first:016x}{mix(first, 1):016x}"

    def uniform(self, *keys: int) -> float:
        """Between 0 and 1, neither of them included."""
        return ((mix(self._state, *keys) >> 12) + 0.5) / (1 << 52)

    def between(self, low: float, high: float, *keys: int) -> float:
        return low + (high - low) * self.uniform(*keys)

    def exponential(self, mean: float, *keys: int) -> float:
        return -mean * math.log(self.uniform(*keys))

    def normal(self, *keys: int) -> float:
        return _NORMAL.inv_cdf(self.uniform(*keys))

    def lognormal(self, median: float, sigma: float, *keys: int) -> float:
        return median * math.exp(sigma * self.normal(*keys))

    def index(self, cumulative: Sequence[float], *keys: int) -> int:
        """A place in a list, by its cumulative weights."""
        return min(bisect.bisect_right(cumulative, self.uniform(*keys) * cumulative[-1]), len(cumulative) - 1)

    def poisson(self, mean: float, *keys: int) -> int:
        """By inversion for small means, by the normal limit above 30."""
        if mean > 30:
            return max(0, round(mean + math.sqrt(mean) * self.normal(*keys)))
        rest, term, count = self.uniform(*keys), math.exp(-mean), 0
        while rest > term and count < 200:
            rest -= term
            count += 1
            term *= mean / count
        return count
