"""The drift alarm: silent while forecasts fit, soon there when they do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from models.drift import BLOCK, FORECAST, Drift
from models.metrics import pinball
from models.registry import QUANTILES

SPREAD = 0.5


def transfers(count, *, after=0, seed=0, slower=1.0, spread=SPREAD, hourly=0.0):
    """Transfers with the forecast that is right for them; `slower` and `spread` are how durations differ from it by now.

    `hourly` is how much of it (log seconds) the errors of a run of 200 go together, as they do on a grid.
    """
    draw = np.random.default_rng(seed)
    median = draw.normal(4.0, 1.0, count)
    together = np.repeat(draw.normal(0, hourly, count // 200 + 1), 200)[:count]
    took = median + np.log(slower) + together + draw.normal(0, np.sqrt(spread**2 - hourly**2), count)
    started = 1.7e9 + 2.0 * (after + np.arange(count))
    quantiles = median[:, None] + SPREAD * norm.ppf(QUANTILES)
    return pd.DataFrame(
        {
            "started_at": started,
            "ended_at": started + np.expm1(np.maximum(took, 0.0)),
            "calibrates": True,
            **dict(zip(FORECAST, quantiles.T, strict=True)),
        }
    )


def held_out():
    rows = transfers(50_000, seed=99)
    actual = np.log1p((rows["ended_at"] - rows["started_at"]).to_numpy())
    return pinball(actual, rows[list(FORECAST)].to_numpy())


@pytest.fixture(scope="module")
def watching():
    loss = held_out()
    return lambda: Drift(held_out=loss)


@pytest.mark.parametrize("hourly", [0.0, 0.25])
def test_no_alarm_while_forecasts_fit(watching, hourly):
    for seed in range(5):
        drift = watching()
        drift.absorb(transfers(100_000, seed=seed, hourly=hourly))
        assert drift.alarm is None


@pytest.mark.parametrize(
    ("change", "within", "what"),
    [
        ({"slower": 2.0}, 4_000, "intervals too narrow"),
        ({"slower": 1.6}, 4_000, "intervals too narrow"),
        ({"spread": 2 * SPREAD}, 4_000, "intervals too narrow"),
        ({"spread": 0.4 * SPREAD}, 5_000, "intervals too wide"),
    ],
)
def test_an_alarm_soon_after_a_change(watching, change, within, what):
    drift = watching()
    drift.absorb(transfers(20_000))
    assert drift.alarm is None
    drift.absorb(transfers(within, after=20_000, seed=1, **change))
    assert drift.alarm is not None
    assert what in drift.alarm.what
    assert drift.alarm.transfers <= within


def test_a_loss_far_above_the_one_held_out_is_an_alarm_whatever_the_coverage():
    drift = Drift(held_out=held_out() / 2)
    drift.absorb(transfers(5_000))
    assert drift.alarm.what == "error too large"
    assert drift.alarm.pinball == pytest.approx(2 * drift.alarm.pinball_held_out, rel=0.1)


def test_an_alarm_is_one_until_all_is_well_again(watching):
    drift = watching()
    drift.absorb(transfers(10_000, slower=2.0))
    alarm = drift.alarm
    drift.absorb(transfers(10_000, after=10_000, seed=1, slower=2.0))
    assert drift.alarm is alarm
    drift.absorb(transfers(20_000, after=20_000, seed=2))
    assert drift.alarm is None
    drift.absorb(transfers(10_000, after=40_000, seed=3, slower=2.0))
    assert drift.alarm is not None


def test_transfers_within_incidents_do_not_count(watching):
    drift = watching()
    drift.absorb(transfers(20_000, slower=10.0).assign(calibrates=False))
    assert drift.alarm is None


def test_on_a_busy_grid_a_trouble_of_minutes_is_no_drift(watching):
    """A hundred transfers a second, ten minutes of them four times as slow."""
    drift = watching()
    for at, slower in enumerate((1.0, 4.0, 1.0)):
        rows = transfers(60_000, seed=at, slower=slower)
        shift = 600.0 * at - 2.0 * np.arange(60_000) + np.arange(60_000) / 100
        drift.absorb(rows.assign(started_at=rows["started_at"] + shift, ended_at=rows["ended_at"] + shift))
    drift.absorb(transfers(20_000, after=1_000))
    assert drift.alarm is None


def test_it_does_not_matter_how_the_stream_is_cut(watching):
    rows = transfers(30_500, slower=1.6, hourly=0.4)
    whole, pieces = watching(), watching()
    whole.absorb(rows)
    for start in range(0, len(rows), 777):
        pieces.absorb(rows.iloc[start : start + 777])
    assert whole.alarm is not None
    assert whole.alarm == pieces.alarm


@pytest.mark.parametrize("held_out", [None, 0.0, float("nan")])
def test_without_a_loss_to_compare_with_coverage_alone_is_watched(held_out):
    drift = Drift(held_out=held_out)
    drift.absorb(transfers(10 * BLOCK))
    assert drift.alarm is None
    drift.absorb(transfers(10 * BLOCK, after=10 * BLOCK, slower=3.0))
    assert drift.alarm.what == "intervals too narrow"
