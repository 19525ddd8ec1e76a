"""The kinds of file that are read: `.csv` and `.jsonl`, also gzipped, and `.parquet`."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from agent.sources import Decoder
from models.domain import SourceError
from models.events import Refusal, RefusalReason, refusal

_LONGEST_LINE = 4 * 1024 * 1024  # characters; what is longer is one broken line
_LOOK_AHEAD = 20  # lines of which at least one must be what the file's name says
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_NO_VALUE = ("nan", "NaN", "None", "null", "NULL")  # how writers of tables spell an empty cell
_DAMAGED = (OSError, EOFError, zlib.error)  # what reading a file that is cut or damaged raises
_PARQUET_BATCH = 10_000  # rows in memory at once

_Record: TypeAlias = "str | list[str] | csv.Error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one read of a file gave."""

    rows: pd.DataFrame
    refusals: list[Refusal]
    taken: int  # records that were read; blank lines are none
    ended: bool


class Reader(Protocol):
    """A file that is being read."""

    path: str
    row: int  # records passed so far

    def start(self, row: int) -> None:
        """Check that the file is what its name says, and pass the first `row` records."""

    def read(self, limit: int, now: datetime) -> Batch: ...

    def close(self) -> None: ...


def is_read(name: str) -> bool:
    """Whether a file of that name is of a kind that is read."""
    return Path(name.removesuffix(".gz")).suffix in _KINDS


