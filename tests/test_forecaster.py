from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.domain import ModelError
from models.events import decode_table
from models.features import FEATURES_VERSION, NAMES, NUMBERS, blocks
from models.forecaster import Forecaster, Network, shapes
from models.measurements import PATH_COLUMNS
from models.metrics import Baselines, forecast_metrics
from models.registry import MANIFEST, QUANTILES, WEIGHTS, Manifest, TrainingData, default_model, save_model

TEXT = ("source", "destination", "activity", "protocol", "source_type", "destination_type", "fts")


def weights(seed: int = 1, units: int = 12) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made = {name: (draw.normal(size=shape) * 0.2).astype(np.float32) for name, shape in shapes(units, (16, 8)).items()}
    made["number_mean"] += 2
    made["outcome_mean"] += 2
    made["number_scale"][:] = made["outcome_scale"][:] = 2.0
    made["target"][:] = (3.0, 1.3)
    return made


def manifest() -> Manifest:
    return Manifest(
        features_version=FEATURES_VERSION,
        units=12,
        code_version="0",
        seed=0,
        epochs=1,
        data=TrainingData(transfers=1, links=1, first_start=0.0, last_end=1.0, hash=""),
        metrics={},
        calibration={},
        weights_hash="",
    )


@pytest.fixture
def forecaster() -> Forecaster:
    return Forecaster(Network(weights()), manifest())


def stream(count: int, *, seed: int = 0, links: int = 12, late: float = 0.0, failed: float = 0.05) -> pd.DataFrame:
    """Ended transfers in order of their end, but for a share `late`."""
    draw = np.random.default_rng(seed)
    link = np.minimum(draw.exponential(links / 3, count).astype(int), links)
    ended = 1.7e9 + np.sort(draw.uniform(0, 4 * count, count)).round()
    rows = pd.DataFrame(
        {
            "source": [f"S{i % 5}" for i in link],
            "destination": [f"D{i // 3}" for i in link],
            "activity": draw.choice(["Production Input", "T0 Export", "never seen before"], count),
            "protocol": draw.choice(["davs", "gsiftp"], count),
            "source_type": "DISK",
            "destination_type": draw.choice(["DISK", "TAPE"], count),
            "fts": "fts.example",
            "bytes": np.where(draw.random(count) < 0.05, np.nan, draw.lognormal(18, 2, count).round()),
            "submitted_at": ended - 5000,
            "started_at": ended - draw.lognormal(3.5, 1.5, count).round(),
            "ended_at": ended,
            "failed": draw.random(count) < failed,
            "path_loss": np.where(draw.random(count) < 0.5, np.nan, draw.random(count) * 1e-3),
            "path_delay_ms": np.where(draw.random(count) < 0.5, np.nan, draw.random(count) * 100),
            "path_throughput_bps": np.nan,
        }
    ).astype(dict.fromkeys(TEXT, "str"))
    place = np.arange(count) + np.where(draw.random(count) < late, draw.integers(1, 100, count), 0)
    return rows.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)


def cut(rows: pd.DataFrame, seed: int, pieces: int = 30) -> list[pd.DataFrame]:
    edges = np.sort(np.random.default_rng(seed).integers(0, len(rows) + 1, pieces)).tolist()
    return [rows.iloc[start:stop] for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True)]


def test_forecasts_rise_and_failed_ones_have_none(forecaster: Forecaster) -> None:
    rows = stream(500)
    forecast = forecaster.score(rows)
    failed = rows["failed"].to_numpy()
    assert forecast.shape == (500, len(QUANTILES))
    assert np.isnan(forecast[failed]).all()
    assert np.isfinite(forecast[~failed]).all()
    assert (np.diff(forecast[~failed], axis=1) >= 0).all()
    assert (forecast[~failed] >= 0).all()


def test_failed_transfers_leave_no_trace(forecaster: Forecaster) -> None:
    rows = stream(400, failed=0.3)
    fine = ~rows["failed"].to_numpy()
    together = forecaster.score(rows)[fine]
    forecaster.reset()
    np.testing.assert_allclose(forecaster.score(rows[fine]), together, atol=1e-6)


