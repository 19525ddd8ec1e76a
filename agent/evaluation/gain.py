"""How much better one forecast is than another on the same transfers, with an interval.

Errors of transfers that are near in time, on one link above all, go together: whatever is wrong with a storage element is
wrong with all that it sends in that hour. An interval over single transfers would count each as news, and be too narrow. So
whole stretches are drawn anew: transfers in the order in which they ended are cut into blocks of equal numbers, about
the square root of how many there are, but never more than `MOST_BLOCKS`, so that on long data a block spans hours, not
seconds. Each of `DRAWS` draws takes as many blocks as there are, with replacement, for both forecasts the same ones: so
what is hard for both cancels. The interval goes from the 2.5th to the 97.5th percentile of the mean gain. With few blocks
it is still too narrow; their number is reported beside it, and with fewer than `FEWEST_BLOCKS` there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.metrics import pinball

Table = NDArray[np.float64]

MOST_BLOCKS = 100
FEWEST_BLOCKS = 5
DRAWS = 2_000


def gains(
    actual_s: Table, model: Table, others: Mapping[str, Table], *, seed: int = 0
) -> dict[str, dict[str, int | dict[str, float | None]]]:
    """What the model gains over each other forecast: in `mae_log1p` and in `pinball`, positive where it is better.

    `actual_s` [n] in the order in which the transfers ended; forecasts are quantiles of log1p seconds [n, 5]. What cannot be
    said is None.
    """
    actual = np.log1p(actual_s)
    blocks = np.array_split(np.arange(len(actual)), min(math.isqrt(len(actual)), MOST_BLOCKS)) if len(actual) else []
    own = _losses(actual, model, blocks)
    return {
        name: {
            "n": len(actual),
            "blocks": len(blocks),
            **{
                measure: _interval(losses - own[measure], blocks, seed=seed)
                for measure, losses in _losses(actual, quantiles, blocks).items()
            },
        }
        for name, quantiles in others.items()
    }


def _losses(actual: Table, quantiles: Table, blocks: list[NDArray[np.int64]]) -> dict[str, Table]:
    """Means over each block, [blocks]."""
    return {
        "mae_log1p": np.array([np.abs(actual[block] - quantiles[block, 2]).mean() for block in blocks]),
        "pinball": np.array([pinball(actual[block], quantiles[block]) for block in blocks]),
    }


def _interval(gain: Table, blocks: list[NDArray[np.int64]], *, seed: int) -> dict[str, float | None]:
    if not blocks:
        return {"mean": None, "low": None, "high": None}
    sizes = np.array([len(block) for block in blocks], dtype=np.float64)
    mean = float(np.average(gain, weights=sizes))
    if len(blocks) < FEWEST_BLOCKS:
        return {"mean": mean, "low": None, "high": None}
    drawn = np.random.default_rng(seed).integers(len(blocks), size=(DRAWS, len(blocks)))
    means = (gain * sizes)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high)}
