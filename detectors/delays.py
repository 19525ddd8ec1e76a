"""Series of delays between two hosts, and what each shows: a level that moved, or a clock that is off.

A level is what most readings lie together at; that of the last hours is held against that of the past.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from detectors.findings import Symptom, Trouble
from detectors.series import DAY_S, GAP_S, high_end, low_end, median, spread

STALE_S = 14 * DAY_S  # after so long without readings the level of a delay says nothing of the present
RECENT_S, RECENT_LEAST = 3 * 3600.0, 3  # readings that are held against the past
LASTING_S = 2 * 3600.0  # they have to span so much
PAST_LEAST, PAST_MOST = 10, 512  # readings of the past
REFRESH = 8  # readings after which the past is summed up anew
STEP_MS = 7.5  # half of the 15 ms that have to be found; 1,500 km of fibre
SPREADS = 2.0  # a step is beyond so many spreads of the past
LEVEL_SHARE = 0.1  # readings of a new level stray by less than this share of the step
SAME_SHARE = 0.3  # steps of paths that share a detour differ by less than this share
USUAL_SHARE = 0.1  # of the past at a level that makes it no news
DETOUR_MS = 100.0  # no detour on Earth takes longer: half of its girth, 20,000 km, at 204 km/ms in fibre
AGREEING = 0.25  # readings of a clock's jump differ by less than this share of it
IMPOSSIBLE_MS = -10.0  # a delay below this is a clock's; NTP keeps hosts within some ms of each other
SETTLED_S, CLOCK_SETTLED_S = 2 * DAY_S, 14 * DAY_S  # a level that has held for so long is the normal one
KNOWN_S, KNOWN_MOST = 14 * DAY_S, 8  # levels that are remembered
SPREAD_MS = 0.5  # the least spread


@dataclass(slots=True)
class _Delay:
    at: float
    ms: float
    jitter: float = 0.0  # standard deviation within the test


Delays: TypeAlias = "deque[_Delay]"


@dataclass(frozen=True, slots=True)
class _Past:
    """A level and how far readings stray from it, in ms."""

    readings: Delays
    level: float
    step: float  # the least that counts as one
    stray: float  # what three quarters of them stay within of the level
    jitter: float


def _is_level(values: Sequence[float], past: _Past) -> bool:
    """Whether readings lie together, as those of one route do, and not scattered, as those through a filled queue."""
    level = median(values)
    stray = high_end([abs(value - level) for value in values])
    return stray <= max(past.step, past.stray, LEVEL_SHARE * abs(level - past.level))


class DelaySeries:
    """Delay, by the level of the last hours against that of the past.

    A step is there when all but a quarter of the recent readings lie beyond the past's level by the step's least size, on the same side.
    Of independent readings with normal errors three do so with a chance of 1.2e-5, and twelve of 1e-14. Queues that fill also
    lift the level, and with it the spread within each test: of a step up, what that spread grew by does not count.
    """

    def __init__(self) -> None:
        self.symptom: Symptom | None = None
        self.last = -math.inf
        self._forget()

    def take(self, at: float, ms: float) -> bool:
        """Take a reading; return whether there was a gap before it."""
        gap = at - self.last > GAP_S
        if at - self.last > STALE_S:
            self._forget()
        self.last = at
        self._recent.append(_Delay(at, ms))
        while len(self._recent) > RECENT_LEAST and self._recent[0].at < at - RECENT_S:
            self._learn(self._recent.popleft())
        if self.symptom is not None:
            self._go_on(self.symptom, at, ms)
        self._look()
        return gap

    def take_jitter(self, at: float, ms: float) -> bool:
        """Take the standard deviation of the test whose mean came last; return whether it is of that."""
        last = self._recent[-1] if self._recent else None
        if last is None or last.at != at:
            return False
        last.jitter = ms
        return True

    def displacement(self, since: float) -> float | None:
        """By how many ms the readings since then lie above the level before; None where that is not known."""
        past = self._before if self.symptom is not None else self._past
        values = [one.ms for one in self._recent if one.at >= since]
        return median(values) - past.level if past is not None and values else None

    def leans(self, since: float, step: float) -> bool:
        """Whether the readings since then lie about such a step away."""
        away = self.displacement(since)
        if away is None:  # without a past only what cannot be is telling
            return step < 0 and any(one.ms < IMPOSSIBLE_MS for one in self._recent if one.at >= since)
        return abs(away - step) <= max(STEP_MS / 2.0, SAME_SHARE * abs(step))

    def _forget(self) -> None:
        self.symptom = None
        self._recent: Delays = deque()
        self._readings: Delays = deque(maxlen=PAST_MOST)
        self._past: _Past | None = None
        self._before: _Past | None = None  # the past before the symptom
        self._fresh = 0
        self._known: deque[tuple[float, float]] = deque(maxlen=KNOWN_MOST)  # until when there were which levels

    def _learn(self, one: _Delay) -> None:
        self._readings.append(one)
        self._fresh += 1
        if len(self._readings) == PAST_LEAST or (self._fresh >= REFRESH and len(self._readings) > PAST_LEAST):
            self._sum_up()

    def _sum_up(self) -> None:
        self._fresh = 0
        values = [one.ms for one in self._readings]
        level = median(values)
        self._past = _Past(
            readings=self._readings,
            level=level,
            step=max(STEP_MS, SPREADS * max(SPREAD_MS, spread(values, level))),
            stray=high_end([abs(value - level) for value in values]),
            jitter=median([one.jitter for one in self._readings]),
        )

    def _look(self) -> None:
        """Whether the level has just moved."""
        last = list(self._recent)[-RECENT_LEAST:]
        values = [one.ms for one in last]
        if len(last) < RECENT_LEAST:
            return
        past = self._past
        if max(values) < IMPOSSIBLE_MS and (past is None or past.level > IMPOSSIBLE_MS):
            if self.symptom is None or self.symptom.trouble is Trouble.DELAY:
                self._declare(Trouble.CLOCK, last)
            return
        if past is None:
            return
        away = [value - past.level for value in values]
        jump = median(away)
        if min(abs(one) for one in away) >= DETOUR_MS and max(away) - min(away) <= AGREEING * abs(jump):
            if self._beyond_queues(last, jump, past) >= DETOUR_MS:
                self._move(Trouble.CLOCK, last, past)
            return
        recent = list(self._recent)
        if recent[-1].at - recent[0].at < LASTING_S:
            return
        values = [one.ms for one in recent]
        if low_end(values) - past.level >= past.step:
            beyond = self._beyond_queues(recent, median(values) - past.level, past)
            moved = beyond >= past.step
        else:
            moved = past.level - high_end(values) >= past.step
        if moved and not self._usual(median(values), past):
            middle = (median(values) + past.level) / 2.0
            shown = [one for one in recent if (one.ms > middle) is (median(values) > middle)]
            if len(shown) >= RECENT_LEAST and _is_level([one.ms for one in shown], past):
                self._move(Trouble.DELAY, shown, past)

    def _beyond_queues(self, recent: Sequence[_Delay], step: float, past: _Past) -> float:
        return step - max(0.0, median([one.jitter for one in recent]) - past.jitter) if step > 0 else -step

    def _usual(self, level: float, past: _Past) -> bool:
        near = sum(abs(one.ms - level) <= past.step / 2.0 for one in past.readings)
        return near > USUAL_SHARE * len(past.readings)

    def _move(self, trouble: Trouble, shown: list[_Delay], past: _Past) -> None:
        """Begin a new level. One that was there before the symptom ends it; back down to one of late is no news."""
        level = median([one.ms for one in shown])
        at = shown[-1].at
        if (
            self.symptom is not None
            and self._before is not None
            and abs(level - self._before.level) < self._before.step
        ):
            self._recover(shown, self._before)
            return
        back = level < past.level and any(
            at - then <= KNOWN_S and abs(level - known) < past.step for then, known in self._known
        )
        self._known.append((at, past.level))
        if back:
            self.symptom, self._before = None, None
            self._start_level(shown)
        else:
            self._declare(trouble, shown)

    def _declare(self, trouble: Trouble, shown: list[_Delay]) -> None:
        if self._past is not None:
            self._before = self._past
        now = median([one.ms for one in shown])
        self.symptom = Symptom(
            trouble=trouble,
            since=shown[0].at,
            before=self._before.level if self._before is not None else None,
            now=now,
            readings=sum(one.at >= shown[0].at for one in self._recent),
            shown=len(shown),
            last=self.last,
        )
        self._start_level(shown)

    def _start_level(self, shown: Sequence[_Delay]) -> None:
        self._recent = deque(shown)
        self._readings, self._past, self._fresh = deque(maxlen=PAST_MOST), None, 0

    def _recover(self, shown: Sequence[_Delay], before: _Past) -> None:
        """Go on with the past before the symptom."""
        self.symptom, self._before = None, None
        self._recent, self._readings, self._past = deque(shown), before.readings, before

    def _go_on(self, symptom: Symptom, at: float, ms: float) -> None:
        values = [one.ms for one in self._recent]
        symptom.last, symptom.now = at, median(values)
        symptom.readings += 1
        before = self._before
        if before is None:  # negative from the first reading on
            symptom.shown += ms < IMPOSSIBLE_MS
            if len(values) >= RECENT_LEAST and min(values[-RECENT_LEAST:]) >= IMPOSSIBLE_MS:
                self.symptom = None
                self._start_level(list(self._recent)[-RECENT_LEAST:])
            return
        reach = max(before.step / 2.0, abs(symptom.now - before.level) / 2.0)
        symptom.shown += abs(ms - before.level) >= before.step / 2.0
        near = [one for one in self._recent if abs(one.ms - before.level) < min(reach, before.step)]
        if len(near) >= len(values) - len(values) // 4:
            self._recover(near, before)
        elif at - symptom.since >= (CLOCK_SETTLED_S if symptom.trouble is Trouble.CLOCK else SETTLED_S):
            self.symptom, self._before = None, None
