"""Which of two forecasters is the better one on the same transfers, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

BLOCK_S = 3600.0  # errors of transfers that end within an hour go together: what slows one slows the others
FEWEST_BLOCKS = 24  # where there are fewer hours, so many runs of transfers one after the other take their place
DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and where it lies with 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """By how much the challenger's loss is smaller than the incumbent's; below 0 it is larger."""

    mean: Interval  # over transfers
    share: Interval  # of the incumbent's loss
    transfers: int
    blocks: int

    def __str__(self) -> str:
        share = self.share
        return (
            f"{share.value:+.1%} (95 % interval {share.low:+.1%} to {share.high:+.1%}) on {self.transfers:,} transfers"
        )


def gain(incumbent: Table, challenger: Table, ended_at: Table, *, seed: int) -> Gain:
    """Compare the losses [n] of two forecasters on the same transfers, in the order in which they ended.

    The intervals are of a block bootstrap (Künsch 1989): whole hours are drawn again and again, for both the same ones, so
    that a long trouble counts as one observation and not as thousands. Of few hours they come out too narrow, and are widened
    as Student's distribution is wider than the normal.
    """
    blocks = _blocks(ended_at)
    count = int(blocks.max()) + 1
    before, after = (np.bincount(blocks, losses, minlength=count) for losses in (incumbent, challenger))
    sizes = np.bincount(blocks, minlength=count)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    less = (before - after).sum()
    return Gain(
        mean=_interval(less / len(blocks), (drawn @ (before - after)) / (drawn @ sizes), count),
        share=_interval(less / before.sum(), (drawn @ (before - after)) / (drawn @ before), count),
        transfers=len(blocks),
        blocks=count,
    )


def _interval(value: float, drawn: Table, blocks: int) -> Interval:
    low, high = value + (np.quantile(drawn, (0.025, 0.975)) - value) * _widening(blocks)
    return Interval(value=float(value), low=float(low), high=float(high))


def _widening(blocks: int) -> float:
    """The 97.5 % quantile of Student's distribution over that of the normal, for a spread that was taken of so few blocks."""
    freedom = max(blocks - 1, 1)
    student = 1.96 + 2.372 / freedom + 2.822 / freedom**2 + 2.556 / freedom**3  # Cornish and Fisher 1937
    return float(student / 1.96 * np.sqrt(1 + 1 / freedom))


def _blocks(ended_at: Table) -> NDArray[np.int64]:
    """The number of each transfer's block, from 0 without a gap; [n]."""
    hours = np.floor((ended_at - ended_at[:1]) / BLOCK_S)
    _, numbered = np.unique(hours, return_inverse=True)
    if numbered.max(initial=0) + 1 >= FEWEST_BLOCKS:
        return np.asarray(numbered, dtype=np.int64)
    n = len(ended_at)
    return np.asarray(np.arange(n) * min(FEWEST_BLOCKS, n) // n, dtype=np.int64)
