"""What the grid process keeps on disk: numbered documents, the journal of calls, small files that are replaced whole."""

from __future__ import annotations

import fcntl
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.domain import ConfigError

_SEGMENT = 20_000  # documents in a file
_KEPT = 12  # files of a log; the oldest is removed when there are more


@dataclass(slots=True, kw_only=True)
class _Segment:
    path: Path
    first: int  # number of its first document
    ends: array[int] = field(default_factory=lambda: array("Q"))  # where in the file each document ends

    @property
    def last(self) -> int:
        return self.first + len(self.ends) - 1


class Log:
    """Documents numbered from 1, one line each, in files named by their first number; only the newest are kept."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._segments = [_read_segment(path) for path in sorted(directory.glob("*.jsonl"))] or [self._segment(1)]
        self._file = self._segments[-1].path.open("ab")

    @property
    def last(self) -> int:
        """Number of the newest document, 0 where there is none."""
        return self._segments[-1].last

    def append(self, lines: Sequence[bytes]) -> None:
        """Add documents (without a newline) and hand them to the operating system."""
        segment = self._segments[-1]
        end = segment.ends[-1] if segment.ends else 0
        for line in lines:
            if len(segment.ends) == _SEGMENT:
                segment, end = self._roll(), 0
            self._file.write(line + b"\n")
            end += len(line) + 1
            segment.ends.append(end)
        self._file.flush()

    def read(self, after: int, limit: int) -> tuple[int, list[bytes]]:
        """The number of the first document above `after` that is still kept, and so many lines from it."""
        first, lines = max(after + 1, self._segments[0].first), list[bytes]()
        for segment in self._segments:
            skip = first + len(lines) - segment.first
            take = min(limit - len(lines), len(segment.ends) - skip)
            if skip < 0 or take <= 0:
                continue
            start = segment.ends[skip - 1] if skip else 0
            with segment.path.open("rb") as file:
                file.seek(start)
                lines += file.read(segment.ends[skip + take - 1] - start).splitlines()
        return first, lines

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _roll(self) -> _Segment:
        self._file.close()
        segment = self._segment(self.last + 1)
        self._segments.append(segment)
        self._file = segment.path.open("ab")
        while len(self._segments) > _KEPT:
            self._segments.pop(0).path.unlink()
        return segment

    def _segment(self, first: int) -> _Segment:
        return _Segment(path=self._directory / f"{first:012d}.jsonl", first=first)


def _read_segment(path: Path) -> _Segment:
    """Find where documents end; a last line that was cut off by a crash is taken out of the file."""
    segment = _Segment(path=path, first=int(path.stem))
    end = 0
    for line in whole_lines(path):
        end += len(line)
        segment.ends.append(end)
    return segment


def whole_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file with their newline; what follows the last newline is cut off, in the file too."""
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                return
            end += len(line)
            yield line


def replace(path: Path, content: bytes) -> None:
    """Write a small file whole: a crash leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def claim(directory: Path) -> int:
    """Take the directory for this process, until it ends; raise ConfigError if another one has it."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"another grid process uses {directory}; stop it or name another directory") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def holder(directory: Path) -> int | None:
    """The id of the process that has claimed the directory; None if none has."""
    try:
        handle = os.open(directory / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(handle, 20)
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(handle)