@pytest.mark.parametrize("late", [0.0, 0.03, 0.5])
def test_cuts_do_not_matter(forecaster: Forecaster, late: float) -> None:
    rows = stream(1500, late=late)
    whole = forecaster.score(rows)
    for seed in range(3):
        forecaster.reset()
        pieces = np.concatenate([forecaster.score(part) for part in cut(rows, seed)])
        np.testing.assert_allclose(pieces, whole, rtol=0, atol=5e-6)


@pytest.mark.parametrize("sort_again", [False, True])
def test_a_later_end_changes_no_forecast_of_what_started_before(forecaster: Forecaster, *, sort_again: bool) -> None:
    rows = stream(800, failed=0.0)
    before = pd.Series(forecaster.score(rows)[:, 2], index=rows.index)
    draw = np.random.default_rng(1)
    changed = 0
    for _ in range(25):
        moved, delay = int(draw.integers(0, 780)), float(draw.choice([1, 30, 600, 86_400]))
        other = rows.copy()
        other.loc[moved, "ended_at"] += delay
        if sort_again:
            other = other.sort_values("ended_at", kind="stable")
        forecaster.reset()
        after = pd.Series(forecaster.score(other)[:, 2], index=other.index)
        same = rows.index[rows["started_at"] <= rows.loc[moved, "ended_at"]]
        assert moved in same
        np.testing.assert_allclose(after[same], before[same], rtol=0, atol=1e-5)
        changed += int(np.abs(after - before).max() > 1e-4)
    assert changed > 10  # the others do look at what has ended


def test_what_a_transfer_did_itself_is_not_known_to_its_forecast(forecaster: Forecaster) -> None:
    rows = stream(300, failed=0.0)
    before = forecaster.score(rows)
    other = rows.copy()
    other.loc[299, ["ended_at", "failed"]] = [rows.loc[299, "ended_at"] + 5000, False]
    forecaster.reset()
    np.testing.assert_array_equal(forecaster.score(other)[299], before[299])


def test_late_rows_change_nothing_that_was_forecast_before_them(forecaster: Forecaster) -> None:
    rows = stream(600, late=0.2)
    whole = forecaster.score(rows)
    for count in (100, 333, 599):
        forecaster.reset()
        np.testing.assert_allclose(forecaster.score(rows[:count]), whole[:count], rtol=0, atol=5e-6)


def test_reset_and_absorb_equal_an_uninterrupted_run(forecaster: Forecaster) -> None:
    rows = stream(1200, late=0.03)
    whole = forecaster.score(rows)
    forecaster.reset()
    forecaster.absorb(rows[:700])
    np.testing.assert_allclose(forecaster.score(rows[700:]), whole[700:], rtol=0, atol=5e-6)


def test_predict_says_what_score_would_and_leaves_no_trace(forecaster: Forecaster) -> None:
    rows = stream(500, failed=0.0)
    forecaster.absorb(rows[:499])
    running = rows[499:].assign(ended_at=np.nan)
    new = running.assign(source="NEVER SEEN").astype({"source": "str"})
    predicted = [forecaster.predict(part) for part in (running, new, running, running.assign(started_at=np.nan))]
    np.testing.assert_array_equal(predicted[0], predicted[2])
    assert np.isfinite(predicted[1]).all()
    assert np.isnan(predicted[3]).all()
    np.testing.assert_allclose(forecaster.score(rows[499:]), predicted[0], rtol=0, atol=1e-6)


def test_names_and_sizes_never_seen_score(forecaster: Forecaster) -> None:
    rows = stream(50)
    rows["activity"] = rows["protocol"] = rows["source"] = "|<b>\N{SNOWMAN}' :" * 50
    rows["bytes"] = [0.0, 1e18, np.nan, -5.0, 1.0] * 10
    rows["submitted_at"] = [np.nan, 2e9, 0.0, 1.7e9, -1e9] * 10
    rows = rows.astype(dict.fromkeys(TEXT, "str"))
    assert np.isfinite(forecaster.score(rows[~rows["failed"]])).all()


