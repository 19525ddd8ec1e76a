"""Columns of text, written for many rows at once. What comes out is Arrow's, for it goes to JSON lines and to data frames alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.draws import Words

Texts: TypeAlias = Any  # pyarrow.StringArray; pyarrow has no types
Places = npt.NDArray[np.integer]

_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_UUID = np.array([place for place in range(36) if place not in {8, 13, 18, 23}])
_FIELD = re.compile(r"<(\w+)>")


class Template:
    """Lines of one form. `<name>` in its text stands for a field, everything else for itself."""

    def __init__(self, text: str) -> None:
        self._parts = _FIELD.split(text)  # constant, name, constant, name, …

    def filled(self, fields: object) -> Texts:
        """A line for each row of the fields: attributes of that name, which are text, quoted where it has to be."""
        parts = [pa.scalar(part) for part in self._parts]
        parts[1::2] = [getattr(fields, name) for name in self._parts[1::2]]
        return pc.binary_join_element_wise(*parts, "")


def joined(*parts: Texts | str) -> Texts:
    """The parts of each row, one after the other; a `str` is the same in all of them."""
    return pc.binary_join_element_wise(*(pa.scalar(part) if isinstance(part, str) else part for part in parts), "")


def table(names: Iterable[str]) -> Texts:
    """Names to choose from."""
    return pa.array(names, pa.string())


def chosen(names: Texts, places: Places) -> Texts:
    """The name at each row's place."""
    return names.take(pa.array(places))


def spread(texts: Texts, where: npt.NDArray[np.bool_], *, blank: str = "") -> Texts:
    """Put texts into the rows that are true, one after the other, and `blank` into the others."""
    places = np.full(len(where), len(texts))
    places[where] = np.arange(len(texts))
    return pa.concat_arrays([texts, pa.array([blank])]).take(pa.array(places))


def together(texts: Texts) -> bytes:
    """All rows, one behind the other."""
    _, offsets, characters = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset :]
    return bytes(memoryview(characters)[ends[0] : ends[len(texts)]])


def whole(numbers: npt.NDArray[np.integer], digits: int = 1) -> Texts:
    """Whole numbers, with zeros before them up to so many digits."""
    texts = pa.array(numbers).cast(pa.string())
    return pc.utf8_lpad(texts, digits, "0") if digits > 1 else texts


def floats(numbers: npt.NDArray[np.float64]) -> Texts:
    """The shortest text that is read as the same number; `null` for NaN."""
    return pc.fill_null(pa.array(numbers, from_pandas=True).cast(pa.string()), "null")


def moments(since_1970: npt.NDArray[np.int64], *, fractions: bool = False) -> Texts:
    """Times as Rucio writes them: of seconds, or of microseconds with their fractions."""
    return pa.array(since_1970.astype("datetime64[us]" if fractions else "datetime64[s]")).cast(pa.string())


def hexadecimal(words: Words, digits: int) -> Texts:
    """The last digits of each word."""
    bits = np.arange(4 * (digits - 1), -1, -4, dtype=np.uint64)
    return _fixed(_HEX[(words[:, None] >> bits) & np.uint64(15)])


def uuids(first: Words, second: Words) -> Texts:
    """Ids in the form of FTS's (version 5)."""
    rows = len(first)
    raw = np.stack([first, second], axis=1).astype(">u8").view(np.uint8).reshape(rows, 16)
    digits = np.full((rows, 36), ord("-"), dtype=np.uint8)
    digits[:, _UUID[0::2]], digits[:, _UUID[1::2]] = _HEX[raw >> 4], _HEX[raw & 15]
    digits[:, 14] = ord("5")
    digits[:, 19] = _HEX[8 + (raw[:, 8] & 3)]
    return _fixed(digits)


def _fixed(digits: npt.NDArray[np.uint8]) -> Texts:
    """A text for each row of characters."""
    rows, width = digits.shape
    offsets = np.arange(0, width * rows + 1, max(width, 1), dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits)))
