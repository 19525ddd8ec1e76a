"""How long a transfer may take before it counts as anomalous: expected durations, calibrated online.

Two expectations of log1p(duration) stand side by side. The forecast knows what happened just now, so it is the sharper one,
and it gets used to a fault within a dozen transfers. The norm is what transfers of this size take on this link in the long run,
and transfers inside open incidents do not change it: a threshold that learns to sleep through a fault is worse than none. A
residual is how many scales a transfer lies above an expectation:

    z = (log1p(duration) - expected) / scale

Links differ in how far they stray, and most are seen too rarely to say how far. So a link's mean and spread of z shrink to
those of its source and destination, and these to those of all (`detectors/residuals.py`). What is left,
r = (z - mean) / spread, is alike on all links, but for its tail. The score of a transfer is the larger of its two r.

An alarm is worth a look by itself. Its limit holds the alarm budget online: over all transfers it is a quantile of the scores, and
where a link has more of them in the tail it lies higher. Tails of scores are near to exponential (Pickands 1975, peaks over a threshold;
Siffer et al., «Anomaly detection in streams with extreme value theory», KDD 2017), so that a link with lambda times the usual share
in the tail keeps the budget with the limit

    alarm + beta * log(lambda),   beta = (peak - tail) / log(tail share / budget)

where `peak` and `tail` are the scores that the budget and the tail's share of all transfers pass, lambda shrinks as means and spreads do,
and `alarm` is the quantile of the scores less the second term, so that the budget holds in total too. Slow is what five in a hundred pass: such
transfers mean something only in numbers.

What the network allows (`detectors/bounds.py`) raises the limit of the alarm alone, and FTS's timeout bounds it. No limit of slowness is
raised by it: else a path that begins to lose packets would hide what it does. One transfer that is as slow as its network allows is no
surprise; many are an incident, of which the network is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from detectors.bounds import Bound, Network, fts_timeout, network
from detectors.explanation import By, Expectation, Explanation, Measured, known
from detectors.residuals import Floats, Group, Ints, Keys, Places, Quantiles, Scale, Tails
from models.columns import Rows
from models.history import Codes

Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]

SLOW_SHARE: Final = 0.05
TAIL_BUDGETS: Final = 3.0  # the tail is where so many times as many transfers lie as the budget has alarms
SPREAD_FLOOR: Final = 0.1
SCALE_FLOOR: Final = 0.08  # in log seconds: whole seconds cannot be told apart more finely than this
WORTH_S: Final = 60.0  # nobody is called for less than this above the median ...
WORTH_RATIO: Final = 1.5  # ... nor for less than this times the median
SLOW_WORTH_S: Final = 15.0
BLOCK: Final = 256  # transfers after which limits are made anew

_CALIBRATION = ("source", "destination", "bytes", "started_at", "ended_at", "q50", "q95")
_SIZE_EDGES = np.log(10.0 ** np.arange(4.0, 10.6, 0.5))  # of classes of sizes, bytes
_LONGEST: Final = 14.0  # log seconds: what is said to take longer than a fortnight says nothing more


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the threshold says of ended transfers; every array has shape (n,)."""

    threshold_s: Floats  # beyond it a transfer is flagged
    slow_s: Floats  # beyond it a transfer is slow
    expected_s: Floats  # the norm
    network_s: Floats  # what the path needs at least by what perfSONAR last said; 0 where that is nothing
    flagged: npt.NDArray[np.bool_]
    slow: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Transfers as arrays, each of shape (n,): where they ran, classes of sizes, and log1p of seconds."""

    at: Places
    size: Ints
    took: Floats
    median: Floats  # of the forecast
    scale: Floats  # of the forecast

    def __getitem__(self, rows: Ints) -> _Batch:
        at = Places(source=self.at.source[rows], destination=self.at.destination[rows], link=self.at.link[rows])
        return _Batch(
            at=at, size=self.size[rows], took=self.took[rows], median=self.median[rows], scale=self.scale[rows]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """Where one of the two expects log1p(duration), and how far transfers stray from there. Shape (n,) each."""

    mean: Floats
    spread: Floats

    def score(self, took: Floats) -> Floats:
        found: Floats = (took - self.mean) / self.spread
        return found

    def seconds(self, score: Floats | float) -> Floats:
        """How long a transfer of that score takes."""
        found: Floats = np.expm1(np.minimum(self.mean + self.spread * score, _LONGEST))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ingredients:
    """Everything that limits are made of; every array has shape (n,), and everything that ends in _s is seconds."""

    forecast: _Expected
    norm: _Expected
    alarm: Floats  # the limit of the score on each link
    network: Network
    expected_s: Floats
    worth_s: Floats
    slow_worth_s: Floats
    by_loss_s: Floats  # the limit as raised by either
    by_throughput_s: Floats
    timeout_s: Floats
    threshold_s: Floats
    slow_s: Floats


class DynamicThreshold:
    """The threshold of every link. A fold over observed rows: `judge` a batch, then `absorb` it."""

    def __init__(self, *, alarm_budget: float) -> None:
        self.alarm_budget = alarm_budget
        self.tail_share = min(TAIL_BUDGETS * alarm_budget, alarm_budget**0.5)
        self.reset()

    def reset(self) -> None:
        self._rses, self._links = Codes(), Codes()
        self._forecast, self._norm, self._sizes = Scale(), Scale(), Group()
        self._scores, self._levelled, self._tails = Quantiles(), Quantiles(), Tails()
        self._waiting: list[Columns] = []
        self.waiting = 0  # rows since limits were last made anew
        self._set_limits()

    def judge(self, done: Rows) -> Verdicts:
        """`done`: finished transfers with quantiles, and what `Paths.standing` adds; without a forecast none is flagged."""
        rows = _columns(done, slice(None))
        seconds = rows["ended_at"] - rows["started_at"]
        found = self._ingredients(self._batch(rows), rows["bytes"], network(done))
        return Verdicts(
            threshold_s=found.threshold_s,
            slow_s=found.slow_s,
            expected_s=found.expected_s,
            network_s=found.network.needs_s,
            flagged=np.greater(seconds, found.threshold_s),
            slow=np.greater(seconds, found.slow_s),
        )

    def explain(self, done: Rows) -> Explanation:
        """What `judge` makes of a transfer, and of what; `done` has one row, finished and with a forecast."""
        rows, verdicts = _columns(done, slice(None)), self.judge(done)
        batch = self._batch(rows)
        found = self._ingredients(batch, rows["bytes"], network(done))
        forecast, norm = self._expectations(batch, found)
        loss, throughput = (
            _measured(by, bound, raised, known(done, *ages))
            for by, bound, raised, ages in (
                (By.LOSS, found.network.loss, found.by_loss_s, ("path_loss_age_s",)),
                (By.THROUGHPUT, found.network.throughput, found.by_throughput_s, ("path_throughput_age_s",)),
            )
        )
        q05 = known(done, "q05")
        return Explanation(
            source=str(rows["source"][0]),
            destination=str(rows["destination"][0]),
            bytes=known(done, "bytes"),
            duration_s=float(rows["ended_at"][0] - rows["started_at"][0]),
            q05_s=None if q05 is None else float(np.expm1(q05)),
            q50_s=float(np.expm1(rows["q50"][0])),
            q95_s=float(np.expm1(rows["q95"][0])),
            expectations=(forecast, norm),
            alarm_budget=self.alarm_budget,
            alarm=self.alarm,
            link_alarm=float(found.alarm[0]),
            tail_ratio=float(np.exp(self._tails.ratio(batch.at)[0])),
            slow_limit=self.slow,
            worth_s=float(found.worth_s[0]),
            slow_worth_s=float(found.slow_worth_s[0]),
            loss=known(done, "path_loss_recent", "path_loss"),
            delay_ms=known(done, "path_delay_ms"),
            rtt_ms=known(done, "path_rtt_ms"),
            throughput_bps=known(done, "path_throughput_recent", "path_throughput_bps"),
            measured=(loss, throughput),
            timeout_s=float(found.timeout_s[0]),
            network_s=float(verdicts.network_s[0]),
            threshold_s=float(found.threshold_s[0]),
            threshold_by=_threshold_by(found, forecast, norm),
            slow_s=float(found.slow_s[0]),
            slow_by=_slow_by(found, forecast, norm),
            flagged=bool(verdicts.flagged[0]),
            slow=bool(verdicts.slow[0]),
        )

    def _expectations(self, batch: _Batch, found: _Ingredients) -> tuple[Expectation, Expectation]:
        """Of one transfer."""
        size = self._size_mean(batch)
        forecast, norm = (
            Expectation(
                by=by,
                median_s=float(np.expm1(median[0])),
                scale=float(scale[0]),
                mean=float((expected.mean[0] - median[0]) / scale[0]),
                spread=float(expected.spread[0] / scale[0]),
                parts=residuals.parts(batch.at),
                expected_s=float(expected.seconds(0.0)[0]),
                slow_s=float(expected.seconds(self.slow)[0]),
                alarm_s=float(expected.seconds(found.alarm)[0]),
                score=float(expected.score(batch.took)[0]),
            )
            for by, expected, residuals, median, scale in (
                (By.FORECAST, found.forecast, self._forecast, batch.median, batch.scale),
                (By.NORM, found.norm, self._norm, size, np.ones(1)),
            )
        )
        return forecast, norm

    def absorb(self, observed: Rows) -> None:
        """Learn from the observed rows that calibrate, in whole blocks, so that it does not matter how they were cut.

        A block is of so many rows whether they calibrate or not: where it ends must not depend on what is said of them.
        """
        usable = np.asarray(observed["calibrates"], dtype=np.bool_) & ~np.isnan(np.asarray(observed["q50"], np.float64))
        self._waiting.append({**_columns(observed, slice(None)), "usable": usable})
        self.waiting += len(usable)
        if self.waiting < BLOCK:
            return
        waiting = {name: np.concatenate([rows[name] for rows in self._waiting]) for name in (*_CALIBRATION, "usable")}
        whole = self.waiting - self.waiting % BLOCK
        batch = self._batch(waiting)
        for start in range(0, whole, BLOCK):
            rows = start + np.flatnonzero(waiting["usable"][start : start + BLOCK])
            if len(rows):
                self._absorb_block(batch[rows])
        self._waiting = [{name: values[whole:] for name, values in waiting.items()}]
        self.waiting -= whole

    def _absorb_block(self, batch: _Batch) -> None:
        grouped = batch.at.grouped()
        score = np.maximum.reduce([expected.score(batch.took) for expected in self._expected(batch)])
        self._levelled.absorb(score - self._heavier(batch.at))
        self._scores.absorb(score)
        self._tails.absorb(grouped, score > self.tail)
        self._set_limits()
        self._forecast.absorb(grouped, (batch.took - batch.median) / batch.scale)
        self._sizes.absorb(Keys(batch.size), batch.took)
        self._norm.absorb(grouped, batch.took - self._size_mean(batch))

    def _ingredients(self, batch: _Batch, size: Floats, measured: Network) -> _Ingredients:
        forecast, norm = self._expected(batch)
        alarm = self.alarm + self._heavier(batch.at)
        expected = norm.seconds(0.0)
        worth = np.maximum(expected + WORTH_S, expected * WORTH_RATIO)
        limit = np.maximum(np.minimum(forecast.seconds(alarm), norm.seconds(alarm)), worth)
        by_loss, by_throughput = (bound.raised(limit, expected) for bound in (measured.loss, measured.throughput))
        timeout = fts_timeout(size)
        threshold = np.minimum(np.maximum(by_loss, by_throughput), timeout)
        slow = np.minimum(forecast.seconds(self.slow), norm.seconds(self.slow))
        slow_worth = np.maximum(expected + SLOW_WORTH_S, expected * WORTH_RATIO)
        return _Ingredients(
            forecast=forecast,
            norm=norm,
            alarm=alarm,
            network=measured,
            expected_s=expected,
            worth_s=worth,
            slow_worth_s=slow_worth,
            by_loss_s=by_loss,
            by_throughput_s=by_throughput,
            timeout_s=timeout,
            threshold_s=threshold,
            slow_s=np.minimum(np.maximum(slow, slow_worth), threshold),
        )

    def _set_limits(self) -> None:
        (self.alarm,) = self._levelled.limits(self.alarm_budget)
        peak, self.tail, self.slow = self._scores.limits(self.alarm_budget, self.tail_share, SLOW_SHARE)
        self._beta = (peak - self.tail) / np.log(self.tail_share / self.alarm_budget)

    def _heavier(self, at: Places) -> Floats:
        """How much higher the limit of the score lies on each link, by its tail."""
        higher: Floats = self._beta * self._tails.ratio(at)
        return higher

    def _expected(self, batch: _Batch) -> tuple[_Expected, _Expected]:
        """By the forecast and by the norm."""
        mean, spread = self._forecast.centre(batch.at)
        usual, stray = self._norm.centre(batch.at)
        return (
            _Expected(mean=batch.median + batch.scale * mean, spread=batch.scale * np.maximum(spread, SPREAD_FLOOR)),
            _Expected(mean=self._size_mean(batch) + usual, spread=np.maximum(stray, SPREAD_FLOOR)),
        )

    def _size_mean(self, batch: _Batch) -> Floats:
        # The forecast is all that is known of a size that was never seen.
        return self._sizes.shrunk(batch.size, batch.median, np.ones(len(batch.size)))[0]

    def _batch(self, rows: Columns) -> _Batch:
        source, destination = self._rses.learn(rows["source"]), self._rses.learn(rows["destination"])
        size = np.log(np.maximum(np.nan_to_num(rows["bytes"]), 1.0))
        median = rows["q50"]
        link = self._links.learn((source << 32) | destination)
        return _Batch(
            at=Places(source=source, destination=destination, link=link),
            size=np.digitize(size, _SIZE_EDGES).astype(np.int64),
            took=np.log1p(rows["ended_at"] - rows["started_at"]),
            median=median,
            scale=np.maximum((rows["q95"] - median) / 1.645, SCALE_FLOOR),
        )


def _columns(rows: Rows, which: Ints | slice) -> Columns:
    """What is judged and learned by, of some of the rows."""
    return {
        name: np.asarray(rows[name], dtype=object if name in {"source", "destination"} else np.float64)[which]
        for name in _CALIBRATION
    }


def _measured(by: By, bound: Bound, raised_s: Floats, age_s: float | None) -> Measured:
    return Measured(
        by=by,
        readings=int(bound.count[0]),
        age_s=age_s,
        weight=float(bound.weight[0]),
        needs_s=float(bound.needs_s[0]),
        raised_s=float(raised_s[0]),
    )


def _threshold_by(found: _Ingredients, forecast: Expectation, norm: Expectation) -> By:
    """What sets the threshold of one transfer."""
    lower = min(forecast, norm, key=lambda one: one.alarm_s)
    limit, by = max((lower.alarm_s, lower.by), (float(found.worth_s[0]), By.WORTH))
    for raised, why in ((found.by_loss_s, By.LOSS), (found.by_throughput_s, By.THROUGHPUT)):
        if raised[0] > limit:
            limit, by = float(raised[0]), why
    return By.FTS_TIMEOUT if found.timeout_s[0] < limit else by


def _slow_by(found: _Ingredients, forecast: Expectation, norm: Expectation) -> By:
    """What sets the limit of slowness of one transfer."""
    lower = min(forecast, norm, key=lambda one: one.slow_s)
    limit, by = max((lower.slow_s, lower.by), (float(found.slow_worth_s[0]), By.WORTH))
    return By.ALARM if found.threshold_s[0] < limit else by
