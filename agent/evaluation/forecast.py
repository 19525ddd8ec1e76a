"""A forecaster judged on recorded transfers, beside the baselines and two rivals that learn from data of their own.

Nothing is forecast from what was not known when a transfer started, as in `gridmedic replay`: the model's forecasts are
those that it makes of history and data together.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agent.evaluation import boosting, windowed
from agent.evaluation.boosting import Boosting, CausalFeatures, log_duration
from agent.evaluation.place import make_place
from agent.evaluation.windowed import Windowed
from agent.forecasts import Forecasts, measures_table
from agent.sources.finished import Recording, check_parts
from models.comparison import gain
from models.forecaster import Forecaster
from models.history import RETAINED, retained
from models.metrics import Baselines, pinball_losses
from models.registry import default_model

Table = NDArray[np.float64]

MODEL = "model"
FEWEST_BLOCKS = 5  # for an interval
_KEPT = (
    *("source", "destination", "activity", "protocol", "source_type", "destination_type", "fts", "failed"),
    *("bytes", "submitted_at", "started_at", "ended_at", "path_loss", "path_delay_ms", "path_throughput_bps"),
)


class _Scorer(Protocol):
    """A fold over finished transfers in stream order that forecasts them as of their starts."""

    def reset(self) -> None: ...
    def absorb(self, observed: pd.DataFrame, /) -> None: ...
    def score(self, ended: pd.DataFrame, /) -> Table: ...


class _Boosted:
    """Boosting as a fold."""

    def __init__(self, booster: Boosting) -> None:
        self.booster = booster
        self._features = CausalFeatures()
        self.reset = self._features.reset
        self.absorb = self._features.absorb

    def score(self, ended: pd.DataFrame) -> Table:
        return self.booster.forecast(self._features.score(ended))


def evaluate(
    data: Sequence[Path],
    *,
    history: Sequence[Path] = (),
    train: Sequence[Path] = (),
    measurements: Sequence[Path] = (),
    site_map: Path | None = None,
    model: Path | None = None,
    predictions: Path | None = None,
    plots: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Forecast the transfers of `data`, after those of `history`; return the object that `--report` writes.

    Raise SourceError if files cannot be read or do not fit together, ModelError if the model cannot be used, ConfigError if
    there is no place for the plots.
    """
    forecaster = Forecaster.load(model or default_model())
    if plots is not None:
        make_place(plots)
    notes = check_parts(data, history=history, train=train)
    lessons = Recording({"train": train}, measurements=measurements, site_map=site_map)
    rivals, about = _rivals(lessons, seed) if train else ({}, {})
    with ExitStack() as stack:
        out = stack.enter_context(predictions.open("w", encoding="utf-8", newline="")) if predictions else None
        forecasts = Forecasts((MODEL, "constant", "link_median", *rivals), out)
        played = Recording({"history": history, "data": data}, measurements=measurements, site_map=site_map)
        counted = _play(played.pages(), {MODEL: forecaster, **rivals}, forecasts)
    seconds, names = forecasts.seconds, forecasts.names[1:]
    if float(counted["ended_at"].min()) <= forecaster.manifest.data.last_end:
        notes.append("the model's own training data are not all older than DATA: it may have seen these transfers")
    if plots is not None:
        from agent.evaluation.plots import draw  # noqa: PLC0415 - matplotlib, for plots alone

        draw(plots, counted.assign(seconds=seconds), {name: forecasts.quantiles(name) for name in forecasts.names})
    accounts = {**played.accounts, **lessons.accounts}
    return {
        "events": accounts["data"].numbers(),
        **{part: accounts[part].numbers() for part, files in (("history", history), ("train", train)) if files},
        "forecast": forecasts.measures(),
        "gain": {
            name: gain_over(
                forecasts.quantiles(name),
                forecasts.quantiles(MODEL),
                seconds,
                counted["ended_at"].to_numpy(),
                seed=seed,
            )
            for name in names
        },
        "rivals": about,
        "notes": notes,
    }


def gain_over(
    other: Table, model: Table, seconds: Table, ended_at: Table, *, seed: int
) -> dict[str, int | dict[str, float | None]]:
    """By how much the model is better, in `mae_log1p` and `pinball`; both forecasts are quantiles of log1p seconds [n, 5].

    Transfers in the order in which they ended. Of few there is no interval.
    """
    actual = np.log1p(seconds)
    found = {
        measure: gain(losses(other), losses(model), ended_at, seed=seed)
        for measure, losses in (
            ("mae_log1p", lambda quantiles: np.abs(actual - quantiles[:, 2])),
            ("pinball", lambda quantiles: pinball_losses(actual, quantiles)),
        )
    }
    blocks = found["pinball"].blocks
    return {
        "n": len(actual),
        "blocks": blocks,
        **{
            measure: {
                "mean": one.mean.value,
                "low": one.mean.low if blocks >= FEWEST_BLOCKS else None,
                "high": one.mean.high if blocks >= FEWEST_BLOCKS else None,
            }
            for measure, one in found.items()
        },
    }


