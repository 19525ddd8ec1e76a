"""`gridmedic evaluate forecast`: the model's forecasts are those of a replay, its rivals learn honestly, nothing leaks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from agent.evaluation import forecast
from agent.evaluation.boosting import Boosting, CausalFeatures, boosting
from agent.evaluation.forecast import evaluate, gain_over, table
from agent.evaluation.plots import draw
from agent.replay import replay
from agent.sources import finished
from models.domain import ConfigError, ModelError, SourceError
from models.history import Timeline
from models.metrics import pinball
from tests.command import gridmedic, refused

MEASURES = {"n", "mae_s", "median_ae_s", "median_ape", "mae_log1p", "within_180s", "pinball", "coverage90"}
PLOTS = {
    "predicted-against-actual",
    "errors",
    "calibration",
    "error-by-size",
    "error-by-activity",
    "error-by-link",
    "coverage-over-time",
}
HOSTILE = "$x^{ \\frac & % # _ \x1b[31m\n\u202e\u4e2d <b> " * 120


@pytest.fixture(scope="module")
def transfers():
    """Flat documents of transfers in the order in which they ended: links differ, sizes count, and each link drifts."""
    draw_ = np.random.default_rng(7)
    count = 1500
    started = 1_500_000_000 + np.sort(draw_.uniform(0, 8 * 3600, count))
    sources, destinations = draw_.integers(0, 6, count), draw_.integers(0, 6, count)
    size = draw_.lognormal(18, 1.5, count).round()
    speed = np.exp(draw_.normal(15.5, 1.0, 36))[6 * sources + destinations]
    drift = np.sin(started / 3000 + sources)
    took = (4 + size / speed) * np.exp(0.5 * drift + draw_.normal(0, 0.3, count))
    return (
        pd.DataFrame(
            {
                "event_type": "transfer-done",
                "request-id": [f"r{i:05d}" for i in range(count)],
                "src-rse": [f"SITE{i}_DISK" for i in sources],
                "dst-rse": [f"SITE{i}_TAPE" for i in destinations],
                "activity": draw_.choice(["Production Input", "User Subscriptions", "Express"], count),
                "protocol": "gsiftp",
                "bytes": size,
                "submitted_at": started - draw_.exponential(60, count).round(3),
                "started_at": started.round(3),
                "transferred_at": (started + np.minimum(took, 4000)).round(3),
            }
        )
        .sort_values("transferred_at")
        .reset_index(drop=True)
    )


@pytest.fixture
def files(transfers, tmp_path):
    """The first 1,100 as a past, and the rest."""
    return written(transfers[:1100], tmp_path / "past.csv"), written(transfers[1100:], tmp_path / "rest.csv")


@pytest.fixture(scope="module")
def rows(transfers, tmp_path_factory):
    """The same as rows."""
    return rows_of(transfers, tmp_path_factory.mktemp("rows"))


@pytest.fixture
def quick(monkeypatch):
    """Rivals that learn little, in little time."""
    monkeypatch.setattr("agent.evaluation.boosting._MOST_TREES", 25)
    monkeypatch.setattr("agent.evaluation.windowed._EPOCHS", 1)
    monkeypatch.setattr("agent.evaluation.windowed._WINDOWS", 512)


def written(transfers, path):
    transfers.to_csv(path, index=False)
    return path


def rows_of(transfers, folder):
    recording = finished.Recording({"data": [written(transfers, folder / "rows.csv")]}, measurements=(), site_map=None)
    return pd.concat(list(recording.pages()), ignore_index=True)


def predicted(path):
    return pd.read_csv(path, index_col="request-id", dtype={"request-id": str})


def replayed(folder, *paths):
    out = folder / "replayed.csv"
    result = replay(paths, measurements=(), site_map=None, model=None, predictions=out)
    return result, predicted(out)


def test_forecasts_are_those_of_a_replay_of_history_and_data(files, tmp_path):
    _, whole = replayed(tmp_path, *files)
    found = evaluate(files[1:], history=files[:1], predictions=tmp_path / "p.csv")
    own = predicted(tmp_path / "p.csv")
    assert found["events"] == {"read": 400, "scored": 400, "used": 0, "refused": {}}
    assert found["history"]["scored"] == 1100
    assert list(own.index) == list(whole.index[1100:])
    np.testing.assert_allclose(own.to_numpy(), whole.loc[own.index].to_numpy(), rtol=1e-5)


def test_without_history_the_report_is_that_of_a_replay(files, tmp_path):
    result, _ = replayed(tmp_path, *files)
    found = evaluate(files[::-1])
    assert found["events"] == result["events"]
    assert set(found["forecast"]) == {"model", "constant", "link_median"}
    for name, measures in found["forecast"].items():
        assert measures == pytest.approx(result["forecast"][name], rel=1e-5)
    assert "history" not in found


def test_pages_and_cuts_change_nothing(files, tmp_path, monkeypatch):
    evaluate(files[1:], history=files[:1], predictions=tmp_path / "whole.csv")
    monkeypatch.setattr(finished, "PAGE", 170)
    evaluate(files[1:], history=files[:1], predictions=tmp_path / "cut.csv")
    np.testing.assert_allclose(predicted(tmp_path / "cut.csv"), predicted(tmp_path / "whole.csv"), rtol=1e-5)


def test_memory_is_cut_to_what_service_keeps(files, tmp_path, monkeypatch):
    evaluate(files[1:], history=files[:1], predictions=tmp_path / "whole.csv")
    monkeypatch.setattr(finished, "PAGE", 100)
    monkeypatch.setattr(forecast, "RETAINED", 150)
    monkeypatch.setattr("models.history.RETAINED", 150)
    found = evaluate(files[1:], history=files[:1], predictions=tmp_path / "cut.csv")
    assert found["forecast"]["model"]["n"] == 400
    # A link's last 64 transfers tell nearly all.
    apart = np.log(predicted(tmp_path / "cut.csv") / predicted(tmp_path / "whole.csv")).abs()
    assert apart.to_numpy().mean() < 0.1


def test_rivals_learn_from_train_alone(files, tmp_path, quick):
    found = evaluate(files[1:], history=files[:1], train=files[:1], plots=tmp_path / "plots")
    measures = found["forecast"]
    assert list(measures) == ["model", "constant", "link_median", "boosting", "windowed"]
    assert all(set(one) == MEASURES and one["n"] == 400 for one in measures.values())
    assert measures["boosting"]["mae_log1p"] < 0.75 * measures["constant"]["mae_log1p"]
    assert measures["windowed"]["coverage90"] > 0.5
    assert set(found["gain"]) == set(measures) - {"model"}
    for name, gain in found["gain"].items():
        for measure in ("mae_log1p", "pinball"):
            assert gain[measure]["mean"] == pytest.approx(measures[name][measure] - measures["model"][measure])
            assert gain[measure]["low"] <= gain[measure]["mean"] <= gain[measure]["high"]
    assert found["rivals"]["boosting"]["learnt_from"] == found["train"]["scored"] == 1100
    assert found["rivals"]["windowed"]["units"] > 0
    json.dumps(found, allow_nan=False)
    assert "boosting" in table(found)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == PLOTS


def test_too_little_to_learn_from_is_said(transfers, tmp_path):
    train, rest = written(transfers[:90], tmp_path / "t.csv"), written(transfers[1000:1050], tmp_path / "d.csv")
    found = evaluate([rest], train=[train])
    assert list(found["forecast"]) == ["model", "constant", "link_median"]
    assert all("--train has 90" in about["left_out"] for about in found["rivals"].values())
    assert "boosting is left out" in table(found)


def test_what_is_found_twice_counts_once(files, tmp_path):
    again = shutil.copy(files[1], tmp_path / "again.csv")
    once, twice = evaluate(files[1:]), evaluate([files[1], again])
    assert twice["events"] == {"read": 800, "scored": 400, "used": 0, "refused": {"repeated": 400}}
    assert twice["forecast"] == once["forecast"]


def moved(transfers, row, by):
    """The same, but one transfer ended later."""
    later = transfers.copy()
    later.loc[row, "transferred_at"] += by
    return later.sort_values("transferred_at", kind="stable").reset_index(drop=True)


def leaks(transfers, folder, forecasts):
    """How many forecasts of transfers that started before a moved end differ, and how many of those after it do."""
    before = forecasts(transfers, folder)
    early = late = 0
    for row, by in ((60, 40.0), (500, 900.0), (1200, 7200.0)):
        after = forecasts(moved(transfers, row, by), folder)
        apart = (before - after.loc[before.index]).abs().max(axis=1) > 1e-5
        started = transfers.set_index("request-id")["started_at"]
        knew = started > transfers.loc[row, "transferred_at"]
        early += int(apart[~knew].sum())
        late += int(apart[knew].sum())
    return early, late


def of_model(transfers, folder):
    written(transfers[:700], folder / "h.csv")
    written(transfers[700:], folder / "d.csv")
    evaluate([folder / "h.csv", folder / "d.csv"], predictions=folder / "p.csv")
    return np.log1p(predicted(folder / "p.csv"))


def of_boosting(transfers, folder):
    rows = rows_of(transfers, folder)
    booster = of_boosting.booster
    table = booster.forecast(CausalFeatures().score(rows))
    return pd.DataFrame(table, index=rows["request_id"])


@pytest.mark.parametrize("forecasts", [of_model, of_boosting])
def test_no_forecast_knows_a_later_end_and_a_planted_leak_is_caught(
    transfers, rows, tmp_path, monkeypatch, forecasts, quick
):
    of_boosting.booster = Boosting.learnt(
        CausalFeatures().score(rows[:800]), np.log1p((rows["ended_at"] - rows["started_at"])[:800].to_numpy()), seed=0
    )
    early, late = leaks(transfers, tmp_path, forecasts)
    assert early == 0
    assert late > 10  # others did know of it
    honest = Timeline.before
    monkeypatch.setattr(Timeline, "before", lambda self, codes, at_ms: honest(self, codes, at_ms + 60_000))
    early, _ = leaks(transfers, tmp_path, forecasts)
    assert early > 0


def test_boosting_sees_the_rows_that_are_not_counted(rows, quick):
    counted = np.arange(len(rows)) >= 1300
    table = boosting(rows[:1000], rows, counted)
    assert table.shape == (200, 5)
    assert (np.diff(table, axis=1) >= 0).all()
    actual = np.log1p((rows["ended_at"] - rows["started_at"]).to_numpy())[counted]
    alone = boosting(rows[:1000], rows[counted], np.ones(200, dtype=bool))
    assert pinball(actual, table) < pinball(actual, alone)
    np.testing.assert_array_equal(table, boosting(rows[:1000], rows, counted))


def test_the_windowed_rival_takes_any_name_and_any_cut(rows, quick):
    from agent.evaluation.windowed import Encoder, Windowed  # noqa: PLC0415 - TensorFlow

    rival = Windowed.learnt(rows[:600], seed=1)
    strange = rows[600:1000].assign(source=rows["source"][600:1000].where(rows["bytes"] > 1e8, "NEVER_SEEN"))
    encoded, unseen = Encoder(rows[:600]).encode(strange), (strange["source"] == "NEVER_SEEN").to_numpy()
    assert encoded.shape == (400, 9)
    assert encoded[unseen, 2].min() > encoded[~unseen, 2].max()
    whole = rival.score(strange)
    rival.reset()
    parts = [rival.score(strange[:130])]
    rival.absorb(strange[130:150])
    parts += [rival.score(strange[150:])]
    np.testing.assert_allclose(np.concatenate(parts), np.delete(whole, np.s_[130:150], axis=0), rtol=1e-4)
    assert (np.diff(whole, axis=1) >= 0).all()


def test_tensorflow_and_matplotlib_are_imported_by_what_needs_them_alone():
    code = (
        "import sys, agent.evaluation.forecast, agent.evaluation.windowed;"
        "sys.exit(bool({'tensorflow', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gain_by_hand():
    seconds = np.expm1(np.full(100, 3.0))
    model, other = np.full((100, 5), 3.1), np.full((100, 5), 3.5)
    gain = gain_over(other, model, seconds, np.arange(100.0), seed=0)
    assert (gain["n"], gain["blocks"]) == (100, 24)
    assert gain["mae_log1p"] == pytest.approx({"mean": 0.4, "low": 0.4, "high": 0.4})
    assert gain["pinball"]["mean"] == pytest.approx(0.2)


def test_a_gain_on_few_has_no_interval():
    gain = gain_over(np.zeros((4, 5)), np.zeros((4, 5)), np.ones(4), np.arange(4.0), seed=0)
    assert gain["mae_log1p"] == {"mean": 0.0, "low": None, "high": None}


@pytest.mark.parametrize("count", [1, 7, 49, 900])
def test_plots_of_few_and_of_hostile_names(tmp_path, count):
    draw_ = np.random.default_rng(count)
    rows = pd.DataFrame(
        {
            "seconds": draw_.lognormal(3, 2, count).round(),
            "ended_at": 1.5e9 + np.arange(count),
            "bytes": np.where(np.arange(count) % 5 == 0, np.nan, draw_.lognormal(18, 9, count)),
            "activity": [HOSTILE, "", "$", "a$b$"][: max(count % 4, 1)][0:1] * count,
            "link": [f"{HOSTILE} {i % 40} $" for i in range(count)],
        }
    )
    quantiles = np.sort(np.log1p(draw_.lognormal(3, 2, (count, 5))), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path, rows, {"model": quantiles, "constant": quantiles + 0.5})
    assert {path.stem for path in tmp_path.iterdir()} == PLOTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_hostile_names_reach_the_plots(transfers, tmp_path):
    written(transfers[:60].assign(activity=HOSTILE), tmp_path / "d.csv")
    evaluate([tmp_path / "d.csv"], plots=tmp_path / "plots")
    assert len(list((tmp_path / "plots").iterdir())) == len(PLOTS)


def test_data_in_history_or_train_is_refused(files, transfers, tmp_path):
    late = written(transfers[1000:1200], tmp_path / "late.csv")
    for others, said in (
        ({"history": [late]}, "100 in --history"),
        ({"train": [late]}, "100 in --train"),
        ({"history": [late], "train": files[1:]}, "100 in --history and 400 in --train"),
    ):
        with pytest.raises(SourceError, match=f"{said}, 'r[0-9]+' for one"):
            evaluate(files[1:], **others)


def test_history_comes_before(transfers, tmp_path):
    past, rest = written(transfers[:500], tmp_path / "a.csv"), written(transfers[500:], tmp_path / "b.csv")
    with pytest.raises(SourceError, match="--history does not come before DATA"):
        evaluate([past], history=[rest])
    by_start = transfers.sort_values("started_at")
    written(by_start[:500], past)
    written(by_start[500:], rest)
    assert evaluate([rest], history=[past])["events"]["scored"] == 1000


def test_train_that_is_not_older_is_said(transfers, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "_rivals", lambda *_: ({}, {}))
    past, rest = written(transfers[:500], tmp_path / "a.csv"), written(transfers[500:], tmp_path / "b.csv")
    assert any("--train is not older" in note for note in evaluate([past], train=[rest])["notes"])


@pytest.mark.parametrize("part", ["data", "history", "train"])
def test_files_that_are_none_cost_no_earlier_results(files, tmp_path, part):
    kept = tmp_path / "kept.csv"
    kept.write_text("of an earlier run\n")
    parts = {"data": files[1:], "history": (), "train": ()} | {part: [tmp_path / "none.csv"]}
    with pytest.raises(SourceError, match=r"none\.csv"):
        evaluate(parts["data"], history=parts["history"], train=parts["train"], predictions=kept)
    assert kept.read_text() == "of an earlier run\n"


def test_no_finished_transfer_is_an_error(transfers, tmp_path):
    failed = written(transfers[:80].assign(event_type="transfer-failed", reason="x"), tmp_path / "f.csv")
    with pytest.raises(SourceError, match=r"f\.csv: there is no finished transfer"):
        evaluate([failed])


def test_a_model_or_a_place_that_is_none(files, tmp_path):
    with pytest.raises(ModelError, match="holds no forecaster"):
        evaluate(files[1:], model=tmp_path)
    for place, said in ((files[0], "is no directory"), (tmp_path / "no" / "plots", "cannot be made")):
        with pytest.raises(ConfigError, match=said):
            evaluate(files[1:], plots=place)


def test_the_command(files, tmp_path):
    done = gridmedic(
        *("evaluate", "forecast", files[1], "--history", files[0]),
        *("--report", "out.json", "--predictions", "p.csv", "--plots", "plots"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert set(found) == {"events", "history", "forecast", "gain", "rivals", "notes"}
    assert "link_median" in done.stdout
    assert len(predicted(tmp_path / "p.csv")) == 400
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == PLOTS
    said = refused("evaluate", "forecast", files[1], "--history", files[1], "--report", "r.json", cwd=tmp_path)
    assert said.startswith("Error: transfers of DATA are in other files, too: 400 in --history")
    assert said.count("\n") == 1
    assert "would be overwritten" in refused("evaluate", "forecast", files[1], "--report", files[1], cwd=tmp_path)
    assert "there is no directory" in refused("evaluate", "forecast", files[1], "--report", "no/r.json", cwd=tmp_path)
