"""Transfer and deletion events: one columnar form for every spelling that is found in the wild.

A batch of events is a pandas DataFrame with exactly the columns of `EVENT_COLUMNS`. Strings are of dtype `str`, "" where
absent; times are float64 seconds since 1970-01-01 UTC, NaN where absent.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.columns import Column, clean_text, numbers, seconds, texts
from models.domain import aware

TEXT_COLUMNS = (
    "type",  # lower case with a hyphen, stage-ins as `stagein-done`
    "request_id",
    "previous_request_id",
    "source",  # RSE names
    "destination",  # for a deletion the RSE that is deleted from
    "activity",
    "protocol",
    "source_type",  # DISK or TAPE
    "destination_type",
    "fts",  # host of the transfer endpoint
    "scope",
    "name",
    "rule_id",  # only queued and waiting events carry it
    "reason",
)
NUMBER_COLUMNS = (
    "bytes",
    "created_at",  # of the document: when its producer wrote it
    "queued_at",
    "submitted_at",
    "started_at",
    "ended_at",  # `transferred_at`; for a deletion the time of its document
    "duration",  # seconds, ended_at - started_at; for a deletion what it says itself
)
EVENT_COLUMNS: tuple[str, ...] = TEXT_COLUMNS + NUMBER_COLUMNS

FINISHED = ("transfer-done", "stagein-done")
FAILED = ("transfer-failed", "stagein-failed")
SUBMITTED = ("transfer-submitted", "stagein-submitted")
GIVEN_UP = ("transfer-submission_failed", "stagein-submission_failed", "transfer-lost", "stagein-lost")
PLANNED_DELETION, FAILED_DELETION = "deletion-planned", "deletion-failed"
ENDED_DELETIONS = ("deletion-done", FAILED_DELETION, "deletion-not-found")
DELETIONS = (PLANNED_DELETION, *ENDED_DELETIONS)
_STEPS = ("queued", "waiting", "preparing", "submitted", "submission_failed", "done", "failed", "lost")
EVENT_TYPES = frozenset(
    (*DELETIONS, *(f"{kind}-{step}" for kind, step in itertools.product(("transfer", "stagein"), _STEPS)))
)

LONGEST_REASON = 2000  # characters
LONGEST_NAME = 500
LARGEST_FILE = 1e15  # bytes; beyond it a size is an error of its producer
AHEAD = timedelta(hours=1)  # a clock may be off by so much before its events are from the future


class RefusalReason(enum.StrEnum):
    """Why a document could not be used. Closed: refusals are counted under these words."""

    BROKEN_LINE = "broken-line"  # of a file: not JSON, or not as many fields as the header
    NOT_AN_OBJECT = "not-an-object"
    UNKNOWN_TYPE = "unknown-type"  # no event of a transfer or deletion
    NO_REQUEST_ID = "no-request-id"
    NO_LINK = "no-link"  # source or destination is missing
    NO_SITE = "no-site"  # an announced downtime of nothing that is named
    BAD_NAME = "bad-name"  # an RSE or site that cannot be one
    BAD_TIME = "bad-time"
    ENDS_BEFORE_START = "ends-before-start"
    FROM_THE_FUTURE = "from-the-future"
    NO_SIZE = "no-size"
    NEGATIVE_SIZE = "negative-size"
    NO_VALUE = "no-value"  # a measurement of nothing that is known, or out of its range


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A document that could not be used, and why. `document` is its text, cut to 2,000 characters."""

    reason: str
    detail: str
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one poll of a source brought. `cursor` is JSON; the ledger keeps it in the transaction that uses `rows`."""

    rows: pd.DataFrame
    refusals: tuple[Refusal, ...] = ()
    cursor: Mapping[str, object] = field(default_factory=dict)
    caught_up: bool = True  # False: there is more to be had at once
    read: int = 0  # documents read, refused ones included


# Our column: the names under which it is found, the best first. Hyphens as Rucio writes them, underscores as MONIT does,
# then our own name, so that what was written as events can be read as such.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "type": ("event_type", "event-type", "type"),
    "request_id": ("request-id", "request_id"),
    "previous_request_id": ("previous-request-id", "previous_request_id"),
    "source": ("src-rse", "src_rse", "source"),
    "destination": ("dst-rse", "dst_rse", "rse", "destination"),
    "activity": ("activity",),
    "protocol": ("protocol",),
    "source_type": ("src-type", "src_type", "source_type"),
    "destination_type": ("dst-type", "dst_type", "destination_type"),
    "fts": ("transfer-endpoint", "transfer_endpoint", "external-host", "external_host", "fts"),
    "scope": ("scope",),
    "name": ("name",),
    "rule_id": ("rule-id", "rule_id"),
    "reason": ("reason",),
    "bytes": ("bytes", "file-size", "file_size"),
    "created_at": ("created_at", "metadata.timestamp", "@timestamp"),
    "queued_at": ("queued_at", "queued-at", "tf_queued_at"),
    "submitted_at": ("submitted_at", "submitted-at", "tf_submitted_at"),
    "started_at": ("started_at", "started-at", "tf_started_at"),
    "ended_at": ("transferred_at", "transferred-at", "tf_transferred_at", "ended_at"),
    "duration": ("duration",),
}
KNOWN_FIELDS = frozenset(itertools.chain.from_iterable(ALIASES.values()))
_BODY_FIELDS = KNOWN_FIELDS.difference(ALIASES["created_at"])


def decode(documents: Sequence[object], *, now: datetime) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read documents as they lie in Elasticsearch: nested under `payload`, flat, or nested under `data` (MONIT).

    Returns the events in the order of their documents, and a refusal for every other document. Anything that JSON can
    hold may come in; nothing is raised for it. A document without a type is a finished transfer if it says when it was
    transferred, a failed one if it also gives a reason (so are the tables of `rucio_transfer*`).
    """
    good = [document for document in documents if isinstance(document, dict)]
    refusals = [
        refusal(RefusalReason.NOT_AN_OBJECT, f"it is of type {type(document).__name__}", document)
        for document in documents
        if not isinstance(document, dict)
    ]
    bodies = [_body(document) for document in good]
    present = _BODY_FIELDS.intersection(set().union(*bodies))
    columns: dict[str, Column] = {name: [body.get(name) for body in bodies] for name in present}
    if "event_type" in present:  # the envelope's own word goes first
        columns["event-type"] = columns["event_type"]
    columns["event_type"] = [_said_type(document) for document in good]
    columns["created_at"] = [document.get("created_at") for document in good]
    columns["@timestamp"] = [document.get("@timestamp") for document in good]
    columns["metadata.timestamp"] = [_metadata_timestamp(document) for document in good]
    events, refused = _assemble(columns, len(good), now=now, document=good.__getitem__)
    return events, refusals + refused


