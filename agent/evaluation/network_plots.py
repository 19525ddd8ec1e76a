"""Pictures of alarms of the network: the series that showed each, some days before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agent.desk.text import clean
from agent.evaluation.plots import STYLE
from detectors.findings import Finding, Trouble

MOST = 5
_BEFORE_S, _AFTER_S = 2 * 86_400.0, 2 * 86_400.0
_BEFORE_SPARSE_S, _AFTER_SPARSE_S = 15 * 86_400.0, 7 * 86_400.0
_UNITS = {
    "packet_loss": ("packets lost, %", 100.0),
    "delay_mean": ("one-way delay, ms", 1.0),
    "throughput": ("throughput, Mbit/s", 1e-6),
}


class _Series(Protocol):
    def series(self, quantity: str, pair: tuple[str, str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...


def draw(directory: Path, recorded: _Series, opened: Sequence[Finding]) -> None:
    """Draw up to five alarms as `alarm-N.png`, of as many kinds as there are; the surest of each kind first."""
    with mpl.rc_context(STYLE):
        for number, finding in enumerate(chosen(opened), start=1):
            _picture(recorded, finding).savefig(directory / f"alarm-{number}.png", format="png")


def chosen(opened: Sequence[Finding]) -> list[Finding]:
    """Up to five, in the order of their times."""
    ranked: dict[Trouble, list[Finding]] = {trouble: [] for trouble in Trouble}
    for finding in sorted(opened, key=lambda one: -one.confidence):
        ranked[finding.trouble].append(finding)
    turns = [
        (place, list(Trouble).index(trouble), finding)
        for trouble, own in ranked.items()
        for place, finding in enumerate(own)
    ]
    turns.sort(key=lambda turn: turn[:2])
    return sorted((finding for _, _, finding in turns[:MOST]), key=lambda one: one.opened_at)


def _picture(recorded: _Series, finding: Finding) -> Figure:
    source, _, destination = finding.paths[0].partition(">")
    at, value = recorded.series(finding.quantity, (source, destination))
    sparse = finding.trouble is Trouble.THROUGHPUT
    opened = finding.opened_at.timestamp()
    shown = slice(
        *np.searchsorted(
            at,
            [
                opened - (_BEFORE_SPARSE_S if sparse else _BEFORE_S),
                opened + (_AFTER_SPARSE_S if sparse else _AFTER_S),
            ],
        )
    )
    unit, factor = _UNITS[finding.quantity]
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    panel = figure.subplots()
    when = (at[shown] * 1e6).astype("datetime64[us]")
    panel.plot(when, value[shown] * factor, ".", markersize=8 if sparse else 3, color="#0072B2")
    panel.axvline(finding.opened_at, color="#D55E00", linewidth=1.5, label="alarm")  # type: ignore[arg-type]
    for level, style in ((finding.before, "--"), (finding.now, "-")):
        if level is not None and math.isfinite(level):
            panel.axhline(level * factor, color="#8A8A8A", linewidth=1, linestyle=style)
    panel.set_title(clean(f"{finding.trouble}: {finding.culprit}", 80), fontsize=11)
    panel.set_ylabel(unit)
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]  # matplotlib types a part of itself
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    panel.legend(loc="best")
    return figure
