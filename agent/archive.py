"""Finished transfers that the ledger no longer keeps, for training: Parquet files, each row once.

Every row that leaves the ledger gets the next number, and a file is called by the first number in it and the one after its last. The
ledger says how many left it, in the transaction in which they leave. A file that was written before a crash cut that
transaction off goes beyond this number: nobody reads it, and the next one takes its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from models.domain import SourceError
from models.measurements import PATH_COLUMNS

TEXTS = ("source", "destination", "activity", "protocol", "source_type", "destination_type", "fts")
COLUMNS = (*TEXTS, "bytes", "submitted_at", "started_at", "ended_at", *PATH_COLUMNS)  # what a forecaster learns from

_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet")
_DAY_S = 86_400.0


def finished(observed: pd.DataFrame) -> pd.DataFrame:
    """What a forecaster learns from, of the observed rows that finished."""
    if not len(observed):
        return pd.DataFrame({name: pd.Series(dtype="str" if name in TEXTS else np.float64) for name in COLUMNS})
    timed = observed["started_at"].notna() & observed["ended_at"].notna()
    return observed.loc[timed & ~observed["failed"].astype(bool), list(COLUMNS)].reset_index(drop=True)


class Archive:
    """The files in a directory. One process writes; others may read at the same time."""

    def __init__(self, directory: Path, *, days: float) -> None:
        """Transfers that ended more than `days` before the newest one are not kept."""
        self._directory = directory
        self._days = days

    def keep(self, rows: pd.DataFrame, *, first: int) -> int:
        """Write the observed rows that finished, numbered from `first` on, and return the number after the last.

        Whatever was numbered from `first` on before is replaced. Raises OSError if the disk refuses.
        """
        kept = finished(rows)
        self._directory.mkdir(parents=True, exist_ok=True)
        for part in self._directory.glob("*.part"):
            part.unlink()
        for begin, _, path in self._files():
            if begin >= first:
                path.unlink()
        if not len(kept):
            return first
        last = first + len(kept)
        path = self._directory / f"{first:012d}-{last:012d}.parquet"
        part = path.with_suffix(".part")
        kept.to_parquet(part, index=False, compression="zstd")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        self._forget(float(kept["ended_at"].max()) - self._days * _DAY_S)
        return last

    def rows(self, *, until: int, since: float) -> pd.DataFrame:
        """Transfers numbered below `until` that ended at `since` (seconds since 1970) or later.

        Raise SourceError naming file and cure for one that somebody has harmed.
        """
        parts = [finished(pd.DataFrame())]
        for _, last, path in self._files():
            if last <= until:
                with suppress(FileNotFoundError):  # it has just become too old
                    parts.append(_read(path, since))
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    def _forget(self, before: float) -> None:
        for _, _, path in self._files():
            with suppress(ValueError):  # whoever reads it says that it cannot be read
                if float(pd.read_parquet(path, columns=["ended_at"])["ended_at"].max()) < before:
                    path.unlink()

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """The first number, the number after the last, and the path of each file, in order."""
        if self._directory.is_dir():
            for path in sorted(self._directory.iterdir()):
                if name := _NAME.fullmatch(path.name):
                    yield int(name[1]), int(name[2]), path


def _read(path: Path, since: float) -> pd.DataFrame:
    cure = "remove the file; training does without its transfers"
    try:
        rows = pd.read_parquet(path, filters=[("ended_at", ">=", since)])
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {cure}") from error
    lacking = [name for name in COLUMNS if name not in rows]
    if lacking:
        raise SourceError(f"{path} has no column {lacking[0]!r}; {cure}")
    return rows[list(COLUMNS)]
