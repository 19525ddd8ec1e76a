"""Random numbers by name: each is a function of the seed and of what it is drawn for, and of nothing that happened before.

So a call to the grid, or a fault, changes what it touches and leaves every other draw as it was: the same transfer has the
same size, the same luck and the same delays with and without it. One draw, many at once and a draw within a compiled
kernel give the same number for the same name.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from simulator.kernels import inlined

FloatArray = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Keys = int | npt.NDArray[np.integer]

_MASK = (1 << 64) - 1
_STEP, _ADD, _FINAL_1 = 0x9E3779B97F4A7C15, 0x632BE59BD9B4E019, 0xBF58476D1CE4E5B9
_U_STEP, _U_ADD, _U_FINAL_1 = np.uint64(_STEP), np.uint64(_ADD), np.uint64(_FINAL_1)
_U27, _U30, _U32, _U12 = np.uint64(27), np.uint64(30), np.uint64(32), np.uint64(12)
_UNIT = 1.0 / (1 << 52)


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
    OPERATOR = 10
    DISTURBANCE = 11


def mix(state: int, *keys: int) -> int:
    """64 well-mixed bits out of whole numbers: a multiplication and a fold for each key, splitmix64's finaliser at the end."""
    for key in keys:
        state = ((state ^ (key & _MASK)) * _STEP + _ADD) & _MASK
        state ^= state >> 32
    state = ((state ^ (state >> 30)) * _FINAL_1) & _MASK
    return state ^ (state >> 27)


@inlined
def fold(state: np.uint64, key: int) -> np.uint64:
    """One key more of a name, within a kernel."""
    state = (state ^ np.uint64(key)) * _U_STEP + _U_ADD
    return state ^ (state >> _U32)


@inlined
def finish(state: np.uint64) -> float:
    """The number between 0 and 1 of a name that is complete, within a kernel."""
    state = (state ^ (state >> _U30)) * _U_FINAL_1
    state ^= state >> _U27
    return (float(state >> _U12) + 0.5) * _UNIT


class Draws:
    """Draws of one seed. `keys` name the draw; equal names give equal numbers.

    The plural methods take whole numbers and arrays of them, broadcast against each other, and give float64 of that shape.
    """

    def __init__(self, seed: int) -> None:
        self._state = mix(0, seed)

    @property
    def state(self) -> np.uint64:
        """What `fold` starts from."""
        return np.uint64(self._state)

    def bits(self, *keys: int) -> int:
        return mix(self._state, *keys)

    def hex(self, *keys: int) -> str:
        """32 hexadecimal digits, as Rucio writes its ids."""
        first = mix(self._state, *keys)
        return f"{first:016x}{mix(first, 1):016x}"

    def uniform(self, *keys: int) -> float:
        """Between 0 and 1, neither of them included."""
        return ((mix(self._state, *keys) >> 12) + 0.5) * _UNIT

    def between(self, low: float, high: float, *keys: int) -> float:
        return low + (high - low) * self.uniform(*keys)

    def normal(self, *keys: int) -> float:
        return float(ndtri(self.uniform(*keys)))

    def lognormal(self, median: float, sigma: float, *keys: int) -> float:
        return float(median * np.exp(sigma * self.normal(*keys)))

    def index(self, cumulative: Sequence[float], *keys: int) -> int:
        """A place in a list, by its cumulative weights."""
        return min(bisect.bisect_right(cumulative, self.uniform(*keys) * cumulative[-1]), len(cumulative) - 1)

    def words(self, *keys: Keys) -> Words:
        """64 bits each."""
        state: Words = np.asarray(np.uint64(self._state))
        with np.errstate(over="ignore"):
            for key in keys:
                word = np.asarray(key & _MASK, dtype=np.uint64) if isinstance(key, int) else key.astype(np.uint64)
                state = (state ^ word) * _U_STEP + _U_ADD
                state = state ^ (state >> _U32)
            state = (state ^ (state >> _U30)) * _U_FINAL_1
        return state ^ (state >> _U27)

    def uniforms(self, *keys: Keys) -> FloatArray:
        numbers: FloatArray = ((self.words(*keys) >> _U12).astype(np.float64) + 0.5) * _UNIT
        return numbers

    def exponentials(self, mean: float | FloatArray, *keys: Keys) -> FloatArray:
        return -mean * np.log(self.uniforms(*keys))

    def normals(self, *keys: Keys) -> FloatArray:
        numbers: FloatArray = ndtri(self.uniforms(*keys))
        return numbers

    def lognormals(self, median: float | FloatArray, sigma: float | FloatArray, *keys: Keys) -> FloatArray:
        return median * np.exp(sigma * self.normals(*keys))
