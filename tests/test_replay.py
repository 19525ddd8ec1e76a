"""Replays: everything is accounted for, nothing is touched, and no forecast knows what had not happened yet."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agent.replay import replay
from agent.sources import recorded
from agent.sources.recorded import RecordedEvents, RecordedReadings
from models.domain import ConfigError, SourceError
from models.events import Page, decode
from simulator.world import World, run
from tests.command import gridmedic, refused
from tests.worlds import SICK_DISK, SICK_SITE, scenario_of

START = datetime(2026, 1, 5, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)
RESULT = {"events", "events_per_second", "flagged_share", "incidents", "forecast"}
MEASURES = {"n", "mae_s", "median_ae_s", "median_ape", "mae_log1p", "within_180s", "pinball", "coverage90"}
REAL = {"rucio_transfer_done_2017-06-18.csv": 1200, "rucio_events_2017-06-08.jsonl": 155}
LATER_BY = [timedelta(seconds=1), timedelta(seconds=40), timedelta(minutes=7), timedelta(hours=2), timedelta(days=1)]


@pytest.fixture(scope="module")
def world():
    """Two hours of a simulated grid of which the second is sick: events and readings, as documents."""
    scenario = scenario_of(("read-slow", f"rse:{SICK_DISK}", 0.02, 1.0, 3.0), transfers_per_hour=2000.0)
    world = World(scenario, seed=3, start=START)
    emitted = list(run(world, hours=2))
    events = [json.loads(line) for part in emitted for line in world.documents.lines(part.events)]
    return events, [json.loads(line) for part in emitted for line in world.probes.lines(part.measurements)]


@pytest.fixture(scope="module")
def ended(world):
    """The ended transfers among them, as a table of flat columns, in the order in which documents could be read."""
    rows = [
        {**event["payload"], "event_type": event["event_type"]}
        for event in world[0]
        if event["event_type"] in {"transfer-done", "transfer-failed"}
    ]
    return pd.DataFrame(rows).astype("str").replace("None", "").drop_duplicates("request-id").reset_index(drop=True)


def written(documents, path):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def result_of(*files, measurements=(), predictions=None):
    return replay(files, measurements=measurements, site_map=None, model=None, predictions=predictions)


def forecasts(folder, *files, measurements=()):
    """What the replay of these files predicts: seconds by request id."""
    out = folder / "predictions.csv"
    result_of(*files, measurements=measurements, predictions=out)
    return pd.read_csv(out, index_col="request-id", dtype={"request-id": str})


def tables(folder, table):
    """What the replay of a table predicts."""
    path = folder / "table.csv"
    table.to_csv(path, index=False)
    return forecasts(folder, path)


def differing(before, after, among):
    """Which of the transfers `among` are forecast otherwise than before by more than 1e-5 of 1 + seconds, as the net sees it."""
    among = after.index.intersection(among)
    apart = (after.loc[among] - before.loc[among]).abs() / (1.0 + before.loc[among])
    return list(among[(apart > 1e-5).any(axis=1)])


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "documents"), REAL.items())
def test_every_real_document_is_accounted_for(real_data, tmp_path, name, documents):
    done = gridmedic(
        "replay", real_data / name, "--json", "--report", "out.json", "--predictions", "p.csv", cwd=tmp_path
    )
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert set(result) == RESULT
    events = result["events"]
    assert set(events) == {"read", "scored", "used", "refused"}
    assert events["read"] == documents == events["scored"] + events["used"] + sum(events["refused"].values())
    assert result["events_per_second"] > 0
    assert set(result["forecast"]) == {"model", "constant", "link_median"}
    for measures in result["forecast"].values():
        assert set(measures) == MEASURES
        assert measures["n"] == events["scored"]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in measures.values())
    assert json.loads((tmp_path / "out.json").read_text()) == result
    header, *rows = csv.reader((tmp_path / "p.csv").read_text().splitlines())
    assert header == ["request-id", "median_s", "q05_s", "q95_s"]
    assert len({row[0] for row in rows}) == len(rows) == events["scored"]
    assert all(0 <= float(q05) <= float(median) <= float(q95) for _, median, q05, q95 in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "p.csv"]


@pytest.mark.realdata
def test_real_events_with_real_measurements(real_data, tmp_path):
    readings, sites = real_data / "perfsonar_2016_site_pairs.csv.gz", real_data / "rse_site_mapping_2017.txt"
    files = [real_data / name for name in REAL]
    done = gridmedic("replay", *files, "--measurements", readings, "--site-map", sites, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("events     1355 read, 1208 scored")


def test_an_incident_is_reported_with_its_culprit(world, tmp_path):
    events, readings = world
    result = result_of(
        written(events, tmp_path / "events.jsonl"), measurements=[written(readings, tmp_path / "readings.jsonl")]
    )
    assert result["events"]["read"] == len(events)
    assert result["events"]["refused"] == {"repeated": result["events"]["refused"]["repeated"]}
    assert 0 < result["flagged_share"] < 0.5
    assert all(
        set(found) == {"id", "kind", "culprit", "opened_at", "closed_at", "events"} for found in result["incidents"]
    )
    culprits = {(found["kind"], found["culprit"]) for found in result["incidents"]}
    assert any(kind == "slow-transfers" and SICK_SITE in culprit for kind, culprit in culprits)
    assert all(datetime.fromisoformat(found["opened_at"]).tzinfo for found in result["incidents"])


def test_the_form_of_the_files_makes_no_difference(ended, tmp_path):
    whole = tables(tmp_path, ended)
    assert len(whole) > 2000
    first, second, third = np.array_split(np.arange(len(ended)), 3)
    with gzip.open(tmp_path / "first.csv.gz", "wt") as out:
        ended.iloc[first].to_csv(out, index=False)
    ended.iloc[second].to_parquet(tmp_path / "second.parquet")
    with gzip.open(tmp_path / "third.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in ended.iloc[third].to_dict("records"))
    parts = forecasts(tmp_path, *(tmp_path / name for name in ("third.jsonl.gz", "second.parquet", "first.csv.gz")))
    assert set(parts.index) == set(whole.index)
    assert differing(whole, parts, whole.index) == []


def test_measurements_count_from_the_moment_on_at_which_they_were_made(world, tmp_path, monkeypatch):
    events, readings = world
    files = written(events[:5000], tmp_path / "events.jsonl"), written(readings, tmp_path / "readings.jsonl")
    known = forecasts(tmp_path, files[0], measurements=files[1:])
    # Within a site, and to one without perfSONAR, nothing is measured.
    assert len(differing(forecasts(tmp_path, files[0]), known, known.index)) > len(known) / 4
    monkeypatch.setattr("agent.assembly.REPLAY_PAGE", 150)
    monkeypatch.setattr(recorded, "WINDOW", 1500)
    monkeypatch.setattr(recorded, "_READ", 100)
    assert differing(known, forecasts(tmp_path, files[0], measurements=files[1:]), known.index) == []


@pytest.mark.realdata
@pytest.mark.parametrize("order", ["left", "sorted", "shuffled"])
def test_no_forecast_of_real_transfers_knows_a_later_end(real_data, tmp_path, order):
    table = pd.read_csv(real_data / "rucio_transfer_done_2017-06-18.csv", dtype=str, keep_default_na=False)
    assert_causal(table, tmp_path, order, moves=[1] * 10 + [14] * 4)


@pytest.mark.parametrize(
    ("created", "order"),
    [("kept", "left"), ("kept", "sorted"), ("moved", "sorted"), ("moved", "shuffled"), ("absent", "sorted")],
)
def test_no_forecast_of_simulated_transfers_knows_a_later_end(ended, tmp_path, monkeypatch, created, order):
    """Over several pages. Documents are written late and now and then out of order, here and in life."""
    monkeypatch.setattr("agent.assembly.REPLAY_PAGE", 270)
    monkeypatch.setattr(recorded, "_READ", 190)
    if order != "shuffled":
        monkeypatch.setattr(recorded, "WINDOW", 350)
    table = ended.iloc[:1000].copy()
    if created == "absent":
        table = table.drop(columns="created_at")
    assert_causal(table, tmp_path, order, moves=[1, 1, 9], with_document=created == "moved")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["left", "sorted"])
def test_no_forecast_knows_any_of_many_later_ends(ended, tmp_path, order):
    assert_causal(ended, tmp_path, order, moves=[1] * 30, with_document=True)


def assert_causal(table, folder, order, *, moves, with_document=False):
    """Move so many ends at a time, and compare the forecasts of all that had started by the first of the old ends."""
    rng = random.Random(f"{order} {len(table)}")
    done = np.flatnonzero(table.get("event_type", pd.Series("transfer-done", table.index)) == "transfer-done")
    start, end = pd.to_datetime(table["started_at"]), pd.to_datetime(table["transferred_at"])
    before = tables(folder, table)
    changed = 0
    for number in moves:
        moved, chosen = table.copy(), rng.sample(list(done), number)
        for row in chosen:
            delta = rng.choice(LATER_BY)
            moved.loc[row, "transferred_at"] = str(end[row] + delta)
            if with_document and "created_at" in moved:
                moved.loc[row, "created_at"] = str(pd.to_datetime(moved.loc[row, "created_at"]) + delta)
        if order == "sorted":
            moved = moved.iloc[np.argsort(pd.to_datetime(moved["transferred_at"]).to_numpy(), kind="stable")]
        elif order == "shuffled":
            moved = moved.sample(frac=1.0, random_state=rng.randrange(1000))
        after = tables(folder, moved)
        assert set(after.index) == set(before.index)
        safe = table.loc[start <= min(end[row] for row in chosen), "request-id"]
        assert safe.isin(table.loc[chosen[:1], "request-id"]).any() or number > 1  # its own forecast is among them
        assert differing(before, after, safe) == []
        changed += bool(differing(before, after, before.index))
    assert changed  # others did know of it


@pytest.mark.realdata
def test_causality_holds_for_the_command(real_data, tmp_path):
    table = pd.read_csv(real_data / "rucio_transfer_done_2017-06-18.csv", dtype=str, keep_default_na=False)

    def predicted(rows):
        rows.to_csv(tmp_path / "t.csv", index=False)
        assert gridmedic("replay", "t.csv", "--predictions", "p.csv", cwd=tmp_path).returncode == 0
        return pd.read_csv(tmp_path / "p.csv", index_col="request-id", dtype={"request-id": str})

    before = predicted(table)
    for row in (150, 600):
        moved = table.copy()
        moved.loc[row, "transferred_at"] = "2017-06-19 01:02:03"
        safe = table.loc[table["started_at"] <= table.loc[row, "transferred_at"], "request-id"]
        after = predicted(moved.sort_values("transferred_at"))
        assert differing(before, after, safe) == []
        assert differing(before, after, before.index)


def test_what_is_hostile_is_refused_and_counted_or_cleaned(world, tmp_path):
    good = next(event for event in world[0] if event["event_type"] == "transfer-done")
    future = str(datetime.now(UTC).replace(tzinfo=None) + timedelta(days=2))
    changes = [
        {"event_type": "transfer-failed", "reason": "<script>alert(1)</script> & \x1b[31m" * 300},
        {"created_at": future},
        {"transferred_at": future},
        {"bytes": -5, "file-size": -5},
        {"bytes": "NaN", "file-size": None},
        {"src-rse": "<img src=x>"},
        {"started_at": "2031-01-01 00:00:00"},
        {"request-id": None},
        {"transferred_at": "yesterday"},
        {"transfer-endpoint": "\x1b[2J<b>\u202e"},
        {},
    ]
    documents = []
    for number, change in enumerate(changes):
        payload = {**good["payload"], "request-id": f"r{number}", "created_at": None} | change
        document = {"event_type": change.get("event_type", "transfer-done"), "payload": payload}
        documents.append({**document, "created_at": change.get("created_at", good["created_at"])})
    written([*documents, 5, None, {"event_type": "<b>"}], tmp_path / "h.jsonl")
    with (tmp_path / "h.jsonl").open("a") as out:
        out.write('{"cut\n')
    done = gridmedic("replay", "h.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert result["events"] == {
        "read": 15,
        "scored": 2,
        "used": 1,
        "refused": {
            "from-the-future": 3,
            "negative-size": 1,
            "no-size": 1,
            "bad-name": 1,
            "no-request-id": 1,
            "bad-time": 1,
            "not-an-object": 2,
            "unknown-type": 1,
            "broken-line": 1,
        },
    }
    table = gridmedic("replay", "h.jsonl", cwd=tmp_path)
    assert "\x1b" not in table.stdout
    assert "read" in table.stdout


def test_what_cannot_be_said_is_null(world, tmp_path):
    deletions = [event for event in world[0] if event["event_type"].startswith("deletion")][:50]
    result = result_of(written(deletions, tmp_path / "d.jsonl"))
    assert result["events"]["scored"] == 0
    assert result["events"]["used"] + result["events"]["refused"].get("repeated", 0) == 50
    assert result["flagged_share"] is None
    for measures in result["forecast"].values():
        assert measures == {**dict.fromkeys(MEASURES), "n": 0}
    json.dumps(result, allow_nan=False)
    assert gridmedic("replay", "d.jsonl", cwd=tmp_path).stdout.startswith("events     50 read, 0 scored")


@pytest.fixture(scope="module")
def recording(ended, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    ended.iloc[:300].to_csv(folder / "good.csv", index=False)
    return folder / "good.csv"


def spoil(name, good, folder):
    """Make a file of this name that is not what it should be."""
    path, text = folder / name, good.read_bytes()
    match name.split(".")[0]:
        case "missing":
            pass
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()
        case "header":
            path.write_bytes(text.splitlines(keepends=True)[0])
        case "binary":
            path.write_bytes(random.Random(1).randbytes(5000))
        case "cut":
            path.write_bytes(gzip.compress(text)[:20_000])
        case "packed":
            path.write_bytes(gzip.compress(text))
        case "wide":
            path.write_bytes(text.decode().encode("utf-16"))
        case "other":
            path.write_text("a,b\n1,2\n")
        case "numbers":
            path.write_text("1\n2\n")
        case _:
            path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.csv", "No such file or directory"),
        ("directory.csv", "Is a directory"),
        ("empty.csv", "holds no transfer events"),
        ("empty.jsonl", "nothing to replay"),
        ("empty.parquet", "is no Parquet file"),
        ("header.csv", "nothing to replay"),
        ("binary.csv", "is a binary file"),
        ("binary.jsonl", "is a binary file"),
        ("binary.parquet", "is no Parquet file"),
        ("binary.csv.gz", "is not compressed"),
        ("cut.csv.gz", "is cut or damaged"),
        ("packed.csv", "is gzip, against its name"),
        ("table.jsonl", "is no file of JSON lines"),
        ("table.csv.gz", "is not compressed"),
        ("table.parquet", "is no Parquet file"),
        ("table.txt", "its name does not say what it is"),
        ("wide.csv", "not UTF-8"),
        ("other.csv", "holds no transfer events"),
        ("numbers.jsonl", "is no file of JSON lines"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_one_clear_error(recording, tmp_path, name, said):
    path, kept = spoil(name, recording, tmp_path), tmp_path / "kept.csv"
    kept.write_text("of an earlier replay\n")
    with pytest.raises(SourceError) as caught:
        result_of(path, predictions=kept)
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert kept.read_text() == "of an earlier replay\n"


@pytest.mark.parametrize("name", ["missing.csv", "empty.jsonl", "table.jsonl", "cut.csv.gz", "directory.csv"])
def test_the_command_says_so_in_one_line(recording, tmp_path, name):
    spoil(name, recording, tmp_path)
    said = refused("replay", name, "--json", cwd=tmp_path)
    assert said.startswith(f"Error: {name}: ")
    assert said.count("\n") == 1


def test_measurements_that_are_none(recording, tmp_path):
    with pytest.raises(SourceError, match="there is no perfSONAR reading"):
        result_of(recording, measurements=[written([{"event_type": "x"}], tmp_path / "m.jsonl")])
    with pytest.raises(SourceError, match=r"none\.csv"):
        result_of(recording, measurements=[tmp_path / "none.csv"])


def test_a_map_or_a_model_that_is_none(recording, tmp_path):
    (tmp_path / "map.txt").write_text("one two three\n")
    assert "is not two names" in refused("replay", recording, "--site-map", "map.txt", cwd=tmp_path)
    assert "holds no forecaster" in refused("replay", recording, "--model", ".", cwd=tmp_path)


def test_results_that_cannot_be_written(recording, tmp_path):
    copy = shutil.copy(recording, tmp_path / "copy.csv")
    assert "there is no directory" in refused("replay", recording, "--report", "no/out.json", cwd=tmp_path)
    assert "would be overwritten" in refused("replay", "copy.csv", "--predictions", copy, cwd=tmp_path)
    assert "is a directory" in refused("replay", recording, "--predictions", ".", cwd=tmp_path)
    assert Path(copy).read_bytes() == recording.read_bytes()


def test_a_replay_touches_no_configured_ledger_and_leaves_nothing_behind(recording, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "config.yaml").write_text("ledger: sqlite:///ledger.db\nstate: state\nthis: is broken\n")
    done = gridmedic("replay", recording, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["events"]["read"] == 300
    assert {path.name for path in tmp_path.rglob("*")} == {"config.yaml", "tmp"}


def test_the_same_file_again_is_repeated(recording, tmp_path):
    copy = Path(shutil.copy(recording, tmp_path / "again.csv"))
    once, twice = result_of(recording), result_of(recording, copy)
    assert twice["events"]["read"] == 600
    assert twice["events"]["refused"] == {"repeated": 300}
    assert twice["events"]["scored"] == once["events"]["scored"]


class Shelf:
    """A source of given rows, a few at a time."""

    name = "shelf"

    def __init__(self, rows, step):
        self._rows, self._step = rows, step

    def poll(self, cursor, *, limit, now):
        start = dict(cursor).get("row", 0)
        rows = self._rows.iloc[start : start + self._step].reset_index(drop=True)
        end = start + len(rows)
        return Page(rows=rows, cursor={"row": end}, caught_up=end == len(self._rows), read=len(rows))

    def close(self):
        pass


def drained(source, limit=70):
    pages = [source.poll(None, limit=limit, now=LATER)]
    while not pages[-1].caught_up:
        pages.append(source.poll(None, limit=limit, now=LATER))
    assert all(len(page.rows) <= limit for page in pages)
    return pd.concat([page.rows for page in pages], ignore_index=True)


@pytest.fixture(scope="module")
def decoded(world):
    return decode(world[0][:4000], now=LATER)[0]


def test_rows_come_in_the_order_of_ends_whatever_their_files_order(decoded, monkeypatch):
    monkeypatch.setattr(recorded, "WINDOW", 1300)
    expected = drained(RecordedEvents(Shelf(decoded, 100)))
    times = expected["ended_at"].fillna(expected["created_at"])
    assert times.is_monotonic_increasing
    assert len(expected) == len(decoded)
    rng = np.random.default_rng(5)
    places = np.argsort(np.arange(len(decoded)) + rng.uniform(0, 100, len(decoded)))
    pd.testing.assert_frame_equal(drained(RecordedEvents(Shelf(decoded.iloc[places], 90)), limit=33), expected)


def test_what_lies_beyond_the_window_comes_late_and_is_not_lost(decoded, monkeypatch):
    monkeypatch.setattr(recorded, "WINDOW", 100)
    backwards = drained(RecordedEvents(Shelf(decoded.iloc[::-1], 100)))
    assert sorted(backwards["request_id"]) == sorted(decoded["request_id"])


def test_readings_come_up_to_the_starts_of_the_next_events(decoded, monkeypatch):
    monkeypatch.setattr(recorded, "WINDOW", 200)
    at = np.arange(START.timestamp() - 600, START.timestamp() + 9000, 7.0)
    events = RecordedEvents(Shelf(decoded, 100))
    readings = RecordedReadings(Shelf(pd.DataFrame({"at": at}), 50), events)
    seen, until, over = [], 0.0, False
    while not over:
        seen += list(readings.poll(None, limit=60, now=LATER).rows["at"])
        page = events.poll(None, limit=60, now=LATER)
        until = np.fmax(until, page.rows["started_at"].max())
        assert seen == list(at[at < until])
        over = page.caught_up
    assert 100 < len(seen) < len(at)


def test_configuration_errors_keep_their_class(recording, tmp_path):
    with pytest.raises(ConfigError):
        replay([recording], measurements=(), site_map=tmp_path / "none.txt", model=None, predictions=None)