def _rivals(lessons: Recording, seed: int) -> tuple[dict[str, _Scorer], dict[str, dict[str, Any]]]:
    """Rivals that have learnt what there is to learn, and what is to be said of each."""
    rows = _newest(lessons.pages(), max(boosting.MOST, windowed.MOST))
    rivals: dict[str, _Scorer] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, fewest in (("boosting", boosting.FEWEST), ("windowed", windowed.FEWEST)):
        if len(rows) < fewest:
            about[name] = {
                "left_out": f"it needs {fewest} finished transfers to learn from, and --train has {len(rows)}"
            }
    if "boosting" not in about:
        features = CausalFeatures().score(rows)
        booster = Boosting.learnt(features[-boosting.MOST :], log_duration(rows)[-boosting.MOST :], seed=seed)
        rivals["boosting"] = _Boosted(booster)
        about["boosting"] = {"learnt_from": min(len(rows), boosting.MOST), "trees": booster.trees}
    if "windowed" not in about:
        rivals["windowed"] = Windowed.learnt(rows.tail(windowed.MOST), seed=seed)
        about["windowed"] = {
            "learnt_from": min(len(rows), windowed.MOST),
            "window": windowed.WINDOW,
            "units": windowed.UNITS,
        }
    return rivals, about


def _newest(pages: Iterator[pd.DataFrame], most: int) -> pd.DataFrame:
    kept: deque[pd.DataFrame] = deque([pd.DataFrame(columns=list(_KEPT))])
    count = 0
    for page in pages:
        kept.append(page[list(_KEPT)])
        count += len(page)
        while count - len(kept[0]) >= most:
            count -= len(kept.popleft())
    return pd.concat([part for part in kept if len(part)] or [kept[0]], ignore_index=True).tail(most)


def _play(pages: Iterator[pd.DataFrame], scorers: Mapping[str, _Scorer], forecasts: Forecasts) -> pd.DataFrame:
    """Play all transfers, and collect the forecasts of the data's; return what else is to be known of these."""
    baselines, memory = Baselines(), _Memory(list(scorers.values()))
    times, sizes, activities, links = [], [], _Words(), _Words()
    for page in pages:
        counted = (page["part"] == "data").to_numpy()
        # The baselines go by links and times alone, and what they remember is little.
        quantiles = {name: table[counted] for name, table in baselines.score(page).items()}
        for name, scorer in scorers.items():
            if counted.any():
                quantiles[name] = scorer.score(page)[counted]
            else:
                scorer.absorb(page)
        memory.keep(page)
        rows = page[counted]
        if len(rows):
            forecasts.add(rows, quantiles)
            times.append(rows["ended_at"].to_numpy(np.float64))
            sizes.append(rows["bytes"].to_numpy(np.float64))
            activities.add(rows["activity"])
            links.add(rows["source"] + " > " + rows["destination"])
    return pd.DataFrame(
        {
            "ended_at": np.concatenate(times),
            "bytes": np.concatenate(sizes),
            "activity": activities.categories(),
            "link": links.categories(),
        }
    )


class _Memory:
    """The rows that would be kept in service. When there are twice as many, all scorers begin anew from those to keep."""

    def __init__(self, scorers: Sequence[_Scorer]) -> None:
        self._scorers = scorers
        self._rows: list[pd.DataFrame] = []

    def keep(self, page: pd.DataFrame) -> None:
        self._rows.append(page[list(_KEPT)])
        if sum(map(len, self._rows)) > 2 * RETAINED:
            rows = pd.concat(self._rows, ignore_index=True)
            self._rows = [rows[retained(rows)].reset_index(drop=True)]
            for scorer in self._scorers:
                scorer.reset()
                scorer.absorb(self._rows[0])


class _Words:
    """Many words of which few differ, a small number for each."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, words: pd.Series[str]) -> None:
        places, unique = pd.factorize(words)
        codes = [self._codes.setdefault(str(word), len(self._codes)) for word in unique]
        self._parts.append(np.array(codes, dtype=np.int32)[places])

    def categories(self) -> pd.Categorical[str]:
        codes: list[int] = np.concatenate(self._parts).tolist()
        return pd.Categorical.from_codes(codes, categories=pd.Index(list(self._codes), dtype="str"))


def table(found: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = []
    for part in ("train", "history", "events"):
        if part in found:
            numbers = found[part]
            refused = ", ".join(f"{reason} {n}" for reason, n in sorted(numbers["refused"].items())) or "none"
            what = "learnt from" if part == "train" else "played" if part == "history" else "scored"
            lines.append(
                f"{'data' if part == 'events' else part:<9} {numbers['read']} read, {numbers['scored']} finished transfers "
                f"{what}, {numbers['used']} others; refused: {refused}"
            )
    lines += ["", *measures_table(found["forecast"]), ""]
    lines.append(
        f"{'gain over':<12}{'mae_log1p':>28}{'pinball':>28}   mean [95 % interval], positive: the model is better"
    )
    for name, one in found["gain"].items():
        lines.append(f"{name:<12}" + "".join(f"{_interval(one[measure]):>28}" for measure in ("mae_log1p", "pinball")))
    left_out = [
        f"{name} is left out: {about['left_out']}" for name, about in found["rivals"].items() if "left_out" in about
    ]
    return "\n".join(itertools.chain(lines, [""] if left_out or found["notes"] else [], left_out, found["notes"]))


def _interval(gain: Mapping[str, float | None]) -> str:
    mean, low, high = ("?" if value is None else f"{value:+.4f}" for value in (gain["mean"], gain["low"], gain["high"]))
    return f"{mean} [{low}, {high}]"
