"""What is remembered of the stream: forecasts, thresholds, paths and open incidents. All of it caches the ledger's rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pandas as pd

from agent.intake import document_time, ended_transfers
from detectors.failures import error_classes
from detectors.incidents import IncidentBook
from detectors.threshold import DynamicThreshold
from models.domain import Incident
from models.forecaster import Forecaster
from models.measurements import Paths

QUANTILE_COLUMNS = ("q05", "q25", "q50", "q75", "q95")
KEPT_REQUESTS = 262_144


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

    def rules(self, request_ids: pd.Series) -> pd.Series:
        return request_ids.map(lambda request: self._rules.get(request, "")).astype("str")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one batch of events showed: rows to keep, and the incidents that changed."""

    observed: pd.DataFrame
    requests: pd.DataFrame  # request_id and rule_id of what was queued
    changed: list[Incident] = field(default_factory=list)

    @property
    def scored(self) -> int:
        return int(self.observed["q50"].notna().sum()) if len(self.observed) else 0


NOTHING = Observation(observed=pd.DataFrame(), requests=pd.DataFrame())


class Watch:
    """Scores every event and keeps the book of incidents. A fold over the rows that the ledger keeps."""

    def __init__(self, *, forecaster: Forecaster, threshold: DynamicThreshold, paths: Paths) -> None:
        self.book = IncidentBook()
        self._forecaster = forecaster
        self._threshold = threshold
        self._paths = paths
        self._rules = RequestRules()

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
        self._paths.reset()
        self._rules.reset()
        if len(readings):
            self._paths.absorb(readings)
        if len(requests):
            self._rules.absorb(requests)
        if len(observed):
            self._forecaster.absorb(observed)
            self._threshold.absorb(observed)
        self.book.reset(incidents=incidents, observed=observed if len(observed) else None, until=until)

    def measure(self, readings: pd.DataFrame) -> None:
        """Take in perfSONAR readings."""
        self._paths.absorb(readings)

    def observe(self, events: pd.DataFrame, now: datetime) -> Observation:
        """Score what ended, in stream order, and judge incidents up to the newest document, but not beyond `now`."""
        queued = events[events["rule_id"] != ""]
        requests = queued[["request_id", "rule_id"]].reset_index(drop=True)
        self._rules.absorb(requests)
        ended = self._paths.attach(ended_transfers(events, self._rules.rules, error_classes))
        observed = self._scored(ended)
        # One clock that is ahead must not make the book judge a time that most transfers have not reached.
        newest = min(float(document_time(events).max()), now.timestamp())
        changed = self.book.advance(observed, until=max(newest, self.book.until or 0.0))
        observed["calibrates"] = ~observed["failed"] & observed["q50"].notna() & ~self.book.covers(observed)
        self._threshold.absorb(observed)
        return Observation(observed=observed, requests=requests, changed=changed)

    def _scored(self, ended: pd.DataFrame) -> pd.DataFrame:
        observed = ended.copy()
        quantiles = self._forecaster.score(ended)
        for place, name in enumerate(QUANTILE_COLUMNS):
            observed[name] = quantiles[:, place].astype(np.float64)
        verdicts = self._threshold.judge(observed)
        observed["threshold_s"], observed["slow_s"] = verdicts.threshold_s, verdicts.slow_s
        done = ~observed["failed"].to_numpy()
        observed["flagged"], observed["slow"] = verdicts.flagged & done, verdicts.slow & done
        return observed
