"""How long a transfer will take: an LSTM with a state per link, served by numpy from weights that TensorFlow trained.

`Network` is the arithmetic, held against TensorFlow's in a test. `Forecaster` folds finished transfers into the states and
forecasts every transfer from what was known when it started.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.columns import Rows
from models.domain import ModelError
from models.features import NAMES, NUMBERS, OUTCOMES, Features, outcomes
from models.history import Floats, History, Ints, Pile, Timeline
from models.measurements import PATH_COLUMNS
from models.registry import QUANTILES, WEIGHTS, Manifest, Weights, load_model

SCALES = (
    "number_mean",
    "number_scale",
    "outcome_mean",
    "outcome_scale",
    "target",
)  # what the training data looked like
FAR = 5.0  # standard deviations beyond which a number says nothing more

_TEXTS = ("source", "destination", "activity", "protocol", "source_type", "destination_type", "fts")
_TIMES_AND_SIZES = ("bytes", "submitted_at", "started_at", "ended_at", *PATH_COLUMNS)
_CHUNK = 16_384  # rows at a time, so that memory stays small however long the call


def shapes(units: int, head: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights."""
    inputs = 2 * len(NUMBERS) + len(NAMES)
    wide, narrow = head
    return {
        "number_mean": (len(NUMBERS),),
        "number_scale": (len(NUMBERS),),
        "outcome_mean": (len(OUTCOMES),),
        "outcome_scale": (len(OUTCOMES),),
        "target": (2,),
        "step_outcome": (2 * len(OUTCOMES), 4 * units),
        "step_state": (units, 4 * units),
        "step_bias": (4 * units,),
        "head_input": (inputs, wide),
        "head_state": (units, wide),
        "head_bias": (wide,),
        "deep": (wide, narrow),
        "deep_bias": (narrow,),
        "out": (narrow, len(QUANTILES)),
        "out_input": (inputs, len(QUANTILES)),
        "out_bias": (len(QUANTILES),),
    }


def standardised(table: Floats, mean: Floats, scale: Floats) -> Floats:
    """Numbers as deviations, 0 where unknown, followed by one mask for each; float32 [n, 2 x columns].

    A column whose scale is NaN never varied in training, so that nothing can be made of it: it counts as unknown.
    """
    deviations = np.clip((table - mean) / scale, -FAR, FAR)
    unknown = np.isnan(deviations)
    return np.concatenate([np.where(unknown, np.float32(0), deviations), unknown], axis=1, dtype=np.float32)


class Network:
    """The trained net. Gates stand in the order input, forget, output, candidate."""

    def __init__(self, weights: Weights) -> None:
        """`weights` have the names and shapes of `shapes`; raise ModelError naming one that has not."""
        self.units = _checked(weights)
        self._weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
        # sigmoid(x) = (1 + tanh(x / 2)) / 2, so that one tanh serves all four gates.
        self._halves = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], dtype=np.float32), self.units)
        self._step_state = self._weights["step_state"] * self._halves

    def drive(self, finished: Floats) -> Floats:
        """What each outcome [n, OUTCOMES] adds to the gates; float32 [n, 4 x units]."""
        weights = self._weights
        inputs = standardised(finished, weights["outcome_mean"], weights["outcome_scale"])
        return (inputs @ weights["step_outcome"] + weights["step_bias"]) * self._halves

    def step(self, drive: Floats, hidden: Floats, cell: Floats) -> tuple[Floats, Floats]:
        """One completion on each of n links; `hidden` and `cell` are [n, units], and so are the new ones."""
        units = self.units
        gates = np.tanh(drive + hidden @ self._step_state)
        opened = (gates[:, : 3 * units] + 1) * np.float32(0.5)
        cell = opened[:, units : 2 * units] * cell + opened[:, :units] * gates[:, 3 * units :]
        return opened[:, 2 * units :] * np.tanh(cell), cell

    def quantiles(self, numbers: Floats, names: Floats, hidden: Floats) -> NDArray[np.float64]:
        """Quantiles of log1p seconds for transfers with these features, on links in these states; [n, 5], rising."""
        weights = self._weights
        known = standardised(numbers, weights["number_mean"], weights["number_scale"])
        inputs = np.concatenate([known, names], axis=1)
        wide = inputs @ weights["head_input"] + hidden @ weights["head_state"] + weights["head_bias"]
        narrow = np.maximum(wide, 0) @ weights["deep"] + weights["deep_bias"]
        raw = np.maximum(narrow, 0) @ weights["out"] + inputs @ weights["out_input"] + weights["out_bias"]
        middle, gaps = raw[:, 2:3], np.logaddexp(raw[:, [0, 1, 3, 4]], np.float32(0))
        below = middle - np.cumsum(gaps[:, 1::-1], axis=1)[:, ::-1]
        above = middle + np.cumsum(gaps[:, 2:], axis=1)
        mean, scale = weights["target"].astype(np.float64)
        quantiles = np.concatenate([below, middle, above], axis=1) * scale + mean
        return np.asarray(np.maximum(quantiles, 0.0), dtype=np.float64)


def _checked(weights: Weights) -> int:
    cure = "train again with `gridmedic train`"
    try:
        units, wide, narrow = weights["step_state"].shape[0], len(weights["head_bias"]), len(weights["deep_bias"])
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"the weights lack {error}; {cure}") from error
    for name, shape in shapes(units, (wide, narrow)).items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "nothing"
            raise ModelError(f"the weights have {found} for {name!r} instead of {shape}; {cure}")
        if name not in SCALES and not np.isfinite(weights[name]).all():
            raise ModelError(f"the weights of {name!r} are not all numbers; {cure}")
    return int(units)


