"""Training learns, holds to causality, and what it exports is what numpy serves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.domain import ModelError
from models.features import OUTCOMES, ones
from models.forecaster import Forecaster, Network
from models.lanes import Shape, laid
from models.lessons import Book, finished_transfers, lessons_of, prepare
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


def book(folder: Path, *streams: pd.DataFrame) -> Book:
    return prepare(folder / "lessons", [[stream] for stream in streams], task="")


def test_training_learns_and_numpy_serves_what_it_learnt(training: ModuleType, tmp_path: Path) -> None:
    rows = events(4000)
    manifest = training.train([[rows[:1500], rows[1500:]]], out=tmp_path, seed=1, epochs=12, units=16)
    errors = {name: metrics["mae_log1p"] for name, metrics in manifest.metrics.items()}
    assert errors["model"] < 0.7 * errors["link_median"]
    assert 0.8 < manifest.metrics["model"]["coverage90"] < 0.98
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "weights.npz"]
    forecaster = Forecaster.load(tmp_path)
    assert forecaster.manifest == manifest
    ended = finished_transfers(rows).assign(failed=False)
    late = np.arange(len(ended)) >= round(0.8 * len(ended))
    actual = (ended["ended_at"] - ended["started_at"]).to_numpy()[late]
    served = forecast_metrics(actual, forecaster.score(ended)[late])
    assert served["mae_log1p"] < 1.02 * manifest.metrics["model"]["mae_log1p"]  # it has learnt from these since


def test_numpy_equals_tensorflow(training: ModuleType, tmp_path: Path) -> None:
    """Every transfer's forecast by the served path, against TensorFlow stepping each link on its own in one go."""
    rows = finished_transfers(events(600)).assign(failed=False)
    lessons = lessons_of(rows)
    trainer = training.Trainer(book(tmp_path, rows), units=16, seed=3)
    trainer.fit(2)
    network = trainer.network
    served = Forecaster(Network(network.weights()), None).score(rows)
    mean, scale = network.scales["target"].astype(np.float64)
    empty = np.zeros((1, 16), dtype=np.float32)
    for link in range(lessons["link"].max() + 1):
        mine = lessons[lessons["link"] == link]
        none = np.zeros((1, len(mine)), dtype=np.int32)
        feed = {
            "outcomes": mine["outcomes"][None],
            "begins": none > 0,
            "brought": none,
            "carried": np.zeros((1, 32), "f4"),
        }
        states, _ = network.steps(feed, empty, empty)
        known = mine["known"]
        hidden = np.where(known[:, None] > 0, states.numpy()[0][np.maximum(known - 1, 0)], 0)
        inputs = network.inputs(mine["numbers"], ones(mine["names"]))
        expected = network.quantiles(inputs, hidden.astype(np.float32)).numpy() * scale + mean
        np.testing.assert_allclose(served[lessons["link"] == link], np.maximum(expected, 0), rtol=0, atol=1e-5)


def test_every_transfer_is_forecast_once_from_the_state_that_it_could_know() -> None:
    """In two chunks: what a link did in the first one is brought along to the second."""
    lessons = lessons_of(finished_transfers(events(900)))
    lessons["outcomes"][:, 0] = np.arange(900)
    links = int(lessons["link"].max()) + 1
    shape = Shape(lanes=3, length=160, window=8)
    states = np.zeros((1 + links, 2), dtype=np.float32)
    asked: dict[int, int] = {}
    stepped: list[int] = []
    for chunk in (slice(0, 450), slice(450, 900)):
        order, after = np.random.default_rng(0).permutation(links), states.copy()
        for window in laid(lessons[chunk], np.ones(450, dtype=np.float32), states, order, shape):
            told = window.feed["outcomes"][:, :, 0].ravel()
            stepped += told[told > 0].astype(int).tolist()
            places = np.concatenate([told, window.feed["carried"][:, 0]])[window.feed["places"]]
            for row, place in zip(window.transfers + chunk.start, places, strict=True):
                assert row not in asked
                asked[int(row)] = int(place)
            after[1 + window.ended] = told[window.feed["ends"]][:, None]
        states = after
    assert sorted(stepped) == list(range(1, 900))
    assert sorted(asked) == list(range(900))
    unknown = 0
    for row, completion in asked.items():
        mine = np.flatnonzero(lessons["link"] == lessons["link"][row])
        known = lessons["known"][row]
        if row >= 450 and known < (mine < 450).sum():
            unknown += completion == 0  # it began before the last completion of the chunk before: nothing is said of it
        else:
            assert completion == (mine[known - 1] if known else 0)
    assert unknown < 30


def test_links_begin_with_what_they_brought_along() -> None:
    lessons = lessons_of(finished_transfers(events(300)))
    links = int(lessons["link"].max()) + 1
    lessons["outcomes"][:, 0] = np.arange(300)
    states = np.arange(2 * links + 2, dtype=np.float32).reshape(-1, 2)
    begun = {}
    for window in laid(lessons, np.ones(300, "f4"), states, np.arange(links), Shape(lanes=2, length=152, window=8)):
        feed = window.feed
        for lane, step in np.argwhere(feed["begins"]):
            begun[int(feed["outcomes"][lane, step, 0])] = feed["carried"][feed["brought"][lane, step], 0]
    for link in range(links):
        first = int(np.flatnonzero(lessons["link"] == link)[0])
        assert begun[first] == 2 * (link + 1)


