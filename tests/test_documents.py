"""Rucio's messages: what is written as documents is what comes as rows, and it comes as late and as often as in life."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.failures import error_class
from models.domain import GridError
from models.events import DELETIONS, EVENT_COLUMNS, decode, empty_events
from simulator.activities import ACTIVITIES
from simulator.documents import Documents
from simulator.draws import Draws
from simulator.errors import Code, text
from simulator.fields import file_of, names_of, scopes_of
from simulator.records import MOST_FILES, MOST_TRIES, RECORD, What, parse_request_id, parse_rule_id, request_ids
from simulator.topology import build

START = datetime(2026, 3, 2, 13, 4, 5, 678901, tzinfo=UTC)
NOW = START + timedelta(days=400)
TOPOLOGY = build(sites=12, rses=30, capacity=1.0, seed=3)
DRAWS = Draws(7)
DOCUMENTS = Documents(TOPOLOGY, DRAWS, START)
FAILURES = [code for code in Code if Code.NONE < code <= Code.CANCELLED]


def records(count, seed):
    """Messages of every kind in any order, as different from each other as they can be."""
    draw = np.random.default_rng(seed)
    made = np.zeros(count, dtype=RECORD)
    made["what"] = what = draw.choice(len(What), count)
    transfer, placed, ended = what < What.PLANNED, what >= What.SUBMITTED, np.isin(what, (What.DONE, What.FAILED))
    made["stagein"] = transfer & (draw.random(count) < 0.3)
    made["activity"] = draw.integers(0, len(ACTIVITIES), count)
    made["tries"] = np.where(transfer, draw.integers(0, MOST_TRIES, count), 0)
    made["retry"] = np.minimum(made["tries"], draw.integers(0, 4, count))
    made["source"] = np.where(placed & transfer, draw.integers(0, len(TOPOLOGY.rses), count), -1)
    made["destination"] = draw.integers(0, len(TOPOLOGY.rses), count)
    made["file"] = draw.integers(0, 1 << 33, count) * MOST_FILES + draw.integers(0, 1000, count)
    made["bytes"] = np.exp(draw.uniform(0, 23, count)).astype(np.int64)
    made["created"] = draw.uniform(0, 3e7, count)
    made["submitted"] = np.where(placed, made["created"] + draw.exponential(50, count), np.nan)
    made["started"] = np.where(ended, made["submitted"] + draw.exponential(50, count), np.nan)
    made["ended"] = np.where(ended, made["started"] + draw.exponential(50_000, count), np.nan)
    made["at"] = np.where(ended, made["ended"], made["created"])
    made["ended"][~transfer] = draw.lognormal(-2, 2, count)[~transfer]
    never = (what == What.FAILED) & (draw.random(count) < 0.2)  # called off before it began
    made["submitted"][never] = made["started"][never] = np.nan
    made["code"] = np.where(what == What.FAILED, draw.choice(FAILURES, count), Code.NONE)
    made["code"][what == What.NOT_DELETED] = Code.DELETION_REFUSED
    made["code"][what == What.NOT_FOUND] = Code.DELETION_NOT_FOUND
    made["fault"] = -1
    return made


def decoded(lines):
    found, refusals = decode([json.loads(line) for line in lines], now=NOW)
    assert not refusals
    return found


@given(count=st.integers(0, 60), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_rows_are_what_is_decoded_from_the_lines(count, seed):
    made = records(count, seed)
    pd.testing.assert_frame_equal(DOCUMENTS.frame(made), decoded(DOCUMENTS.lines(made)) if count else empty_events())


def test_rows_are_what_is_decoded_from_many_lines():
    made = records(70_000, 1)  # several blocks
    found = DOCUMENTS.frame(made)
    assert tuple(found.columns) == EVENT_COLUMNS
    pd.testing.assert_frame_equal(found, decoded(DOCUMENTS.lines(made)))


def test_a_message_does_not_depend_on_those_beside_it():
    made = records(500, 2)
    alone = [DOCUMENTS.lines(made[place : place + 1])[0] for place in range(len(made))]
    assert DOCUMENTS.lines(made) == alone
    assert DOCUMENTS.text(made) == b"".join(line + b"\n" for line in alone)


def test_every_type_has_the_fields_of_rucio():
    asked = {
        "request-id", "request-type", "scope", "name", "dst-rse-id", "dst-rse", "state", "retry-count", "activity",
        "file-size", "bytes", "checksum-md5", "checksum-adler", "queued_at",
    }  # fmt: skip
    ended = {
        "activity", "request-id", "duration", "checksum-adler", "checksum-md5", "file-size", "bytes", "guid",
        "previous-request-id", "protocol", "scope", "name", "dataset", "datasetScope", "src-type", "src-rse", "src-url",
        "dst-type", "dst-rse", "dst-url", "reason", "transfer-endpoint", "transfer-id", "transfer-link", "created_at",
        "submitted_at", "started_at", "transferred_at", "tool-id", "account", "datatype",
    }  # fmt: skip
    gone = {"scope", "name", "rse", "file-size", "bytes", "url", "protocol", "datatype"}
    wanted = {
        **dict.fromkeys(("queued", "waiting"), asked | {"rule-id"}),
        "submitted": asked | {"src-rse", "src-rse-id", "external-id", "external-host", "datatype"},
        **dict.fromkeys(("done", "failed"), ended),
        "deletion-planned": gone,
        "deletion-done": gone | {"duration"},
        **dict.fromkeys(("deletion-failed", "deletion-not-found"), gone | {"reason"}),
    }
    seen = set()
    for line in DOCUMENTS.lines(records(2000, 4)):
        document = json.loads(line)
        kind = document["event_type"]
        expected = wanted[kind if kind in DELETIONS else kind.partition("-")[2]]
        assert set(document["payload"]) == expected
        assert set(document) == {"event_type", "payload", "created_at"}
        seen.add(kind)
    assert len(seen) == 14


def test_a_retry_names_the_request_before_it_unless_it_begins_anew():
    made = records(4000, 5)
    made = made[(made["what"] == What.FAILED) & (made["tries"] > 0)]
    before = request_ids(DRAWS, made["file"], made["tries"] - 1).to_pylist()
    for record, previous, line in zip(made, before, DOCUMENTS.lines(made), strict=True):
        payload = json.loads(line)["payload"]
        assert payload["previous-request-id"] == (previous if record["retry"] else None)
        assert parse_request_id(DRAWS, payload["request-id"]) == (record["file"], record["tries"])


def test_ids_and_names_lead_back_to_the_file():
    made = records(1000, 6)
    made = made[made["what"] == What.QUEUED]
    rows = DOCUMENTS.frame(made)
    assert [parse_rule_id(DRAWS, rule) for rule in rows["rule_id"]] == (made["file"] // MOST_FILES).tolist()
    assert [file_of(f"{row.scope}:{row.name}") for row in rows.itertuples()] == made["file"].tolist()
    assert names_of(made["file"], made["activity"]).to_pylist() == rows["name"].tolist()
    assert scopes_of(made["activity"]).to_pylist() == rows["scope"].tolist()


@pytest.mark.parametrize(
    "did", ["", "x", "tests:a", "tests:AOD.00000001._001024.pool.root.1", "AOD.00000001._000001.pool.root.1"]
)
def test_what_is_no_file_is_said(did):
    with pytest.raises(GridError, match="no file"):
        file_of(did)


def test_a_long_transfer_has_rucios_duration_and_ours():
    made = records(1, 8)
    made["what"], made["code"], made["stagein"], made["source"] = What.DONE, Code.NONE, 0, 1
    made["created"], made["submitted"], made["started"], made["ended"] = 0.0, 1.0, 2.5, 90_000.0
    payload = json.loads(DOCUMENTS.lines(made)[0])["payload"]
    assert payload["duration"] == 89_997 % 86_400
    assert DOCUMENTS.frame(made)["duration"].tolist() == [89_997.0]


def test_messages_come_late_out_of_order_and_now_and_then_twice():
    made = records(40_000, 9)
    made = made[made["what"] < What.PLANNED]
    made["at"] = np.sort(made["at"])
    readable, delivered = DOCUMENTS.deliver(made)
    assert len(delivered) - len(made) == pytest.approx(0.005 * len(made), rel=0.3)
    late = readable - delivered["at"]
    assert (late >= 0).all()
    assert (late > 60).mean() == pytest.approx(0.0225, rel=0.2)
    polled = np.isin(delivered["what"], (What.DONE, What.FAILED))
    assert 25 < np.median(late[polled]) < 35
    assert np.median(late[~polled]) < 8
    written = DOCUMENTS.frame(delivered)["created_at"].to_numpy()
    assert (written <= START.timestamp() + readable).all()
    pairs = np.unique(np.stack([delivered["file"], delivered["tries"], delivered["what"]]), axis=1)
    assert pairs.shape[1] == len(made)


def test_delivery_depends_on_nothing_but_the_message():
    made = records(3000, 10)
    whole = dict(zip(made["file"].tolist(), DOCUMENTS.deliver(made)[0][: len(made)].tolist(), strict=True))
    for part in (made[::2], made[1::2][::-1]):
        readable = DOCUMENTS.deliver(part)[0][: len(part)]
        assert readable.tolist() == [whole[file] for file in part["file"].tolist()]


CLASSES = {
    Code.SOURCE_REFUSED: {"source-connection"},
    Code.DESTINATION_REFUSED: {"destination-connection"},
    Code.NO_SPACE: {"destination-space"},
    Code.SOURCE_CREDENTIALS: {"source-credential"},
    Code.DESTINATION_CREDENTIALS: {"destination-credential"},
    Code.CHECKSUM: {"source-checksum"},
    Code.MISSING: {"source-missing"},
    Code.SOURCE_BUSY: {"source-overload"},
    Code.DESTINATION_BUSY: {"destination-overload"},
    Code.BLACK_HOLE: {"destination-error"},
    Code.TIMED_OUT: {"transfer-timeout"},
    Code.NONE: {"unknown"},
}


@pytest.mark.parametrize("code", CLASSES, ids=lambda code: code.name)
def test_reasons_are_of_the_class_that_operators_would_say(code):
    ends = range(len(TOPOLOGY.rses) - 1)  # all three protocols
    assert {error_class(text(code, TOPOLOGY, end, end + 1)) for end in ends} == CLASSES[code]


def test_every_failure_has_a_reason():
    assert all(text(code, TOPOLOGY, 0, 1) for code in Code if code is not Code.NONE)
    assert text(Code.DELETION_REFUSED, TOPOLOGY, -1, 2).count(TOPOLOGY.hosts[2]) == 2
