"""Training a forecaster by truncated back-propagation over the streams of links. The only module that imports TensorFlow.

All links' completions are laid end to end into lanes that run in parallel, window by window; the state carries over from
window to window and is zero where a link begins. A transfer's loss is taken where its forecast would have come from: at the
last completion of its link that it could know of when it started.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.domain import ModelError
from models.features import FEATURES_VERSION, NUMBERS, blocks
from models.forecaster import SCALES, Forecaster, Network, shapes, standardised
from models.history import Floats, Ints
from models.lessons import Lessons, Window, finished_transfers, held_out, joined, lessons_of, windows
from models.metrics import Baselines, forecast_metrics, pinball, surprise
from models.registry import QUANTILES, Manifest, TrainingData, code_version, save_model

Tensor: TypeAlias = Any  # TensorFlow has no types

UNITS = 48
HEAD = (64, 32)

_WINDOW = 32  # completions that gradients flow back through
_LANES = 64
_PATIENCE = 6  # epochs without a gain before training stops
_RATE = 2e-3
_DECAY = 1e-2
_SHARES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)

# How often training hides what may be absent in service.
_HIDDEN = {
    "path": 0.3,
    "week": 0.5,
    "queue": 0.2,
    "link": 0.1,
    "source": 0.1,
    "destination": 0.1,
    "names": 0.3,
    "state": 0.2,
}


def train(
    streams: Sequence[pd.DataFrame], *, out: Path, seed: int = 0, epochs: int = 40, units: int = UNITS
) -> Manifest:
    """Train on finished transfers and write weights and manifest to the directory `out`.

    Each of `streams` has EVENT_COLUMNS, and PATH_COLUMNS where measurements were attached; other types of events are left
    out. Streams do not know of each other: a simulated grid and a real one, say. The last fifth of each in time is held
    out: to stop early, and for the manifest's metrics. Raise ModelError if a stream is too short.
    """
    if not streams:
        raise ModelError("there is no data to train on; give recorded events or hours of the simulated grid")
    tables = [finished_transfers(stream, number=i) for i, stream in enumerate(streams)]
    trainer = Trainer(joined([lessons_of(table) for table in tables]), units=units, seed=seed)
    best = trainer.fit(epochs)
    manifest = Manifest(
        features_version=FEATURES_VERSION,
        units=units,
        code_version=code_version(),
        seed=seed,
        epochs=best,
        data=_description(tables),
        metrics={},
        calibration={},
        weights_hash="",
    )
    weights = trainer.weights()
    return save_model(out, _measured(manifest, tables, Forecaster(Network(weights), manifest)), weights)


def _measured(manifest: Manifest, tables: Sequence[pd.DataFrame], forecaster: Forecaster) -> Manifest:
    """Add what the forecaster, as it will serve, and the baselines are worth on what was held out."""
    actual, forecasts = [], []
    for table in tables:
        late = held_out(len(table))
        forecaster.reset()
        forecast = {"model": forecaster.score(table.assign(failed=False)), **Baselines().score(table)}
        forecasts.append({name: quantiles[late] for name, quantiles in forecast.items()})
        actual.append((table["ended_at"] - table["started_at"]).to_numpy(dtype=np.float64)[late])
    seconds = np.concatenate(actual)
    whole = {name: np.concatenate([part[name] for part in forecasts]) for name in forecasts[0]}
    surprises = surprise(np.log1p(seconds), whole["model"])
    levels = np.quantile(surprises, _SHARES)
    return manifest.model_copy(
        update={
            "metrics": {name: forecast_metrics(seconds, quantiles) for name, quantiles in whole.items()},
            "calibration": {str(share): round(float(level), 4) for share, level in zip(_SHARES, levels, strict=True)},
        }
    )


class TrainableNetwork:
    """The arithmetic of forecaster.Network, with gradients."""

    def __init__(self, *, units: int, seed: int) -> None:
        self.units = units
        draw = np.random.default_rng(seed)
        self.variables = {
            name: tf.Variable(_initial(name, shape, draw), name=name)
            for name, shape in shapes(units, HEAD).items()
            if name not in SCALES
        }

    def steps(self, told: Tensor, begins: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step through [lanes, window] completions; return hidden [lanes, window, units], and the last hidden and cell."""
        variables = self.variables
        drive = tf.tensordot(told, variables["step_outcome"], 1) + variables["step_bias"]
        carry = 1.0 - tf.cast(begins, tf.float32)
        states = []
        for i in range(told.shape[1]):
            hidden, cell = hidden * carry[:, i, None], cell * carry[:, i, None]
            gates = drive[:, i] + hidden @ variables["step_state"]
            entry, keep, release, candidate = tf.split(gates, 4, axis=1)
            cell = tf.sigmoid(keep) * cell + tf.sigmoid(entry) * tf.tanh(candidate)
            hidden = tf.sigmoid(release) * tf.tanh(cell)
            states.append(hidden)
        return tf.stack(states, axis=1), hidden, cell

    def quantiles(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Quantiles of the standardised log duration, [m, 5]."""
        variables = self.variables
        wide = inputs @ variables["head_input"] + hidden @ variables["head_state"] + variables["head_bias"]
        narrow = tf.nn.relu(wide) @ variables["deep"] + variables["deep_bias"]
        raw = tf.nn.relu(narrow) @ variables["out"] + inputs @ variables["out_input"] + variables["out_bias"]
        gaps = tf.nn.softplus(raw)
        middle = raw[:, 2]
        below, above = middle - gaps[:, 1], middle + gaps[:, 3]
        return tf.stack([below - gaps[:, 0], below, middle, above, above + gaps[:, 4]], axis=1)


def _initial(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> Floats:
    if len(shape) == 1:
        bias = np.zeros(shape, dtype=np.float32)
        if name == "step_bias":
            bias[shape[0] // 4 : shape[0] // 2] = 1.0  # remember, to begin with
        return bias
    limit = np.sqrt(6 / sum(shape))
    values = draw.uniform(-limit, limit, shape).astype(np.float32)
    if name == "out_input":
        values[:] = 0.0
    if name == "head_input":
        values[2 * len(NUMBERS) :] = 0.0  # a name that training never saw says nothing
    return values


class Trainer:
    """The training loop: epochs over windows, the best weights so far, and the forecasts of what was held out."""

    def __init__(self, lessons: Lessons, *, units: int, seed: int) -> None:
        self._lessons = lessons
        self._seed = seed
        self._fixed = _scales(lessons)
        known = standardised(lessons.numbers, self._fixed["number_mean"], self._fixed["number_scale"])
        self._inputs = np.concatenate([known, lessons.names], axis=1)
        told = standardised(lessons.outcomes, self._fixed["outcome_mean"], self._fixed["outcome_scale"])
        self._told = np.vstack([told, np.zeros_like(told[:1])])  # row -1: where a lane has ended
        mean, scale = self._fixed["target"]
        self._target = (lessons.log_duration - mean) / scale
        self._lanes = int(np.clip(len(lessons.link) // (4 * _WINDOW), 1, _LANES))
        self._network = TrainableNetwork(units=units, seed=seed)
        self._turn = tf.Variable(0, dtype=tf.int64)
        self._best: dict[str, Floats] = {}

    def fit(self, epochs: int) -> int:
        """Train until the held-out pinball loss has stopped falling; return the epoch of the best weights."""
        best, best_epoch = np.inf, 0
        per_epoch = len(list(self._windows(np.arange(self._lessons.link.max() + 1))))
        rate = tf.keras.optimizers.schedules.CosineDecay(_RATE, max(1, epochs * per_epoch), alpha=0.02)
        self._optimizer = tf.keras.optimizers.AdamW(rate, weight_decay=_DECAY, clipnorm=1.0)
        self._optimizer.build(list(self._network.variables.values()))
        draw = np.random.default_rng(self._seed)
        rows = self._lessons.held_out
        actual = self._lessons.log_duration[rows].astype(np.float64)
        with _progress() as progress:
            task = progress.add_task("training", total=epochs * per_epoch, loss="")
            for epoch in range(1, epochs + 1):
                self._pass(draw.permutation(self._lessons.link.max() + 1), advance=lambda: progress.advance(task))
                loss = pinball(actual, self._forecasts()[rows], weight=self._lessons.weight[rows])
                progress.update(task, loss=f"held-out pinball {loss:.4f}, best {min(loss, best):.4f}")
                if loss < best:
                    best, best_epoch = loss, epoch
                    self._best = {name: array.numpy() for name, array in self._network.variables.items()}
                if epoch - best_epoch >= _PATIENCE:
                    break
        for name, array in self._best.items():
            self._network.variables[name].assign(array)
        return best_epoch

    def weights(self) -> dict[str, Floats]:
        """What `forecaster.Network` takes."""
        return {**self._fixed, **{name: array.numpy() for name, array in self._network.variables.items()}}

    def _windows(self, links: Ints) -> Iterator[Window]:
        return windows(self._lessons, links, lanes=self._lanes, window=_WINDOW)

    def _start(self) -> tuple[Tensor, Tensor]:
        zeros = tf.zeros((self._lanes, self._network.units))
        return zeros, zeros

    def _pass(self, links: Ints, *, advance: Callable[[], None]) -> None:
        """One epoch."""
        hidden, cell = self._start()
        for window in self._windows(links):
            rows = window.transfer_rows[~self._lessons.held_out[window.transfer_rows]]
            states = window.states[~self._lessons.held_out[window.transfer_rows]]
            hidden, cell = self._descend(
                self._told[window.outcome_rows],
                window.begins,
                hidden,
                cell,
                self._inputs[rows],
                states,
                self._target[rows],
                self._lessons.weight[rows],
            )
            advance()

    def _forecasts(self) -> NDArray[np.float64]:
        """Forecast every transfer with the weights at hand; [n, 5]."""
        forecast = np.full((len(self._target), len(QUANTILES)), np.nan)
        hidden, cell = self._start()
        for window in self._windows(np.arange(self._lessons.link.max() + 1)):
            raw, hidden, cell = self._look(
                self._told[window.outcome_rows],
                window.begins,
                hidden,
                cell,
                self._inputs[window.transfer_rows],
                window.states,
            )
            forecast[window.transfer_rows] = raw.numpy()
        mean, scale = self._fixed["target"].astype(np.float64)
        return np.asarray(np.maximum(forecast * scale + mean, 0.0), dtype=np.float64)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def _look(
        self, told: Tensor, begins: Tensor, hidden: Tensor, cell: Tensor, inputs: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, hidden, cell = self._network.steps(told, begins, hidden, cell)
        return self._network.quantiles(inputs, _gathered(states, places)), hidden, cell

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def _descend(
        self,
        told: Tensor,
        begins: Tensor,
        hidden: Tensor,
        cell: Tensor,
        inputs: Tensor,
        places: Tensor,
        target: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step down the gradient; return the last hidden and cell."""
        self._turn.assign_add(1)
        with tf.GradientTape() as tape:
            states, hidden, cell = self._network.steps(told, begins, hidden, cell)
            inputs, known = self._hide(inputs, _gathered(states, places))
            beyond = target[:, None] - self._network.quantiles(inputs, known)
            levels = tf.constant(QUANTILES)
            loss = tf.reduce_mean(tf.maximum(levels * beyond, (levels - 1.0) * beyond), axis=1)
            loss = tf.math.divide_no_nan(tf.reduce_sum(loss * weight), tf.reduce_sum(weight))
        variables = list(self._network.variables.values())
        self._optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return hidden, cell

    def _hide(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Hide whole blocks at random, as they would look if they were not known."""
        count, numbers = tf.shape(inputs)[0], len(NUMBERS)
        draw = tf.random.stateless_uniform((count, len(_HIDDEN)), seed=tf.stack([self._seed, self._turn]))
        hidden = {name: draw[:, i, None] < share for i, (name, share) in enumerate(_HIDDEN.items())}
        never = tf.zeros((count, 1), dtype=tf.bool)
        columns = tf.concat(
            [
                tf.repeat(hidden.get(block, never), place.stop - place.start, axis=1)
                for block, place in blocks().items()
            ],
            axis=1,
        )
        values = tf.where(columns, 0.0, inputs[:, :numbers])
        unknown = tf.where(columns, 1.0, inputs[:, numbers : 2 * numbers])
        names = tf.where(hidden["names"], 0.0, inputs[:, 2 * numbers :])
        return tf.concat([values, unknown, names], axis=1), tf.where(hidden["state"], 0.0, states)


def _gathered(states: Tensor, places: Tensor) -> Tensor:
    flat = tf.reshape(states, (-1, states.shape[2]))
    return tf.gather(tf.concat([flat, tf.zeros_like(flat[:1])], axis=0), places)


def _scales(lessons: Lessons) -> dict[str, Floats]:
    learnt = ~lessons.held_out
    number_mean, number_scale = _deviations(lessons.numbers[learnt])
    outcome_mean, outcome_scale = _deviations(lessons.outcomes[learnt])
    target_mean, target_scale = _deviations(lessons.log_duration[learnt, None])
    return {
        "number_mean": number_mean,
        "number_scale": number_scale,
        "outcome_mean": outcome_mean,
        "outcome_scale": outcome_scale,
        "target": np.concatenate([target_mean, target_scale]),
    }


def _deviations(table: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of what is known in each column; NaN for one that never varied."""
    known = ~np.isnan(table)
    values = np.where(known, table, np.float32(0)).astype(np.float64)
    count = np.maximum(known.sum(axis=0), 1)
    mean = values.sum(axis=0) / count
    spread = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
    return mean.astype(np.float32), np.where(spread > 1e-4, spread, np.nan).astype(np.float32)


def _description(tables: Sequence[pd.DataFrame]) -> TrainingData:
    digest = hashlib.sha256()
    for table in tables:
        columns = table[["source", "destination", "bytes", "started_at", "ended_at"]]
        digest.update(pd.util.hash_pandas_object(columns, index=False).to_numpy().tobytes())
    return TrainingData(
        transfers=sum(map(len, tables)),
        links=sum(len(table[["source", "destination"]].drop_duplicates()) for table in tables),
        first_start=min(float(table["started_at"].min()) for table in tables),
        last_end=max(float(table["ended_at"].max()) for table in tables),
        hash=digest.hexdigest(),
    )


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=not console.is_terminal)
