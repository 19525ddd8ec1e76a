"""What is remembered of the stream: forecasts, thresholds, paths and open incidents. All of it caches the ledger's rows.

Each observed row says which version of the forecaster its quantiles are of. Whenever the caches are recomputed, what another version
forecast is forecast anew by the one at hand, so that the thresholds' residuals are all of one model; what was judged by then
(flagged, slow, threshold_s, calibrates) stays. So everything is a function of the rows and the version at hand: a process that took
another version over is where one is that was started with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from agent.intake import Words, as_rows, document_time, ended_columns, given_up, submitted_columns
from detectors.covers import Covers
from detectors.failures import error_classes
from detectors.incidents import IncidentBook
from detectors.stalls import Patience, UnderWay
from detectors.threshold import DynamicThreshold
from detectors.weather import Weather
from detectors.window import WINDOW_S
from models.domain import Incident
from models.drift import FORECAST, Drift
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS, Paths

QUANTILE_COLUMNS = FORECAST
KEPT_REQUESTS = 262_144
VERSION_LENGTH = 12  # digits of the weights' hash that tell versions apart in the rows


class RequestRules:
    """Which rule a request belongs to: only queued and waiting events say so. Bounded; the oldest are forgotten."""

    def __init__(self) -> None:
        self._rules: OrderedDict[str, str] = OrderedDict()

    def reset(self) -> None:
        self._rules.clear()

    def absorb(self, requests: pd.DataFrame) -> None:
        """`requests` has the columns request_id and rule_id."""
        self._rules.update(zip(requests["request_id"], requests["rule_id"], strict=True))
        while len(self._rules) > KEPT_REQUESTS:
            self._rules.popitem(last=False)

    def rules(self, request_ids: Words) -> Words:
        """The rule of each request, "" where it is not known; shape (n,)."""
        return np.array([self._rules.get(request, "") for request in request_ids], dtype=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one batch of events showed: rows to keep, and the incidents that changed."""

    observed: pd.DataFrame
    requests: pd.DataFrame  # rules of what was queued, and what was submitted and is overdue when
    changed: list[Incident] = field(default_factory=list)

    @property
    def scored(self) -> int:
        return int(self.observed["q50"].notna().sum()) if len(self.observed) else 0


NOTHING = Observation(observed=pd.DataFrame(), requests=pd.DataFrame())


