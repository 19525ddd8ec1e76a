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

from agent.intake import Words, as_rows, document_time, ended_columns, ended_flags, given_up, submitted_columns
from detectors.clocks import Clocks
from detectors.covers import Covers
from detectors.deletions import Deletions
from detectors.failures import error_classes
from detectors.findings import Finding
from detectors.incidents import STEP_S, IncidentBook
from detectors.stalls import Patience, UnderWay
from detectors.threshold import BLOCK, DynamicThreshold
from detectors.weather import Weather
from detectors.window import WINDOW_S
from models.domain import Incident, IncidentKind
from models.drift import FORECAST, Drift
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS, STANDING_COLUMNS, Paths

Columns = dict[str, npt.NDArray[Any]]
Flags = npt.NDArray[np.bool_]
QUANTILE_COLUMNS = FORECAST
KEPT_REQUESTS = 262_144
HEARD_S = (
    50.0  # a minute is judged once a document of so much later has come: what ended is told of up to a minute late
)
_PASSING = frozenset(STANDING_COLUMNS) - frozenset(PATH_COLUMNS)  # what is judged by and not kept
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
    deletions: pd.DataFrame  # what was planned, and what ended
    changed: list[Incident] = field(default_factory=list)

    @property
    def scored(self) -> int:
        return int(self.observed["q50"].notna().sum()) if len(self.observed) else 0


