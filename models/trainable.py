"""The forecaster's arithmetic with gradients, as TensorFlow has it: what `models.training` trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from models.features import NUMBERS, blocks
from models.forecaster import FAR, SCALES, shapes
from models.history import Floats
from models.registry import QUANTILES

Tensor: TypeAlias = Any  # TensorFlow has no types

HEAD = (64, 32)

_DROPPED = 51  # of 256 values between the head's layers
_ANOTHER_DRAW = 1 << 24  # tells the seeds of what is dropped from those of what is hidden

# How often training hides what may be absent in service.
_HIDDEN = {
    "path": 0.3,
    "week": 0.5,
    "queue": 0.2,
    "link": 0.1,
    "source": 0.1,
    "destination": 0.1,
    "grid": 0.1,
    "names": 0.3,
    "state": 0.2,
}


class TrainableNetwork:
    """The arithmetic of forecaster.Network, with gradients. Products are made in `precision`, all else in float32."""

    def __init__(self, *, scales: Mapping[str, Floats], units: int, seed: int, precision: Any = tf.float32) -> None:  # noqa: ANN401 - TensorFlow has no types
        self.units = units
        self.scales = scales
        self._seed = seed
        self._precision = precision
        draw = np.random.default_rng(seed)
        self.variables = {
            name: tf.Variable(_initial(name, shape, draw), name=name)
            for name, shape in shapes(units, HEAD).items()
            if name not in SCALES
        }

    def assign(self, weights: Mapping[str, Floats]) -> None:
        for name, variable in self.variables.items():
            variable.assign(weights[name])

    def weights(self) -> dict[str, Floats]:
        """What `forecaster.Network` takes."""
        return {**self.scales, **{name: variable.numpy() for name, variable in self.variables.items()}}

    def steps(self, window: Mapping[str, Tensor], hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Step all lanes through a window; return hidden and cell after every step, each [lanes, steps, units].

        `window` has the outcomes [lanes, steps, OUTCOMES], where links begin, with which of the states that were `carried`
        [k, 2 x units] (`brought` [lanes, steps]).
        """
        variables = self.variables
        told = self._standardised(window["outcomes"], "outcome")
        drive = self._product(told, variables["step_outcome"]) + variables["step_bias"]
        fresh = tf.gather(window["carried"], window["brought"])
        hiddens, cells = self._steps(drive, variables["step_state"], window["begins"], fresh, hidden, cell)
        return hiddens, cells

    def quantiles(self, inputs: Tensor, hidden: Tensor, *, turn: Tensor | None = None) -> Tensor:
        """Quantiles of the standardised log duration, [m, 5]. In training `turn` says which values are dropped."""
        variables = self.variables
        kept = (1.0, 1.0, 1.0) if turn is None else self._kept(tf.shape(inputs)[0], turn)
        wide = (
            self._product(inputs, variables["head_input"])
            + self._product(hidden * kept[0], variables["head_state"])
            + variables["head_bias"]
        )
        narrow = self._product(tf.nn.relu(wide) * kept[1], variables["deep"]) + variables["deep_bias"]
        raw = (
            self._product(tf.nn.relu(narrow) * kept[2], variables["out"])
            + self._product(inputs, variables["out_input"])
            + variables["out_bias"]
        )
        gaps = tf.nn.softplus(raw)
        middle = raw[:, 2]
        below, above = middle - gaps[:, 1], middle + gaps[:, 3]
        return tf.stack([below - gaps[:, 0], below, middle, above, above + gaps[:, 4]], axis=1)

    def inputs(self, numbers: Tensor, names: Tensor) -> Tensor:
        """What the head looks at: numbers [m, NUMBERS] (NaN unknown) and names [m, NAMES]."""
        return tf.concat([self._standardised(numbers, "number"), names], axis=1)

    def losses(self, log_duration: Tensor, quantiles: Tensor) -> Tensor:
        """Mean over the quantiles of the pinball loss, [m], in deviations of the log duration."""
        mean, scale = self.scales["target"]
        beyond = ((log_duration - mean) / scale)[:, None] - quantiles
        levels = tf.constant(QUANTILES)
        return tf.reduce_mean(tf.maximum(levels * beyond, (levels - 1.0) * beyond), axis=1)

    def hide(self, inputs: Tensor, states: Tensor, *, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Hide whole blocks at random, as they would look if they were not known. The same `turn`, the same draw."""
        count, numbers = tf.shape(inputs)[0], len(NUMBERS)
        draw = tf.random.stateless_uniform((count, len(_HIDDEN)), seed=tf.stack([self._seed, turn]))
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

    def _standardised(self, table: Tensor, what: str) -> Tensor:
        """As `forecaster.standardised`."""
        deviations = (table - self.scales[f"{what}_mean"]) / self.scales[f"{what}_scale"]
        unknown = tf.math.is_nan(deviations)
        known = tf.where(unknown, 0.0, deviations)
        return tf.concat([tf.clip_by_value(known, -FAR, FAR), tf.cast(unknown, tf.float32)], axis=-1)

    def _kept(self, count: Tensor, turn: Tensor) -> list[Tensor]:
        """What the state and the head's layers are multiplied with: dropout (Srivastava et al. 2014), a byte for each value."""
        widths = (self.units, *HEAD)
        words = -(-sum(widths) // 4)
        seed = tf.stack([self._seed ^ _ANOTHER_DRAW, turn])
        drawn = tf.random.stateless_uniform((count, words), seed=seed, minval=None, maxval=None, dtype=tf.int32)
        luck = tf.reshape(tf.bitcast(drawn, tf.uint8), (count, 4 * words))[:, : sum(widths)]
        kept = tf.cast(luck >= _DROPPED, tf.float32) * (256 / (256 - _DROPPED))
        return list(tf.split(kept, widths, axis=1))

    def _steps(
        self, drive: Tensor, weights: Tensor, begins: Tensor, fresh: Tensor, hidden: Tensor, cell: Tensor
    ) -> Any:  # noqa: ANN401 - as above
        """The recurrence (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) and its gradient.

        `drive` [lanes, steps, 4 x units] is what the outcomes add to the gates: entry, keep, release, candidate. The gradient
        is written out because the one that TensorFlow derives takes twice as long. None flows through cells or into states
        that were brought along.
        """
        units, steps = self.units, range(drive.shape[1])
        first = tf.unstack(begins[:, :, None], axis=1)
        fresh_hidden, fresh_cell = (tf.unstack(part, axis=1) for part in tf.split(fresh, 2, axis=2))

        @tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow has no types
        def run(drive: Tensor, weights: Tensor) -> Any:  # noqa: ANN401 - as above
            driven = tf.unstack(drive, axis=1)
            before, opened, hiddens, cells = [(hidden, cell)], [], [], []
            for i in steps:
                h = tf.where(first[i], fresh_hidden[i], before[i][0])
                c = tf.where(first[i], fresh_cell[i], before[i][1])
                before[i] = h, c
                gates = driven[i] + self._product(h, weights)
                open_ = tf.sigmoid(gates[:, : 3 * units])
                entry, keep, release = tf.split(open_, 3, axis=1)
                candidate = tf.tanh(gates[:, 3 * units :])
                cells.append(keep * c + entry * candidate)
                shown = tf.tanh(cells[i])
                hiddens.append(release * shown)
                opened.append((open_, candidate, shown))
                before.append((hiddens[i], cells[i]))

            def gradient(to_hiddens: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
                to_hidden = to_cell = tf.zeros_like(hidden)
                later, told, back = [], tf.unstack(to_hiddens, axis=1), tf.transpose(weights)
                for i in reversed(steps):
                    open_, candidate, shown = opened[i]
                    entry, keep, release = tf.split(open_, 3, axis=1)
                    to_hidden += told[i]
                    to_cell += to_hidden * release * (1 - shown * shown)
                    to_open = tf.concat([to_cell * candidate, to_cell * before[i][1], to_hidden * shown], axis=1)
                    to_candidate = to_cell * entry * (1 - candidate * candidate)
                    to_gates = tf.concat([to_open * open_ * (1 - open_), to_candidate], axis=1)
                    later.append(to_gates)
                    on = 1 - tf.cast(first[i], tf.float32)
                    to_hidden = self._product(to_gates, back) * on
                    to_cell *= keep * on
                to_drive = tf.stack(later[::-1], axis=1)
                states = tf.concat([h for h, _ in before[:-1]], axis=0)
                return to_drive, self._product(tf.transpose(states), tf.concat(later[::-1], axis=0))

            return (tf.stack(hiddens, axis=1), tf.stack(cells, axis=1)), gradient

        return run(drive, weights)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if self._precision is tf.float32:
            return tf.tensordot(a, b, 1)
        return tf.cast(tf.tensordot(tf.cast(a, self._precision), tf.cast(b, self._precision), 1), tf.float32)


def known_states(hiddens: Tensor, carried: Tensor, places: Tensor) -> Tensor:
    """Hidden states by their places [m] among all of a window's [lanes, steps, units] and, after these, the carried ones."""
    units = hiddens.shape[2]
    return tf.gather(tf.concat([tf.reshape(hiddens, (-1, units)), carried[:, :units]], axis=0), places)


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