def test_nothing_to_score_is_no_error(forecaster: Forecaster) -> None:
    rows = stream(20)
    assert forecaster.score(rows[:0]).shape == (0, len(QUANTILES))
    assert forecaster.predict(rows[:0]).shape == (0, len(QUANTILES))
    forecaster.absorb(rows[:0])
    assert np.isnan(forecaster.score(rows.assign(failed=True))).all()
    assert np.isnan(forecaster.score(rows.assign(ended_at=np.nan))).all()


def test_a_column_that_training_never_saw_vary_is_never_heard() -> None:
    deaf = weights()
    for i in range(blocks()["path"].start, blocks()["path"].stop):
        deaf["number_scale"][i] = np.nan
    rows = stream(100)
    hears = Forecaster(Network(deaf), manifest()).score(rows)
    without = rows.assign(path_loss=np.nan, path_delay_ms=np.nan)
    np.testing.assert_array_equal(Forecaster(Network(deaf), manifest()).score(without), hears)


def test_features_know_history_as_of_the_start() -> None:
    forecaster = Forecaster(Network(weights()), manifest())
    rows = stream(2, failed=0.0)
    rows[["source", "destination"]] = ["A", "B"]
    rows["started_at"], rows["ended_at"] = [1.7e9, 1.7e9 + 100], [1.7e9 + 40, 1.7e9 + 200]
    history = forecaster._history
    coded = history.code(rows, learn=True)
    history.absorb(coded)
    numbers = dict(zip(NUMBERS, forecaster._features.numbers(rows, coded).T, strict=True))
    for key in ("link", "source", "destination"):
        assert np.isnan(numbers[f"{key}_mean"][0])
        assert numbers[f"{key}_mean"][1] == pytest.approx(np.log1p(40))
        assert numbers[f"{key}_age"][1] == pytest.approx(np.log1p(60))
        assert numbers[f"{key}_count"][1] == pytest.approx(np.log1p(1))
    assert (forecaster._features.names(rows).sum(axis=1) == 5).all()
    assert forecaster._features.names(rows).shape == (2, len(NAMES))


def test_speed_does_not_fall_apart_with_late_rows(forecaster: Forecaster) -> None:
    times = []
    for late in (0.0, 0.03):
        rows = stream(20_000, links=300, late=late)
        forecaster.reset()
        began = time.perf_counter()
        forecaster.score(rows)
        times.append(time.perf_counter() - began)
    assert times[1] < 4 * times[0]