NOTHING = Observation(observed=pd.DataFrame(), requests=pd.DataFrame(), deletions=pd.DataFrame())


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
        self.clocks = Clocks()
        self._patience, self._under_way, self._deletions = Patience(), UnderWay(), Deletions()
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
        deletions: pd.DataFrame,
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
        self._deletions.reset()
        if len(readings):
            self.measure(readings)
        if len(requests):
            self._rules.absorb(requests[requests["rule_id"] != ""])
        self._under_way_again(observed, requests)
        if len(observed):
            self._absorb(observed)
        if len(deletions):
            self._deletions.absorb(deletions)
        of_clocks = [one for one in incidents if one.kind is IncidentKind.CLOCK_OFF]
        self.clocks.reset(of_clocks)
        self.book.reset(
            incidents=[one for one in incidents if one.kind is not IncidentKind.CLOCK_OFF],
            observed=observed if len(observed) else None,
            until=until,
            deletions=deletions[deletions["ended_at"].notna()] if len(deletions) else None,
            covers=self.covers,
        )

    def _under_way_again(self, observed: pd.DataFrame, requests: pd.DataFrame) -> None:
        """What was submitted and has not ended, and what ended before its submission was heard of."""
        ended = observed["request_id"] if len(observed) else pd.Series([], dtype="str")
        submitted = requests.loc[requests["due_at"].notna()] if "due_at" in requests else None
        if submitted is not None:
            self._under_way.add(submitted.loc[~submitted["request_id"].isin(ended)])
            ended = ended[~ended.isin(submitted["request_id"])]
        self._under_way.end(ended.to_numpy(dtype=object))

    def _absorb(self, observed: pd.DataFrame) -> None:
        own = forecast_by(self._forecaster, observed)
        self._threshold.absorb(taken_in(self._forecaster, observed))
        self.drift.absorb(observed[own])
        self._patience.absorb(observed)

    def measure(self, readings: pd.DataFrame) -> list[Finding]:
        """Take in perfSONAR readings; return what they alone show of the network, every turn in order."""
        self._paths.absorb(readings)
        return self._weather.absorb(self._paths.locate(readings))

    @property
    def open(self) -> list[Incident]:
        return [*self.book.open, *self.clocks.open]

    def observe(self, events: pd.DataFrame, now: datetime) -> Observation:
        """Score what ended, in stream order, and judge incidents by what came, but not beyond `now`.

        Each part of the events is judged by what all before it has taught, so that it does not matter how they were cut into polls.
        """
        queued = np.flatnonzero(events["rule_id"] != "")
        requests = [events[["request_id", "rule_id"]].take(queued)]
        self._rules.absorb(requests[0])
        ended, flags = self._forecast(events), ended_flags(events)
        place, observed, deletions, changed = 0, [], [], dict[str, Incident]()
        for first, last, until in self._parts(events, flags, now):
            changed |= {incident.id: incident for incident in self._judge(until)}
            part, begin = events.iloc[first:last], place
            place += int(np.count_nonzero(flags[first:last]))
            submitted = self._submit(part)
            if len(submitted["due_at"]):
                requests.append(as_rows(submitted))
            deletions.append(self._delete(part, until))
            if place > begin:
                observed.append(self._end({name: values[begin:place] for name, values in ended.items()}, until))
        return Observation(
            observed=as_rows({name: np.concatenate([part[name] for part in observed]) for name in observed[0]})
            if observed
            else pd.DataFrame(),
            requests=pd.concat(requests, ignore_index=True).fillna({"rule_id": ""}),
            deletions=pd.concat(map(as_rows, deletions), ignore_index=True),
            changed=list(changed.values()),
        )

    def _parts(self, events: pd.DataFrame, ended: Flags, now: datetime) -> list[tuple[int, int, float]]:
        """Where a part of the events begins and ends, and up to when incidents are to be judged before it.

        A part begins where a minute can be judged that could not before, and where limits have been made anew.
        """
        # One clock that is ahead must not make the book judge a time that most transfers have not reached.
        newest = np.minimum(np.fmax.accumulate(document_time(events)), now.timestamp()) - HEARD_S
        until = np.fmax(newest, -np.inf if self.book.until is None else self.book.until)
        learned = (self._threshold.waiting + np.cumsum(ended)) // BLOCK
        begins = np.ones(len(events), dtype=np.bool_)
        begins[1:] = np.floor(until[1:] / STEP_S) > np.floor(until[:-1] / STEP_S)
        begins[1:] |= learned[:-1] > np.append(0, learned[:-2])
        first = np.flatnonzero(begins)
        return list(zip(first.tolist(), [*first[1:].tolist(), len(events)], until[first].tolist(), strict=True))

    def _judge(self, until: float) -> list[Incident]:
        """Judge minutes up to that time by what came so far."""
        if not np.isfinite(until):
            return []
        overdue = self._overdue(until)
        undeleted = self._undeleted(until)
        changed = self.book.advance(
            None, until=until, overdue=overdue, undeleted=undeleted, covers=self.covers, deaf=self.deaf
        )
        return changed + self.clocks.review(self._weather.found(until), until, self.covers)

    def _submit(self, events: pd.DataFrame) -> Columns:
        """Take note of what is under way and what never will be; return rows of what was submitted."""
        submitted = submitted_columns(events)
        submitted["due_at"] = self._patience.due(submitted)
        self._under_way.add(submitted)
        self._under_way.end(given_up(events))
        return submitted

    def _delete(self, events: pd.DataFrame, until: float) -> Columns:
        """Judge what was deleted, take note of what is planned, and learn from it; return rows of both."""
        deletions = self._deletions.take(events)
        over = ~np.isnan(deletions["ended_at"])
        ended = {name: values[over] for name, values in deletions.items()}
        deletions["calibrates"] = over & ~deletions["failed"]
        deletions["calibrates"][over] &= ~self.book.blamed(ended, self.covers, deletions=True)
        self.book.advance(None, until=until, deletions=ended, covers=self.covers, deaf=self.deaf)
        self._deletions.learn(deletions)
        return deletions

    def _end(self, ended: Columns, until: float) -> Columns:
        """Judge what ended, and learn from it."""
        due = self._under_way.end(ended["request_id"])
        ended["due_at"] = np.where(np.isnan(due), self._patience.due_unseen(ended), due)
        verdicts = self._threshold.judge(ended)
        done = ~ended["failed"]
        observed = {name: values for name, values in ended.items() if name not in _PASSING} | {
            "threshold_s": verdicts.threshold_s,
            "slow_s": verdicts.slow_s,
            "expected_s": verdicts.expected_s,
            "network_s": verdicts.network_s,
            "flagged": verdicts.flagged & done,
            "slow": verdicts.slow & done,
            "calibrates": done & ~np.isnan(ended["q50"]) & ~self.book.blamed(ended, self.covers),
            "model": np.full(len(done), self._version, dtype=object),
        }
        self.book.advance(observed, until=until, covers=self.covers, deaf=self.deaf)
        self._threshold.absorb(observed)
        self._patience.absorb(observed)
        self.drift.absorb(observed)
        return observed

    def all_overdue(self) -> pd.DataFrame:
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

    def _undeleted(self, until: float) -> pd.DataFrame:
        """What was planned to be deleted and should have been by then, in the same way."""
        since = until if self.deaf(until) else (self.book.until or until) - WINDOW_S
        return self._deletions.overdue(since, until)

    def _forecast(self, events: pd.DataFrame) -> Columns:
        """What ended, with what was known of its path and what was forecast when it started."""
        ended: Columns = ended_columns(events, self._rules.rules, error_classes)
        ended |= self._paths.standing(ended)
        quantiles = self._forecaster.score(ended)
        return ended | {name: quantiles[:, place].copy() for place, name in enumerate(QUANTILE_COLUMNS)}
