from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from models.metrics import Baselines, forecast_metrics, pinball, surprise


def frame(durations: list[float], *, gap: float = 1e5, source: str = "A") -> pd.DataFrame:
    """Transfers one after the other, so that each can know of all before it."""
    started = 1e9 + gap * np.arange(len(durations))
    rows = pd.DataFrame({"source": source, "destination": "B", "started_at": started, "ended_at": started + durations})
    return rows.astype({"source": "str", "destination": "str"})


def test_metrics_of_a_perfect_forecast() -> None:
    actual = np.array([0.0, 19.0, 4000.0])
    metrics = forecast_metrics(actual, np.repeat(np.log1p(actual)[:, None], 5, axis=1))
    assert metrics["n"] == 3
    assert metrics["coverage90"] == metrics["within_180s"] == 1
    assert metrics["pinball"] == pytest.approx(0)
    assert metrics["mae_s"] == pytest.approx(0, abs=1e-9)


def test_metrics_by_hand() -> None:
    actual = np.array([0.0, 100.0])
    quantiles = np.log1p([[1, 2, 3, 4, 5], [10, 20, 400, 500, 600]])
    metrics = forecast_metrics(actual, quantiles)
    assert metrics["mae_s"] == pytest.approx((3 + 300) / 2)
    assert metrics["median_ae_s"] == pytest.approx((3 + 300) / 2)
    assert metrics["median_ape"] == pytest.approx((3 + 3) / 2)  # of at least one second
    assert metrics["mae_log1p"] == pytest.approx((math.log(4) + math.log(401 / 101)) / 2)
    assert metrics["within_180s"] == 0.5
    assert metrics["coverage90"] == 0.5


def test_metrics_of_nothing_are_not_numbers() -> None:
    metrics = forecast_metrics(np.zeros(0), np.zeros((0, 5)))
    assert metrics["n"] == 0
    assert math.isnan(metrics["mae_log1p"])


def test_pinball_is_least_at_the_quantiles() -> None:
    sample = np.random.default_rng(1).normal(size=20_000)
    right = np.quantile(sample, [0.05, 0.25, 0.5, 0.75, 0.95])
    assert pinball(sample, np.tile(right, (len(sample), 1))) < pinball(sample, np.tile(right + 0.05, (len(sample), 1)))


def test_surprise_is_in_scales_of_the_forecast() -> None:
    quantiles = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert surprise(np.array([5.0]), quantiles)[0] == pytest.approx(1.645)
    assert surprise(np.array([3.0]), quantiles)[0] == 0


def test_baselines_are_the_median_of_what_had_ended() -> None:
    durations = [10.0, 20.0, 90.0, 40.0, 7.0]
    forecasts = Baselines().score(frame(durations))
    for i in range(1, 5):
        assert np.expm1(forecasts["constant"][i, 2]) == pytest.approx(np.sort(durations[:i])[(i - 1) // 2], rel=2e-3)
    for i in range(2, 5):
        assert forecasts["link_median"][i, 2] == pytest.approx(np.median(np.log1p(durations[:i])), abs=1e-6)
    np.testing.assert_array_equal(forecasts["link_median"][:2], forecasts["constant"][:2])  # fewer than two of the link
    assert np.isfinite(forecasts["constant"]).all()


def test_link_median_knows_only_the_last_50_of_the_link() -> None:
    rows = pd.concat([frame([1000.0] * 30 + [5.0] * 50 + [1.0])], ignore_index=True)
    forecast = Baselines().score(rows)["link_median"][-1]
    assert np.expm1(forecast[4]) == pytest.approx(5.0)


def test_baselines_know_nothing_that_ended_while_a_transfer_ran() -> None:
    rows = frame([50.0] * 200, gap=1.0)
    baselines = Baselines().score(rows)
    np.testing.assert_array_equal(baselines["constant"][:50], baselines["constant"][:1].repeat(50, axis=0))
    assert np.expm1(baselines["constant"][60, 2]) == pytest.approx(50.0, rel=2e-3)


def test_baselines_do_not_depend_on_cuts() -> None:
    draw = np.random.default_rng(3)
    rows = frame(draw.lognormal(3, 1, 3000).round(), gap=2.0)
    whole, cut = Baselines(), Baselines()
    parts = [cut.score(rows[i : i + 170]) for i in range(0, len(rows), 170)]
    for name, forecast in whole.score(rows).items():
        np.testing.assert_array_equal(forecast, np.concatenate([part[name] for part in parts]))


def test_the_constant_follows_the_exact_running_quantiles() -> None:
    durations = np.random.default_rng(4).lognormal(3, 1.3, 4000)
    constant = Baselines().score(frame(durations.tolist()))["constant"]
    for i in (500, 1500, 3999):
        exact = np.quantile(np.log1p(durations[:i]), [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(constant[i], exact, atol=0.03)