class Forecaster:
    """Forecasts of log1p seconds, and the states of all links that they come from.

    Its memory is a fold over finished transfers in stream order: `reset` and `absorb` of the same rows bring it back exactly.
    Nothing is forgotten by itself; whoever holds the rows decides by `reset` and `absorb` of those to keep.
    """

    def __init__(self, network: Network, manifest: Manifest) -> None:
        self.manifest = manifest
        self._network = network
        self.reset()

    @classmethod
    def load(cls, directory: Path) -> Forecaster:
        """Read a trained model; raise ModelError naming file and cure if it cannot be used by this version."""
        manifest, weights = load_model(directory)
        try:
            return cls(Network(weights), manifest)
        except ModelError as error:
            raise ModelError(f"{directory / WEIGHTS}: {error}") from error

    def reset(self) -> None:
        """Forget every transfer."""
        units = self._network.units
        self._history = History()
        self._features = Features(self._history)
        self._states = Timeline(in_order=True)  # of links
        self._hidden = Pile((units,))  # after each completion, by slot of the history
        self._newest = Pile((2, units))  # hidden and cell of each link

    def score(self, ended: Rows) -> NDArray[np.float64]:
        """Forecast each ended transfer as of its start, and absorb it; [n, 5], NaN for failed ones, which leave no trace."""
        forecast = np.full((len(ended["started_at"]), len(QUANTILES)), np.nan)
        for chunk in _chunks(ended):
            numbers, names, links, started_ms = self._fold(_columns(ended, chunk))
            forecast[chunk] = self._look(numbers, names, links, started_ms)
        return forecast

    def absorb(self, observed: pd.DataFrame) -> None:
        """Fold ended transfers into the states without forecasting them."""
        for chunk in _chunks(observed):
            self._fold(_columns(observed, chunk))

    def predict(self, starting: pd.DataFrame) -> NDArray[np.float64]:
        """Forecast transfers that have started and not ended; [n, 5], NaN where the start is not known."""
        forecast = np.full((len(starting), len(QUANTILES)), np.nan)
        known = np.flatnonzero(starting["started_at"].notna())
        rows = _columns(starting, known)
        coded = self._history.code(rows, learn=False)
        numbers, names = self._features.numbers(rows, coded), self._features.names(rows)
        forecast[known] = self._look(numbers, names, coded.link, coded.started_ms)
        return forecast

    def _fold(self, rows: Rows) -> tuple[Floats, Floats, Ints, Ints]:
        """Absorb finished transfers and step their links; return what was known of each at its start."""
        coded = self._history.code(rows, learn=True)
        slots = self._history.absorb(coded)
        self._states.insert(coded.link, coded.started_ms, coded.ended_ms, slots)
        numbers = self._features.numbers(rows, coded)
        self._newest.grow(self._history.links - len(self._newest.rows))
        self._hidden.grow(len(slots))[:] = self._steps(coded.link, outcomes(numbers, coded.log_duration))
        return numbers, self._features.names(rows), coded.link, coded.started_ms

    def _steps(self, links: Ints, finished: Floats) -> Floats:
        """Step every link through its completions in stream order; the k-th ones of all links are one step."""
        hidden = np.empty((len(links), self._network.units), dtype=np.float32)
        if not len(links):
            return hidden
        order, sizes = _waves(links)
        drive = self._network.drive(finished)[order]
        stepped = links[order[: sizes[0]]]  # the links of the batch, the one with most completions first
        newest = self._newest.rows
        h, c = newest[stepped, 0], newest[stepped, 1]
        end = 0
        for size in sizes:
            start, end = end, end + size
            h[:size], c[:size] = self._network.step(drive[start:end], h[:size], c[:size])
            hidden[order[start:end]] = h[:size]
        newest[stepped, 0], newest[stepped, 1] = h, c
        return hidden

    def _look(self, numbers: Floats, names: Floats, links: Ints, started_ms: Ints) -> NDArray[np.float64]:
        """Forecast from the link's state after what was seen of it at each start."""
        slots, there = self._states.last(self._states.before(links, started_ms), 1)
        hidden = np.zeros((len(links), self._network.units), dtype=np.float32)
        seen = there[:, 0]
        hidden[seen] = self._hidden.rows[slots[seen, 0]]
        return self._network.quantiles(numbers, names, hidden)


def _chunks(ended: Rows) -> Iterator[Ints]:
    """Places of the transfers that have finished, not too many at once."""
    started, ends = (np.asarray(ended[name], dtype=np.float64) for name in ("started_at", "ended_at"))
    finished = np.flatnonzero(~np.isnan(started) & ~np.isnan(ends) & ~np.asarray(ended["failed"], dtype=np.bool_))
    for start in range(0, len(finished), _CHUNK):
        yield finished[start : start + _CHUNK]


def _columns(rows: Rows, which: Ints) -> Rows:
    """The columns that are looked at, of some of the rows."""
    text = {name: np.asarray(rows[name], dtype=object)[which] for name in _TEXTS}
    return text | {name: np.asarray(rows[name], dtype=np.float64)[which] for name in _TIMES_AND_SIZES if name in rows}


def _waves(links: Ints) -> tuple[Ints, list[int]]:
    """Order rows by how many of their link came before, links with most rows first; and the size of each such wave."""
    by_link = np.argsort(links, kind="stable")
    _, place, counts = np.unique(links, return_inverse=True, return_counts=True)
    begins = np.cumsum(counts) - counts
    turn = np.empty(len(links), dtype=np.int64)
    turn[by_link] = np.arange(len(links)) - begins[place[by_link]]
    standing = np.empty(len(counts), dtype=np.int64)
    standing[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    order = np.argsort(turn * len(counts) + standing[place], kind="stable")
    return order, np.bincount(turn).tolist()
