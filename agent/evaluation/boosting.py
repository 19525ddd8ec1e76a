"""Gradient boosting on the forecaster's own features: how far those alone take a forecast, without the net."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from models.features import NAMES, NUMBERS, Features
from models.history import History
from models.registry import QUANTILES

Table = NDArray[np.float64]

FEWEST = 100  # finished transfers to learn from
MOST = 1_000_000  # the newest of them: more cost time and change little
LATE = 0.2  # the last part in time, which says when to stop

_CHUNK = 16_384
_SETTINGS = {"loss": "quantile", "learning_rate": 0.06, "max_leaf_nodes": 31, "min_samples_leaf": 20}
_MOST_TREES = 400
_PATIENCE = 20


def boosting(train_rows: pd.DataFrame, rows: pd.DataFrame, counted: NDArray[np.bool_], *, seed: int = 0) -> Table:
    """Learn from `train_rows` alone, and forecast those of `rows` that are `counted`; quantiles of log1p seconds [counted, 5].

    Both are finished transfers in the order in which they ended, with EVENT_COLUMNS and PATH_COLUMNS. `rows` are a stream of
    their own: each may know of those before it, counted or not, that had ended when it started.
    """
    booster = Boosting.learnt(CausalFeatures().score(train_rows), log_duration(train_rows), seed=seed)
    return booster.forecast(CausalFeatures().score(rows)[counted])


def log_duration(rows: pd.DataFrame) -> Table:
    """What the transfers took, log1p of seconds [n]."""
    took: Table = np.log1p((rows["ended_at"] - rows["started_at"]).to_numpy(np.float64))
    return took


class CausalFeatures:
    """What the net sees of each transfer as of its start, but for its states; a fold over finished transfers in stream order.

    [n, NUMBERS and one column for each hashed name]; what is not known is NaN, which the trees take as it is.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._history = History()
        self._features = Features(self._history)

    def absorb(self, finished: pd.DataFrame) -> None:
        """Fold finished transfers in, without looking at what they would have seen."""
        self._history.absorb(self._history.code(finished, learn=True))

    def score(self, finished: pd.DataFrame) -> Table:
        """What was known of each finished transfer, which are absorbed."""
        parts = [self._score(finished.iloc[i : i + _CHUNK]) for i in range(0, max(len(finished), 1), _CHUNK)]
        return np.concatenate(parts)

    def _score(self, finished: pd.DataFrame) -> Table:
        coded = self._history.code(finished, learn=True)
        self._history.absorb(coded)
        names = self._features.names(finished)
        buckets = [names[:, block].argmax(axis=1) for block in _NAME_BLOCKS]
        return np.column_stack([self._features.numbers(finished, coded), *buckets]).astype(np.float64)


class Boosting:
    """One regression for each of QUANTILES, sorted so that they rise."""

    def __init__(self, regressors: list[HistGradientBoostingRegressor], columns: NDArray[np.intp]) -> None:
        self._regressors = regressors
        self._columns = columns

    @classmethod
    def learnt(cls, features: Table, target: Table, *, seed: int) -> Boosting:
        """Learn from rows in the order of time. The last of them say how many trees are enough; then all are learnt from."""
        early = features[: _first_late(len(target))]
        # A feature that never varies tells nothing, and one that is never known cannot be put into bins.
        columns = np.flatnonzero(_spread(early) > 0)
        if not len(columns):
            columns = np.array([_CATEGORIES[0]])
        chosen = features[:, columns]
        names = np.isin(columns, _CATEGORIES)
        return cls([_regressor(chosen, target, quantile, names, seed) for quantile in QUANTILES], columns)

    @property
    def trees(self) -> list[int]:
        """Of each regression."""
        return [int(regressor.n_iter_) for regressor in self._regressors]

    def forecast(self, features: Table) -> Table:
        """Quantiles of log1p seconds [n, 5]."""
        if not len(features):
            return np.empty((0, len(QUANTILES)))
        chosen = features[:, self._columns]
        quantiles: Table = np.stack([regressor.predict(chosen) for regressor in self._regressors], axis=1)
        return np.sort(quantiles, axis=1).clip(min=0.0)


def _name_blocks() -> list[slice]:
    columns = [name.rpartition("_")[0] for name in NAMES]
    return [
        slice(columns.index(column), columns.index(column) + columns.count(column)) for column in dict.fromkeys(columns)
    ]


_NAME_BLOCKS = _name_blocks()
_CATEGORIES = list(range(len(NUMBERS), len(NUMBERS) + len(_NAME_BLOCKS)))


def _first_late(count: int) -> int:
    return round(count * (1 - LATE))


def _spread(features: Table) -> Table:
    """The largest known value of each column less the smallest; negative where none is known."""
    unknown = np.isnan(features)
    highest = np.where(unknown, -np.inf, features).max(axis=0)
    return np.asarray(highest - np.where(unknown, np.inf, features).min(axis=0))


def _regressor(
    features: Table, target: Table, quantile: float, names: NDArray[np.bool_], seed: int
) -> HistGradientBoostingRegressor:
    late = _first_late(len(target))
    settings = {**_SETTINGS, "quantile": quantile, "categorical_features": names, "random_state": seed}
    trial = HistGradientBoostingRegressor(
        **settings, max_iter=_MOST_TREES, early_stopping=True, n_iter_no_change=_PATIENCE
    )
    trial.fit(features[:late], target[:late], X_val=features[late:], y_val=target[late:])
    # Scores are losses with their sign turned; the first one is that of no tree at all.
    enough = max(int(np.argmax(trial.validation_score_)), 1)
    return HistGradientBoostingRegressor(**settings, max_iter=enough, early_stopping=False).fit(features, target)
