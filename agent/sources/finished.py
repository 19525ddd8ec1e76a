"""Recorded transfers to evaluate on: what the files hold, whether they fit together, and the transfers in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agent.daemon import wall_clock
from agent.desk.text import clean
from agent.sources import EVENTS, READINGS
from agent.sources.files import FilesSource
from agent.sources.formats import header
from agent.sources.recorded import RecordedEvents, RecordedReadings
from models.domain import SourceError
from models.events import ALIASES, FINISHED, Page, event_keys
from models.measurements import Paths, SiteMap

Keys = NDArray[np.uint64]

PAGE = 10_000  # events at once
NEEDED = ("source", "destination", "bytes", "started_at", "ended_at")
OVERLAP_S = 3600.0  # documents that are cut by the time when they were written may lie so far out of order


@dataclass(kw_only=True)
class Account:
    """What became of the documents of some files."""

    read: int = 0
    scored: int = 0
    used: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # of what was wrong, by reason

    def refusals(self) -> str:
        """What was refused, for people; "" for nothing."""
        return ", ".join(
            f"{count:,} for {reason}" + (f" ({clean(example, 80)})" if (example := self.examples.get(reason)) else "")
            for reason, count in sorted(self.refused.items())
        )

    def numbers(self) -> dict[str, object]:
        """In the form of a replay's `events`."""
        return {"read": self.read, "scored": self.scored, "used": self.used, "refused": dict(self.refused)}


def check_columns(files: Sequence[Path]) -> None:
    """Raise SourceError if a table lacks what a finished transfer has to say of itself."""
    for path in files:
        columns = header(path)
        for name in NEEDED:
            if columns and name not in columns and not set(columns).intersection(ALIASES.get(name, ())):
                known = " or ".join(dict.fromkeys((*ALIASES.get(name, ()), name)))
                raise SourceError(
                    f"{path}: has no column {known}, without which nothing can be learnt from its transfers; write it with that "
                    "column, or leave the file out"
                )


class Recording:
    """Finished transfers of several parts, each of some files, in the order in which they ended and each once.

    A replay of all the files together sees the same transfers in the same order, unless copies of a document differ in time. A transfer's part is in its column `part`.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[Path]], *, measurements: Sequence[Path], site_map: Path | None
    ) -> None:
        self.accounts = {name: Account() for name in parts}
        self._parts = parts
        self._measurements = measurements
        self._site_map = site_map

    def pages(self) -> Iterator[pd.DataFrame]:
        """Finished transfers with what perfSONAR had measured of their paths; raise SourceError for a file that is none.

        Readings are taken up to the start of the last transfer of each page; a page's size changes nothing, by a test of `Paths`.
        """
        now = wall_clock()
        paths = Paths(SiteMap.load(self._site_map) if self._site_map else SiteMap())
        last = np.zeros(1, dtype=np.uint64)
        with closing(RecordedEvents(_Parts(self._parts, self.accounts))) as events:
            readings = FilesSource(name="measurements", paths=self._measurements, decoder=READINGS)
            network = RecordedReadings(readings, events) if self._measurements else None
            caught_up = False
            while not caught_up:
                if network is not None:
                    paths.absorb(network.poll(None, limit=PAGE, now=now).rows)
                page = events.poll(None, limit=PAGE, now=now)
                caught_up = page.caught_up
                keys = np.concatenate([last, event_keys(page.rows)])
                last = keys[-1:]
                # Copies of a document stand side by side: they are of one moment.
                finished = self._accounted(page.rows, keys[1:] != keys[:-1])
                if len(finished):
                    yield paths.attach(finished.assign(failed=False))

    def _accounted(self, rows: pd.DataFrame, new: NDArray[np.bool_]) -> pd.DataFrame:
        finished = new & rows["type"].isin(FINISHED).to_numpy()
        for name, account in self.accounts.items():
            own = (rows["part"] == name).to_numpy()
            scored, repeated = int((own & finished).sum()), int((own & ~new).sum())
            account.scored += scored
            account.used += int((own & new).sum()) - scored
            if repeated:
                account.refused["repeated"] += repeated
        return rows[finished].reset_index(drop=True)


class _Parts:
    """The files of all parts, one after the other, as one source whose rows say of which part they are."""

    name = "events"

    def __init__(self, parts: Mapping[str, Sequence[Path]], accounts: Mapping[str, Account]) -> None:
        self._left = [(name, FilesSource(name=name, paths=paths, decoder=EVENTS)) for name, paths in parts.items()]
        self._accounts = accounts
        self._cursor: Mapping[str, object] = {}  # of the part that is being read

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:  # noqa: ARG002 - see above
        name, source = self._left[0]
        page = source.poll(self._cursor, limit=limit, now=now)
        account = self._accounts[name]
        account.read += page.read
        account.refused.update(refusal.reason for refusal in page.refusals)
        for refusal in page.refusals:
            account.examples.setdefault(refusal.reason, refusal.detail)
        self._cursor = page.cursor
        more = len(self._left) > 1
        if page.caught_up and more:
            source.close()
            self._left.pop(0)
            self._cursor = {}
        rows = page.rows.assign(part=pd.Series(name, index=page.rows.index, dtype="str"))
        return Page(rows=rows, refusals=page.refusals, caught_up=page.caught_up and not more, read=page.read)

    def close(self) -> None:
        for _, source in self._left:
            source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which finished transfers some files hold, and of when."""

    keys: Keys  # sorted
    first_end: float
    last_start: float


