"""Limits of single transfers: the alarm budget on each link, what perfSONAR allows, and the explanation of both."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detectors.bounds
import detectors.explanation
import detectors.residuals
import detectors.threshold
from detectors.bounds import SLACK, TRUST, fts_timeout, network
from detectors.explanation import By, medians
from detectors.threshold import DynamicThreshold
from models.measurements import LOSS_HOLDS_S, PATH_COLUMNS, THROUGHPUT_HOLDS_S, Paths, SiteMap

START = 1_500_000_000.0
BUDGET = 0.01
UNKNOWN = dict.fromkeys(PATH_COLUMNS, np.nan)
GB = 1e9


def transfers(count, *, seed=1, links=6, heavy=(), noise=0.4, size=1e12):
    """Finished transfers that take twenty minutes or so; on `heavy` links one in twenty takes longer, some much."""
    rng = np.random.default_rng(seed)
    link = rng.integers(0, links, count)
    away = rng.standard_normal(count)
    away += np.where(np.isin(link, heavy) & (rng.random(count) < 0.05), 2.0 * rng.standard_exponential(count), 0.0)
    seconds = np.expm1(7.0 + noise * away)
    started = START + 3.0 * np.arange(count)
    return pd.DataFrame(
        {
            "source": [f"S{number % 3}_DISK" for number in link],
            "destination": [f"D{number}_DISK" for number in link],
            "bytes": size,
            "started_at": started,
            "ended_at": started + seconds,
            "q05": 7.0 - 1.645 * noise,
            "q50": 7.0,
            "q95": 7.0 + 1.645 * noise,
            "calibrates": True,
            **UNKNOWN,
        }
    )


def learned(rows, threshold=None, *, cut=500):
    """A threshold that has seen the rows, and its verdicts of each as it came."""
    threshold = threshold or DynamicThreshold(alarm_budget=BUDGET)
    flagged = []
    for start in range(0, len(rows), cut):
        page = rows.iloc[start : start + cut]
        flagged.append(threshold.judge(page).flagged)
        threshold.absorb(page)
    return threshold, np.concatenate(flagged)


def probed(rows, *, loss=np.nan, rtt_ms=np.nan, throughput=np.nan, readings=60, age_s=0.0):
    """The rows with what `Paths.standing` would say of their paths."""
    known, tested = float(np.isfinite(loss)), float(np.isfinite(throughput))
    return rows.assign(
        path_loss_recent=loss,
        path_loss_count=readings * known,
        path_loss_age_s=age_s if known else np.nan,
        path_rtt_ms=rtt_ms,
        path_rtt_age_s=age_s if np.isfinite(rtt_ms) else np.nan,
        path_throughput_recent=throughput,
        path_throughput_count=readings * tested,
        path_throughput_age_s=age_s if tested else np.nan,
    )


def test_doctests():
    for module in (detectors.bounds, detectors.explanation, detectors.residuals, detectors.threshold):
        assert doctest.testmod(module).failed == 0


def test_the_budget_holds_on_every_link_however_heavy_its_tail():
    rows = transfers(60_000, heavy=(1, 4))
    _, flagged = learned(rows)
    late = rows.assign(flagged=flagged).iloc[20_000:]
    # a limit comes down slowly from where it begins, so that the share lies below the budget for long
    assert 0.3 * BUDGET < late["flagged"].mean() <= 1.2 * BUDGET
    shares = late.groupby("destination")["flagged"].mean()
    assert (shares <= 1.2 * BUDGET).all(), shares


def test_a_link_that_was_never_seen_has_its_ends_tail():
    rows = transfers(40_000, heavy=(1, 4))  # both are S1's
    threshold, _ = learned(rows)
    new = rows.head(2).assign(source=["S1_DISK", "S0_DISK"], destination="NEW_DISK")
    ratio = [threshold.explain(new.iloc[place : place + 1]).tail_ratio for place in (0, 1)]
    assert ratio[0] > 1.1 > ratio[1]


def test_what_does_not_calibrate_changes_no_limit():
    rows = transfers(20_000)
    threshold, _ = learned(rows)
    limits = (threshold.alarm, threshold.tail, threshold.slow)
    worse = transfers(5_000, seed=2).assign(calibrates=False)
    worse["ended_at"] += 30_000.0
    _, flagged = learned(worse, threshold)
    assert flagged.all()
    assert (threshold.alarm, threshold.tail, threshold.slow) == limits


def test_how_rows_are_cut_changes_nothing():
    rows = transfers(5_000, heavy=(1,))
    one, other = (learned(rows, cut=cut)[0] for cut in (37, 2_000))
    assert (one.alarm, one.tail, one.slow) == (other.alarm, other.tail, other.slow)
    np.testing.assert_array_equal(one.judge(rows).threshold_s, other.judge(rows).threshold_s)


@pytest.fixture(scope="module")
def threshold():
    """One whose links take 20 s for a gigabyte."""
    rows = transfers(10_000, noise=0.3, size=GB)
    rows["ended_at"] = rows["started_at"] + (rows["ended_at"] - rows["started_at"]) / 55.0
    rows[["q05", "q50", "q95"]] -= 4.0
    return learned(rows, DynamicThreshold(alarm_budget=0.001))[0]


def one(**changes):
    return transfers(1, size=GB).assign(q05=2.5, q50=3.0, q95=3.5, **changes)


def test_without_perfsonar_the_transfers_alone_decide(threshold):
    bare, blind = threshold.judge(one()), threshold.judge(probed(one()))
    np.testing.assert_array_equal(bare.threshold_s, blind.threshold_s)
    assert bare.network_s.tolist() == blind.network_s.tolist() == [0.0]
    assert threshold.explain(probed(one())).threshold_by in {By.FORECAST, By.NORM, By.WORTH}


def test_loss_raises_the_alarm_and_never_the_limit_of_slowness(threshold):
    blind, lossy = threshold.judge(one()), threshold.judge(probed(one(), loss=0.001, rtt_ms=50.0))
    # 8 streams over 50 ms with one packet in a thousand lost: 9.05 MB/s
    assert lossy.network_s[0] == pytest.approx(110.5, abs=0.1)
    assert blind.threshold_s[0] < 150 < lossy.threshold_s[0] <= SLACK * 110.6
    assert lossy.slow_s[0] == blind.slow_s[0]


def test_bounds_fade_with_age(threshold):
    limits = [
        threshold.judge(probed(one(), loss=0.001, rtt_ms=50.0, age_s=age)).threshold_s[0]
        for age in (0.0, 3600.0, 5 * 3600.0, LOSS_HOLDS_S, 2 * LOSS_HOLDS_S)
    ]
    assert limits[0] > limits[1] > limits[2] > limits[3] == limits[4] == threshold.judge(one()).threshold_s[0]
    tests = [
        threshold.judge(probed(one(), throughput=8e7, age_s=age)).threshold_s[0]
        for age in (0.0, THROUGHPUT_HOLDS_S / 2, THROUGHPUT_HOLDS_S)
    ]
    assert tests[0] > tests[1] > tests[2] == limits[3]


def test_one_low_test_raises_a_limit_by_no_more_than_is_trusted(threshold):
    wild = {
        readings: threshold.judge(probed(one(), throughput=1e3, readings=readings)).threshold_s[0]
        for readings in (1, 4)
    }
    expected = threshold.judge(one()).expected_s[0]
    assert wild[1] <= max(TRUST * expected, threshold.judge(one()).threshold_s[0])
    assert wild[1] < wild[4] <= 4 * TRUST * expected
    assert wild[4] < fts_timeout(np.array([GB]))[0]


def test_a_firewall_is_no_slow_network(threshold):
    walled = threshold.judge(probed(one(), loss=1.0, rtt_ms=50.0))
    assert walled.network_s.tolist() == [0.0]
    assert walled.threshold_s[0] == threshold.judge(one()).threshold_s[0]


def test_rows_as_the_ledger_keeps_them_count_as_one_fresh_reading_each():
    kept = one(path_loss=0.001, path_delay_ms=25.0, path_throughput_bps=8e8)
    same = network(probed(one(), loss=0.001, rtt_ms=50.0, throughput=8e8, readings=1))
    found = network(kept)
    for bound, expected in ((found.loss, same.loss), (found.throughput, same.throughput)):
        assert (bound.needs_s[0], bound.count[0], bound.weight[0]) == pytest.approx(
            (expected.needs_s[0], expected.count[0], expected.weight[0])
        )


def test_sites_that_nobody_mapped_are_judged_as_without_perfsonar(threshold):
    paths = Paths(SiteMap({"PS-S0": "S0", "PS-D0": "D0"}))
    pairs = [("PS-S0", "PS-D0"), ("PS-D0", "PS-S0"), ("PS-UNKNOWN", "PS-D0")]
    readings = [
        (a, b, name, value, START - 60.0 * k)
        for a, b in pairs
        for k in range(1, 50)
        for name, value in (("packet_loss", 0.001), ("delay_mean", 25.0))
    ]
    paths.absorb(
        pd.DataFrame(readings, columns=["source_site", "destination_site", "quantity", "value", "at"]).assign(
            source_host="", destination_host=""
        )
    )
    rows = pd.concat([one(source="S0_DISK", destination="D0_DISK"), one(source="S1_DISK", destination="D1_DISK")])
    verdicts = threshold.judge(rows.assign(**paths.standing(rows)))
    blind = threshold.judge(rows)
    assert verdicts.network_s[0] > 100
    assert verdicts.threshold_s[0] > blind.threshold_s[0]
    assert (verdicts.network_s[1], verdicts.threshold_s[1]) == (0.0, blind.threshold_s[1])


@given(
    loss=st.one_of(st.just(np.nan), st.floats(0, 1)),
    rtt_ms=st.one_of(st.just(np.nan), st.floats(0.001, 1e5)),
    throughput=st.one_of(st.just(np.nan), st.floats(0, 1e12)),
    readings=st.integers(1, 2000),
    age_s=st.floats(0, 1e7),
    size=st.one_of(st.just(np.nan), st.floats(0, 1e13)),
    q50=st.floats(0, 15),
    width=st.floats(0, 5),
    seconds=st.floats(0, 1e6),
)
def test_limits_are_in_order_whatever_was_measured(
    threshold, loss, rtt_ms, throughput, readings, age_s, size, q50, width, seconds
):
    row = one(bytes=size).assign(q50=q50, q95=q50 + width)
    row["ended_at"] = row["started_at"] + seconds
    row = probed(row, loss=loss, rtt_ms=rtt_ms, throughput=throughput, readings=readings, age_s=age_s)
    verdicts, why = threshold.judge(row), threshold.explain(row)
    assert 0 < verdicts.slow_s[0] <= verdicts.threshold_s[0] <= fts_timeout(np.array([size]))[0]
    blind = threshold.judge(row.assign(path_loss_recent=np.nan, path_throughput_recent=np.nan))
    assert verdicts.threshold_s[0] >= blind.threshold_s[0]
    assert verdicts.slow_s[0] == blind.slow_s[0]
    # the explanation is of the same verdict, and names what sets it
    assert (why.threshold_s, why.slow_s, why.flagged, why.slow) == (
        verdicts.threshold_s[0],
        verdicts.slow_s[0],
        verdicts.flagged[0],
        verdicts.slow[0],
    )
    forecast, norm = why.expectations
    sets = {
        By.FORECAST: (forecast.alarm_s, forecast.slow_s),
        By.NORM: (norm.alarm_s, norm.slow_s),
        By.WORTH: (why.worth_s, why.slow_worth_s),
        By.LOSS: (why.measured[0].raised_s, None),
        By.THROUGHPUT: (why.measured[1].raised_s, None),
        By.FTS_TIMEOUT: (why.timeout_s, None),
        By.ALARM: (None, why.threshold_s),
    }
    assert sets[why.threshold_by][0] == pytest.approx(why.threshold_s)
    assert sets[why.slow_by][1] == pytest.approx(why.slow_s)


def test_the_parts_of_an_explanation_make_its_whole(threshold):
    why = threshold.explain(probed(one(), loss=0.001, rtt_ms=50.0))
    for expectation in why.expectations:
        parts = expectation.parts
        assert [part.of for part in parts] == ["link", "source", "destination", "all", "prior"]
        assert sum(part.weight for part in parts) == pytest.approx(1.0)
        assert sum(part.weight * part.mean for part in parts) == pytest.approx(expectation.mean)
        spread = sum(part.weight * part.spread for part in parts)
        assert max(spread, 0.1) == pytest.approx(expectation.spread)
    assert why.measured[0].readings == 60
    assert why.loss == 0.001


def test_medians_leave_out_what_is_not_known():
    assert medians({}) == {}
    assert medians({"slow_s": np.array([3.0, 1.0, np.nan, 2.0]), "network_s": np.zeros(3)}) == {"slow_s": 2.0}