def header(path: Path) -> list[str]:
    """The columns of a table, without the prefixes of nested documents; none for a file of documents.

    Raise SourceError for a file that is not what its name says.
    """
    try:
        kind = _kind(str(path))
        if kind is _JsonLines:
            return []
        if kind is _Parquet:
            with _unpacked(str(path)) if path.suffix == ".gz" else path.open("rb") as file:
                columns = pq.read_schema(file).empty_table().flatten().column_names
        else:
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
                columns = next(csv.reader(file), [])
    except (*_DAMAGED, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read ({error}); check that it is there, readable and complete") from error
    return [_plain(name) for name in columns]


def open_file(path: str, row: int, decoder: Decoder) -> Reader:
    """Open `path` as what its name says, after its first `row` records; raise SourceError if it is something else."""
    try:
        reader = _kind(path)(path, decoder)
        try:
            reader.start(row)
        except BaseException:
            reader.close()
            raise
    except (*_DAMAGED, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read ({error}); check that it is there, readable and complete") from error
    return reader


def _kind(path: str) -> type[_JsonLines | _Csv | _Parquet]:
    with open(path, "rb") as raw:  # noqa: PTH123 - a str, as the cursor holds it
        start = raw.read(4)
    packed = path.endswith(".gz")
    kind = _KINDS.get(Path(path.removesuffix(".gz")).suffix)
    if kind is None:
        raise SourceError(
            f"{path}: its name does not say what it is; call it .csv, .jsonl or .parquet, and .gz if gzipped"
        )
    if packed is not start.startswith(_GZIP):
        what, cure = ("not compressed", "rename it without .gz") if packed else ("gzip", "add .gz to its name")
        raise SourceError(f"{path}: is {what}, against its name; {cure}")
    if not packed and (kind is _Parquet) is not (start == _PARQUET):
        what = "no Parquet file" if kind is _Parquet else "a Parquet file"
        raise SourceError(f"{path}: is {what}, against its name (it starts with {start!r}); give it its real suffix")
    return kind


class _Text:
    """Lines of a text file, UTF-8. Bytes that are not UTF-8 are replaced, and a line that is far too long is cut."""

    def __init__(self, path: str, decoder: Decoder) -> None:
        self.path = path
        self.row = 0
        self._decoder = decoder
        self._failure: SourceError | None = None
        self._file: IO[str]
        if path.endswith(".gz"):
            self._file = gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")  # noqa: SIM115 - as below
        else:
            self._file = open(path, encoding="utf-8-sig", errors="replace", newline="")  # noqa: PTH123, SIM115 - closed by close()

    def start(self, row: int) -> None:
        first = list(itertools.islice(self._read_lines(), _LOOK_AHEAD))
        if any("\x00" in line for line in first):
            raise SourceError(
                f"{self.path}: is a binary file, or text that is not UTF-8; give it its real suffix or convert it"
            )
        self._records = self._begin(first, itertools.chain(first, self._read_lines()))
        while self.row < row and self._take(min(row - self.row, 10_000)):
            pass

    def close(self) -> None:
        self._file.close()

    def read(self, limit: int, now: datetime) -> Batch:
        records = self._take(limit)
        numbered = enumerate(records, start=self.row - len(records) + 1)
        rows, refusals, taken = self._decoded(numbered, now)
        ended = len(records) < limit and self._failure is None
        return Batch(rows=rows, refusals=refusals, taken=taken, ended=ended)

    def _begin(self, first: Sequence[str], lines: Iterator[str]) -> Iterator[_Record]:
        """Check the first lines; return the records of all lines."""
        raise NotImplementedError

    def _decoded(
        self, records: Iterable[tuple[int, _Record]], now: datetime
    ) -> tuple[pd.DataFrame, list[Refusal], int]:
        """Rows, refusals, and how many documents there were in the numbered records."""
        raise NotImplementedError

    def _take(self, limit: int) -> list[_Record]:
        """The next records. If the file breaks off among them, those before are returned, and the next call raises."""
        taken: list[_Record] = []
        if self._failure is not None:
            raise self._failure
        try:
            while len(taken) < limit:
                try:
                    taken.append(next(self._records))
                except csv.Error as error:  # a field that does not end; the reader goes on with the next line
                    taken.append(error)
        except StopIteration:
            pass
        except _DAMAGED as error:
            after = self.row + len(taken)
            self._failure = SourceError(
                f"{self.path}: is cut or damaged after record {after} ({error}); fetch it again"
            )
            if not taken:
                raise self._failure from error
        self.row += len(taken)
        return taken

    def _read_lines(self) -> Iterator[str]:
        while line := self._file.readline(_LONGEST_LINE):
            rest = line
            while len(rest) == _LONGEST_LINE and not rest.endswith("\n"):
                rest = self._file.readline(_LONGEST_LINE)
            yield line


class _JsonLines(_Text):
    """One document a line."""

    def _begin(self, first: Sequence[str], lines: Iterator[str]) -> Iterator[_Record]:
        written = [line for line in first if line.strip()]
        if written and not any(isinstance(_parsed(line), dict) for line in written):
            raise SourceError(
                f"{self.path}: is no file of JSON lines (it starts with {written[0][:60]!r}); write one document a line, "
                "or give it its real suffix"
            )
        return lines

    def _decoded(
        self, records: Iterable[tuple[int, _Record]], now: datetime
    ) -> tuple[pd.DataFrame, list[Refusal], int]:
        documents: list[object] = []
        broken: list[Refusal] = []
        for number, line in records:
            if isinstance(line, str) and line.strip():
                document = _parsed(line)
                if isinstance(document, ValueError | RecursionError):
                    broken.append(refusal(RefusalReason.BROKEN_LINE, f"line {number} is not JSON: {document}", line))
                else:
                    documents.append(document)
        rows, refusals = self._decoder.documents(documents, now=now)
        return rows, broken + refusals, len(documents) + len(broken)


class _Csv(_Text):
    """A table with a header line."""

    _header: list[str]

    def _begin(self, first: Sequence[str], lines: Iterator[str]) -> Iterator[_Record]:  # noqa: ARG002 - the header tells
        records = csv.reader(lines)
        self._header = [name.strip() for name in next(records, [])]
        _check_columns(self.path, self._header, self._decoder)
        return records

    def _decoded(
        self, records: Iterable[tuple[int, _Record]], now: datetime
    ) -> tuple[pd.DataFrame, list[Refusal], int]:
        whole: list[list[str]] = []
        broken: list[Refusal] = []
        for number, record in records:
            if isinstance(record, list) and len(record) == len(self._header):
                whole.append(record)
            elif record:  # what is blank is no record
                why = (
                    f"{len(record)} fields, and the header {len(self._header)}"
                    if isinstance(record, list)
                    else str(record)
                )
                text = ",".join(record) if isinstance(record, list) else ""
                broken.append(refusal(RefusalReason.BROKEN_LINE, f"record {number} has {why}", text))
        cells = zip(*whole, strict=True) if whole else ([] for _ in self._header)
        table = {name: pd.Series(column, dtype="str") for name, column in zip(self._header, cells, strict=True)}
        rows, refusals = self._decoder.table(pd.DataFrame(table).replace(_NO_VALUE, ""), now=now)
        return rows, broken + refusals, len(whole) + len(broken)


class _Parquet:
    """Row groups; those before the first row wanted are not read."""

    def __init__(self, path: str, decoder: Decoder) -> None:
        self.path = path
        self.row = 0
        self._decoder = decoder
        self._unpacked = _unpacked(path) if path.endswith(".gz") else None
        try:
            self._file = pq.ParquetFile(self._unpacked or path)
        except BaseException:
            self._close_unpacked()
            raise
        self._rest: pa.Table | None = None

    def start(self, row: int) -> None:
        _check_columns(self.path, self._file.schema_arrow.empty_table().flatten().column_names, self._decoder)
        self.row = row
        self._tables = self._from_row(row)

    def close(self) -> None:
        self._file.close()
        self._close_unpacked()

    def _close_unpacked(self) -> None:
        if self._unpacked is not None:
            self._unpacked.close()

    def read(self, limit: int, now: datetime) -> Batch:
        """At most `limit` rows, and no more than lie together in memory."""
        try:
            waiting = self._rest if self._rest is not None else next(self._tables, None)
            if waiting is None:
                return Batch(rows=self._decoder.empty(), refusals=[], taken=0, ended=True)
            table = waiting.slice(0, limit).flatten().to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.path}: is damaged after row {self.row} ({error}); fetch it again") from error
        self._rest = waiting.slice(limit) if len(waiting) > limit else None
        self.row += len(table)
        rows, refusals = self._decoder.table(table, now=now)
        return Batch(rows=rows, refusals=refusals, taken=len(table), ended=self.row >= self._file.metadata.num_rows)

    def _from_row(self, row: int) -> Iterator[pa.Table]:
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if row >= size:
                row -= size
                continue
            for batch in self._file.iter_batches(batch_size=_PARQUET_BATCH, row_groups=[group]):
                batch.validate(full=True)  # among others, that text is UTF-8
                table = pa.Table.from_batches([batch]).replace_schema_metadata(None).slice(row)
                row = max(0, row - len(batch))
                if len(table):
                    yield table


def _unpacked(path: str) -> IO[bytes]:
    """What a gzipped file holds, on disk: Parquet is read from its end."""
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - its reader closes it
    with gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, whole)
    whole.seek(0)
    return whole


_KINDS: Mapping[str, type[_JsonLines | _Csv | _Parquet]] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}


def _parsed(line: str) -> object:
    """The document of a line, or the error if it holds none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _check_columns(path: str, header: Sequence[str], decoder: Decoder) -> None:
    if decoder.marks.isdisjoint(map(_plain, header)):
        wanted = ", ".join(sorted(decoder.marks)[:6])
        raise SourceError(
            f"{path}: holds no {decoder.what}: its columns are {', '.join(header)[:200]!r}, and none of them is {wanted} or "
            "the like; name a file that has them"
        )


def _plain(column: str) -> str:
    return column.strip().removeprefix("\ufeff").removeprefix("payload.").removeprefix("data.")
