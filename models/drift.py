"""Whether forecasts still fit: a watch over the newest finished transfers outside incidents.

Transfers are taken in blocks, in the order in which they came: at least 1,000, of at least half an hour, so that a short trouble on a
busy grid is one block and no more. Three figures of each block have a band: the share within the 90 %
interval, below and above, and the pinball loss as a multiple of what it was on the transfers held out in training. What goes
beyond the band adds up from block to block, what stays within it takes away (Page's cumulative sum, 1954): one odd block is
no alarm, a large drift is one after two, a small one that goes on in the end. After an alarm there is no other until all three are
back within their bands.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.columns import Rows
from models.metrics import pinball

Table = NDArray[np.float64]

BLOCK = 1_000  # transfers, at least
BLOCK_S = 1800.0  # between the first and the last end of a block, at least
MEANT = 0.90  # of the transfers lie within the interval from q05 to q95
COVERAGE_SLACK = 0.05  # the band is that far to both sides
COVERAGE_LIMIT = 0.15  # of the sum beyond the band
ERROR_SLACK = 0.25  # in log: the band ends at 1.28 times the loss held out
ERROR_LIMIT = 0.75
FORECAST = ("q05", "q25", "q50", "q75", "q95")  # columns of quantiles, of log1p seconds

_USED = ("started_at", "ended_at", *FORECAST)
_LOOK = 20  # blocks that an alarm's figures are of, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What has drifted, over which transfers. `at` is when the newest of them ended, in seconds since 1970."""

    what: str
    at: float
    transfers: int
    coverage90: float
    pinball: float
    pinball_held_out: float | None


class _Gauge:
    """A sum of what goes beyond a band, never below nothing and never far above its limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._sum = 0.0
        self.blocks = 0  # since it left 0

    def take(self, beyond: float) -> None:
        beyond = min(beyond, self._limit / 2)
        self._sum = min(max(0.0, self._sum + beyond), self._limit)
        self.blocks = self.blocks + 1 if self._sum else 0

    @property
    def full(self) -> bool:
        return self._sum >= self._limit


class Drift:
    """A fold over observed rows that one forecaster has forecast."""

    def __init__(self, *, held_out: float | None) -> None:
        """`held_out` is the forecaster's pinball loss on what was held out in training, None if that is not known."""
        self._held_out = held_out if held_out and held_out > 0 else None
        self.reset()

    def reset(self) -> None:
        self.alarm: Alarm | None = None
        self._waiting = np.empty((0, len(_USED)))
        self._ended = 0.0  # the latest end before those that wait
        self._blocks: deque[tuple[int, float, float]] = deque(maxlen=_LOOK)
        self._gauges = {
            "intervals too narrow": _Gauge(COVERAGE_LIMIT),
            "intervals too wide": _Gauge(COVERAGE_LIMIT),
            "error too large": _Gauge(ERROR_LIMIT),
        }

    def absorb(self, observed: Rows) -> None:
        """Take in observed rows, in whole blocks of those that calibrate, however they were cut."""
        usable = np.asarray(observed["calibrates"], dtype=np.bool_) & ~np.isnan(np.asarray(observed["q50"], np.float64))
        fresh = np.column_stack([np.asarray(observed[name], np.float64)[usable] for name in _USED])
        rows = np.concatenate([self._waiting, fresh])
        ended = np.maximum(np.maximum.accumulate(rows[:, 1]), self._ended)
        start = 0
        while start < len(rows):
            stop = max(start + BLOCK, int(np.searchsorted(ended, ended[start] + BLOCK_S)) + 1)
            if stop > len(rows):
                break
            self._ended = float(ended[stop - 1])
            self._take(rows[start:stop])
            start = stop
        self._waiting = rows[start:]

    def _take(self, rows: Table) -> None:
        actual, quantiles = np.log1p(rows[:, 1] - rows[:, 0]), rows[:, 2:]
        covered = float(((quantiles[:, 0] <= actual) & (actual <= quantiles[:, -1])).mean())
        loss = pinball(actual, quantiles)
        self._blocks.append((len(rows), covered, loss))
        error = 0.0 if self._held_out is None else float(np.log(max(loss, 1e-9) / self._held_out))
        narrow, wide, large = self._gauges.values()
        narrow.take(MEANT - covered - COVERAGE_SLACK)
        wide.take(covered - MEANT - COVERAGE_SLACK)
        large.take(error - ERROR_SLACK)
        self._judge()

    def _judge(self) -> None:
        gauges = self._gauges
        if self.alarm is not None:
            if not any(gauge.blocks for gauge in gauges.values()):
                self.alarm = None
            return
        full = [name for name, gauge in gauges.items() if gauge.full]
        if full:
            blocks = min(max(gauges[name].blocks for name in full), len(self._blocks))
            counts, covered, loss = np.array(list(self._blocks)[-blocks:]).T
            self.alarm = Alarm(
                what=" and ".join(full),
                at=self._ended,
                transfers=int(counts.sum()),
                coverage90=float(np.average(covered, weights=counts)),
                pinball=float(np.average(loss, weights=counts)),
                pinball_held_out=self._held_out,
            )
