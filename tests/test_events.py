from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    FINISHED,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    RefusalReason,
    decode,
    decode_table,
    empty_events,
    event_keys,
)

NOW = datetime(2017, 6, 18, 12, tzinfo=UTC)
GOLDEN_KEY = 1237439576293687215
ENDED = datetime(2017, 6, 18, 0, 46, 13, tzinfo=UTC)

BODY = {
    "activity": "Production Input",
    "request-id": "b933927682dd4059a57ec3bf61d29c7f",
    "previous-request-id": None,
    "duration": 30,
    "checksum-adler": "58aa3888",
    "file-size": 2128031,
    "bytes": 2128031,
    "guid": None,
    "protocol": "srm",
    "scope": "mc15_13TeV",
    "name": "EVNT.1._1.pool.root.1",
    "src-type": "DISK",
    "src-rse": "ALPHA_DATADISK",
    "dst-type": "TAPE",
    "dst-rse": "BETA-T1_DATATAPE",
    "reason": "",
    "transfer-endpoint": "https://fts3.example.org:8446",
    "transfer-link": "https://fts3.example.org:8449/fts3/ftsmon/#/job/1",
    "created_at": None,
    "submitted_at": "2017-06-18 00:40:00",
    "started_at": "2017-06-18 00:45:43",
    "transferred_at": "2017-06-18 00:46:13",
    "account": None,
}


def nested(kind="transfer-done", *, created="2017-06-18 00:46:20", **changes):
    body = {name: value for name, value in (BODY | changes).items() if value is not ...}
    return {"event_type": kind, "created_at": created, "payload": body}


def flat(kind="transfer-done", **changes):
    return nested(kind, **changes)["payload"] | {"event_type": kind, "created_at": "2017-06-18 00:46:20"}


def monit(kind="transfer-done"):
    plain = {name.replace("-", "_"): value for name, value in BODY.items()}
    for name in ("submitted_at", "started_at", "transferred_at"):
        text = plain.pop(name)
        plain[f"tf_{name}"] = int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    return {"data": plain | {"event_type": kind}, "metadata": {"timestamp": 1497746780000, "topic": "rucio"}}


def dotted(document):
    return {
        **{name: value for name, value in document.items() if name != "payload"},
        **{f"payload.{name}": value for name, value in document["payload"].items()},
    }


def one(document, *, now=NOW):
    events, refusals = decode([document], now=now)
    assert not refusals
    return events.iloc[0]


def reasons(documents, *, now=NOW):
    events, refusals = decode(documents, now=now)
    assert len(events) + len(refusals) == len(documents)
    return [refusal.reason for refusal in refusals]


@pytest.mark.parametrize(
    "document", [nested(), flat(), monit(), dotted(nested())], ids=["nested", "flat", "monit", "dotted"]
)
def test_every_spelling_gives_the_same_event(document):
    events, refusals = decode([document], now=NOW)
    assert not refusals
    assert tuple(events.columns) == EVENT_COLUMNS
    assert events.iloc[0].to_dict() == {
        "type": "transfer-done",
        "request_id": "b933927682dd4059a57ec3bf61d29c7f",
        "previous_request_id": "",
        "source": "ALPHA_DATADISK",
        "destination": "BETA-T1_DATATAPE",
        "activity": "Production Input",
        "protocol": "srm",
        "source_type": "DISK",
        "destination_type": "TAPE",
        "fts": "fts3.example.org",
        "scope": "mc15_13TeV",
        "name": "EVNT.1._1.pool.root.1",
        "rule_id": "",
        "reason": "",
        "bytes": 2128031.0,
        "created_at": datetime(2017, 6, 18, 0, 46, 20, tzinfo=UTC).timestamp(),
        "queued_at": pytest.approx(float("nan"), nan_ok=True),
        "submitted_at": datetime(2017, 6, 18, 0, 40, tzinfo=UTC).timestamp(),
        "started_at": ENDED.timestamp() - 30,
        "ended_at": ENDED.timestamp(),
        "duration": 30.0,
    }


def test_spellings_mixed_in_one_batch_keep_their_order():
    documents = [nested(**{"request-id": "a"}), monit(), flat(**{"request-id": "c"}), 7, nested(**{"request-id": "d"})]
    events, refusals = decode(documents, now=NOW)
    assert events["request_id"].tolist() == ["a", BODY["request-id"], "c", "d"]
    assert [refusal.reason for refusal in refusals] == [RefusalReason.NOT_AN_OBJECT]


def test_no_documents_give_no_events():
    events, refusals = decode([], now=NOW)
    assert refusals == []
    pd.testing.assert_frame_equal(events, empty_events())
    assert tuple(events.columns) == EVENT_COLUMNS


