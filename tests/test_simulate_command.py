"""`gridmedic simulate`: what it writes can be read, is true, is the same to the byte, and leaves nobody behind."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agent import simulation
from agent.recording import Part, Place, Writers
from agent.simulation import START, simulate, summary
from agent.sources import EVENTS, READINGS
from agent.sources.cric import decode
from agent.sources.downtimes import DowntimesFile
from agent.sources.files import FilesSource
from models.domain import ConfigError, GridmedicError
from models.events import EVENT_COLUMNS, FAILED, FINISHED
from models.measurements import SiteMap
from simulator.perfsonar import MEASUREMENT
from simulator.records import RECORD
from simulator.scenario import parse
from tests.command import GRIDMEDIC, gridmedic, refused

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CONTENT = {
    "grid": {"sites": 5},
    "load": {"transfers_per_day": 20_000},
    "faults": [
        {"kind": "credentials-expired", "culprit": "rse:CERN-PROD_DATADISK", "start": "30m", "duration": "3h"},
        {"kind": "link-lossy", "culprit": "network:any", "start": "1h", "duration": "2h", "strength": 0.05},
        {"kind": "storage-full", "culprit": "rse:FZK-LCG2_DATADISK", "start": "2h", "recovers": False},
        {"kind": "site-dark", "culprit": "site:any", "start": "6h", "duration": "1h"},  # where the run ends
    ],
    "disturbances": [
        {"kind": "downtime", "where": "site:BNL-OSG2", "start": "2h", "duration": "30m"},
        {"kind": "busy-day", "start": "1h", "duration": "2h"},
        {"kind": "large-files", "start": "6h", "duration": "2h"},
        {"kind": "downtime", "where": "site:any", "start": "9d", "duration": "30m"},
    ],
}
DAYS = 0.25
HOURS = 6


def made(out, *, seed=3, workers=1, days=DAYS):
    return simulate(parse(CONTENT, "ill"), seed=seed, days=days, out=out, workers=workers, told=lambda *_: None)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated")
    made(out)
    return out


def read(paths, decoder):
    """All rows of the files by time, as the agent reads them; nothing may be refused."""
    source, cursor, parts = FilesSource(name="test", paths=sorted(paths), decoder=decoder), None, []
    while True:
        page = source.poll(cursor, limit=1_000_000, now=NOW)
        assert not page.refusals
        parts.append(page.rows)
        cursor = page.cursor
        if page.caught_up:
            source.close()
            return pd.concat(parts).sort_values(decoder.time, kind="stable", ignore_index=True)


def equal(one, other):
    """Whether two directories hold the same files with the same bytes."""
    names = [sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()) for top in (one, other)]
    assert names[0] == names[1]
    return filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


@pytest.mark.parametrize(("name", "decoder"), [("events", EVENTS), ("measurements", READINGS)])
def test_the_agent_reads_both_forms_as_the_same(recorded, name, decoder):
    table = read((recorded / name).glob("*.parquet"), decoder)
    lines = read((recorded / name).glob("*.jsonl.gz"), decoder)
    pd.testing.assert_frame_equal(table, lines)
    counts = json.loads((recorded / "manifest.json").read_text())["counts"][name]
    assert len(list((recorded / name).iterdir())) == 2 * HOURS
    if name == "events":
        assert len(table) == sum(counts.values())
        assert table["type"].value_counts().to_dict() == {kind: count for kind, count in counts.items() if count}
    else:
        assert len(table) == sum(counts.values()) + counts["delay"] + table["quantity"].eq("rtt").sum()


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(recorded, tmp_path, workers):
    made(tmp_path / "again", workers=workers)
    assert equal(recorded, tmp_path / "again")


def test_another_seed_gives_another_run(recorded, tmp_path):
    made(tmp_path / "other", seed=4, days=1 / 24)
    name = Path("events") / f"{START:%Y-%m-%dT%H}.parquet"
    assert (tmp_path / "other" / name).read_bytes() != (recorded / name).read_bytes()


def test_the_truth_says_what_was_wrong_and_what_was_not(recorded):
    truth = json.loads((recorded / "truth.json").read_text())
    assert [fault["kind"] for fault in truth["faults"]] == ["credentials-expired", "link-lossy", "storage-full"]
    assert [fault["recovers"] for fault in truth["faults"]] == [True, True, False]
    assert truth["faults"][2]["end"] is None
    assert truth["faults"][0] == {
        "number": 0,
        "kind": "credentials-expired",
        "culprit": "rse:CERN-PROD_DATADISK",
        "strength": truth["faults"][0]["strength"],
        "recovers": True,
        "start": "2026-03-02T00:30:00+00:00",
        "end": "2026-03-02T03:30:00+00:00",
    }
    assert [one["kind"] for one in truth["disturbances"]] == ["busy-day"]
    assert [one["where"] for one in truth["downtimes"]] == ["site:BNL-OSG2"]


def test_the_downtimes_are_told_as_cric_tells_them(recorded):
    told = decode(DowntimesFile(recorded / "downtimes.json").read(), where="downtimes.json", sites=SiteMap())
    assert [str(cover.entity) for cover in told.covers] == ["site:BNL-OSG2"]
    begin = START.timestamp() + 7200
    assert [(cover.start, cover.end) for cover in told.covers] == [(begin, begin + 1800)]


def test_who_was_hurt_is_among_the_events(recorded):
    hurt = pd.read_parquet(recorded / "hurt.parquet")
    events = read((recorded / "events").glob("*.parquet"), EVENTS).set_index("request_id")
    manifest = json.loads((recorded / "manifest.json").read_text())
    assert len(hurt) == manifest["counts"]["hurt"] > 20
    assert manifest["counts"]["hurt_by_none"] == (hurt["fault"] == -1).sum()
    assert set(hurt["fault"]) - {-1} == {0, 1, 2}
    by_credentials = hurt[hurt["failed"] & (hurt["fault"] == 0)]
    assert len(by_credentials) > 20
    ends = by_credentials[["source", "destination"]]
    assert (ends == "CERN-PROD_DATADISK").any(axis=1).mean() > 0.9
    failures = events[events["type"].isin(FAILED)]
    shown = by_credentials[by_credentials["request_id"].isin(failures.index)]
    assert len(shown) > 0.9 * len(by_credentials)  # what failed last is not in the index yet
    told = failures.loc[shown["request_id"]].groupby(level=0).first().loc[shown["request_id"]]
    assert (told["ended_at"].to_numpy() == np.floor(shown["ended"])).all()
    assert (told["source"].to_numpy() == shown["source"]).all()


def test_the_summary_blames_no_fault_for_what_none_did(recorded):
    manifest = json.loads((recorded / "manifest.json").read_text())
    counts = manifest["counts"] | {"faults": 3, "hurt": 1200, "hurt_by_none": 34}
    said = summary(manifest | {"counts": counts}, recorded).splitlines()[-1]
    assert said == "3 faults; 1,200 attempts hurt, 34 of them by no fault"


def test_a_world_that_cannot_be_built_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConfigError("there is no such world")

    monkeypatch.setattr(simulation, "World", fail)
    with pytest.raises(ConfigError, match="no such world"):
        made(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_manifest_tells_what_it_takes_to_make_it_again(recorded, tmp_path):
    manifest = json.loads((recorded / "manifest.json").read_text())
    assert (manifest["seed"], manifest["days"]) == (3, DAYS)
    assert (manifest["start"], manifest["end"]) == ("2026-03-02T00:00:00+00:00", "2026-03-02T06:00:00+00:00")
    scenario = parse(manifest["scenario"], "ill")
    simulate(scenario, seed=3, days=DAYS, out=tmp_path / "again", workers=1, told=lambda *_: None)
    assert equal(recorded, tmp_path / "again")


def test_half_an_hour_and_an_hour_without_anything_can_be_read(tmp_path):
    quiet = parse({"grid": {"sites": 2}, "load": {"transfers_per_day": 1}}, "quiet")
    manifest = simulate(quiet, seed=1, days=1.5 / 24, out=tmp_path / "quiet", workers=1, told=lambda *_: None)
    assert manifest["end"] == "2026-03-02T01:30:00+00:00"
    table = read((tmp_path / "quiet" / "events").glob("*.parquet"), EVENTS)
    assert tuple(table.columns) == EVENT_COLUMNS
    assert (table["type"].isin(FINISHED)).sum() < 5
    assert len(pd.read_parquet(tmp_path / "quiet" / "hurt.parquet")) == 0


def test_the_command_makes_its_directory_and_says_what_is_in_it(tmp_path):
    done = gridmedic("simulate", "calm", "--days", "0.05", "--out", tmp_path / "a" / "b", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""  # a bar would be of no use where nobody sees it
    assert "calm, seed" in done.stdout
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "downtimes.json", "events", "hurt.parquet", "manifest.json", "measurements", "truth.json",
    ]  # fmt: skip


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "is not empty" in refused("simulate", "calm", "--out", "full", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert "is no directory" in refused("simulate", "calm", "--out", "full/thesis.tex", cwd=tmp_path)
    assert "did you mean 'calm'" in refused("simulate", "clam", "--out", "new", cwd=tmp_path)
    assert "SCENARIO" in refused("simulate", "--out", "new", cwd=tmp_path)
    assert "--out" in refused("simulate", "calm", cwd=tmp_path)
    assert "--days" in refused("simulate", "calm", "--days", "0", "--out", "new", cwd=tmp_path)
    assert "--days" in refused("simulate", "calm", "--days", "nan", "--out", "new", cwd=tmp_path)
    (tmp_path / "bad.yaml").write_text(
        "grid: {sites: 1000}\nfaults: [{kind: gremlins, culprit: rse:X, start: 0, end: 9}]\n"
    )
    said = refused("simulate", "bad.yaml", "--out", "new", cwd=tmp_path)
    assert "grid.sites" in said
    assert "faults.0.kind" in said
    assert "reference data" in refused("simulate", "--realism", "nowhere", cwd=tmp_path)
    assert "alone" in refused("simulate", "calm", "--realism", "nowhere", cwd=tmp_path)
    assert not (tmp_path / "new").exists()


def part(number):
    return Part(number=number, events=np.zeros(0, dtype=RECORD), measurements=np.zeros(0, dtype=MEASUREMENT))


def place(out):
    return Place(scenario=parse(CONTENT, "ill"), seed=1, start=START, out=out)


def test_what_a_writer_cannot_write_is_raised_here(tmp_path):
    def write_on():
        with Writers(place(tmp_path), 1) as writers:
            writers.write(part(0))
            writers.write(part(1))  # the first is written when this is taken
            for file in (tmp_path / "events").iterdir():
                file.unlink()
            (tmp_path / "events").rename(tmp_path / "gone")
            for number in range(2, 9):
                writers.write(part(number))

    with pytest.raises(OSError, match="events"):
        write_on()


def test_a_writer_that_is_killed_is_noticed(tmp_path):
    def write_on():
        with Writers(place(tmp_path), 1) as writers:
            writers.write(part(0))
            os.kill(writers._helpers[0]._process.pid, signal.SIGKILL)
            for number in range(1, 4):
                writers.write(part(number))

    with pytest.raises(GridmedicError, match="ended by itself with status -9"):
        write_on()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_writer_outlives_the_command(tmp_path, number):
    command = [GRIDMEDIC, "simulate", "atlas", "--days", "1", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(children := children_of(process.pid)) < 2 or not any((tmp_path / "out").rglob("*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
        said = process.stderr.read()
        assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def children_of(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
