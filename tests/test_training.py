"""Training learns, holds to causality, and what it exports is what numpy serves."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from models.domain import ModelError
from models.forecaster import Forecaster, Network
from models.lessons import finished_transfers, held_out, lessons_of, windows
from models.metrics import forecast_metrics

TEXT = ("type", "source", "destination", "activity", "protocol", "source_type", "destination_type", "fts")


def events(count: int, *, seed: int = 0, links: int = 20) -> pd.DataFrame:
    """Finished transfers whose duration follows size, the speed of the link, and a drift that only history tells."""
    draw = np.random.default_rng(seed)
    link = np.minimum(draw.exponential(links / 3, count).astype(int), links - 1)
    speed = draw.normal(15.5, 1.0, links)
    started = 1.7e9 + np.sort(draw.uniform(0, 20 * count, count))
    size = draw.lognormal(18, 1.5, count)
    drift = np.sin(started / 40_000 + link)
    seconds = np.exp(np.log(size) - speed[link] + drift + draw.normal(0, 0.2, count)) + 2
    rows = pd.DataFrame(
        {
            "type": "transfer-done",
            "source": [f"S{i % 7}" for i in link],
            "destination": [f"D{i}" for i in link],
            "activity": "Data Brokering",
            "protocol": "davs",
            "source_type": "DISK",
            "destination_type": "DISK",
            "fts": "fts.example",
            "bytes": size.round(),
            "submitted_at": started - 30,
            "started_at": started.round(),
            "ended_at": (started + seconds).round(),
        }
    )
    return rows.astype(dict.fromkeys(TEXT, "str")).sort_values("ended_at", kind="stable", ignore_index=True)


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow imports says of its own dependencies
        module = pytest.importorskip("models.training", reason="TensorFlow is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", 8)  # a graph that is quick to build
        yield module


def test_training_learns_and_numpy_serves_what_it_learnt(training: ModuleType, tmp_path: Path) -> None:
    rows = events(4000)
    manifest = training.train([rows], out=tmp_path, seed=1, epochs=12, units=16)
    errors = {name: metrics["mae_log1p"] for name, metrics in manifest.metrics.items()}
    assert errors["model"] < 0.7 * errors["link_median"]
    assert 0.8 < manifest.metrics["model"]["coverage90"] < 0.98
    forecaster = Forecaster.load(tmp_path)
    assert forecaster.manifest == manifest
    ended = finished_transfers(rows).assign(failed=False)
    late = held_out(len(ended))
    actual = (ended["ended_at"] - ended["started_at"]).to_numpy()[late]
    served = forecast_metrics(actual, forecaster.score(ended)[late])
    assert served["mae_log1p"] == pytest.approx(manifest.metrics["model"]["mae_log1p"], abs=1e-4)


def test_numpy_equals_tensorflow(training: ModuleType) -> None:
    """Every transfer's forecast by the served path, against TensorFlow stepping each link on its own in one go."""
    rows = finished_transfers(events(600)).assign(failed=False)
    lessons = lessons_of(rows)
    trainer = training.Trainer(lessons, units=16, seed=3)
    trainer.fit(2)
    weights = trainer.weights()
    served = Forecaster(Network(weights), None).score(rows)
    mean, scale = weights["target"].astype(np.float64)
    for link in range(lessons.link.max() + 1):
        mine = np.flatnonzero(lessons.link == link)
        told, inputs = trainer._told[mine][None], trainer._inputs[mine]
        zeros = np.zeros((1, 16), dtype=np.float32)
        states, _, _ = trainer._network.steps(told, np.zeros((1, len(mine)), dtype=bool), zeros, zeros)
        known = lessons.known[mine]
        hidden = np.where(known[:, None] > 0, states.numpy()[0][np.maximum(known - 1, 0)], 0)
        expected = trainer._network.quantiles(inputs, hidden.astype(np.float32)).numpy() * scale + mean
        np.testing.assert_allclose(served[mine], np.maximum(expected, 0), rtol=0, atol=1e-5)


def test_every_transfer_is_forecast_once_from_the_state_that_it_could_know(training: ModuleType) -> None:
    lessons = lessons_of(finished_transfers(events(900)))
    lanes, window = 3, 8
    order = np.random.default_rng(0).permutation(lessons.link.max() + 1)
    places, asked = {}, {}
    for turn, part in enumerate(windows(lessons, order, lanes=lanes, window=window)):
        for (lane, step), row in np.ndenumerate(part.outcome_rows):
            places[turn, lane * window + step] = row
        for row, state in zip(part.transfer_rows, part.states, strict=True):
            assert row not in asked
            asked[row] = places.get((turn, state), -1)
    stepped = [row for row in places.values() if row >= 0]
    assert sorted(stepped) == sorted(asked) == list(range(900))
    for row, completion in asked.items():
        mine = np.flatnonzero(lessons.link == lessons.link[row])
        expected = mine[lessons.known[row] - 1] if lessons.known[row] else -1
        assert completion == expected


def test_links_begin_with_an_empty_state(training: ModuleType) -> None:
    lessons = lessons_of(finished_transfers(events(300)))
    begins = {
        row
        for part in windows(lessons, np.arange(lessons.link.max() + 1), lanes=2, window=8)
        for row, first in zip(part.outcome_rows.ravel(), part.begins.ravel(), strict=True)
        if first
    }
    assert {int(np.flatnonzero(lessons.link == link)[0]) for link in range(lessons.link.max() + 1)} <= begins


def test_the_same_seed_trains_the_same_model(training: ModuleType, tmp_path: Path) -> None:
    rows = events(300)
    hashes = []
    for name in ("one", "two"):
        training.train([rows], out=tmp_path / name, seed=5, epochs=2, units=8)
        with np.load(tmp_path / name / "weights.npz") as archive:
            hashes.append({weight: archive[weight].copy() for weight in archive.files})
    for weight, values in hashes[0].items():
        np.testing.assert_allclose(values, hashes[1][weight], atol=1e-5, err_msg=weight)


def test_too_little_data_is_a_clear_error(training: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="stream 1 has 7 finished transfers"):
        training.train([events(100), events(7)], out=tmp_path)
    with pytest.raises(ModelError, match="no data"):
        training.train([], out=tmp_path)


def test_one_link_alone_trains(training: ModuleType, tmp_path: Path) -> None:
    rows = events(200, links=1).assign(bytes=np.nan)
    manifest = training.train([rows], out=tmp_path, epochs=1, units=8)
    assert np.isfinite(manifest.metrics["model"]["mae_log1p"])


def test_only_finished_transfers_are_learnt_from(training: ModuleType) -> None:
    rows = events(100)
    rows.loc[:9, "type"] = "transfer-failed"
    rows.loc[10:14, "ended_at"] = np.nan
    assert len(finished_transfers(rows)) == 85


def test_nothing_but_training_imports_tensorflow() -> None:
    program = (
        "import sys, models.forecaster, models.metrics, models.registry, models.history;"
        "print(sorted({'tensorflow', 'scipy', 'keras'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