@pytest.mark.parametrize("kind", sorted(EVENT_TYPES))
def test_every_type_of_transfer_and_deletion_is_used(kind):
    if kind.startswith("deletion"):
        payload = {"scope": "s", "name": "n", "rse": "ALPHA_DATADISK", "bytes": 5, "duration": 0.25, "reason": "gone"}
        event = one({"event_type": kind, "created_at": "2017-06-18 00:46:20", "payload": payload})
        assert (event["destination"], event["source"], event["duration"]) == ("ALPHA_DATADISK", "", 0.25)
        assert event["ended_at"] == event["created_at"]
    else:
        assert one(nested(kind))["type"] == kind
        assert one(nested(kind.upper()))["type"] == kind


def test_queued_events_name_their_rule_and_need_no_source():
    event = one(
        {
            "event_type": "transfer-queued",
            "created_at": "2017-06-08 09:45:44",
            "payload": {
                "request-id": "67bb",
                "rule-id": "722e",
                "dst-rse": "BETA_DATADISK",
                "dst-rse-id": "a97b",
                "bytes": 10,
                "queued_at": "2017-06-08 09:45:44.983658",
                "activity": "Express",
            },
        }
    )
    assert (event["rule_id"], event["source"]) == ("722e", "")
    assert event["queued_at"] == pytest.approx(
        datetime(2017, 6, 8, 9, 45, 44, 983658, tzinfo=UTC).timestamp(), abs=1e-5
    )
    assert np.isnan(event["ended_at"])


@pytest.mark.parametrize(
    "written",
    [
        "2017-06-18 00:46:13",
        "2017-06-18 00:46:13.000",
        "2017-06-18T00:46:13Z",
        "2017-06-18T00:46:13.000000Z",
        "2017-06-18T02:46:13+02:00",
        " 2017-06-18T00:46:13 ",
        1497746773,
        1497746773.0,
        1497746773000,
        "1497746773",
        "1497746773000",
        "1.497746773e9",
    ],
)
def test_times_are_read_however_they_are_written(written):
    assert one(nested(transferred_at=written))["ended_at"] == ENDED.timestamp()


def test_fractions_of_a_second_count():
    event = one(nested(started_at="2017-06-18 00:46:12.25", transferred_at="2017-06-18T00:46:13.5Z"))
    assert event["duration"] == 1.25


@pytest.mark.parametrize("said", [-1, 86399, "soon", None])
def test_the_duration_comes_from_the_timestamps(said):
    started = ENDED - timedelta(days=2)
    event = one(nested(duration=said, started_at=str(started), submitted_at=str(started)))
    assert event["duration"] == 2 * 86400


def test_a_duration_of_zero_is_one():
    assert one(nested(started_at=BODY["transferred_at"]))["duration"] == 0.0


@pytest.mark.parametrize(
    "changes", [{"submitted_at": None}, {"submitted_at": "never"}, {"submitted_at": "2017-06-18 00:50:00"}]
)
def test_a_transfer_without_a_usable_submission_is_used(changes):
    event = one(nested(**changes))
    assert np.isnan(event["submitted_at"])
    assert event["duration"] == 30


def test_a_transfer_that_failed_before_it_started_is_used():
    event = one(nested("transfer-failed", started_at=None, reason="SOURCE [2] No such file"))
    assert np.isnan(event["started_at"])
    assert np.isnan(event["duration"])
    assert event["reason"] == "SOURCE [2] No such file"


def test_documents_without_a_type_are_ended_transfers():
    done, failed = flat(), flat(reason="TRANSFER [110] TRANSFER Operation timed out")
    for document in (done, failed):
        del document["event_type"]
    events, refusals = decode([done, failed], now=NOW)
    assert not refusals
    assert events["type"].tolist() == ["transfer-done", "transfer-failed"]


def test_documents_without_a_time_of_their_own_take_that_of_the_event():
    assert one(nested(created=None))["created_at"] == ENDED.timestamp()
    assert one({**nested(created=None), "@timestamp": "2017-06-18T00:46:15Z"})["created_at"] == ENDED.timestamp() + 2


