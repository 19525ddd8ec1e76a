"""Events or measurements from files, one after the other, in pages of bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.sources import Decoder
from agent.sources.formats import Reader, is_read, open_file
from models.domain import SourceError
from models.events import Page


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that are named; a directory stands for all that it holds, in order of their paths, as a partitioned table does.

    Raise SourceError for a directory without a file of a kind that is read.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_read(file.name))
            if not inside:
                raise SourceError(
                    f"{path}: holds no .csv, .jsonl or .parquet file; name a directory that does, or files"
                )
            found += inside
        else:
            found.append(path)
    return found


class FilesSource:
    """Several files, one after the other, each read once to its end. A page never spans two files.

    The cursor is JSON: `done`, the paths that were read to the end; `path` and `row`, the file that is being read and how
    many of its records were taken. So files may be added and removed between two polls.
    """

    def __init__(self, *, name: str, paths: Sequence[Path], decoder: Decoder) -> None:
        self.name = name
        self._paths = [str(path) for path in paths]
        self._decoder = decoder
        self._reader: Reader | None = None

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:
        """Return the next records, sorted by time within the page; raise SourceError naming the file that cannot be read."""
        place = _Place.of(cursor or {})
        while (path := self._next(place)) is not None:
            reader = self._at(path, place.row if path == place.path else 0)
            try:
                batch = reader.read(limit, now)
            except SourceError:
                self.close()
                raise
            place = place.after(path, reader.row, ended=batch.ended)
            if batch.ended:
                self.close()
            if batch.taken:
                rows = batch.rows.sort_values(self._decoder.time, kind="stable", ignore_index=True)
                return Page(
                    rows=rows,
                    refusals=tuple(batch.refusals),
                    cursor=place.cursor(),
                    caught_up=self._next(place) is None,
                    read=batch.taken,
                )
        return Page(rows=self._decoder.empty(), cursor=place.cursor())

    def close(self) -> None:
        """Close the file that is being read; the next poll opens it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _next(self, place: _Place) -> str | None:
        if place.path in self._paths:
            return place.path
        return next((path for path in self._paths if path not in place.done), None)

    def _at(self, path: str, row: int) -> Reader:
        if self._reader is None or (self._reader.path, self._reader.row) != (path, row):
            self.close()
            self._reader = open_file(path, row, self._decoder)
        return self._reader


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    done: tuple[str, ...]
    path: str | None
    row: int

    @classmethod
    def of(cls, cursor: Mapping[str, object]) -> _Place:
        done, path, row = cursor.get("done"), cursor.get("path"), cursor.get("row")
        return cls(
            done=tuple(map(str, done)) if isinstance(done, (list, tuple)) else (),
            path=path if isinstance(path, str) else None,
            row=row if isinstance(row, int) else 0,
        )

    def after(self, path: str, row: int, *, ended: bool) -> _Place:
        if ended:
            return _Place(done=(*self.done, path), path=None, row=0)
        return _Place(done=self.done, path=path, row=row)

    def cursor(self) -> dict[str, object]:
        return {"done": list(self.done), "path": self.path, "row": self.row}
