"""Pictures of how good forecasts are: one PNG for each question. Drawn by matplotlib without any screen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from agent.desk.text import clean, duration
from models.registry import QUANTILES

Table = NDArray[np.float64]
Quantiles = Mapping[str, Table]

# Of Okabe and Ito, told apart by everybody; the model has the strongest.
_COLOURS = {
    "model": "#0072B2",
    "boosting": "#D55E00",
    "link_median": "#009E73",
    "windowed": "#CC79A7",
    "constant": "#8A8A8A",
}
_WORDS = {
    "model": "the model",
    "boosting": "boosting",
    "link_median": "link median",
    "windowed": "windowed LSTM",
    "constant": "constant",
}
_MARKS = {"model": "o", "boosting": "s", "link_median": "^", "windowed": "D", "constant": "x"}
STYLE: dict[Any, Any] = {  # matplotlib types its names
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 11.0,
    "axes.titlesize": 13.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "figure.dpi": 110.0,
    "savefig.bbox": "tight",
}
_SECONDS = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 36_000.0, 86_400.0)
_FACTORS = (1 / 30, 1 / 10, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 10.0, 30.0)
_TIMES = "\N{MULTIPLICATION SIGN}"
_MOST_NAMED = 15
_LONGEST_NAME = 60
_FEWEST_IN_A_BIN = 5


def draw(directory: Path, rows: pd.DataFrame, quantiles: Quantiles) -> None:
    """Draw all plots as PNG files in the directory.

    `rows` are transfers in the order in which they ended, with the columns seconds, ended_at, bytes, activity and link;
    `quantiles` are the forecasts of log1p seconds [n, 5] by name, the first the model's.
    """
    actual = np.log1p(rows["seconds"].to_numpy(np.float64))
    errors = {name: table[:, 2] - actual for name, table in quantiles.items()}
    pictures: dict[str, Callable[[], Figure]] = {
        "predicted-against-actual": lambda: _predicted_against_actual(actual, quantiles),
        "errors": lambda: _errors(errors),
        "calibration": lambda: _calibration(actual, quantiles),
        "error-by-size": lambda: _error_by_size(rows["bytes"].to_numpy(np.float64), errors),
        "error-by-activity": lambda: _error_by_name(rows["activity"], errors, "activity", "activities"),
        "error-by-link": lambda: _error_by_name(rows["link"], errors, "link", "links"),
        "coverage-over-time": lambda: _coverage_over_time(rows["ended_at"].to_numpy(np.float64), actual, quantiles),
    }
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks: boxes are drawn
        for name, picture in pictures.items():
            picture().savefig(directory / f"{name}.png", format="png")


def _predicted_against_actual(actual: Table, quantiles: Quantiles) -> Figure:
    """The model, and beside it the best of the others."""
    model, *others = quantiles
    best = min(others, key=lambda name: float(np.abs(quantiles[name][:, 2] - actual).mean()), default=model)
    shown = list(dict.fromkeys((model, best)))
    figure = Figure(figsize=(5.6 * len(shown) + 1.4, 6.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    top = max(float(actual.max()), *(float(quantiles[name][:, 2].max()) for name in shown)) * 1.03 + 0.1
    drawn = [_density(panel, quantiles[name], actual, top) for panel, name in zip(panels, shown, strict=True)]
    norm = LogNorm(0.7, max(2.0, *(float(np.max(np.asarray(cells.get_array()))) for cells in drawn)))
    for panel, name, cells in zip(panels, shown, drawn, strict=True):
        cells.set_norm(norm)
        _seconds_axis(panel, "x", top)
        _seconds_axis(panel, "y", top)
        panel.set_title(f"{_word(name)[0].upper()}{_word(name)[1:]}")
        error = np.abs(quantiles[name][:, 2] - actual).mean()
        panel.text(0.98, 0.03, f"mean error in log(1 + s): {error:.3f}", transform=panel.transAxes, ha="right")
        panel.set_xlabel("predicted median of the duration")
        panel.set_aspect("equal")
    panels[0].set_ylabel("actual duration")
    panels[0].legend(loc="upper left")
    bar = figure.colorbar(
        drawn[0], ax=list(panels), label=f"transfers in a cell, of {len(actual):,}", shrink=0.8, pad=0.02
    )
    bar.ax.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000, 100_000]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _density(panel: Axes, quantiles: Table, actual: Table, top: float) -> PolyCollection:
    # Fewer transfers make coarser cells: a cloud of single ones says little.
    cells = int(np.clip(len(actual) ** 0.4 * 2, 12, 80))
    drawn = panel.hexbin(
        quantiles[:, 2],
        actual,
        gridsize=cells,
        extent=(0, top, 0, top),
        mincnt=1,
        cmap="Blues",
        linewidths=0.1,
    )
    panel.plot([0, top], [0, top], color="#222222", linewidth=1.2, label="as predicted")
    order = np.argsort(quantiles[:, 2], kind="stable")
    parts = np.array_split(order, int(np.clip(len(order) // 20, 1, 25)))
    low, middle, high = (np.array([np.median(quantiles[part, i]) for part in parts]) for i in (0, 2, 4))
    if len(parts) > 1:
        panel.plot(middle, low, color="#D55E00", linewidth=1.3, linestyle="--", label="90 % interval, typical")
        panel.plot(middle, high, color="#D55E00", linewidth=1.3, linestyle="--")
    panel.set_xlim(0, top)
    panel.set_ylim(0, top)
    return drawn


def _errors(errors: Mapping[str, Table]) -> Figure:
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    panel = figure.subplots()
    reach = np.log(40.0)
    edges = np.linspace(-reach, reach, int(np.clip(2 * len(next(iter(errors.values()))) ** 0.5, 16, 90)) + 1)
    for name, error in reversed(list(errors.items())):
        density, _ = np.histogram(np.clip(error, -reach, reach), bins=edges)
        share = 100 * density / len(error)
        colour, main = _colour(name), name == next(iter(errors))
        label = f"{_word(name)}: half within a factor {np.exp(np.median(np.abs(error))):.2f}"
        if main:
            panel.stairs(share, edges, fill=True, color=colour, alpha=0.2)
        panel.stairs(share, edges, color=colour, linewidth=2.2 if main else 1.4, label=label)
    panel.axvline(0, color="#222222", linewidth=1)
    panel.xaxis.set_major_locator(FixedLocator(np.log(_FACTORS).tolist()))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _factor(np.exp(value))))
    panel.set_xlabel("predicted / actual, of 1 + seconds (the outermost bars hold what is beyond)")
    panel.set_ylabel("transfers in each bar, %")
    panel.set_title("Errors: left too short, right too long")
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], loc="upper left")
    return figure


def _calibration(actual: Table, quantiles: Quantiles) -> Figure:
    """PIT: in which of its own intervals the outcome fell; and how often it fell below each quantile."""
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    pit, reliability = figure.subplots(1, 2)
    edges = np.array([0.0, *QUANTILES, 1.0])
    model = next(iter(quantiles))
    for name, table in quantiles.items():
        # What equals a quantile lies half below it: whole seconds and steps do that often.
        below = ((actual[:, None] > table).mean(axis=0) + (actual[:, None] >= table).mean(axis=0)) / 2
        fell = np.diff(np.concatenate([[0.0], 1 - below, [1.0]]))
        if name == model:
            pit.bar(
                edges[:-1],
                fell / np.diff(edges),
                np.diff(edges),
                align="edge",
                color=_colour(name),
                alpha=0.75,
                edgecolor="white",
            )
            for left, width, share in zip(edges[:-1], np.diff(edges), fell, strict=True):
                pit.annotate(
                    f"{share:.1%}".replace("%", " %"),
                    (left + width / 2, share / width),
                    ha="center",
                    va="bottom",
                    fontsize=9,
                    xytext=(0, 2),
                    textcoords="offset points",
                )
        reliability.plot(
            100 * np.array(QUANTILES),
            100 * (1 - below),
            color=_colour(name),
            marker=_MARKS.get(name, "o"),
            linewidth=2.2 if name == model else 1.3,
            label=_word(name),
            zorder=3 if name == model else 2,
        )
    pit.axhline(1, color="#222222", linewidth=1.2)
    pit.set_xlim(0, 1)
    pit.set_xticks(QUANTILES)
    pit.margins(y=0.08)
    pit.set_xlabel("where the outcome fell in the forecast distribution (0 very fast, 1 very slow)")
    pit.set_ylabel("transfers, relative to perfect calibration (1)")
    pit.set_title("Calibration of the model (PIT)")
    reliability.plot([0, 100], [0, 100], color="#222222", linewidth=1)
    reliability.set_xticks([5, 25, 50, 75, 95])
    reliability.set_xlim(0, 100)
    reliability.set_ylim(0, 100)
    reliability.set_xlabel("quantile that was forecast, %")
    reliability.set_ylabel("transfers that stayed below it, %")
    reliability.set_title("Reliability")
    reliability.legend(loc="upper left")
    return figure


def _error_by_size(sizes: Table, errors: Mapping[str, Table]) -> Figure:
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    exponent = np.clip(np.log10(np.maximum(np.nan_to_num(sizes), 1.0)), 0, 15)
    edges = np.arange(np.floor(2 * exponent.min()) / 2, exponent.max() + 0.5, 0.5)
    place = np.clip(np.digitize(exponent, edges) - 1, 0, len(edges) - 1)
    counts = np.bincount(place, minlength=len(edges))
    middles = edges + 0.25
    for name, error in reversed(list(errors.items())):
        mean = np.bincount(place, np.abs(error), minlength=len(edges)) / np.maximum(counts, 1)
        shown = counts >= min(_FEWEST_IN_A_BIN, counts.max())
        panel.plot(middles[shown], mean[shown], **_line(name, main=name == next(iter(errors))))
    panel.set_ylim(bottom=0)
    panel.set_ylabel("mean error in log(1 + s)")
    panel.set_title("Error by size")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], ncols=len(labels), loc="outside lower center")
    below.bar(middles, counts, 0.46, color="#B9C6D3")
    below.set_ylabel("transfers")
    below.xaxis.set_major_locator(FixedLocator(np.arange(np.floor(edges[0]), edges[-1] + 2).tolist()))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    below.set_xlabel("size of the file")
    return figure


def _error_by_name(names: pd.Series[str], errors: Mapping[str, Table], what: str, plural: str) -> Figure:
    """The names with most transfers, the busiest on top."""
    counts = names.value_counts()
    counts = counts[counts > 0].iloc[:_MOST_NAMED]
    figure = Figure(figsize=(11, 1.9 + 0.42 * len(counts)), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(counts))[::-1]
    chosen = [np.flatnonzero((names == name).to_numpy()) for name in counts.index]
    means = {name: np.array([np.abs(error[rows]).mean() for rows in chosen]) for name, error in errors.items()}
    span = np.stack(list(means.values()))
    panel.hlines(places, span.min(axis=0), span.max(axis=0), color="#D8D8D8", linewidth=2, zorder=1)
    for name, mean in reversed(list(means.items())):
        main = name == next(iter(errors))
        panel.scatter(
            mean,
            places,
            s=75 if main else 40,
            color=_colour(name),
            marker=_MARKS.get(name, "o"),
            label=_word(name),
            zorder=3 if main else 2,
        )
    labels = [f"{clean(str(name), _LONGEST_NAME) or '(none)'}  ({count:,})" for name, count in counts.items()]
    panel.set_yticks(places, labels)
    panel.set_ylim(-0.7, len(counts) - 0.3)
    panel.set_xlim(left=0)
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("mean error in log(1 + s)")
    of = (
        f"the {len(counts)} busiest of {names.nunique():,} {plural}"
        if names.nunique() > len(counts)
        else f"all {plural}"
    )
    panel.set_title(f"Error by {what}: {of} (transfers)")
    handles, words = panel.get_legend_handles_labels()
    figure.legend(handles[::-1], words[::-1], ncols=len(words), loc="outside lower center")
    return figure


def _coverage_over_time(ended_at: Table, actual: Table, quantiles: Quantiles) -> Figure:
    """Shares of stretches of equal numbers of transfers; the band is where 95 % of shares lie if 90 % is true and all are independent."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    parts = np.array_split(np.arange(len(actual)), int(np.clip(len(actual) // 50, 1, 60)))
    when = [datetime.fromtimestamp(float(np.median(ended_at[part])), UTC) for part in parts]
    each = len(parts[0])
    spread = 100 * 1.96 * np.sqrt(0.9 * 0.1 / each)
    panel.axhspan(90 - spread, min(90 + spread, 100), color="#F1E9D2", zorder=0, label="90 %, give or take chance")
    panel.axhline(90, color="#222222", linewidth=1)
    for name, table in reversed(list(quantiles.items())):
        inside = (table[:, 0] <= actual) & (actual <= table[:, 4])
        line = _line(name, main=name == next(iter(quantiles)))
        panel.plot(when, [100 * inside[part].mean() for part in parts], **line)
        below.plot(when, [np.abs(table[part, 2] - actual[part]).mean() for part in parts], **line)
    panel.set_ylim(min(panel.get_ylim()[0], 70), 101)
    panel.set_ylabel("transfers inside of their\n90 % interval, %")
    panel.set_title(f"Coverage over time, {len(parts)} stretches of about {each:,} transfers")
    below.set_ylim(bottom=0)
    below.set_ylabel("mean error in log(1 + s)")
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]  # matplotlib types a part of itself
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    below.set_xlabel("end of the transfers, UTC")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], ncols=len(labels), loc="outside lower center")
    return figure