def decode_table(table: pd.DataFrame, *, now: datetime) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read a table whose columns are named as the fields of flat documents, with `payload.` or `data.` before, or as ours.

    Times may be text, epoch seconds, epoch milliseconds or datetimes. Returns what `decode` returns.
    """
    columns: dict[str, Column] = {}
    for position, name in enumerate(table.columns):
        plain = str(name).removeprefix("payload.").removeprefix("data.")
        if plain == "created_at" and plain != name:
            continue  # of the request, not of the document
        if plain in KNOWN_FIELDS:
            columns.setdefault(plain, table.iloc[:, position])
    return _assemble(columns, len(table), now=now, document=lambda row: table.iloc[row].to_dict())


def event_keys(events: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Durable keys, uint64 [n]: the same event found in another document, in another spelling, has the same key.

    A transfer's event is told by its type and request id; a deletion's, which has no id, by type, file, RSE and time.
    """
    kinds = events["type"].to_numpy(dtype=object)
    told_by = np.array(events["request_id"], dtype=object)
    gone = np.flatnonzero(are_among(kinds, DELETIONS))
    if len(gone):
        scope, name, rse = (events[column].to_numpy(dtype=object)[gone] for column in ("scope", "name", "destination"))
        written = np.round(events["created_at"].to_numpy(dtype=np.float64)[gone])
        stamp = np.where(np.isnan(written), 0, written).astype(np.int64).astype(str).astype(object)
        told_by[gone] = scope + "\x1f" + name + "\x1f" + rse + "\x1f" + stamp
    return pd.util.hash_array(kinds + "\x1f" + told_by, categorize=False)