def check_parts(data: Sequence[Path], *, history: Sequence[Path], train: Sequence[Path]) -> list[str]:
    """Raise SourceError if the parts do not fit together; return what is odd and may be meant so.

    All files are read for this once more, since a leak that shows after an hour of training comes too late.
    """
    others = {
        name: span for name, files in (("--history", history), ("--train", train)) if files and (span := _span(files))
    }
    known = {name: span.keys for name, span in others.items()}
    found = _span(data, known=known)
    if found is None:
        raise SourceError(
            f"{', '.join(map(str, data))}: there is no finished transfer to evaluate on; name files that hold some"
        )
    first = f"DATA's first transfer ended at {_moment(found.first_end)}"
    if (past := others.get("--history")) and past.last_start > found.first_end + OVERLAP_S:
        raise SourceError(
            f"--history does not come before DATA: its last transfer started at {_moment(past.last_start)}, and {first}; "
            "cut the files by time, or name them the other way round"
        )
    if (taught := others.get("--train")) and taught.last_start > found.first_end + OVERLAP_S:
        return [
            f"--train is not older than DATA: its last transfer started at {_moment(taught.last_start)}, and {first}"
        ]
    return []


def _span(files: Sequence[Path], *, known: Mapping[str, Keys] | None = None) -> Span | None:
    """None where there is no finished transfer; raise SourceError if one is among the `known`, too."""
    keys, first_end, last_start = [np.empty(0, dtype=np.uint64)], np.inf, -np.inf
    shared: dict[str, int] = {}
    example = ""
    for rows in _pages(files):
        if rows.empty:
            continue
        keys.append(event_keys(rows))
        first_end = min(first_end, float(rows["ended_at"].min()))
        last_start = max(last_start, float(rows["started_at"].max()))
        for name, others in (known or {}).items():
            both = np.isin(keys[-1], others)
            if both.any():
                shared[name] = shared.get(name, 0) + int(both.sum())
                example = example or str(rows["request_id"].to_numpy(dtype=object)[both][0])
    if shared:
        said = " and ".join(f"{count} in {name}" for name, count in shared.items())
        raise SourceError(
            f"transfers of DATA are in other files, too: {said}, {clean(example, 80)!r} for one. What was learnt from or "
            "played before cannot be judged on; cut the files so that each transfer is in one of them"
        )
    if len(keys) == 1:
        return None
    return Span(keys=np.unique(np.concatenate(keys)), first_end=first_end, last_start=last_start)


def _pages(files: Sequence[Path]) -> Iterator[pd.DataFrame]:
    """Finished transfers of the files, in their own order."""
    now, cursor, caught_up = wall_clock(), dict[str, object](), False
    with closing(FilesSource(name="events", paths=files, decoder=EVENTS)) as source:
        while not caught_up:
            page = source.poll(cursor, limit=PAGE, now=now)
            cursor, caught_up = dict(page.cursor), page.caught_up
            yield page.rows[page.rows["type"].isin(FINISHED)]


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
