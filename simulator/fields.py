"""What stands in Rucio's messages, field by field, as columns over many records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.domain import GridError
from models.events import LONGEST_REASON, NUMBER_COLUMNS
from simulator.activities import ACTIVITIES
from simulator.draws import FloatArray, For
from simulator.origin import Origin
from simulator.records import MOST_FILES, Records, What, request_ids, rule_ids
from simulator.texts import Texts, chosen, floats, hexadecimal, joined, moments, spread, table, uuids, whole

_SECOND = 1_000_000  # microseconds
_RETRIES = table(("null", *map(str, range(1, 256))))
_DATASET = 64  # deletions that are of one dataset
_FOLDERS = table(f"/{number // 241:02x}/{number % 241:02x}/" for number in range(251 * 241))
_NAME = re.compile(r"[^:\s]+:[^:\s]+\.(\d{8,})\._(\d{6})\.pool\.root\.1")

_STEPS = ("queued", "waiting", "submitted", "done", "failed")
TYPES = (
    *(f"transfer-{step}" for step in _STEPS),
    *(f"stagein-{step}" for step in _STEPS),
    *("deletion-planned", "deletion-done", "deletion-failed", "deletion-not-found"),
)
_TYPES = table(TYPES)
_REQUEST_TYPES = table(("transfer", "stagein"))
_STATES = table(("QUEUED", "WAITING"))
_ACTIVITIES = table(one.name for one in ACTIVITIES)
_SCOPES = table(one.scope for one in ACTIVITIES)
_SCOPE_FOLDERS = table(one.scope.replace(".", "/") for one in ACTIVITIES)
_DATATYPES = table(one.datatype for one in ACTIVITIES)
_REQUESTED = (What.QUEUED, What.WAITING, What.SUBMITTED)
_ENDED = (What.DONE, What.FAILED)
_DELETIONS = (What.PLANNED, What.DELETED, What.NOT_DELETED, What.NOT_FOUND)
# Which messages say what a batch of events has a column for; where all do, the column is not named here.
_SAID: Mapping[str, tuple[What, ...]] = {
    "request_id": (*_REQUESTED, *_ENDED),
    "previous_request_id": _ENDED,
    "source": (What.SUBMITTED, *_ENDED),
    "activity": (*_REQUESTED, *_ENDED),
    "protocol": (*_ENDED, *_DELETIONS),
    "source_type": _ENDED,
    "destination_type": _ENDED,
    "fts": (What.SUBMITTED, *_ENDED),
    "rule_id": (What.QUEUED, What.WAITING),
    "reason": (What.FAILED, What.NOT_DELETED, What.NOT_FOUND),
    "queued_at": _REQUESTED,
    "submitted_at": _ENDED,
    "started_at": _ENDED,
    "ended_at": (*_ENDED, *_DELETIONS),
    "duration": (*_ENDED, What.DELETED),
}


def file_of(did: str) -> int:
    """The number of the transferred file that is called `scope:name`; raise GridError if none can be."""
    found = _NAME.fullmatch(did)
    if found is None or int(found[2]) >= MOST_FILES:
        raise GridError(f"there is no file {did!r}; a file is named as scope:name")
    return int(found[1]) * MOST_FILES + int(found[2])


def names_of(file: npt.NDArray[np.int64], activity: npt.NDArray[np.integer]) -> Texts:
    """What transferred files are called, without their scope."""
    return _names(file // MOST_FILES, file % MOST_FILES, activity)


def datasets_of(dataset: npt.NDArray[np.int64], activity: npt.NDArray[np.integer]) -> Texts:
    """What datasets are called, by their numbers (of rules, for transfers), without their scope."""
    return joined(scopes_of(activity), ".", whole(dataset, 8), ".", chosen(_DATATYPES, activity))


def scopes_of(activity: npt.NDArray[np.integer]) -> Texts:
    """The scopes of what the activities move."""
    return chosen(_SCOPES, activity)


def types_of(records: Records) -> npt.NDArray[np.int64]:
    """The places of the messages' types in TYPES."""
    what, steps = records["what"].astype(np.int64), len(_STEPS)
    return np.where(what < steps, what + steps * records["stagein"], what + steps)