def test_a_reason_full_of_markup_is_kept_as_text_and_cut():
    reason = "<script>alert('x')</script>\x00\ud800 & " * 400
    event = one(nested("transfer-failed", reason=reason))
    assert len(event["reason"]) == 2000
    assert event["reason"].startswith("<script>")
    assert "\x00" not in event["reason"]
    event["reason"].encode("utf-8")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("transfer-done", RefusalReason.NOT_AN_OBJECT),
        (None, RefusalReason.NOT_AN_OBJECT),
        ([nested()], RefusalReason.NOT_AN_OBJECT),
        ({}, RefusalReason.UNKNOWN_TYPE),
        (nested("datasetlock_ok"), RefusalReason.UNKNOWN_TYPE),
        (nested(["transfer-done"]), RefusalReason.UNKNOWN_TYPE),
        (nested(**{"request-id": None}), RefusalReason.NO_REQUEST_ID),
        (nested(**{"request-id": ["b9"]}), RefusalReason.NO_REQUEST_ID),
        (nested("deletion-done", rse="A", name=None), RefusalReason.NO_REQUEST_ID),
        (nested(**{"src-rse": None}), RefusalReason.NO_LINK),
        (nested("transfer-failed", **{"src-rse": ""}), RefusalReason.NO_LINK),
        (nested("transfer-queued", **{"dst-rse": 7}), RefusalReason.NO_LINK),
        (nested(**{"src-rse": "A>B"}), RefusalReason.BAD_NAME),
        (nested(**{"dst-rse": "<b>B</b>"}), RefusalReason.BAD_NAME),
        (nested(transferred_at=None), RefusalReason.BAD_TIME),
        (nested(started_at="yesterday"), RefusalReason.BAD_TIME),
        (nested(started_at=0), RefusalReason.BAD_TIME),
        (nested(started_at=float("nan")), RefusalReason.BAD_TIME),
        (nested(started_at=10**400), RefusalReason.BAD_TIME),
        (nested(started_at=True), RefusalReason.BAD_TIME),
        (nested("transfer-failed", transferred_at={}), RefusalReason.BAD_TIME),
        (
            nested("deletion-planned", rse="A", created=None, transferred_at=None, submitted_at=None),
            RefusalReason.BAD_TIME,
        ),
        (nested(started_at="2017-06-18 00:46:14"), RefusalReason.ENDS_BEFORE_START),
        (nested(transferred_at="2017-06-18 13:00:01"), RefusalReason.FROM_THE_FUTURE),
        (nested(created="2031-01-01 00:00:00"), RefusalReason.FROM_THE_FUTURE),
        (nested("transfer-queued", queued_at="2031-01-01 00:00:00"), RefusalReason.FROM_THE_FUTURE),
        (nested(bytes=-1), RefusalReason.NEGATIVE_SIZE),
        (nested(**{"bytes": None, "file-size": None}), RefusalReason.NO_SIZE),
        (nested(**{"bytes": [1], "file-size": "many"}), RefusalReason.NO_SIZE),
        (nested(bytes=10**300), RefusalReason.NO_SIZE),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(document, reason):
    events, refusals = decode([document, nested()], now=NOW)
    assert [refusal.reason for refusal in refusals] == [reason]
    assert refusals[0].detail
    assert 0 < len(refusals[0].document) <= 2000
    assert len(events) == 1


def test_an_hour_ahead_is_a_clock_that_is_off():
    assert reasons([nested(transferred_at="2017-06-18 12:59:59", created="2017-06-18 13:00:00")]) == []


def test_a_refused_document_is_kept_short_and_printable():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    _, refusals = decode(["\ud800\x00" * 5000, {"event_type": "x", "payload": {"deep": deep}}], now=NOW)
    for refusal in refusals:
        assert len(refusal.document) <= 2000
        refusal.document.encode("utf-8")
        assert "\x00" not in refusal.document


def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        decode([nested()], now=datetime(2017, 6, 18))  # noqa: DTZ001 - that is what is tested


def test_tables_are_read_as_documents_are():
    documents = [nested(), nested("transfer-failed", reason="x", **{"request-id": "2"}), nested(bytes=-5)]
    events, refusals = decode(documents, now=NOW)
    for table in (
        pd.DataFrame([flat(**document["payload"]) | {"event_type": document["event_type"]} for document in documents]),
        pd.DataFrame([dotted(document) for document in documents]),
        pd.DataFrame([dotted(document) for document in documents], index=[9, 9, 4]).astype("str"),
    ):
        from_table, refused = decode_table(table, now=NOW)
        pd.testing.assert_frame_equal(
            from_table.drop(columns="previous_request_id"), events.drop(columns="previous_request_id")
        )
        assert [refusal.reason for refusal in refused] == [refusal.reason for refusal in refusals]


def test_tables_may_hold_typed_columns():
    table = pd.DataFrame(
        {
            "request_id": pd.Series(["a", "b"], dtype="category"),
            "source": ["A", "A"],
            "destination": ["B", "B"],
            "type": ["transfer-done", "transfer-done"],
            "bytes": pd.array([5, None], dtype="Int64"),
            "started_at": pd.to_datetime(["2017-06-18 00:00:00", "2017-06-18 00:00:00"]).as_unit("ms"),
            "ended_at": pd.to_datetime(["2017-06-18 00:00:10Z", None]).as_unit("ns"),
            "submitted_at": [True, False],
        }
    )
    events, refusals = decode_table(table, now=NOW)
    assert events["duration"].tolist() == [10.0]
    assert [refusal.reason for refusal in refusals] == [RefusalReason.BAD_TIME]


