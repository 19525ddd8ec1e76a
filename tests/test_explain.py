"""`gridmedic explain`: what the ledger keeps and what is given to it, told in numbers that a terminal can show."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from agent import explain
from agent.config import load
from agent.desk.explained import explanation_text
from models.domain import GridmedicError
from storage.ledger import Ledger
from tests.command import GRIDMEDIC, gridmedic, refused

START = pd.Timestamp("2026-03-02 00:00:00")


def done(number, *, seconds, event_type="transfer-done", **fields):
    started = START + pd.Timedelta(seconds=20 * number)
    return {
        "event_type": event_type,
        "created_at": str(started + pd.Timedelta(seconds=seconds + 1)),
        "payload": {
            "request-id": f"r{number}",
            "src-rse": "ALPHA_DATADISK",
            "dst-rse": "BETA_DATADISK",
            "activity": "Production Input",
            "bytes": 1_000_000_000,
            "submitted_at": str(started - pd.Timedelta(seconds=30)),
            "started_at": str(started),
            "transferred_at": str(started + pd.Timedelta(seconds=seconds)),
        }
        | fields,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six hundred transfers, all watched, the last of them slow; and perfSONAR between the two sites, with a clock that is off."""
    folder = tmp_path_factory.mktemp("explain")
    draw = np.random.default_rng(1)
    events = [done(number, seconds=float(np.round(30 + 8 * draw.random(), 3))) for number in range(600)]
    events += [done(600, seconds=2000.0), done(601, seconds=5.0, event_type="transfer-failed", reason="SOURCE [5] x")]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    minutes = [f"{START + pd.Timedelta(minutes=number)}" for number in range(-120, 240, 5)]
    pairs = (("ALPHA", "BETA", -40.0), ("BETA", "ALPHA", 90.0))
    readings = [
        {"src_site": a, "dest_site": b, "delay_mean": delay, "packet_loss": 0.002, "timestamp": at}
        for at in minutes
        for a, b, delay in pairs
    ]
    (folder / "readings.jsonl").write_text("".join(json.dumps(reading) + "\n" for reading in readings))
    settings = {
        "events": [{"kind": "files", "paths": ["events.jsonl"]}],
        "measurements": [{"kind": "files", "paths": ["readings.jsonl"]}],
        "poll": {"limit": 100},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert gridmedic("run", "--once", cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return load(folder / "config.yaml")


def kept(config):
    ledger = Ledger.open(config.ledger_url)
    with ledger.begin(write=False) as tx:
        rows = tx.rows("observed")
    ledger.close()
    return rows.set_index("request_id")


def test_a_kept_transfer_is_explained_as_it_was_judged(folder, config):
    told, row = explain.of_request(config, "r600"), kept(config).loc["r600"]
    why = told.explanation
    assert (told.judged["flagged"], told.judged["threshold_s"]) == (bool(row["flagged"]), row["threshold_s"])
    assert (why.duration_s, why.flagged, why.slow) == (2000.0, True, True)
    assert told.judged_by == told.model
    assert why.threshold_s == pytest.approx(row["threshold_s"])
    assert why.rtt_ms == 50.0  # of -40 ms and 90 ms
    assert why.delay_ms is None
    assert why.loss == pytest.approx(0.002)
    assert why.measured[0].readings == 12
    assert why.measured[1].readings == 0
    link = why.expectations[0].parts[0]
    assert link.of == "link"
    assert link.weight > 0.9
    shown = gridmedic("explain", "r600", cwd=folder)
    assert shown.returncode == 0
    for said in (
        "FLAGGED",
        "SLOW",
        "1,000.0 MB",
        "2,000.0 s",
        "round trip 50 ms",
        "loss 0.2 %",
        "this link",
        "Mathis",
        "FTS",
        "when it ended it was flagged, and slow",
    ):
        assert said in shown.stdout, said


def test_as_json(folder):
    told = json.loads(gridmedic("explain", "r10", "--json", cwd=folder).stdout)
    assert told["request_id"] == "r10"
    assert told["judged"]["flagged"] is False
    assert told["explanation"]["threshold_by"] in {"forecast", "norm", "worth", "loss"}
    assert {"threshold_s", "slow_s", "timeout_s", "worth_s", "expectations", "measured"} <= set(told["explanation"])


def test_a_document_is_judged_as_if_it_came_next_and_leaves_no_trace(folder, config):
    before = kept(config)
    path = folder / "event.json"
    path.write_text(json.dumps(done(700, seconds=3000.0)))
    told = json.loads(gridmedic("explain", path, "--json", cwd=folder).stdout)
    assert told["judged"] is None
    assert told["explanation"]["flagged"] is True
    given = subprocess.run(
        [GRIDMEDIC, "explain", "-", "--json"],
        cwd=folder,
        input=path.read_text(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(given.stdout) == told
    pd.testing.assert_frame_equal(kept(config), before)


def test_a_link_that_was_never_seen_is_explained_by_all_others(config, folder):
    document = json.dumps(done(1, seconds=40.0, **{"src-rse": "NEW_DATADISK", "dst-rse": "OTHER_DATADISK"}))
    why = explain.of_document(config, document, name="-", now=pd.Timestamp("2026-04-01", tz="UTC")).explanation
    weights = {part.of: part.weight for part in why.expectations[0].parts}
    assert weights["link"] == weights["source"] == 0.0
    assert weights["all"] > 0.9
    assert why.measured[0].readings == 0
    assert why.network_s == 0.0


def test_hostile_text_reaches_no_terminal(config):
    evil = "r\x1b[2J\u202e\x07\n" + "x" * 10_000
    document = done(1, seconds=40.0, **{"request-id": evil, "activity": evil})
    told = explain.of_document(config, json.dumps(document), name="-", now=pd.Timestamp("2026-04-01", tz="UTC"))
    text = explanation_text(told)
    assert not set("\x1b\x07\u202e") & set(text)
    assert max(map(len, text.splitlines())) < 1000
    assert json.loads(told.as_json())["explanation"]["source"] == "ALPHA_DATADISK"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "not-an-object"),
        ('"x"', "not-an-object"),
        ("{}", "cannot be used"),
        (json.dumps(done(1, seconds=4.0, event_type="transfer-failed", reason="x")), "finished transfers"),
        (json.dumps(done(1, seconds=4.0, started_at=None)), "bad-time"),
    ],
)
def test_what_is_no_finished_transfer_is_refused(config, text, said):
    with pytest.raises(GridmedicError, match=said):
        explain.of_document(config, text, name="-", now=pd.Timestamp("2026-04-01", tz="UTC"))


def test_what_the_ledger_cannot_tell_is_refused(folder):
    assert "no ended transfer" in refused("explain", "nobody", cwd=folder)
    assert "failed" in refused("explain", "r601", cwd=folder)
    (folder / "big.json").write_text("x" * (1 << 20) + "y")
    assert "longer than" in refused("explain", "big.json", cwd=folder)
    (folder / "latin.json").write_bytes(b"\xff\xfe{")
    assert "UTF-8" in refused("explain", "latin.json", cwd=folder)