def _line(name: str, *, main: bool) -> dict[str, object]:
    return {
        "color": _colour(name),
        "marker": _MARKS.get(name, "o"),
        "markersize": 6 if main else 4,
        "linewidth": 2.2 if main else 1.2,
        "label": _word(name),
        "zorder": 3 if main else 2,
    }


def _seconds_axis(panel: Axes, which: str, top: float) -> None:
    """Ticks at times that people know, on an axis of log1p seconds."""
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(FixedLocator([float(np.log1p(value)) for value in _SECONDS if np.log1p(value) <= top]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _time(float(np.expm1(value)))))
    panel.tick_params(axis="x", rotation=45)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds) if seconds >= 7200 else _minutes(seconds)


def _minutes(seconds: float) -> str:
    return "1 h" if round(seconds) == 3600 else f"{seconds / 60:.0f} min"


def _factor(factor: float) -> str:
    return f"{_TIMES}{factor:.0f}" if factor > 1.01 else "1" if factor > 0.99 else f"{_TIMES}1/{1 / factor:.0f}"


def _bytes(exponent: float) -> str:
    unit, power = divmod(round(exponent), 3)
    return f"{10**power} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[min(unit, 5)]}"


def _colour(name: str) -> str:
    return _COLOURS.get(name, "#000000")


def _word(name: str) -> str:
    return _WORDS.get(name, name)