def are_among(words: npt.NDArray[np.object_], some: Container[str]) -> npt.NDArray[np.bool_]:
    """Which of `words` (shape (n,), text) are among `some`."""
    return np.fromiter((word in some for word in words), dtype=np.bool_, count=len(words))


def empty_events() -> pd.DataFrame:
    """No events, in the form of a batch."""
    return _frame({name: pd.Series([], dtype="str") for name in TEXT_COLUMNS}, {})


def refusal(reason: RefusalReason, detail: str, document: object) -> Refusal:
    """Refuse `document`, which may be anything, with a text of it that is short and printable."""
    if isinstance(document, str):
        text = document
    else:
        try:
            text = json.dumps(document, ensure_ascii=False, default=str)
        except (ValueError, TypeError, RecursionError):
            text = f"<{type(document).__name__} that cannot be shown>"
    return Refusal(reason=reason, detail=clean_text(detail), document=clean_text(text[:LONGEST_REASON]))


def _body(document: dict[str, Any]) -> dict[str, Any]:
    for wrapper in ("payload", "data"):
        body = document.get(wrapper)
        if isinstance(body, dict):
            return body
    if any(isinstance(name, str) and name.startswith(("payload.", "data.")) for name in document):
        return {str(name).removeprefix("payload.").removeprefix("data."): value for name, value in document.items()}
    return document


def _said_type(document: dict[str, Any]) -> str | None:
    """What the envelope says, or that it says something which is no word: only a document that says nothing is untyped."""
    said = document.get("event_type")
    return said if said is None or isinstance(said, str) else f"<{type(said).__name__}>"


def _metadata_timestamp(document: dict[str, Any]) -> object:
    metadata = document.get("metadata")
    return metadata.get("timestamp") if isinstance(metadata, dict) else document.get("metadata.timestamp")


def _assemble(
    columns: Mapping[str, Column], rows: int, *, now: datetime, document: Callable[[int], object]
) -> tuple[pd.DataFrame, list[Refusal]]:
    found: dict[str, pd.Series[str]] = {}
    for name in TEXT_COLUMNS:
        found[name] = texts(columns, ALIASES[name], rows, longest=LONGEST_REASON if name == "reason" else LONGEST_NAME)
    counted = {name: numbers(columns, ALIASES[name], rows) for name in ("bytes", "duration")}
    counted |= {name: seconds(columns, ALIASES[name], rows) for name in NUMBER_COLUMNS if name.endswith("_at")}
    events = _tidy(_frame(found, counted))
    faults = _faults(events, now=aware(now))
    refused = np.select([fault for _, _, fault in faults], list(range(len(faults))), default=-1)
    at_fault = np.flatnonzero(refused >= 0)
    shown = events.loc[at_fault, ["type", "source", "destination", "duration", "bytes"]].to_dict("records")
    refusals = [
        refusal(faults[which][0], faults[which][1].format_map(row), document(int(place)))
        for place, which, row in zip(at_fault, refused[at_fault], shown, strict=True)
    ]
    return events[refused < 0].reset_index(drop=True), refusals