def forecast_by(forecaster: Forecaster, observed: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of the rows this version forecast; shape (n,)."""
    if "model" not in observed:
        return np.zeros(len(observed), dtype=np.bool_)
    return (observed["model"] == version_of(forecaster)).to_numpy(np.bool_, na_value=False)


def version_of(forecaster: Forecaster) -> str:
    """How rows call the version that forecast them."""
    return forecaster.manifest.weights_hash[:VERSION_LENGTH]


def taken_in(forecaster: Forecaster, observed: pd.DataFrame) -> pd.DataFrame:
    """Have the forecaster absorb observed rows; return them with forecasts of this version alone."""
    own = forecast_by(forecaster, observed)
    if own.all():
        forecaster.absorb(observed)
        return observed
    anew = forecaster.score(observed)
    return observed.assign(
        **{name: np.where(own, observed[name], anew[:, place]) for place, name in enumerate(QUANTILE_COLUMNS)}
    )


class Watch:
    """Scores every event and keeps the book of incidents. A fold over the rows that the ledger keeps."""

    def __init__(self, *, forecaster: Forecaster, threshold: DynamicThreshold, paths: Paths) -> None:
        self.covers = Covers()  # what is announced: taken anew before each pass
        self.deaf: Callable[[float], bool] = lambda _: False  # whether no transfer could be heard of at a time, seconds
        self._weather = Weather(paths.site)
        self.book = IncidentBook(self._weather)
        self._patience, self._under_way = Patience(), UnderWay()
        self.serve(forecaster)
        self._threshold = threshold
        self._paths = paths
        self._rules = RequestRules()

    def serve(self, forecaster: Forecaster) -> None:
        """Forecast by this one from now on. It knows nothing of the stream yet: `reset` must come next."""
        self._forecaster = forecaster
        self._version = version_of(forecaster)
        self.drift = Drift(held_out=forecaster.manifest.metrics.get("model", {}).get("pinball"))

    def reset(
        self,
        *,
        observed: pd.DataFrame,
        readings: pd.DataFrame,
        requests: pd.DataFrame,
        incidents: Sequence[Incident],
        until: float | None,
    ) -> None:
        """Recompute everything from the ledger's rows."""
        self._forecaster.reset()
        self._threshold.reset()
        self.drift.reset()
        self._paths.reset()
        self._rules.reset()
        self._weather.reset()
        self._patience.reset()
        self._under_way.reset()
        if len(readings):
            self.measure(readings)
        if len(requests):
            self._rules.absorb(requests[requests["rule_id"] != ""])
            if "due_at" in requests:
                over = requests["request_id"].isin(observed["request_id"]) if len(observed) else False
                self._under_way.add(requests[requests["due_at"].notna() & ~over])
        if len(observed):
            self._absorb(observed)
        self.book.reset(
            incidents=incidents, observed=observed if len(observed) else None, until=until, covers=self.covers
        )

    def _absorb(self, observed: pd.DataFrame) -> None:
        own = forecast_by(self._forecaster, observed)
        self._threshold.absorb(taken_in(self._forecaster, observed))
        self.drift.absorb(observed[own])
        self._patience.absorb(observed)

    def measure(self, readings: pd.DataFrame) -> None:
        """Take in perfSONAR readings."""
        self._paths.absorb(readings)
        self._weather.absorb(self._paths.locate(readings))

    def observe(self, events: pd.DataFrame, now: datetime) -> Observation:
        """Score what ended, in stream order, and judge incidents up to the newest document, but not beyond `now`."""
        queued = np.flatnonzero(events["rule_id"] != "")
        requests = events[["request_id", "rule_id"]].take(queued).reset_index(drop=True)
        self._rules.absorb(requests)
        submitted = submitted_columns(events)
        submitted["due_at"] = self._patience.due(submitted)
        self._under_way.add(submitted)
        self._under_way.end(given_up(events))
        ended = ended_columns(events, self._rules.rules, error_classes)
        ended["due_at"] = self._under_way.end(ended["request_id"])
        observed = self._scored(ended)
        # One clock that is ahead must not make the book judge a time that most transfers have not reached.
        newest = min(float(np.fmax.reduce(document_time(events))), now.timestamp())
        until = max(newest, self.book.until or 0.0)
        overdue = self._overdue(until)
        changed = self.book.advance(observed, until=until, overdue=overdue, covers=self.covers, deaf=self.deaf)
        scored = ~np.isnan(observed["q50"])
        observed["calibrates"] = ~observed["failed"] & scored & ~self.book.blamed(observed, self.covers)
        self._threshold.absorb(observed)
        self._patience.absorb(observed)
        self.drift.absorb(observed)
        told = pd.concat([requests, as_rows(submitted)], ignore_index=True) if len(submitted["due_at"]) else requests
        return Observation(observed=as_rows(observed), requests=told.fillna({"rule_id": ""}), changed=changed)

    def overdue(self) -> pd.DataFrame:
        """All that is under way and was due by now, with the columns of `detectors.stalls.UnderWay`."""
        return self._under_way.overdue(0.0, self.book.until or 0.0)

    def _overdue(self, until: float) -> pd.DataFrame:
        """What is under way and was due by then, within what a minute's judgement looks back to.

        Nothing where no transfer could be heard of: what is not heard of is not overdue.
        """
        if self.deaf(until):
            return self._under_way.overdue(until, until)
        overdue = self._under_way.overdue((self.book.until or until) - WINDOW_S, until)
        return overdue.assign(rule_id=self._rules.rules(overdue["request_id"].to_numpy(dtype=object)))

    def _scored(self, ended: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        standing = self._paths.standing(ended)
        ended |= {name: standing[name] for name in PATH_COLUMNS}
        quantiles = self._forecaster.score(ended)
        observed = ended | {name: quantiles[:, place].copy() for place, name in enumerate(QUANTILE_COLUMNS)}
        verdicts = self._threshold.judge(observed | standing)
        done = ~ended["failed"]
        return observed | {
            "threshold_s": verdicts.threshold_s,
            "slow_s": verdicts.slow_s,
            "flagged": verdicts.flagged & done,
            "slow": verdicts.slow & done,
            "model": np.full(len(done), self._version, dtype=object),
        }
