"""The first design of all, as a rival: an LSTM over windows of 100 consecutive events of all links together.

Nine inputs of each event: seven names as whole numbers, given by encoders that know the training data alone, its size and its
delay in the queue, all standardised. What earlier transfers took is not among them. The target is the last event's
duration in raw seconds, with squared error. Three things differ: its LSTM is one of 64 units instead of three of 512, which would take
days here; names that training never saw share one more number, where the first design broke; and since it says one
number only, its quantiles are that number moved by its own errors on the last part of the training data.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.history import Codes
from models.registry import QUANTILES

Table = NDArray[np.float64]
Inputs = NDArray[np.float32]
Keras: TypeAlias = Any  # TensorFlow has no types

WINDOW = 100
UNITS = 64
FEWEST = 10 * WINDOW // 2  # finished transfers to learn from
MOST = 1_000_000  # the newest of them
LATE = 0.2  # the last part in time, which says when to stop, and what the errors are

_NAMES = ("activity", "protocol", "source", "destination", "source_type", "destination_type", "fts")
_FAR = 20.0  # standard deviations that an input may lie off
_EPOCHS = 40
_PATIENCE = 5
_WINDOWS = 20_000  # drawn for an epoch
_LATE_WINDOWS = 5_000
_BATCH = 256  # the largest: few windows make smaller ones, so that there are enough steps
_AT_ONCE = 1024


class Encoder:
    """An event's nine inputs, standardised on the training data; frozen."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self._codes = {name: Codes() for name in _NAMES}
        for name, codes in self._codes.items():
            codes.learn(rows[name])
        inputs = self._inputs(rows)
        self._mean = inputs.mean(axis=0)
        self._scale = np.where(inputs.std(axis=0) > 0, inputs.std(axis=0), 1.0)

    def encode(self, rows: pd.DataFrame) -> Inputs:
        """Inputs of events [n, 9]; all names that were not learnt share one number, the next of their column."""
        apart: Table = (self._inputs(rows) - self._mean) / self._scale
        return apart.clip(-_FAR, _FAR).astype(np.float32)

    def _inputs(self, rows: pd.DataFrame) -> Table:
        return np.column_stack([*(codes.find(rows[name]) for name, codes in self._codes.items()), _sizes(rows)])


class Windowed:
    """The trained rival. Its memory are the last 99 events, whatever link they are of."""

    def __init__(self, encoder: Encoder, net: Keras, scale: float, errors: Table) -> None:
        tf = _tensorflow()
        self._encoder = encoder
        self._forward = tf.function(net, reduce_retracing=True)
        self._scale = scale
        self._errors = errors
        self.reset()

    @classmethod
    def learnt(cls, rows: pd.DataFrame, *, seed: int) -> Windowed:
        """Learn from finished transfers in the order in which they ended."""
        encoder = Encoder(rows)
        inputs = encoder.encode(rows)
        seconds = _seconds(rows)
        first_late = round(len(rows) * (1 - LATE))
        scale = float(max(seconds[:first_late].std(), 1.0))
        net = _trained(inputs, (seconds / scale).astype(np.float32), first_late, seed=seed)
        learnt = cls(encoder, net, scale, np.zeros(len(QUANTILES)))
        learnt.absorb(rows.iloc[:first_late])
        late = rows.iloc[first_late:].tail(_LATE_WINDOWS)
        learnt.absorb(rows.iloc[first_late : len(rows) - len(late)])
        errors = np.log1p(_seconds(late)) - learnt.score(late)[:, 2]
        learnt._errors = np.quantile(errors, QUANTILES)
        learnt.reset()
        return learnt

    def reset(self) -> None:
        """Forget every event; windows that are not full yet are filled up with nothing."""
        self._last = np.zeros((WINDOW - 1, len(_NAMES) + 2), dtype=np.float32)

    def absorb(self, finished: pd.DataFrame) -> None:
        """Take in finished transfers without forecasting them."""
        self._last = np.concatenate([self._last, self._encoder.encode(finished.tail(WINDOW - 1))])[1 - WINDOW :]

    def score(self, finished: pd.DataFrame) -> Table:
        """Quantiles of log1p seconds [n, 5] for finished transfers, which are absorbed. The middle one is what the net says."""
        inputs = np.concatenate([self._last, self._encoder.encode(finished)])
        self._last = inputs[1 - WINDOW :]
        ends = np.arange(WINDOW - 1, len(inputs))
        parts = [self._forward(_windows(inputs, ends[i : i + _AT_ONCE])) for i in range(0, len(ends), _AT_ONCE)]
        said = np.concatenate([np.empty(0), *(np.asarray(part, dtype=np.float64)[:, 0] for part in parts)])
        middle: Table = np.log1p(np.maximum(said * self._scale, 0.0))[:, None]
        below, above = np.minimum(self._errors[:2], 0.0), np.maximum(self._errors[3:], 0.0)
        quantiles: Table = np.concatenate([middle + below, middle, middle + above], axis=1)
        return quantiles.clip(min=0.0)


def _tensorflow() -> Keras:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of what machine this is nobody asked
    import tensorflow as tf  # noqa: PLC0415 - seven seconds, for this rival alone

    return tf


def network(width: int, *, seed: int) -> Keras:
    """The net before training: windows [n, WINDOW, width] to a share of the scale [n, 1]."""
    keras = _tensorflow().keras
    keras.utils.set_random_seed(seed % 2**32)
    net = keras.Sequential([keras.Input((WINDOW, width)), keras.layers.LSTM(UNITS), keras.layers.Dense(1)])
    net.compile(optimizer=keras.optimizers.Adam(1e-3, clipnorm=1.0), loss="mse")
    return net


def _trained(inputs: Inputs, target: Inputs, first_late: int, *, seed: int) -> Keras:
    """Train on windows that end before `first_late`, until those that end after it are forecast no better."""
    net = network(inputs.shape[1], seed=seed)
    draw = np.random.default_rng(seed)
    late = draw.permutation(np.arange(first_late, len(inputs)))[:_LATE_WINDOWS]
    late_inputs, late_target = _windows(inputs, late), target[late]
    best, best_epoch, weights = np.inf, 0, net.get_weights()
    for epoch in range(_EPOCHS):
        ends = draw.permutation(np.arange(WINDOW - 1, first_late))[:_WINDOWS]
        batch = int(np.clip(len(ends) // 64, 16, _BATCH))
        net.fit(_windows(inputs, ends), target[ends], batch_size=batch, epochs=1, verbose=0)
        loss = float(net.evaluate(late_inputs, late_target, batch_size=_AT_ONCE, verbose=0))
        if loss < best:
            best, best_epoch, weights = loss, epoch, net.get_weights()
        if epoch - best_epoch >= _PATIENCE:
            break
    net.set_weights(weights)
    return net


def _windows(inputs: Inputs, ends: NDArray[np.int64]) -> Inputs:
    """The windows that end with those events, [n, WINDOW, 9]."""
    chosen: Inputs = inputs[ends[:, None] + np.arange(1 - WINDOW, 1)]
    return chosen


def _sizes(rows: pd.DataFrame) -> Table:
    sizes = np.stack(
        [rows["bytes"].to_numpy(np.float64), (rows["started_at"] - rows["submitted_at"]).to_numpy()], axis=1
    )
    known: Table = np.nan_to_num(np.maximum(sizes, 0.0), nan=0.0)
    return known


def _seconds(rows: pd.DataFrame) -> Table:
    return (rows["ended_at"] - rows["started_at"]).to_numpy(np.float64)
