"""Deletions: what was planned, and how it came out, as rows like those of transfers that run from a storage element to itself.

So windows, histories, culprits and verdicts are those of transfers. A deletion counts once: when it was carried out, or when nearly all
would have been if that came first. It went badly if it failed, if it took much longer than deletions there do, or if it was planned
and not carried out in time. What is not found was gone already, and is no failure.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.evidence import MAX_EXAMPLES, MAX_LISTED
from detectors.failures import error_class
from detectors.residuals import OUTLYING, Floats, Group, Keys, Quantiles
from detectors.window import WINDOW_S, Look, Window
from models.columns import Rows
from models.domain import Entity, EntityKind, Evidence, Example, Incident
from models.events import ENDED_DELETIONS, FAILED_DELETION, PLANNED_DELETION, are_among
from models.history import Codes

LATE_SHARE: Final = 0.02  # of the deletions, that usually lie beyond a limit
BLOCK: Final = 256  # deletions that are learned from at once
MOST_PLANNED: Final = 262_144
MOST_EARLY: Final = 16_384
LONGEST_S: Final = 14 * 86_400.0  # who says that one deletion took longer has no clock
PLANNED_COLUMNS: Final = ("request_id", "source", "destination", "fts", "submitted_at", "due_at")

Words = npt.NDArray[np.object_]
Flags = npt.NDArray[np.bool_]
File: TypeAlias = tuple[str, str]  # scope:name, and the storage element that it lies at


class Pace:
    """How long something takes at each storage element: its own median, shrunk to that of all. A fold over what nobody is blamed for."""

    def __init__(self, *, floor_s: float, expected_s: float, spread: float, least_s: float, ratio: float) -> None:
        """Spreads are of the log of the seconds beyond `floor_s`, below which they are all alike. Before anything was seen it is
        `expected_s` and `spread`; nothing is late by less than `least_s`, nor by less than `ratio` times what is expected.
        """
        self._floor_s, self._least_s, self._ratio = floor_s, least_s, ratio
        self._prior = np.full(1, np.log(expected_s + floor_s)), np.full(1, spread)
        self._rses, self._all, self._own, self._scores = Codes(), Group(), Group(), Quantiles()
        self._waiting: list[tuple[Words, Floats]] = []
        (self._limit,) = self._scores.limits(LATE_SHARE)

    def limits(self, rses: Words) -> tuple[Floats, Floats]:
        """Seconds that are expected, and those beyond which it is late; both of shape (n,)."""
        mean, spread = self._centre(self._rses.learn(rses))
        expected = np.exp(mean) - self._floor_s
        patience = np.exp(mean + spread * self._limit) - self._floor_s
        return expected, np.maximum.reduce([patience, expected + self._least_s, self._ratio * expected])

    def absorb(self, rses: Words, seconds: Floats) -> None:
        """Learn in whole blocks, so that it does not matter how they were cut."""
        self._waiting.append((rses, seconds))
        count = sum(len(part) for part, _ in self._waiting)
        if count < BLOCK:
            return
        rses, seconds = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        whole = count - count % BLOCK
        for start in range(0, whole, BLOCK):
            self._absorb_block(rses[start : start + BLOCK], seconds[start : start + BLOCK])
        self._waiting = [(rses[whole:], seconds[whole:])]

    def _absorb_block(self, rses: Words, seconds: Floats) -> None:
        codes = self._rses.learn(rses)
        mean, spread = self._centre(codes)
        away = np.log(seconds + self._floor_s) - mean
        self._scores.absorb(away / spread)
        (self._limit,) = self._scores.limits(LATE_SHARE)
        robust = mean + np.clip(away, -OUTLYING, OUTLYING)
        self._all.absorb(Keys(np.zeros_like(codes)), robust)
        self._own.absorb(Keys(codes), robust)

    def _centre(self, codes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        of_all = self._all.shrunk(np.zeros(1, dtype=np.int64), *self._prior)
        mean, spread = self._own.shrunk(codes, *(np.full(len(codes), value[0]) for value in of_all))
        return mean, np.maximum(spread, 0.1)


class Deletions:
    """What is planned, and how long deletions take. A fold over the rows that it makes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._took = Pace(floor_s=0.1, expected_s=1.0, spread=1.0, least_s=1.0, ratio=4.0)
        self._waited = Pace(floor_s=1.0, expected_s=120.0, spread=1.2, least_s=120.0, ratio=3.0)
        self._planned: dict[File, tuple[float, float]] = {}  # when planned, when due
        self._early: dict[File, float] = {}  # when ended what was not known to be planned: documents come out of order

    def take(self, events: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
        """Rows of a batch's deletions: what was planned, with no end, and then what ended."""
        kinds = events["type"].to_numpy(dtype=object)
        planned, ended = np.flatnonzero(kinds == PLANNED_DELETION), np.flatnonzero(are_among(kinds, ENDED_DELETIONS))
        rows, first = np.concatenate([planned, ended]), len(planned)
        scopes, names, rses, reasons = (
            events[name].to_numpy(dtype=object)[rows] for name in ("scope", "name", "destination", "reason")
        )
        at, took, size = (events[name].to_numpy(dtype=np.float64)[rows] for name in ("ended_at", "duration", "bytes"))
        took = np.where((np.arange(len(rows)) >= first) & (took <= LONGEST_S), took, np.nan)
        failed = kinds[rows] == FAILED_DELETION
        files = scopes + ":" + names
        due = at[:first] + self._waited.limits(rses[:first])[1]
        self._plan(files[:first], rses[:first], at[:first], due)
        known, known_due = self._end(files[first:], rses[first:], at[first:])
        expected_s, slow_s = self._took.limits(rses)
        return {
            "request_id": files,
            "source": rses,
            "destination": rses,
            "fts": np.full(len(rows), "", dtype=object),
            "reason": _classes(reasons, failed),
            "bytes": size,
            "submitted_at": np.concatenate([at[:first], known]),
            "started_at": at - took,
            "ended_at": np.concatenate([np.full(first, np.nan), at[first:]]),
            "due_at": np.concatenate([due, known_due]),
            "failed": failed,
            "slow": ~failed & (took > slow_s),
            "expected_s": expected_s,
            "slow_s": slow_s,
        }

    def learn(self, rows: Rows) -> None:
        """Learn how long deletions take from those of the rows that calibrate."""
        rses, ended = np.asarray(rows["destination"], dtype=object), np.asarray(rows["ended_at"], dtype=np.float64)
        for pace, began in ((self._took, "started_at"), (self._waited, "submitted_at")):
            seconds = ended - np.asarray(rows[began], dtype=np.float64)
            usable = np.flatnonzero(np.asarray(rows["calibrates"], dtype=np.bool_) & (seconds >= 0))
            pace.absorb(rses[usable], seconds[usable])

    def absorb(self, rows: pd.DataFrame) -> None:
        """Take in rows that were made before, in their order."""
        files, rses = (rows[name].to_numpy(dtype=object) for name in ("request_id", "destination"))
        planned, due, ended = (rows[name].to_numpy(dtype=np.float64) for name in ("submitted_at", "due_at", "ended_at"))
        pending = np.isnan(ended)
        cuts = [0, *(np.flatnonzero(np.diff(pending)) + 1).tolist(), len(rows)]
        for part in itertools.starmap(slice, itertools.pairwise(cuts)):
            if pending[part.start]:
                self._plan(files[part], rses[part], planned[part], due[part])
            else:
                self._end(files[part], rses[part], ended[part])
        self.learn(rows)

    def overdue(self, since: float, until: float) -> pd.DataFrame:
        """What is planned, has not ended, and was due in [since, until)."""
        rows = [
            (file, rse, rse, "", at, due) for (file, rse), (at, due) in self._planned.items() if since <= due < until
        ]
        return pd.DataFrame(rows, columns=list(PLANNED_COLUMNS))

    def _plan(self, files: Words, rses: Words, at: Floats, due: Floats) -> None:
        for file, planned_at, due_at in zip(_keys(files, rses), at.tolist(), due.tolist(), strict=True):
            if self._early.pop(file, -np.inf) < planned_at:
                self._planned.setdefault(file, (planned_at, due_at))
        _forget(self._planned, MOST_PLANNED)

    def _end(self, files: Words, rses: Words, at: Floats) -> tuple[Floats, Floats]:
        """They have ended; return when each was planned, and when it was due, NaN where that is not known."""
        found = []
        for file, ended_at in zip(_keys(files, rses), at.tolist(), strict=True):
            planned = self._planned.pop(file, None)
            if planned is None:
                self._early[file] = ended_at
            found.append(planned or _UNKNOWN)
        _forget(self._early, MOST_EARLY)
        planned_at, due = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return planned_at, due


_UNKNOWN: Final = (np.nan, np.nan)


def _keys(files: Words, rses: Words) -> Iterator[File]:
    return zip(files.tolist(), rses.tolist(), strict=True)


def _forget(known: dict[File, Any], most: int) -> None:
    """The oldest, beyond so many."""
    for file in list(itertools.islice(known, max(0, len(known) - most))):
        del known[file]


def _classes(reasons: Words, failed: npt.NDArray[np.bool_]) -> Words:
    """What went wrong, as `deletion-what`; "" where nothing did. There are no two ends, of which a prefix could tell."""
    classes = np.full(len(reasons), "", dtype=object)
    for place in np.flatnonzero(failed).tolist():
        classes[place] = f"deletion-{error_class(reasons[place]).rpartition('-')[2]}"
    return classes


def evidence_of(incident: Incident, look: Look, window: Window) -> Evidence:
    """Evidence of one incident of deletions as of a minute, from the rows of the window."""
    own = look.roles.in_part_of(incident)
    guilty, others = own & look.bad, ~own
    rows = look.members[guilty]
    background = float(look.bad[others].mean()) if others.any() else 0.0
    failed = window.failed[rows]
    return Evidence(
        role=incident.evidence.role,
        summary=_summary(incident.culprit, look, window, guilty=guilty, total=int(own.sum()), background=background),
        window_s=WINDOW_S,
        anomalous=len(rows),
        total=int(own.sum()),
        background=round(background, 5),
        reasons=dict(Counter(window.texts("reason", rows[failed])).most_common(MAX_LISTED)),
        examples=tuple(
            _example(window, place) for place in rows[np.argsort(look.when[guilty], kind="stable")[-MAX_EXAMPLES:]]
        ),
    )


def _summary(culprit: Entity, look: Look, window: Window, *, guilty: Flags, total: int, background: float) -> str:
    rows, over = look.members[guilty], look.over[guilty]
    failed = over & window.failed[rows]
    crawled = over & ~failed & window.ends.slow[rows]
    said = []
    if failed.any():
        said.append(f"{failed.sum()} failed")
    if crawled.any():
        took = window.numbers("ended_at", rows[crawled]) - window.numbers("started_at", rows[crawled])
        usual = np.median(window.numbers("expected_s", rows[crawled]))
        said.append(f"{crawled.sum()} crawled (half took over {np.median(took):.2g} s, {usual:.2g} s is usual)")
    if waited := int(np.count_nonzero(~failed & ~crawled)):
        said.append(f"{waited} were planned and not carried out in time")
    where = ""
    if culprit.kind is EntityKind.SITE:
        named = Counter(window.texts("destination", rows)).most_common(3)
        where = f" ({', '.join(f'{count} at {name}' for name, count in named)})"
    share = f"{len(rows)} of {total} deletions ({len(rows) / max(total, 1):.0%}) at {culprit.name}"
    return (
        f"{share} went badly in the last 30 minutes: {', '.join(said) or 'none any more'}{where}; "
        f"elsewhere {background:.1%} did"
    )


def _example(window: Window, place: np.intp) -> Example:
    row = np.array([place])
    (file,), (rse,), (reason,) = (window.texts(name, row) for name in ("request_id", "destination", "reason"))
    ended, started, expected, slow = (
        float(window.numbers(name, row)[0]) for name in ("ended_at", "started_at", "expected_s", "slow_s")
    )
    over = math.isfinite(ended)
    timed = over and math.isfinite(started)
    return Example(
        request_id=file,
        link=rse,
        ended_at=datetime.fromtimestamp(ended, UTC) if over else None,
        duration_s=round(ended - started, 1) if timed else None,
        expected_s=round(expected, 1) if timed else None,
        threshold_s=round(slow, 1) if timed else None,
        reason=reason,
    )