def test_lessons_do_not_depend_on_pages_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.lessons.CHUNK", 128)
    rows = events(1000)
    written = prepare(tmp_path, [[rows[:300], rows[300:310], rows[310:]]], task="")
    assert (written.rows, written.blocks) == (1000, 8)
    whole = lessons_of(finished_transfers(rows))
    found = np.concatenate([written.block(number)[0] for number in range(8)])
    for name in whole.dtype.names or ():
        np.testing.assert_array_equal(found[name], whole[name])
    learnt = [written.learnt(number, written.block(number)[1]).sum() for number in range(8)]
    assert sum(learnt) == written.streams[0].learnt == 800


def test_what_was_prepared_is_taken_for_the_same_task_alone(tmp_path: Path) -> None:
    rows = events(100)
    first = prepare(tmp_path, [[rows]], task="a")
    assert prepare(tmp_path, [], task="a") == first
    with pytest.raises(ModelError, match="no data"):
        prepare(tmp_path, [], task="b")


def test_memory_of_the_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than a restart would look back on is forgotten, and makes no difference but to what is that old."""
    rows = finished_transfers(events(3000))
    whole = lessons_of(rows)
    monkeypatch.setattr("models.lessons.RETAINED", 200)
    monkeypatch.setattr("models.history.RETAINED", 200)
    monkeypatch.setattr("models.lessons._PAGE", 100)
    some = lessons_of(rows)
    for name in ("place", "link", "log_duration", "names"):
        np.testing.assert_array_equal(some[name], whole[name])
    assert (some["known"] == whole["known"]).mean() > 0.99
    np.testing.assert_allclose(some["outcomes"], whole["outcomes"], atol=2.0)


def test_training_that_was_broken_off_goes_on_as_if_it_had_not(
    training: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = events(1200)
    monkeypatch.setattr("models.lessons.CHUNK", 400)
    monkeypatch.setattr(training, "_CHECKPOINT_S", 0.0)
    whole = training.train([[rows]], out=tmp_path / "whole", task="t", seed=5, epochs=3, units=8)
    blocks = training.Trainer.learn
    done = []

    def broken(self: object, *args: object, **options: object) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        blocks(self, *args, **options)

    monkeypatch.setattr(training.Trainer, "learn", broken)
    with pytest.raises(KeyboardInterrupt):
        training.train([[rows]], out=tmp_path / "broken", task="t", seed=5, epochs=3, units=8)
    monkeypatch.setattr(training.Trainer, "learn", blocks)
    # Nothing is read again: neither what was prepared nor what was learnt is lost.
    again = training.train([], out=tmp_path / "broken", task="t", seed=5, epochs=3, units=8)
    assert again.epochs == whole.epochs
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


def test_the_same_seed_trains_the_same_model(training: ModuleType, tmp_path: Path) -> None:
    rows = events(300)
    for name in ("one", "two"):
        training.train([[rows]], out=tmp_path / name, seed=5, epochs=2, units=8)
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def assert_same_weights(one: Path, other: Path) -> None:
    with np.load(one / "weights.npz") as first, np.load(other / "weights.npz") as second:
        for name in first.files:
            np.testing.assert_allclose(first[name], second[name], atol=1e-5, err_msg=name)


def test_training_goes_on_from_another_model(training: ModuleType, tmp_path: Path) -> None:
    rows = events(1500)
    first = training.train([[rows]], out=tmp_path / "first", seed=1, epochs=4, units=8)
    second = training.train([[rows]], out=tmp_path / "second", seed=2, epochs=1, units=16, start=tmp_path / "first")
    assert (second.parent, second.units) == (first.weights_hash, 8)
    assert second.metrics["model"]["pinball"] < 1.1 * first.metrics["model"]["pinball"]
    with pytest.raises(ModelError, match="holds no forecaster"):
        training.train([[rows]], out=tmp_path / "third", start=tmp_path / "nothing")


def test_the_gradient_that_is_written_out_is_the_one_that_is_derived(training: ModuleType) -> None:
    tf, draw, units, lanes, steps = training.tf, np.random.default_rng(5), 6, 4, 9
    scales = {"outcome_mean": np.zeros(len(OUTCOMES), "f4"), "outcome_scale": np.ones(len(OUTCOMES), "f4")}
    network = training.TrainableNetwork(scales=scales, units=units, seed=2)
    window = {
        "outcomes": draw.normal(size=(lanes, steps, len(OUTCOMES))).astype("f4"),
        "begins": draw.random((lanes, steps)) < 0.2,
        "brought": draw.integers(3, size=(lanes, steps)),
        "carried": draw.normal(size=(3, 2 * units)).astype("f4"),
    }
    start = tf.constant(draw.normal(size=(2, lanes, units)).astype("f4"))
    worth = tf.constant(draw.normal(size=(lanes, steps, units)).astype("f4"))
    told = [network.variables[name] for name in ("step_outcome", "step_state", "step_bias")]

    def derived() -> list[Any]:
        inputs = network._standardised(window["outcomes"], "outcome")
        hidden, cell, hiddens = start[0], start[1], []
        for i in range(steps):
            fresh = tf.gather(window["carried"], window["brought"][:, i])
            first = window["begins"][:, i, None]
            hidden, cell = tf.where(first, fresh[:, :units], hidden), tf.where(first, fresh[:, units:], cell)
            gates = inputs[:, i] @ told[0] + hidden @ told[1] + told[2]
            entry, keep, release, candidate = tf.split(gates, 4, axis=1)
            cell = tf.sigmoid(keep) * cell + tf.sigmoid(entry) * tf.tanh(candidate)
            hidden = tf.sigmoid(release) * tf.tanh(cell)
            hiddens.append(hidden)
        return [tf.stack(hiddens, axis=1), cell]  # noqa: PD013 - no frame

    with tf.GradientTape(persistent=True) as tape:
        (expected, last), (found, cells) = derived(), network.steps(window, start[0], start[1])
        losses = [tf.reduce_sum(states * worth) for states in (expected, found)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cells[:, -1], last, atol=1e-6)
    gradients = [tape.gradient(loss, told) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_products_in_half_precision_learn_the_same(training: ModuleType, tmp_path: Path) -> None:
    """What a GPU is given; here the one device makes the products as it would."""
    lessons = book(tmp_path, events(1500))
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = training.Trainer(lessons, units=8, seed=1)
        trainer.network._precision = getattr(training.tf, precision)
        trainer.fit(3)
        losses[precision] = trainer._held_out_loss()
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_too_little_data_is_a_clear_error(training: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="stream 1 has 7 finished transfers"):
        training.train([[events(100)], [events(7)]], out=tmp_path)
    with pytest.raises(ModelError, match="no data"):
        training.train([], out=tmp_path)


def test_one_link_alone_trains(training: ModuleType, tmp_path: Path) -> None:
    rows = events(200, links=1).assign(bytes=np.nan)
    manifest = training.train([[rows]], out=tmp_path, epochs=1, units=8)
    assert np.isfinite(manifest.metrics["model"]["mae_log1p"])


def test_only_finished_transfers_are_learnt_from() -> None:
    rows = events(100)
    rows.loc[:9, "type"] = "transfer-failed"
    rows.loc[10:14, "ended_at"] = np.nan
    assert len(finished_transfers(rows)) == 85


TWO_DEVICES = """
import sys, json, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from models import training
from models.lessons import Book, Stream, prepare
folder = Path(sys.argv[1])
training._WINDOW = 8
losses = {}
book = prepare(folder, [], task="two")
for name, strategy in (("one", None), ("two", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))):
    trainer = training.Trainer(book, units=8, seed=1, strategy=strategy)
    before = trainer._held_out_loss()
    trainer.fit(4)
    losses[name] = [before, trainer._held_out_loss()]