def test_the_default_model_loads_without_tensorflow() -> None:
    default_forecaster()
    program = (
        "import sys; from models.forecaster import Forecaster; from models.registry import default_model;"
        "Forecaster.load(default_model()); print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_default_model_beats_the_baselines_it_was_measured_against() -> None:
    shipped = default_forecaster().manifest
    errors = {name: metrics["mae_log1p"] for name, metrics in shipped.metrics.items()}
    assert errors["model"] < errors["link_median"]
    assert errors["model"] < errors["constant"]
    assert sum(file.stat().st_size for file in default_model().iterdir()) < 1_000_000


@pytest.fixture(scope="module")
def real_transfers(real_data: Path) -> pd.DataFrame:
    table = pd.read_csv(real_data / "rucio_transfer_done_2017-06-18.csv")
    events, refused = decode_table(table, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert len(events) == 1200
    assert not refused
    events[list(PATH_COLUMNS)] = np.nan
    return events.assign(failed=False).sort_values("ended_at", kind="stable", ignore_index=True)


@pytest.mark.realdata
class TestOnRealTransfers:
    def test_the_default_model_beats_the_baselines_on_what_it_was_not_trained_on(
        self, real_transfers: pd.DataFrame
    ) -> None:
        forecast = default_forecaster().score(real_transfers)
        table = real_transfers.assign(**dict(zip(("q05", "q25", "q50", "q75", "q95"), forecast.T, strict=True)))
        late = np.arange(len(table)) >= round(0.8 * len(table))
        actual = (table["ended_at"] - table["started_at"]).to_numpy()
        model = forecast_metrics(actual[late], forecast[late])
        link_median = forecast_metrics(actual[late], Baselines().score(table)["link_median"][late])
        assert model["mae_log1p"] < 0.9 * link_median["mae_log1p"]
        assert model["pinball"] < 0.9 * link_median["pinball"]
        assert 0.75 < model["coverage90"] < 0.98

    def test_cuts_do_not_matter(self, real_transfers: pd.DataFrame) -> None:
        forecaster = default_forecaster()
        whole = forecaster.score(real_transfers)
        forecaster.reset()
        pieces = np.concatenate([forecaster.score(part) for part in cut(real_transfers, 3)])
        np.testing.assert_allclose(pieces, whole, rtol=0, atol=5e-6)

    @pytest.mark.parametrize("sort_again", [False, True])
    def test_causality(self, real_transfers: pd.DataFrame, *, sort_again: bool) -> None:
        forecaster = default_forecaster()
        before = pd.DataFrame(forecaster.score(real_transfers))
        for moved in np.random.default_rng(4).integers(0, 1200, 20):
            other = real_transfers.copy()
            other.loc[moved, "ended_at"] += 4000
            if sort_again:
                other = other.sort_values("ended_at", kind="stable")
            forecaster.reset()
            after = pd.DataFrame(forecaster.score(other), index=other.index)
            same = real_transfers.index[real_transfers["started_at"] <= real_transfers.loc[moved, "ended_at"]]
            np.testing.assert_allclose(after.loc[same], before.loc[same], rtol=0, atol=1e-5)


def default_forecaster() -> Forecaster:
    if not (default_model() / MANIFEST).exists():
        pytest.skip("no default model has been trained yet")
    return Forecaster.load(default_model())


class TestLoading:
    def test_comes_back_as_saved(self, tmp_path: Path, forecaster: Forecaster) -> None:
        save_model(tmp_path, manifest(), weights())
        rows = stream(100)
        np.testing.assert_array_equal(Forecaster.load(tmp_path).score(rows), forecaster.score(rows))

    def test_a_directory_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"manifest.json does not exist.*gridmedic train"):
            Forecaster.load(tmp_path / "absent")

    def test_another_features_version(self, tmp_path: Path) -> None:
        save_model(tmp_path, manifest().model_copy(update={"features_version": 99}), weights())
        with pytest.raises(ModelError, match=r"manifest.json is of features version 99"):
            Forecaster.load(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"units": "many"}), "\x00"])
    def test_a_manifest_that_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ModelError, match=r"manifest.json is not a forecaster's manifest"):
            Forecaster.load(tmp_path)

    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        save_model(tmp_path, manifest(), weights())
        (tmp_path / WEIGHTS).write_bytes(b"something else")
        with pytest.raises(ModelError, match=r"weights.npz is not the file that"):
            Forecaster.load(tmp_path)

    def test_weights_that_are_gone(self, tmp_path: Path) -> None:
        save_model(tmp_path, manifest(), weights())
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(ModelError, match=r"weights.npz cannot be read"):
            Forecaster.load(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value"), [("out", None), ("out", np.zeros((3, 3))), ("deep", np.nan), ("deep_bias", None)]
    )
    def test_weights_that_do_not_fit(self, tmp_path: Path, name: str, value: object) -> None:
        broken = weights()
        if value is None:
            del broken[name]
        else:
            broken[name] = np.broadcast_to(np.asarray(value, dtype=np.float32), np.shape(value) or broken[name].shape)
        save_model(tmp_path, manifest(), broken)
        with pytest.raises(ModelError, match=rf"weights.npz: .*{name}"):
            Forecaster.load(tmp_path)
