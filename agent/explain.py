"""`gridmedic explain`: why a transfer was judged as it was, by what the ledger keeps.

A transfer that the ledger has is judged by the transfers that came before it, and by what perfSONAR had said when it started, as the daemon
did. Another one, given as a document, is judged as if it came next.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from agent import config as settings
from agent.assembly import model_directory, site_map_of
from agent.intake import ended_columns
from agent.watch import QUANTILE_COLUMNS, forecast_by, taken_in, version_of
from detectors.explanation import Explanation
from detectors.failures import error_classes
from detectors.threshold import DynamicThreshold
from models.domain import GridmedicError
from models.events import decode
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS, Paths
from storage.ledger import Ledger

Columns = dict[str, npt.NDArray[Any]]

_MOST_BYTES = 1 << 20  # of a document
_OWN = ("threshold_s", "slow_s", "flagged", "slow", "calibrates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One transfer with its explanation."""

    request_id: str
    activity: str
    started_at: float  # seconds since 1970
    ended_at: float
    model: str  # the version whose forecast is explained
    judged_by: str | None  # the version with which it was judged when it ended; None if it never was
    judged: dict[str, float | bool] | None  # what was said then
    explanation: Explanation

    def as_json(self) -> str:
        return json.dumps(_sayable(dataclasses.asdict(self)), indent=1, allow_nan=False)


def of_request(config: settings.Config, request_id: str) -> Explained:
    """A transfer that the ledger keeps; raise GridmedicError if it has none of that id, or one that did not finish."""
    observed, readings = _kept(config)
    places = np.flatnonzero(observed["request_id"] == request_id) if len(observed) else np.empty(0, np.intp)
    if not len(places):
        raise GridmedicError(
            f"the ledger keeps no ended transfer with the request id {request_id!r}; the newest are kept, and the last ones of each "
            "link. Give its document instead: a file, or - for standard input"
        )
    place = int(places[-1])
    row = observed.iloc[place : place + 1].reset_index(drop=True)
    if bool(row["failed"][0]):
        raise GridmedicError(
            f"the transfer {request_id!r} failed; only how long finished ones took is judged. Its error is in class "
            f"{row['reason'][0]!r}"
        )
    return _explained(config, observed.iloc[:place], readings, row, judged=True)


def read(path: Path | None) -> str:
    """The text of a document's file; None is standard input. Raise GridmedicError for what is no text, or far too much."""
    with ExitStack() as stack:
        file = sys.stdin.buffer if path is None else stack.enter_context(path.open("rb"))
        content = file.read(_MOST_BYTES + 1)
    name = "-" if path is None else str(path)
    if len(content) > _MOST_BYTES:
        raise GridmedicError(f"{name}: is longer than {_MOST_BYTES:,} bytes; give one event as a JSON object")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GridmedicError(f"{name}: is no UTF-8 text ({error}); give one event as a JSON object") from error


def of_document(config: settings.Config, text: str, *, name: str, now: datetime) -> Explained:
    """A transfer by its document, JSON of any kind that sources may give; raise GridmedicError if it is no finished transfer.

    `name` is what messages call the document.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GridmedicError(f"{name}: is no JSON ({error}); give one event as a JSON object") from error
    events, refused = decode([document], now=now)
    if refused:
        raise GridmedicError(f"{name}: cannot be used: {refused[0].reason}, {refused[0].detail}")
    columns = ended_columns(events, lambda ids: np.full(len(ids), "", dtype=object), error_classes)
    row = pd.DataFrame(columns)
    if not len(row) or bool(row["failed"][0]) or not np.isfinite(row["started_at"][0]):
        raise GridmedicError(
            f"{name}: is of type {events['type'].iloc[0]!r}; only how long finished transfers took is judged, from their "
            "start to their end: give a transfer-done with both"
        )
    return _explained(config, *_kept(config), row, judged=False)


def _kept(config: settings.Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Observed rows and readings."""
    ledger = Ledger.open(config.ledger_url)
    try:
        with ledger.begin(write=False) as tx:
            return tx.rows("observed"), tx.rows("readings")
    finally:
        ledger.close()


def _explained(
    config: settings.Config, before: pd.DataFrame, readings: pd.DataFrame, row: pd.DataFrame, *, judged: bool
) -> Explained:
    forecaster = Forecaster.load(model_directory(config))
    threshold, paths = DynamicThreshold(alarm_budget=config.detection.alarm_budget), Paths(site_map_of(config))
    if len(readings):
        paths.absorb(readings)
    if len(before):
        threshold.absorb(taken_in(forecaster, before))
    row = _with_paths(row, paths)
    if not (judged and forecast_by(forecaster, row).all()):
        quantiles = forecaster.score(row)
        row = row.assign(**{name: quantiles[:, place] for place, name in enumerate(QUANTILE_COLUMNS)})
    told = row.iloc[0]
    return Explained(
        request_id=str(told["request_id"]),
        activity=str(told["activity"]),
        started_at=float(told["started_at"]),
        ended_at=float(told["ended_at"]),
        model=version_of(forecaster),
        judged_by=str(told["model"]) if judged and "model" in row else None,
        judged={name: told[name].item() for name in _OWN if name in row} if judged else None,
        explanation=threshold.explain(row),
    )


def _with_paths(row: pd.DataFrame, paths: Paths) -> pd.DataFrame:
    """The row with what was known of its path. What the ledger no longer has readings for stays as the row has it."""
    standing = paths.standing(row)
    if set(PATH_COLUMNS) <= set(row.columns):
        kept = np.array([row[name][0] for name in PATH_COLUMNS], dtype=np.float64)
        found = np.array([standing[name][0] for name in PATH_COLUMNS])
        if (np.isfinite(kept) & ~np.isfinite(found)).any():
            return row
    return row.assign(**standing)


def _sayable(value: object) -> object:
    """The same, None for what is no number."""
    if isinstance(value, dict):
        return {name: _sayable(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sayable(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
