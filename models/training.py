"""Training a forecaster by truncated back-propagation over the streams of links.

Lessons are laid link by link into lanes that run in parallel, window by window. A link's state carries over from window to
window and from chunk to chunk; gradients flow back through one window. A transfer's loss is taken where its forecast would
have come from: at the last completion of its link that it could know of when it started.

On several GPUs or hosts (`TF_CONFIG`) each replica has links of its own, and gradients are summed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from models.checkpoint import Checkpoint, Course
from models.features import FEATURES_VERSION
from models.forecaster import SCALES, Forecaster, Network
from models.history import RETAINED, Floats
from models.lanes import Shape, Window, laid
from models.lessons import CHUNK, Book, prepare
from models.metrics import Baselines, forecast_metrics, surprise
from models.registry import Manifest, TrainingData, Weights, code_version, load_model, save_model
from models.trainable import TrainableNetwork, known_states

Tensor: TypeAlias = Any  # TensorFlow has no types

UNITS = 48

_WINDOW = 32  # completions that gradients flow back through
_LANES = 256  # at most, where there is so much to learn from that an epoch has
_STEPS = 64  # steps down the gradient at least
_MOST_EPOCHS = 40
_FEWEST_EPOCHS = 3
_ENOUGH = 40_000_000  # transfers in all epochs together, where more than the fewest are made
_PATIENCE = 6  # epochs without a gain before training stops
_RATE = 2e-3
_LAST_EPOCHS = 4  # that what was held out is learnt from
_LAST_RATE = 1e-3
_LEAST_RATE = 0.02  # of the rate, at the end
_DECAY = 0.5
_STEEPEST = 1.0  # norm that gradients are cut to
_SCALE_CHUNKS = 16  # that means and deviations are taken of
_SHARES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)
_CHECKPOINT_S = 60.0


def train(
    streams: Iterable[Iterable[pd.DataFrame]],
    *,
    out: Path,
    task: str = "",
    start: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    units: int = UNITS,
) -> Manifest:
    """Train on finished transfers and write weights and manifest to the directory `out`.

    Each of `streams` gives pages in stream order, with EVENT_COLUMNS, and PATH_COLUMNS where measurements were attached; other
    types of events are left out. Streams do not know of each other: a simulated grid and a real one, say. The last fifth of
    each in time is held out, 262,144 transfers at most: to stop early, and for the manifest's metrics; these taken, it is
    learnt from, too. `start` is a model to
    go on from; its size counts then, not `units`.

    What was prepared and learnt is kept under `out` until training has ended. `task` names the data: training of the same
    task that was broken off goes on from there. Raise ModelError if a stream is too short, or if `start` cannot be used.
    """
    begun = load_model(start) if start else None
    parent = begun[0].weights_hash if begun else None
    strategy = strategy_at_hand()
    folder = out / f".training{_worker() or ''}"
    book = prepare(folder, streams, task=task)
    trainer = Trainer(
        book,
        units=begun[0].units if begun else units,
        seed=seed,
        start=begun[1] if begun else None,
        strategy=strategy,
        checkpoint=Checkpoint(folder / "checkpoint.npz", mark=f"{seed} {units} {epochs} {parent}"),
    )
    best = trainer.fit(epochs)
    manifest = Manifest(
        features_version=FEATURES_VERSION,
        units=trainer.network.units,
        code_version=code_version(),
        parent=parent,
        seed=seed,
        epochs=best,
        data=_description(book),
        metrics={},
        calibration={},
        weights_hash="",
    )
    manifest = _measured(manifest, book, Forecaster(Network(trainer.network.weights()), manifest))
    trainer.finish()
    weights = trainer.network.weights()
    if not _worker():
        manifest = save_model(out, manifest, weights)
    shutil.rmtree(folder)
    return manifest


def strategy_at_hand() -> Any:  # noqa: ANN401 - TensorFlow has no types
    """Several hosts if TF_CONFIG names them, several GPUs if there are, or else the one device."""
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(tf.config.list_logical_devices("GPU")) > 1 else None


def _worker() -> int:
    """The number of this host: the first one writes the model."""
    return int(tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id or 0)


class Trainer:
    """The training loop: epochs over blocks of chunks, and the best weights so far."""

    def __init__(
        self,
        book: Book,
        *,
        units: int,
        seed: int,
        start: Weights | None = None,
        strategy: Any = None,  # noqa: ANN401 - TensorFlow has no types
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._book = book
        self._seed = seed
        self._strategy = strategy
        self._replicas: int = strategy.num_replicas_in_sync if strategy else 1
        self._checkpoint = checkpoint
        self._goes_on = start is not None
        self._lanes = int(np.clip(book.rows // (self._replicas * _STEPS * _WINDOW), 1, _LANES))
        self._weights = _stream_weights(book)
        scales = {name: start[name] for name in SCALES} if start else _scales(book)
        precision = tf.bfloat16 if tf.config.list_logical_devices("GPU") else tf.float32
        with strategy.scope() if strategy else nullcontext():
            self.network = TrainableNetwork(scales=scales, units=units, seed=seed, precision=precision)
            if start:
                self.network.assign(start)
            self._optimizer = tf.keras.optimizers.AdamW(_RATE, weight_decay=_DECAY)
            self._optimizer.build(self._variables)
        self._states = np.zeros((1 + book.links, 2 * units), dtype=np.float32)  # of links, after the blocks so far
        self._saved_at = time.monotonic()

    @property
    def _variables(self) -> list[Any]:
        return list(self.network.variables.values())

    def fit(self, epochs: int | None = None) -> int:
        """Train until the held-out pinball loss has stopped falling; return the epoch of the best weights.

        That is 0 where training went on from a model and none came out better.
        """
        learnt = sum(stream.learnt for stream in self._book.streams)
        epochs = epochs or int(np.clip(_ENOUGH // learnt, _FEWEST_EPOCHS, _MOST_EPOCHS))
        rows = self._book.rows
        course = self._resumed()
        if self._goes_on and not course.turn:
            course.best_loss, course.best = self._held_out_loss(), self._now()
        with _progress() as progress:
            done = course.epoch * rows + self._book.rows_before(course.block)
            task = progress.add_task("training", total=epochs * rows, completed=done, loss=course.told)
            while course.epoch < epochs and course.epoch - course.best_epoch < _PATIENCE:
                while course.block < self._book.blocks:
                    done = course.epoch * rows + self._book.rows_before(course.block)
                    self._optimizer.learning_rate = _RATE * max(
                        _LEAST_RATE, 0.5 * (1 + np.cos(np.pi * done / (epochs * rows)))
                    )
                    self.learn(course, advance=lambda rows: progress.advance(task, rows))
                    if time.monotonic() - self._saved_at > _CHECKPOINT_S:
                        self._save(course)
                self._states[:] = 0.0
                course.judge(self._held_out_loss(), self._now())
                progress.update(task, loss=course.told)
                self._save(course)
        self.network.assign(course.best)
        return course.best_epoch

    def finish(self) -> None:
        """Learn from what was held out, too: nothing is as near to what will be forecast."""
        course = Course(epoch=_MOST_EPOCHS)
        for number in range(_LAST_EPOCHS):
            self._states[:] = 0.0
            self._optimizer.learning_rate = _LAST_RATE * (1 - number / _LAST_EPOCHS)
            course.block = self._first_late_block
            while course.block < self._book.blocks:
                self.learn(course, all_of_it=True)
            course.epoch += 1

    @property
    def _first_late_block(self) -> int:
        """From here on states know what they need to know when the held-out transfers come."""
        return min(max(stream.learnt - RETAINED, 0) for stream in self._book.streams) // CHUNK

    def _now(self) -> dict[str, Floats]:
        """The weights at hand."""
        return {name: variable.numpy() for name, variable in self.network.variables.items()}

    def learn(
        self, course: Course, *, all_of_it: bool = False, advance: Callable[[int], object] = lambda _: None
    ) -> None:
        """Learn from one block of chunks, but for what is held out unless it is `all_of_it`."""
        lessons, owners = self._book.block(course.block)
        weight = self._weights[owners] * (self._book.learnt(course.block, owners) | all_of_it)
        draw = np.random.default_rng((self._seed, course.epoch, course.block))
        links = draw.permutation(self._book.links)
        owner = lessons["link"] % self._replicas
        sizes = np.bincount(owner, minlength=self._replicas)
        shape = Shape.for_rows(int(sizes.max()), lanes=self._lanes, window=_WINDOW)
        parts = [
            laid(lessons[owner == i], weight[owner == i], self._states, links, shape) for i in range(self._replicas)
        ]
        after, memory = self._states.copy(), self._nothing(shape)
        for windows in zip(*parts, strict=True):
            memory, last = self._descend(windows, memory, course.turn)
            course.turn += 1
            for replica, states in last.items():
                after[1 + windows[replica].ended] = states
            advance(sum(window.completions for window in windows))
        self._states = after
        course.block += 1

    def _held_out_loss(self) -> float:
        """Pinball loss of what is held out, in log1p seconds."""
        states = np.zeros_like(self._states)
        losses, weights = [], []
        for block in range(self._first_late_block, self._book.blocks):
            lessons, owners = self._book.block(block)
            weight = self._weights[owners] * ~self._book.learnt(block, owners)
            shape = Shape.for_rows(len(lessons), lanes=self._lanes, window=_WINDOW)
            memory = (tf.zeros((shape.lanes, self.network.units)),) * 2
            after = states.copy()
            for window in laid(lessons, weight, states, np.arange(self._book.links), shape):
                loss, memory, last = self._look(window.feed, memory)
                losses.append(loss.numpy())
                weights.append(window.feed["weight"])
                after[1 + window.ended] = last.numpy()
            states = after
        return float(
            np.average(np.concatenate(losses), weights=np.concatenate(weights)) * self.network.scales["target"][1]
        )

    def _descend(self, windows: Sequence[Window], memory: Any, turn: int) -> tuple[Any, dict[int, Floats]]:  # noqa: ANN401 - TensorFlow has no types
        """Make one step with a window for each replica; return the lanes' memory, and the states that links ended in.

        These are given by the replicas of this host.
        """
        if self._strategy is None:
            memory, last = self._step(windows[0].feed, memory, tf.constant(turn))
            return memory, {0: last.numpy()}
        feed = self._per_replica([window.feed for window in windows])
        memory, last = self._step_together(feed, memory, tf.constant(turn))
        numbers = self._strategy.experimental_local_results(self._per_replica(range(self._replicas)))
        states = self._strategy.experimental_local_results(last)
        return memory, {int(number): state.numpy() for number, state in zip(numbers, states, strict=True)}

    def _per_replica(self, feeds: Sequence[Any]) -> Any:  # noqa: ANN401 - as above
        values: Any = self._strategy.experimental_distribute_values_from_function(
            lambda replica: tf.nest.map_structure(tf.constant, feeds[replica.replica_id_in_sync_group])
        )
        return values

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def _step_together(self, feed: Tensor, memory: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        done: tuple[Tensor, Tensor] = self._strategy.run(self._step, args=(feed, memory, turn))
        return done

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # as above
    def _step(self, feed: Tensor, memory: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """One step down the gradient, of all replicas together."""
        replica = tf.distribute.get_replica_context()
        number = turn * self._replicas + replica.replica_id_in_sync_group
        heard = replica.all_reduce("sum", tf.reduce_sum(feed["weight"]))
        with tf.GradientTape() as tape:
            hiddens, cells = self.network.steps(feed, *memory)
            inputs = self.network.inputs(feed["numbers"], feed["names"])
            known = known_states(hiddens, feed["carried"], feed["places"])
            quantiles = self.network.quantiles(*self.network.hide(inputs, known, turn=number), turn=number)
            losses = self.network.losses(feed["log_duration"], quantiles)
            loss = tf.math.divide_no_nan(tf.reduce_sum(losses * feed["weight"]), heard)
        gradients = replica.all_reduce("sum", tape.gradient(loss, self._variables))
        gradients, _ = tf.clip_by_global_norm(gradients, _STEEPEST)
        # The optimizer adds up what replicas give it.
        shares = [gradient / self._replicas for gradient in gradients]
        self._optimizer.apply_gradients(zip(shares, self._variables, strict=True))
        return (hiddens[:, -1], cells[:, -1]), _last(hiddens, cells, feed["ends"])

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # as above
    def _look(self, feed: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the window's transfers, without learning from them."""
        hiddens, cells = self.network.steps(feed, *memory)
        known = known_states(hiddens, feed["carried"], feed["places"])
        quantiles = self.network.quantiles(self.network.inputs(feed["numbers"], feed["names"]), known)
        losses = self.network.losses(feed["log_duration"], quantiles)
        return losses, (hiddens[:, -1], cells[:, -1]), _last(hiddens, cells, feed["ends"])

    def _nothing(self, shape: Shape) -> Any:  # noqa: ANN401 - as above
        """The memory of lanes that have seen nothing, for every replica."""
        empty = (tf.zeros((shape.lanes, self.network.units)),) * 2
        return empty if self._strategy is None else self._per_replica([empty] * self._replicas)

    def _save(self, course: Course) -> None:
        """Keep all that it takes to go on from here. Several hosts do so between epochs alone: each has links of its own."""
        self._saved_at = time.monotonic()
        if self._checkpoint is None or (course.block and self._strategy is not None):
            return
        now = {f"now.{name}": array for name, array in self._now().items()}
        optimizer = {f"optimizer.{i}": variable.numpy() for i, variable in enumerate(self._optimizer.variables)}
        self._checkpoint.save(course, {**now, **optimizer, "states": self._states})

    def _resumed(self) -> Course:
        found = self._checkpoint.load() if self._checkpoint else None
        if found is None:
            return Course()
        course, arrays = found
        self.network.assign({name: arrays[f"now.{name}"] for name in self.network.variables})
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(arrays[f"optimizer.{i}"])
        self._states = arrays["states"]
        return course