class Fields:
    """The messages of some records, column by column. Each cached property is a field as text, fit for JSON."""

    def __init__(self, origin: Origin, records: Records) -> None:
        self._origin = origin
        self._records = records
        self._activity = records["activity"]
        self._destination = records["destination"]
        self._saying: dict[tuple[What, ...], tuple[npt.NDArray[np.bool_], Fields]] = {}

    def column(self, name: str) -> Texts | FloatArray:
        """A column of a batch of events: text, "" where the message does not say it; or float64, NaN likewise."""
        said, those = self._that_say(_SAID.get(name, tuple(What)))
        if name in NUMBER_COLUMNS:
            return np.where(said, self._number(name), np.nan)
        if name == "previous_request_id":
            again = said & (self._records["retry"] > 0)
            return spread(self._request_ids(again, 1), again)
        return getattr(self, name) if those is self else spread(getattr(those, name), said)

    def _that_say(self, whats: tuple[What, ...]) -> tuple[npt.NDArray[np.bool_], Fields]:
        """Which messages are of these, and their fields. Several columns are said by the same ones."""
        if whats not in self._saying:
            said = np.isin(self._records["what"], whats)
            self._saying[whats] = said, self if said.all() else Fields(self._origin, self._records[said])
        return self._saying[whats]

    def _number(self, name: str) -> FloatArray:
        records = self._records
        if name == "bytes":
            return records["bytes"].astype(np.float64)
        if name == "created_at":
            return self._written.astype(np.float64)
        if name == "queued_at":
            return self._origin.microseconds(records["created"]) / 1e6
        if name == "duration":
            whole_s = self._seconds("ended") - self._seconds("started")
            return np.where(records["what"] == What.DELETED, self._took, whole_s)
        if name == "ended_at":
            return np.where(np.isin(records["what"], _ENDED), self._seconds("ended"), self._written)
        return self._seconds(name.removesuffix("_at"))

    @cached_property
    def type(self) -> Texts:
        return chosen(_TYPES, types_of(self._records))

    @cached_property
    def request_type(self) -> Texts:
        return chosen(_REQUEST_TYPES, self._records["stagein"])

    @cached_property
    def state(self) -> Texts:
        return chosen(_STATES, self._records["what"])

    @cached_property
    def request_id(self) -> Texts:
        return self._request_ids(np.ones(len(self._records), dtype=np.bool_), 0)

    @cached_property
    def previous(self) -> Texts:
        again = self._records["retry"] > 0
        return spread(joined('"', self._request_ids(again, 1), '"'), again, blank="null")

    @cached_property
    def retries(self) -> Texts:
        return chosen(_RETRIES, self._records["retry"])

    @cached_property
    def rule_id(self) -> Texts:
        return rule_ids(self._origin.draws, self._records["file"] // MOST_FILES)

    @cached_property
    def job(self) -> Texts:
        draws, file, tries = self._origin.draws, self._records["file"], self._records["tries"]
        return uuids(draws.words(For.REQUEST, 2, file, tries), draws.words(For.REQUEST, 3, file, tries))

    @cached_property
    def scope(self) -> Texts:
        return scopes_of(self._activity)

    @cached_property
    def name(self) -> Texts:
        return _names(*self._in_dataset, self._activity)

    @cached_property
    def dataset(self) -> Texts:
        return datasets_of(self._in_dataset[0], self._activity)

    @cached_property
    def datatype(self) -> Texts:
        return chosen(_DATATYPES, self._activity)

    @cached_property
    def activity(self) -> Texts:
        return chosen(_ACTIVITIES, self._activity)

    @cached_property
    def checksum(self) -> Texts:
        return hexadecimal(self._origin.draws.words(For.FILE, self._records["file"], 3), 8)

    @cached_property
    def bytes(self) -> Texts:
        return whole(self._records["bytes"])

    @cached_property
    def source(self) -> Texts:
        return chosen(self._origin.rses, self._records["source"])

    @cached_property
    def destination(self) -> Texts:
        return chosen(self._origin.rses, self._destination)

    @cached_property
    def source_id(self) -> Texts:
        return chosen(self._origin.ids, self._records["source"])

    @cached_property
    def destination_id(self) -> Texts:
        return chosen(self._origin.ids, self._destination)

    @cached_property
    def source_type(self) -> Texts:
        return chosen(self._origin.kinds, self._records["source"])

    @cached_property
    def destination_type(self) -> Texts:
        return chosen(self._origin.kinds, self._destination)

    @cached_property
    def source_url(self) -> Texts:
        return self._url(self._records["source"])

    @cached_property
    def destination_url(self) -> Texts:
        return self._url(self._destination)

    @cached_property
    def protocol(self) -> Texts:
        return chosen(self._origin.protocols, self._destination)

    @cached_property
    def fts(self) -> Texts:
        return chosen(self._origin.servers, self._destination)

    @cached_property
    def reason(self) -> Texts:
        """As far as a batch of events takes it."""
        reasons, places = self._origin.reasons(self._records)
        return chosen(table(reason.strip()[:LONGEST_REASON] for reason in reasons), places)

    @cached_property
    def whole_reason(self) -> Texts:
        """With its quotation marks."""
        reasons, places = self._origin.reasons(self._records)
        return chosen(table(json.dumps(reason) for reason in reasons), places)

    @cached_property
    def took(self) -> Texts:
        return floats(self._took)

    @cached_property
    def duration(self) -> Texts:
        """In whole seconds, as Rucio counts it: modulo a day, and -1 if it is not known."""
        seconds = self._seconds("ended") - self._seconds("started")
        return whole(np.where(np.isnan(seconds), -1, seconds % 86400).astype(np.int64))

    @cached_property
    def created_at(self) -> Texts:
        return moments(self._written)

    @cached_property
    def queued_at(self) -> Texts:
        return moments(self._origin.microseconds(self._records["created"]), fractions=True)

    @cached_property
    def requested_at(self) -> Texts:
        return moments(self._origin.microseconds(self._records["created"]) // _SECOND)

    @cached_property
    def submitted_at(self) -> Texts:
        return self._moment("submitted")

    @cached_property
    def started_at(self) -> Texts:
        return self._moment("started")

    @cached_property
    def ended_at(self) -> Texts:
        return moments(self._origin.microseconds(self._records["ended"]) // _SECOND)

    @cached_property
    def _in_dataset(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the datasets, and of the files in them."""
        size = np.where(np.isin(self._records["what"], _DELETIONS), _DATASET, MOST_FILES)
        return self._records["file"] // size, self._records["file"] % size

    @cached_property
    def _written(self) -> npt.NDArray[np.int64]:
        return self._origin.microseconds(self._origin.written(self._records)) // _SECOND

    @cached_property
    def _took(self) -> FloatArray:
        """Seconds of a deletion."""
        return np.round(self._records["ended"], 6)

    def _seconds(self, name: str) -> FloatArray:
        """A time of the records in whole seconds since 1970; NaN where there is none."""
        at = self._records[name]
        return np.where(np.isnan(at), np.nan, self._origin.microseconds(at) // _SECOND)

    def _moment(self, name: str) -> Texts:
        """The same, as text with its quotation marks, or `null`."""
        at = self._records[name]
        known = ~np.isnan(at)
        return spread(joined('"', moments(self._origin.microseconds(at[known]) // _SECOND), '"'), known, blank="null")

    def _request_ids(self, which: npt.NDArray[np.bool_], before: int) -> Texts:
        """Of the requests so many before these, for the same files."""
        records = self._records[which]
        return request_ids(self._origin.draws, records["file"], records["tries"] - np.uint8(before))

    def _url(self, rse: npt.NDArray[np.integer]) -> Texts:
        folders = chosen(self._origin.folders, rse)
        scopes = chosen(_SCOPE_FOLDERS, self._activity)
        return joined(folders, scopes, chosen(_FOLDERS, self._records["file"] % len(_FOLDERS)), self.name)


def _names(dataset: npt.NDArray[np.int64], place: npt.NDArray[np.int64], activity: npt.NDArray[np.integer]) -> Texts:
    datatypes = chosen(_DATATYPES, activity)
    return joined(datatypes, ".", whole(dataset, 8), "._", whole(place, 6), ".pool.root.1")