print(json.dumps(losses))
"""


def test_two_devices_learn_together(tmp_path: Path) -> None:
    prepare(tmp_path / "lessons", [[events(1500)]], task="two")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", TWO_DEVICES, str(tmp_path / "lessons")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout.splitlines()[-1])
    assert losses["one"][0] == pytest.approx(losses["two"][0], rel=1e-4)
    assert losses["two"][1] < 0.6 * losses["two"][0]
    assert losses["two"][1] == pytest.approx(losses["one"][1], rel=0.1)


def test_nothing_but_training_imports_tensorflow() -> None:
    program = (
        "import sys, models.forecaster, models.metrics, models.registry, models.history;"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


WORKER = """
import sys
from pathlib import Path
import pandas as pd
from models import training
training._WINDOW = 8
manifest = training.train([[pd.read_parquet(sys.argv[1])]], out=Path(sys.argv[2]), task="both", seed=1, epochs=3, units=8)
print(manifest.metrics["model"]["pinball"])
"""


@pytest.mark.slow
def test_two_hosts_learn_together(training: ModuleType, tmp_path: Path) -> None:
    rows = events(1500)
    rows.to_parquet(tmp_path / "events.parquet")
    ports = [free_port(), free_port()]
    root = Path(__file__).parent.parent
    workers = []
    for number in range(2):
        cluster = {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": number},
        }
        command = [sys.executable, "-c", WORKER, str(tmp_path / "events.parquet"), str(tmp_path / "model")]
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)}
        workers.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env=environment
            )
        )
    told = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    losses = [float(out.splitlines()[-1]) for out, _ in told]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["manifest.json", "weights.npz"]
    alone = training.train([[rows]], out=tmp_path / "alone", seed=1, epochs=3, units=8)
    assert losses[0] == pytest.approx(alone.metrics["model"]["pinball"], rel=0.15)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