def _last(hiddens: Tensor, cells: Tensor, ends: Tensor) -> Tensor:
    """Hidden and cell at some places, side by side; [e, 2 x units]."""
    both = tf.concat([hiddens, cells], axis=2)
    return tf.gather(tf.reshape(both, (-1, both.shape[2])), ends)


def _stream_weights(book: Book) -> Floats:
    """What a transfer of each stream weighs, 1 on average: less in a long one, so that it does not drown a short one."""
    rows = np.array([stream.rows for stream in book.streams], dtype=np.float64)
    weights: Floats = (rows**-0.5 * rows.sum() / np.sqrt(rows).sum()).astype(np.float32)
    return weights


def _scales(book: Book) -> dict[str, Floats]:
    """Mean and deviation of what is learnt from, over some of the chunks if there are many."""
    blocks = np.unique(np.linspace(0, book.blocks - 1, _SCALE_CHUNKS).astype(int))
    sums = {what: _Moments() for what in ("numbers", "outcomes", "log_duration")}
    for block in blocks:
        lessons, owners = book.block(int(block))
        learnt = lessons[book.learnt(int(block), owners)]
        if not len(learnt):
            continue
        for what, moments in sums.items():
            moments.add(learnt[what].reshape(len(learnt), -1))
    (number_mean, number_scale), (outcome_mean, outcome_scale), (mean, scale) = (
        moments.deviations() for moments in sums.values()
    )
    return {
        "number_mean": number_mean,
        "number_scale": number_scale,
        "outcome_mean": outcome_mean,
        "outcome_scale": outcome_scale,
        "target": np.concatenate([mean, scale]),
    }


