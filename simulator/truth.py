"""Which transfers were hurt, and by which fault: the world beside its fault-free twin.

A transfer is a file that is to be moved to a destination. It is hurt when an attempt failed that did not fail in the twin, or
when it ended more than 60 s and more than half of the time that it took in the twin (from the first request to the end) later
than there. The fault behind it is, in this order:

1. the one whose draw made the attempt fail, or an earlier attempt of the transfer;
2. one that was active during the transfer's life and whose culprit is on its path, the one for longest;
3. what it queued behind: the fault in whose time it lived (until the last transfer that it hurt by 1 or 2 had ended) and which
   hurt most transfers at one of its storage elements, or failing that on its FTS server;
4. none (-1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.draws import Draws
from simulator.faults import HOUR, NATURES, Fault, FaultKind, Target
from simulator.records import MOST_TRIES, Records, What, request_ids
from simulator.topology import Topology

LATE_S: Final = 60.0
LATE_SHARE: Final = 0.5  # of what it took in the twin
PATIENCE_H: Final = 3  # hours until it is settled behind whom a transfer queued
COLUMNS: Final = (
    "file",
    "tries",
    "request_id",
    "source",
    "destination",
    "created",
    "ended",
    "failed",
    "late_s",
    "fault",
)

HURT = np.dtype(
    [
        ("file", "i8"),
        ("tries", "u1"),
        ("source", "i2"),
        ("destination", "i2"),
        ("failed", "?"),
        ("since", "f8"),  # when the transfer's first request was made
        ("created", "f8"),  # when this one was
        ("ended", "f8"),  # NaN: not yet
        ("late_s", "f8"),  # NaN where an attempt failed
        ("fault", "i8"),
        ("settled", "f8"),  # when it was known that it is hurt
    ]
)
Hurt = npt.NDArray[np.void]
Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_SOURCES = frozenset({FaultKind.DISK_CORRUPT, FaultKind.FILES_MISSING, FaultKind.TAPE_SLOW})  # hurt what is read
_DESTINATIONS = frozenset({FaultKind.STORAGE_FULL, FaultKind.BLACK_HOLE})  # hurt what is written
_WHERE = np.dtype([("ended", "f8"), ("source", "i2"), ("destination", "i2"), ("tries", "u1")])


class _Table:
    """Rows by key, sorted; a later row of a key takes the place of the earlier one."""

    def __init__(self, kind: npt.DTypeLike) -> None:
        self.keys: Array = np.zeros(0, dtype=np.int64)
        self.rows: npt.NDArray[Any] = np.zeros(0, dtype=kind)

    def put(self, keys: Array, rows: npt.NDArray[Any]) -> None:
        both, all_rows = np.concatenate([self.keys, keys]), np.concatenate([self.rows, rows])
        order = np.argsort(both, kind="stable")
        last = np.append(np.diff(both[order]) != 0, True) if len(both) else np.zeros(0, dtype=np.bool_)
        self.keys, self.rows = both[order][last], all_rows[order][last]

    def find(self, keys: Array) -> tuple[Mask, Array]:
        """Which of them are there, and where (0 where not)."""
        places = np.searchsorted(self.keys, keys)
        there = places < len(self.keys)
        there[there] = self.keys[places[there]] == keys[there]
        return there, np.where(there, places, 0)

    def drop(self, gone: Mask) -> None:
        self.keys, self.rows = self.keys[~gone], self.rows[~gone]


class Comparison:
    """The world's and its twin's ends of transfers side by side.

    What it keeps is what is under way in one of the two and has ended in the other. How the records are cut into calls makes
    no difference to what is found.
    """

    def __init__(self, topology: Topology, draws: Draws) -> None:
        self._topology = topology
        self._draws = draws
        self._hour = 0
        self._ended: list[tuple[Records, Records]] = []
        self._begun = _Table("f8")  # by file: when the first request was made, of what failed once
        self._well = _Table(_WHERE)  # by file: how it ended in the twin and not yet here
        self._done = _Table(HURT)  # by file: how it ended here and not yet in the twin
        self._failed = _Table(HURT)  # by attempt: failed here, unknown in the twin
        self._forgiven = _Table("?")  # by attempt: failed in the twin
        self._struck = _Table("i8")  # by file: the fault that failed an attempt of it
        self._tried = _Table("i8")  # by file: attempts here that have failed
        self._queued: list[Hurt] = []  # hurt, and by what is not yet settled
        self._reach = _Reach(topology)

    @property
    def kept(self) -> int:
        """Rows of any kind that it holds now."""
        tables = (self._begun, self._well, self._done, self._failed, self._forgiven, self._struck, self._tried)
        waiting = (*self._queued, *itertools.chain.from_iterable(self._ended))
        return sum(len(table.keys) for table in tables) + sum(len(rows) for rows in waiting)

    def feed(self, ended: Records, twin_ended: Records, *, until: float, faults: Sequence[Fault]) -> pd.DataFrame:
        """What ended here and in the twin before `until` and after the last call; return what is now known to be hurt.

        Columns are COLUMNS: storage elements by name, times in seconds after the start, `fault` a fault's number or -1. A transfer
        has a row for each attempt that failed, and one if it was late.
        """
        self._ended.append((ended, twin_ended))
        found = []
        while HOUR * (self._hour + 1) <= until:
            found += self._live(HOUR * (self._hour + 1), faults)
            self._hour += 1
        return self._frame(found)

    def finish(self, until: float, faults: Sequence[Fault]) -> pd.DataFrame:
        """The rest, at the end of both worlds: what ended since, and what is late already and still under way."""
        found = self._live(until, faults)
        missing = self._overdue(until)
        unknown = self._failed.rows[self._failed.rows["fault"] >= 0]
        found += self._blame(np.concatenate([unknown, missing]), faults)
        found += self._settle(until, faults, everything=True)
        return self._frame(found)

    def _live(self, until: float, faults: Sequence[Fault]) -> list[Hurt]:
        """What ended before `until`, in both."""
        here, twin = (np.concatenate(parts) if parts else None for parts in zip(*self._ended, strict=True))
        if here is None or twin is None:
            return []
        self._ended = [(here[here["ended"] >= until], twin[twin["ended"] >= until])]
        here, twin = here[here["ended"] < until], twin[twin["ended"] < until]
        self._remember(here, twin)
        found = self._blame(self._failures(until), faults)
        found += self._blame(self._late(until), faults)
        return found + self._settle(until, faults, everything=False)

    def _remember(self, here: Records, twin: Records) -> None:
        for records in (here, twin):
            first = records[(records["what"] == What.FAILED) & (records["tries"] == 0)]
            self._begun.put(first["file"], first["created"])
        well, ill = twin[twin["what"] == What.DONE], twin[twin["what"] == What.FAILED]
        where = np.zeros(len(well), dtype=_WHERE)
        for name in _WHERE.names or ():
            where[name] = well[name]
        there, place = self._begun.find(well["file"])
        began = well["created"].copy()
        began[there] = self._begun.rows[place[there]]
        self._begun.put(well["file"], began)
        self._well.put(well["file"], where)
        self._forgiven.put(_attempt(ill), np.ones(len(ill), dtype=np.bool_))
        failed, done = here[here["what"] == What.FAILED], here[here["what"] == What.DONE]
        self._tried.put(failed["file"], failed["tries"].astype(np.int64) + 1)
        self._failed.put(_attempt(failed), self._hurt(failed))
        self._done.put(done["file"], self._hurt(done))

    def _hurt(self, records: Records) -> Hurt:
        rows = np.zeros(len(records), dtype=HURT)
        for name in ("file", "tries", "source", "destination", "created", "ended", "fault"):
            rows[name] = records[name]
        rows["failed"], rows["late_s"] = records["what"] == What.FAILED, np.nan
        there, place = self._begun.find(rows["file"])
        rows["since"] = rows["created"]
        rows["since"][there] = self._begun.rows[place[there]]
        return rows

    def _failures(self, until: float) -> Hurt:
        """Attempts that failed here, as soon as it is known that they did not in the twin."""
        forgiven, _ = self._forgiven.find(self._failed.keys)
        known, _ = self._well.find(self._failed.rows["file"])
        found = self._failed.rows[known & ~forgiven].copy()
        found["settled"] = until
        self._failed.drop(known | forgiven)
        return found

    def _late(self, until: float) -> Hurt:
        """Transfers that have now ended in both, and here too late."""
        both, place = self._well.find(self._done.keys)
        found, twin = self._done.rows[both].copy(), self._well.rows[place[both]]
        _, began = self._begun.find(found["file"])
        found["since"] = self._begun.rows[began]
        found["late_s"], found["settled"] = found["ended"] - twin["ended"], until
        there, struck = self._struck.find(found["file"])
        found["fault"] = -1
        found["fault"][there] = self._struck.rows[struck[there]]
        over = self._done.keys[both]
        self._done.drop(both)
        for table in (self._well, self._begun, self._struck, self._tried):
            table.drop(np.isin(table.keys, over))
        self._forgiven.drop(np.isin(self._forgiven.keys // MOST_TRIES, over))
        return found[_is_late(found["late_s"], twin["ended"] - found["since"])]

    def _overdue(self, until: float) -> Hurt:
        """Transfers that ended in the twin, and not here, and are late by now."""
        rows = np.zeros(len(self._well.keys), dtype=HURT)
        twin = self._well.rows
        rows["file"], rows["source"], rows["destination"] = self._well.keys, twin["source"], twin["destination"]
        there, place = self._tried.find(rows["file"])
        rows["tries"][there] = np.minimum(self._tried.rows[place[there]], MOST_TRIES - 1)
        _, began = self._begun.find(rows["file"])
        rows["since"] = rows["created"] = self._begun.rows[began]
        rows["ended"], rows["late_s"], rows["fault"], rows["settled"] = np.nan, until - twin["ended"], -1, until
        there, struck = self._struck.find(rows["file"])
        rows["fault"][there] = self._struck.rows[struck[there]]
        return rows[_is_late(rows["late_s"], twin["ended"] - rows["since"])]

    def _blame(self, rows: Hurt, faults: Sequence[Fault]) -> list[Hurt]:
        """Those whose fault is known at once; the others wait."""
        free = rows["fault"] < 0
        rows["fault"][free] = _on_path(rows[free], faults, self._topology)
        known = rows["fault"] >= 0
        self._struck.put(rows["file"][known & rows["failed"]], rows["fault"][known & rows["failed"]])
        self._queued.append(rows[~known])
        self._reach.count(rows[known])
        return [rows[known]]

    def _settle(self, until: float, faults: Sequence[Fault], *, everything: bool) -> list[Hurt]:
        """Those that have waited long enough for all that they may have queued behind to be known."""
        if not self._queued:
            return []
        rows = np.concatenate(self._queued)
        ready = np.full(len(rows), fill_value=True) if everything else rows["settled"] <= until - PATIENCE_H * HOUR
        self._queued = [rows[~ready]]
        found = rows[ready]
        found["fault"] = self._reach.behind(found, faults)
        return [found]

    def _frame(self, found: Sequence[Hurt]) -> pd.DataFrame:
        rows = np.concatenate([np.zeros(0, dtype=HURT), *found])
        names = np.array(self._topology.rses, dtype=object)
        columns = {
            "file": rows["file"],
            "tries": rows["tries"].astype(np.int64),
            "request_id": request_ids(self._draws, rows["file"], rows["tries"]).to_pandas(),
            "source": names[rows["source"]],
            "destination": names[rows["destination"]],
        }
        frame = pd.DataFrame(columns | {name: rows[name] for name in COLUMNS[5:]}, columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(("request_id", "source", "destination"), "str"))


class _Reach:
    """Where and until when each fault has hurt."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._rses: dict[int, Array] = {}
        self._servers: dict[int, Array] = {}
        self._until: dict[int, float] = {}

    def count(self, rows: Hurt) -> None:
        topology = self._topology
        servers = topology.site_fts[topology.rse_site[rows["destination"]]]
        for fault in np.unique(rows["fault"]).tolist():
            mine = rows["fault"] == fault
            ends = np.concatenate([rows["source"][mine], rows["destination"][mine]])
            self._rses[fault] = self._rses.get(fault, 0) + np.bincount(ends, minlength=len(topology.rses))
            self._servers[fault] = self._servers.get(fault, 0) + np.bincount(servers[mine], minlength=len(topology.fts))
            last = np.nanmax(rows["ended"][mine], initial=0.0)
            self._until[fault] = max(self._until.get(fault, 0.0), float(last))

    def behind(self, rows: Hurt, faults: Sequence[Fault]) -> Array:
        """The fault that each row's transfer queued behind, or -1."""
        topology = self._topology
        best, found = np.zeros((2, len(rows)), dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
        server = topology.site_fts[topology.rse_site[rows["destination"]]]
        ended = np.where(np.isnan(rows["ended"]), np.inf, rows["ended"])
        for fault in faults:
            if fault.number not in self._rses:
                continue
            lived = (rows["since"] < max(fault.end, self._until[fault.number])) & (ended > fault.start)
            here, there = self._rses[fault.number], self._servers[fault.number][server]
            near = here[rows["source"]] + here[rows["destination"]]
            more = lived & ((near > best[0]) | ((near == best[0]) & (there > best[1])))
            best[0, more], best[1, more], found[more] = near[more], there[more], fault.number
        return found


def _attempt(records: Records) -> Array:
    keys: Array = records["file"] * MOST_TRIES + records["tries"]
    return keys


def _is_late(late_s: npt.NDArray[np.float64], took_s: npt.NDArray[np.float64]) -> Mask:
    late: Mask = (late_s > LATE_S) & (late_s > LATE_SHARE * took_s)
    return late


def _on_path(rows: Hurt, faults: Sequence[Fault], topology: Topology) -> Array:
    """The fault on each row's path that was active for longest while the transfer lived, or -1."""
    longest, found = np.zeros(len(rows)), np.full(len(rows), -1, dtype=np.int64)
    ended = np.where(np.isnan(rows["ended"]), rows["settled"], rows["ended"])
    first, last = (rows["since"].min(), ended.max()) if len(rows) else (0.0, 0.0)
    for fault in faults:
        if fault.end <= first or fault.start >= last:
            continue
        overlap = np.minimum(fault.end, ended) - np.maximum(fault.start, rows["since"])
        more = (overlap > longest) & _touched(fault, rows, topology)
        longest[more], found[more] = overlap[more], fault.number
    return found


def _touched(fault: Fault, rows: Hurt, topology: Topology) -> Mask:
    """Transfers on whose path the culprit is."""
    source, destination = rows["source"], rows["destination"]
    from_site, to_site = topology.rse_site[source], topology.rse_site[destination]
    target = NATURES[fault.kind].target
    touched: Mask
    if target is Target.RSE:
        rse = topology.rse(fault.where)
        touched = ((source == rse) & (fault.kind not in _DESTINATIONS)) | (
            (destination == rse) & (fault.kind not in _SOURCES)
        )
    elif target is Target.SITE:
        site = topology.site(fault.where)
        touched = (from_site == site) | (to_site == site)
    elif target is Target.FTS:
        touched = topology.site_fts[to_site] == topology.server(fault.where)
    else:
        here, there = (topology.site(end) for end in fault.where.split(">"))
        touched = (from_site == here) & (to_site == there)
    return touched