def _tidy(events: pd.DataFrame) -> pd.DataFrame:
    """Make one word of each spelling, and fill in what follows from other columns."""
    untyped = (events["type"] == "") & events["ended_at"].notna() & (events["request_id"] != "")
    said = events["type"].where(~untyped, "transfer-done")
    events["type"] = said.where(~untyped | (events["reason"] == ""), "transfer-failed").str.lower()
    events["fts"] = events["fts"].str.replace(r"^\w+://", "", regex=True).str.replace(r"[:/].*$", "", regex=True)
    deletion = events["type"].isin(DELETIONS)
    written = events["created_at"].fillna(events["ended_at"]).fillna(events["queued_at"])
    events["created_at"] = written.fillna(events["submitted_at"])
    events["ended_at"] = events["ended_at"].where(~deletion, events["created_at"])
    # A transfer cannot start before it was submitted: then one of the two clocks is off, and the queue delay unknown.
    events["submitted_at"] = events["submitted_at"].where(~(events["submitted_at"] > events["started_at"]))
    own = events["duration"].where(events["duration"] >= 0)
    events["duration"] = (events["ended_at"] - events["started_at"]).where(~deletion, own)
    return events


def _faults(events: pd.DataFrame, *, now: datetime) -> list[tuple[RefusalReason, str, npt.NDArray[np.bool_]]]:
    """What is wrong with each row: (reason, detail as a format of the row's columns, mask), the first that holds counts."""
    kind, horizon = events["type"], (now + AHEAD).timestamp()
    deletion, finished = kind.isin(DELETIONS), kind.isin(FINISHED)
    ended = finished | kind.isin(FAILED)
    moments = events[["created_at", "queued_at", "submitted_at", "started_at", "ended_at"]]
    names = events["source"] + ">" + events["destination"]
    faults = [
        (RefusalReason.UNKNOWN_TYPE, "type {type!r} is no event of a transfer or deletion", ~kind.isin(EVENT_TYPES)),
        (RefusalReason.NO_REQUEST_ID, "{type} without a request id", ~deletion & (events["request_id"] == "")),
        (RefusalReason.NO_REQUEST_ID, "{type} without a file name", deletion & (events["name"] == "")),
        (RefusalReason.NO_LINK, "{type} without a destination", events["destination"] == ""),
        (RefusalReason.NO_LINK, "{type} without a source", ended & (events["source"] == "")),
        (
            RefusalReason.BAD_NAME,
            "{source!r} or {destination!r} is no RSE",
            ~names.str.fullmatch(r"[\w.@+-]*>[\w.@+-]+"),
        ),
        (RefusalReason.BAD_TIME, "{type} without a time", events["created_at"].isna()),
        (RefusalReason.BAD_TIME, "{type} without a time of its end", ended & events["ended_at"].isna()),
        (RefusalReason.BAD_TIME, "{type} without a time of its start", finished & events["started_at"].isna()),
        (
            RefusalReason.FROM_THE_FUTURE,
            f"{{type}} is dated more than {AHEAD} after {now:%Y-%m-%d %H:%M:%S}",
            (moments > horizon).any(axis=1),
        ),
        (
            RefusalReason.ENDS_BEFORE_START,
            "it ends {duration:.0f} s after its start",
            ended & (events["ended_at"] < events["started_at"]),
        ),
        (RefusalReason.NEGATIVE_SIZE, "{bytes:.0f} bytes", events["bytes"] < 0),
        (
            RefusalReason.NO_SIZE,
            "{bytes} bytes",
            (finished & events["bytes"].isna()) | (events["bytes"] > LARGEST_FILE),
        ),
    ]
    return [(reason, detail, fault.to_numpy(dtype=bool)) for reason, detail, fault in faults]


def _frame(text: Mapping[str, pd.Series[str]], number: Mapping[str, npt.NDArray[np.float64]]) -> pd.DataFrame:
    frame = pd.DataFrame({name: text[name] for name in TEXT_COLUMNS})
    for name in NUMBER_COLUMNS:
        frame[name] = np.asarray(number.get(name, []), dtype=np.float64)
    return frame