def test_what_was_written_as_events_is_read_as_such():
    events, _ = decode([nested(), nested("transfer-failed", started_at=None), nested("transfer-queued")], now=NOW)
    again, refusals = decode_table(events, now=NOW)
    assert not refusals
    pd.testing.assert_frame_equal(again, events)


def test_the_key_of_an_event_does_not_depend_on_its_document():
    events, _ = decode([nested(), flat(), monit(), nested(created="2017-06-18 00:50:00")], now=NOW)
    keys = event_keys(events)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 1
    assert keys[0] == np.uint64(GOLDEN_KEY), "keys are kept in ledgers: they may not change between versions"


def test_other_events_have_other_keys():
    deletion = {"scope": "s", "name": "n", "rse": "A_DATADISK"}
    documents = [
        nested(),
        nested(**{"request-id": "2"}),
        nested("transfer-failed"),
        {"event_type": "deletion-done", "created_at": "2017-06-08 09:45:44", "payload": deletion},
        {"event_type": "deletion-done", "created_at": "2017-06-08 09:45:45", "payload": deletion},
        {"event_type": "deletion-done", "created_at": "2017-06-08 09:45:44", "payload": deletion | {"name": "m"}},
        {
            "event_type": "deletion-done",
            "created_at": "2017-06-08 09:45:44",
            "payload": deletion | {"rse": "B_DATADISK"},
        },
        {"event_type": "deletion-failed", "created_at": "2017-06-08 09:45:44", "payload": deletion},
    ]
    events, _ = decode(documents, now=NOW)
    assert len(set(event_keys(events).tolist())) == len(documents)
    again, _ = decode(documents[::-1], now=NOW)
    assert event_keys(again).tolist() == event_keys(events).tolist()[::-1]
    assert len(event_keys(empty_events())) == 0


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -1, 1497746773, ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*BODY, "event_type", "rse", "payload", "data", "metadata", "@timestamp", "payload.name"])


def check_account(documents):
    events, refusals = decode(documents, now=NOW)
    assert len(events) + len(refusals) == len(documents)
    assert tuple(events.columns) == EVENT_COLUMNS
    assert {str(events[name].dtype) for name in TEXT_COLUMNS} == {"str"}
    assert {str(events[name].dtype) for name in NUMBER_COLUMNS} == {"float64"}
    assert {refusal.reason for refusal in refusals} <= set(RefusalReason)
    assert events["created_at"].notna().all()
    finished = events[events["type"].isin(FINISHED)]
    assert (finished["duration"] >= 0).all()
    assert (finished["bytes"] >= 0).all()
    assert (finished[["source", "destination", "request_id"]] != "").all(axis=None)
    assert len(event_keys(events)) == len(events)
    json.dumps([refusal.document for refusal in refusals]).encode()
    pa.Table.from_pandas(events).validate(full=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(ANYTHING, max_size=5))
def test_anything_that_json_can_hold_is_accounted_for(documents):
    check_account(documents)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([nested(), flat(), monit()]), st.dictionaries(FIELDS, ANYTHING, max_size=4)),
        max_size=4,
    )
)
def test_good_documents_with_anything_in_their_fields_are_accounted_for(changed):
    documents = []
    for good, changes in changed:
        document = copy.deepcopy(good)
        for field, value in changes.items():
            body = document.get("payload") if isinstance(document.get("payload"), dict) else document.get("data")
            target = body if isinstance(body, dict) and field in BODY else document
            target[field] = value
        documents.append(document)
    check_account(documents)


@pytest.mark.realdata
def test_every_real_transfer_is_used(real_data):
    table = pd.read_csv(real_data / "rucio_transfer_done_2017-06-18.csv", dtype=str)
    events, refusals = decode_table(table, now=NOW)
    assert (len(events), refusals) == (1200, [])
    assert events["duration"].tolist() == table["duration"].astype(float).tolist()
    assert (events["duration"] == 0).any()
    assert len(set(event_keys(events).tolist())) == 1200


@pytest.mark.realdata
def test_every_real_message_is_accounted_for(real_data):
    lines = (real_data / "rucio_events_2017-06-08.jsonl").read_text().splitlines()
    events, refusals = decode([json.loads(line) for line in lines], now=NOW)
    assert len(lines) == 155
    assert (len(events), [refusal.reason for refusal in refusals]) == (152, [RefusalReason.UNKNOWN_TYPE] * 3)
    failed = events[events["type"] == "transfer-failed"]
    assert failed["reason"].str.contains("Communication error on send").all()
    assert len(set(event_keys(events).tolist())) == 152