class _Moments:
    """Mean and standard deviation of what is known in each column."""

    def __init__(self) -> None:
        self._sums: list[NDArray[np.float64]] = []

    def add(self, table: Floats) -> None:
        known = ~np.isnan(table)
        values = np.where(known, table, 0).astype(np.float64)
        self._sums.append(np.stack([known.sum(axis=0), values.sum(axis=0), (values * values).sum(axis=0)]))

    def deviations(self) -> tuple[Floats, Floats]:
        """Mean and deviation; NaN for a deviation of what never varied."""
        count, total, squares = np.sum(self._sums, axis=0)
        count = np.maximum(count, 1)
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean * mean, 0))
        return mean.astype(np.float32), np.where(spread > 1e-4, spread, np.nan).astype(np.float32)


def _measured(manifest: Manifest, book: Book, forecaster: Forecaster) -> Manifest:
    """Add what the forecaster, as it will serve, and the baselines are worth on what was held out."""
    actual, forecasts = [], []
    for number, stream in enumerate(book.streams):
        tail = book.tail(number)
        cut = len(tail) - (stream.rows - stream.learnt)
        warm, late = tail.iloc[:cut], tail.iloc[cut:]
        baselines = Baselines()
        forecaster.reset()
        forecaster.absorb(warm.assign(failed=False))
        baselines.absorb(warm)
        forecasts.append({"model": forecaster.score(late.assign(failed=False)), **baselines.score(late)})
        actual.append((late["ended_at"] - late["started_at"]).to_numpy(dtype=np.float64))
    seconds = np.concatenate(actual)
    whole = {name: np.concatenate([part[name] for part in forecasts]) for name in forecasts[0]}
    levels = np.quantile(surprise(np.log1p(seconds), whole["model"]), _SHARES)
    return manifest.model_copy(
        update={
            "metrics": {name: forecast_metrics(seconds, quantiles) for name, quantiles in whole.items()},
            "calibration": {str(share): round(float(level), 4) for share, level in zip(_SHARES, levels, strict=True)},
        }
    )


def _description(book: Book) -> TrainingData:
    streams = book.streams
    return TrainingData(
        transfers=book.rows,
        links=book.links,
        first_start=min(stream.first_start for stream in streams),
        last_end=max(stream.last_end for stream in streams),
        hash=hashlib.sha256("".join(stream.hash for stream in streams).encode()).hexdigest(),
    )


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=not console.is_terminal)
