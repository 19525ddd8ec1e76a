"""Numbers that look drawn and yet cover their range evenly: Sobol's sequence in four dimensions, scrambled.

Any stretch of it fills the unit cube far more evenly than independent draws do, also where only a part of the cube is looked
at (Sobol 1967; scrambling by hash after Laine and Karras 2011, which keeps that).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.draws import FloatArray

Words32 = npt.NDArray[np.uint32]

DIMENSIONS = 4
_BITS = 32
_UNIT = 1.0 / (1 << _BITS)


def evenly(index: npt.NDArray[np.int64], seeds: npt.NDArray[np.uint64]) -> FloatArray:
    """Points [n, DIMENSIONS] strictly between 0 and 1 of sequences at their places `index` [n]; `seeds` [n, DIMENSIONS] tell sequences apart."""
    place = (index & 0xFFFFFFFF).astype(np.uint32)
    points = np.empty((len(index), DIMENSIONS))
    for dimension in range(DIMENSIONS):
        point = np.zeros(len(index), dtype=np.uint32)
        for bit in range(_BITS):
            point ^= _DIRECTIONS[dimension, bit] * ((place >> np.uint32(bit)) & np.uint32(1))
        scrambled = _scrambled(point, (seeds[:, dimension] >> np.uint64(32)).astype(np.uint32))
        points[:, dimension] = (scrambled.astype(np.float64) + 0.5) * _UNIT
    return points


def _directions() -> Words32:
    """Direction numbers: van der Corput's, and by the primitive polynomials x + 1, x**2 + x + 1 and x**3 + x + 1."""
    top = _BITS - 1
    odd = [[1] * _BITS, [1], [1, 3], [1, 3, 1]]
    for bit in range(1, _BITS):
        odd[1].append((2 * odd[1][bit - 1]) ^ odd[1][bit - 1])
    for bit in range(2, _BITS):
        odd[2].append((2 * odd[2][bit - 1]) ^ (4 * odd[2][bit - 2]) ^ odd[2][bit - 2])
    for bit in range(3, _BITS):
        odd[3].append((4 * odd[3][bit - 2]) ^ (8 * odd[3][bit - 3]) ^ odd[3][bit - 3])
    return np.array([[number << (top - bit) for bit, number in enumerate(row)] for row in odd], dtype=np.uint32)


def _scrambled(points: Words32, seed: Words32) -> Words32:
    """Owen's scrambling: whether a digit is flipped depends on the seed and on the digits before it alone."""
    x = _reversed(points)
    x = x ^ (x * np.uint32(0x3D20ADEA))
    x = x + seed
    x = x * ((seed >> np.uint32(16)) | np.uint32(1))
    x = x ^ (x * np.uint32(0x05526C56))
    x = x ^ (x * np.uint32(0x53A22864))
    return _reversed(x)


def _reversed(words: Words32) -> Words32:
    """The bits the other way round."""
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        by, keep = np.uint32(shift), np.uint32(mask)
        words = ((words >> by) & keep) | ((words & keep) << by)
    return words


_DIRECTIONS = _directions()
