"""What Rucio tells, one row for each message, before it is written as a document; and the ids in it.

Ids are reversible: a request's holds its file's number and which attempt it is, a rule's its number.
"""

from __future__ import annotations

import enum
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.domain import GridError
from simulator.draws import Draws, For, Words

MOST_FILES = 1024  # a file's number is its rule's times this, and its place in the rule
MOST_TRIES = 256  # requests that are ever made for one file


class What(enum.IntEnum):
    """The message."""

    QUEUED = 0
    WAITING = 1  # no source or destination that may be used
    SUBMITTED = 2
    DONE = 3
    FAILED = 4
    PLANNED = 5  # from here on: a deletion
    DELETED = 6
    NOT_DELETED = 7
    NOT_FOUND = 8


RECORD = np.dtype(
    [
        ("what", "u1"),
        ("stagein", "u1"),
        ("code", "u1"),  # of simulator.errors.Code
        ("activity", "u1"),
        ("tries", "u1"),  # which request of this file, from 0
        ("retry", "u1"),  # how many in a row failed before it
        ("source", "i2"),  # of the topology's RSEs; -1 where there is none
        ("destination", "i2"),  # for a deletion the RSE that is deleted from
        ("fault", "i2"),  # truth: number of the fault that made it fail, else -1
        ("file", "i8"),  # for a deletion its number
        ("bytes", "i8"),
        ("at", "f8"),  # seconds after the world's start: when Rucio knows
        ("created", "f8"),  # of the request
        ("submitted", "f8"),  # NaN where it has not been
        ("started", "f8"),
        ("ended", "f8"),  # for a deletion how long it took
    ],
    align=True,
)
Records = npt.NDArray[np.void]

_ID = re.compile("[0-9a-f]{32}")
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def request_words(draws: Draws, file: npt.NDArray[np.int64], tries: npt.NDArray[np.integer]) -> tuple[Words, Words]:
    """The two halves of requests' ids: one well mixed, one to be read back."""
    key = np.uint64(draws.bits(For.REQUEST, 1))
    return draws.words(For.REQUEST, 0, file, tries), (
        file.astype(np.uint64) * np.uint64(MOST_TRIES) + tries.astype(np.uint64)
    ) ^ key


def request_ids(draws: Draws, file: npt.NDArray[np.int64], tries: npt.NDArray[np.integer]) -> pa.StringArray:
    return hexadecimal(*request_words(draws, file, tries))


def rule_ids(draws: Draws, rule: npt.NDArray[np.int64]) -> pa.StringArray:
    return hexadecimal(draws.words(For.RULE, 0, rule), rule.astype(np.uint64) ^ np.uint64(draws.bits(For.RULE, 1)))


def parse_request_id(draws: Draws, request_id: str) -> tuple[int, int]:
    """File and attempt; raise GridError for what is no request's id."""
    number = _second_half(request_id, "request") ^ draws.bits(For.REQUEST, 1)
    file, tries = divmod(number, MOST_TRIES)
    return file, tries


def parse_rule_id(draws: Draws, rule_id: str) -> int:
    """The rule's number; raise GridError for what is no rule's id."""
    return _second_half(rule_id, "rule") ^ draws.bits(For.RULE, 1)


def hexadecimal(first: Words, second: Words) -> pa.StringArray:
    """32 digits for each row."""
    rows = len(first)
    raw = np.stack([first, second], axis=1).astype(">u8").view(np.uint8).reshape(rows, 16)
    digits = np.empty((rows, 32), dtype=np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _HEX[raw >> 4], _HEX[raw & 15]
    offsets = np.arange(0, 32 * rows + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digits))


def _second_half(text: str, what: str) -> int:
    if not _ID.fullmatch(text):
        raise GridError(f"there is no {what} {text!r}")
    return int(text[16:], 16)
