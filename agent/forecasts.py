"""Forecasts of transfers beside what these took: as errors, as a CSV, and as a table for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.metrics import forecast_metrics
from models.registry import QUANTILES

Table = NDArray[np.float64]
Measures = dict[str, float | None]

SECONDS_OF = ("median_s", "q05_s", "q95_s")


class Forecasts:
    """Several forecasts of the same transfers: one row of numbers for each transfer, and one in a CSV where that is wanted."""

    def __init__(self, names: Sequence[str], predictions: IO[str] | None) -> None:
        """The first of `names` is the model, whose forecasts go to `predictions`."""
        self.names = tuple(names)
        self._seconds: list[Table] = []
        self._quantiles: dict[str, list[Table]] = {name: [] for name in names}
        self._writer = csv.writer(predictions) if predictions else None
        if self._writer:
            self._writer.writerow(("request-id", *SECONDS_OF))

    def add(self, finished: pd.DataFrame, quantiles: Mapping[str, Table]) -> None:
        """Take in finished transfers with their quantiles of log1p seconds [n, 5] by the name of the forecast."""
        self._seconds.append((finished["ended_at"] - finished["started_at"]).to_numpy(np.float64))
        for name, parts in self._quantiles.items():
            parts.append(quantiles[name])
        if self._writer:
            seconds = np.expm1(quantiles[self.names[0]][:, [2, 0, 4]])
            self._writer.writerows(
                (request, *(f"{value:.9g}" for value in row))
                for request, row in zip(finished["request_id"], seconds, strict=True)
            )

    @property
    def seconds(self) -> Table:
        """What the transfers took, [n]."""
        return np.concatenate([np.empty(0), *self._seconds])

    def quantiles(self, name: str) -> Table:
        """One forecast of all transfers: quantiles of log1p seconds [n, 5]."""
        return np.concatenate([np.empty((0, len(QUANTILES))), *self._quantiles[name]])

    def measures(self) -> dict[str, Measures]:
        """Errors by the name of the forecast; None for what cannot be said."""
        seconds = self.seconds
        return {name: sayable(forecast_metrics(seconds, self.quantiles(name))) for name in self.names}


def sayable(measures: Mapping[str, float]) -> Measures:
    """The same, None for what is no number."""
    return {name: value if math.isfinite(value) else None for name, value in measures.items()}


def measures_table(forecast: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Errors for people: a row for each forecast, a column for each measure."""
    first = next(iter(forecast.values()))
    lines = [f"{'forecast':<12}" + "".join(f"{name:>13}" for name in first)]
    for name, values in forecast.items():
        lines.append(f"{name:<12}" + "".join(f"{_shown(value):>13}" for value in values.values()))
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
