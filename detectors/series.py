"""Series of perfSONAR readings of one quantity between two hosts, and what each shows: lasting changes, not single readings.

Each series judges itself against its own past and no other's. All tests are sequential, so that what they say depends on the order
of the readings alone. One reading, however bad, is never enough: every test needs three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from detectors.findings import Symptom, Trouble

DAY_S = 86_400.0
GAP_S = DAY_S  # losses so far apart are not of one kind
STALE_S = 14 * DAY_S  # after so long without readings the level of a delay says nothing of the present

LOSS_REFERENCE = (
    0.01  # half of the 2 % that operators alarm on: the reference of a CUSUM is half of the shift to be found
)
LOSS_ALARM, LOSS_MOST = 3.0, 4.0  # bad readings without a good one between; what good ones have to make up for at most
TOTAL = 0.999  # as good as all packets
WALLED = 3  # readings of total loss

RECENT_S, RECENT_LEAST = 3 * 3600.0, 3  # readings that are held against the past
LASTING_S = 2 * 3600.0  # they have to span so much
PAST_LEAST, PAST_MOST = 10, 512  # readings of the past
REFRESH = 8  # readings after which the past is summed up anew
STEP_MS = 7.5  # half of the 15 ms that have to be found; 1,500 km of fibre
SPREADS = 2.0  # a step is beyond so many spreads of the past
LEVEL_SHARE = 0.1  # readings of a new level stray by less than this share of the step
USUAL_SHARE = 0.1  # of the past at a level that makes it no news
DETOUR_MS = 100.0  # no detour on Earth takes longer: half of its girth, 20,000 km, at 204 km/ms in fibre
AGREEING = 0.25  # readings of a clock's jump differ by less than this share of it
IMPOSSIBLE_MS = -10.0  # a delay below this is a clock's; NTP keeps hosts within some ms of each other
SETTLED_S, CLOCK_SETTLED_S = 2 * DAY_S, 14 * DAY_S  # a level that has held for so long is the normal one
KNOWN_S, KNOWN_MOST = 14 * DAY_S, 8  # levels that are remembered
SPREAD_MS = 0.5  # the least spread

TESTS_S, TESTS_MOST, TESTS_LEAST = 60 * DAY_S, 128, 10  # throughput tests of the past
DRIFT, ALARM, MOST = 0.5, 4.0, 3.0  # of the CUSUM, in spreads: slack, decision interval, what one test counts at most
RUN_LEAST, RUN_S = 3, 14 * DAY_S
HALVED = math.log(2.0)  # operators' own: a change of 50 %
SPREAD_LOG = 0.15  # two tests of one path differ by so much anyway

_TO_SIGMA = 1.4826  # of a normal distribution: 1 / quantile(3/4)


def median(values: Sequence[float]) -> float:
    """Return the middle of some values.

    >>> median([3.0, 1.0, 2.0]), median([4.0, 1.0])
    (2.0, 2.5)
    """
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def spread(values: Sequence[float], centre: float) -> float:
    """Return 1.4826 times the median distance from the centre: sigma, if they were normal, whatever half of them do.

    Hampel, «The influence curve and its role in robust estimation», 1974.

    >>> round(spread([1.0, 2.0, 3.0, 4.0, 500.0], 3.0), 4)
    1.4826
    """
    return _TO_SIGMA * median([abs(value - centre) for value in values])


def lossy(loss: float) -> float:
    """What one reading adds to the CUSUM of loss: how far it lies above the reference, in references, from -1 to 1.

    Page, «Continuous inspection schemes», 1954; bounded, so that one burst is one bad reading.

    >>> [round(lossy(loss), 3) for loss in (0.0, 0.012, 0.5)]
    [-1.0, 0.2, 1.0]
    """
    return min(1.0, loss / LOSS_REFERENCE - 1.0)


def low_end(values: Sequence[float]) -> float:
    """What all but a quarter of some values reach: of three the lowest.

    >>> low_end([3.0, 1.0, 2.0]), low_end([3.0, 1.0, 2.0, 4.0])
    (1.0, 2.0)
    """
    return sorted(values)[len(values) // 4]


def high_end(values: Sequence[float]) -> float:
    """What all but a quarter of some values stay within: of three the highest.

    >>> high_end([3.0, 1.0, 2.0]), high_end([3.0, 1.0, 2.0, 4.0])
    (3.0, 3.0)
    """
    return sorted(values)[-1 - len(values) // 4]


class LossSeries:
    """Loss, by a CUSUM against a fixed reference: what TCP suffers does not depend on what is usual here."""

    def __init__(self) -> None:
        self.symptom: Symptom | None = None
        self.last = -math.inf
        self._sum = 0.0
        self._walled = 0
        self._run: deque[float] = deque(maxlen=32)  # readings since the sum left 0
        self._since = 0.0

    def take(self, at: float, loss: float) -> bool:
        """Take a reading, a fraction; return whether there was a gap before it."""
        gap = at - self.last > GAP_S
        if gap:
            self.symptom, self._sum, self._walled = None, 0.0, 0
        self.last = at
        if self._sum == 0.0:
            self._since = at
            self._run.clear()
        self._run.append(loss)
        self._sum = min(LOSS_MOST, max(0.0, self._sum + lossy(loss)))
        self._walled = self._walled + 1 if loss >= TOTAL else 0
        if self.symptom is not None:
            self._go_on(self.symptom, at, loss)
        elif self._sum >= LOSS_ALARM - 1e-9:
            bad = [one for one in self._run if one > LOSS_REFERENCE]
            self.symptom = Symptom(
                trouble=Trouble.FIREWALL if self._walled >= WALLED else Trouble.LOSS,
                since=self._since,
                before=0.0,
                now=median(self._run),
                readings=len(self._run),
                shown=len(bad),
                last=at,
            )
        return gap

    def leans(self, since: float) -> bool:
        """Whether it has begun to show loss since then."""
        return self.last >= since and self._sum >= 1.0

    def _go_on(self, symptom: Symptom, at: float, loss: float) -> None:
        symptom.last, symptom.now = at, median(self._run)
        symptom.readings += 1
        symptom.shown += loss > LOSS_REFERENCE
        if self._walled >= WALLED:
            symptom.trouble = Trouble.FIREWALL
        if self._sum == 0.0:
            self.symptom = None


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

    def leans(self, since: float, sign: float) -> bool:
        """Whether the readings since then lie a step away, on the side of `sign`."""
        past = self._before if self.symptom is not None else self._past
        if past is None:  # without a past only what cannot be is telling
            return sign < 0 and any(one.ms < IMPOSSIBLE_MS for one in self._recent if one.at >= since)
        away = self.displacement(since)
        return away is not None and away * sign >= past.step

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


def _begun(below: Sequence[float]) -> int:
    """The place at which the fall most likely began: that from which most lies below half of it."""
    sums = [sum(HALVED / 2.0 - value for value in below[place:]) for place in range(len(below) - RUN_LEAST + 1)]
    return sums.index(min(sums))


class ThroughputSeries:
    """Throughput, by a CUSUM of robust z-scores of log(bit/s) against the tests of the last 60 days.

    With a slack of 0.5 and a decision interval of 4 normal errors give a false alarm once in 336 tests (Hawkins and Olwell, «Cumulative
    sum charts and charting for quality improvement», 1998, table 3.1); that the median of the last three has halved, too, makes
    it rarer. What a test counts is bounded, so that one that failed is not a collapse.
    """

    def __init__(self) -> None:
        self.symptom: Symptom | None = None
        self.last = -math.inf
        self._past: deque[tuple[float, float]] = deque(maxlen=TESTS_MOST)
        self._run: list[tuple[float, float]] = []
        self._sum = 0.0
        self._level = 0.0  # before the symptom

    def take(self, at: float, bits: float) -> bool:
        """Take a test; return whether there was a gap before it: none of the past is left."""
        self.last = at
        test = (at, math.log(max(bits, 1.0)))
        gap = bool(self._past) and at - self._past[-1][0] > TESTS_S
        while self._past and at - self._past[0][0] > TESTS_S:
            self._past.popleft()
        if self.symptom is not None:
            self._go_on(self.symptom, test)
        else:
            self._look(test)
        return gap

    def _look(self, test: tuple[float, float]) -> None:
        past = [value for _, value in self._past]
        if len(past) < TESTS_LEAST:
            self._past.append(test)
            return
        level = median(past)
        below = (level - test[1]) / max(SPREAD_LOG, spread(past, level))
        self._sum = max(0.0, self._sum + min(MOST, below) - DRIFT)
        self._run.append(test)
        if self._sum == 0.0 or test[0] - self._run[0][0] > RUN_S:
            self._settle()
            return
        last = [value for _, value in self._run[-RUN_LEAST:]]
        if self._sum >= ALARM and len(last) == RUN_LEAST and level - median(last) >= HALVED:
            self._level = level
            self._run = self._run[_begun([level - value for _, value in self._run]) :]
            self.symptom = Symptom(
                trouble=Trouble.THROUGHPUT,
                since=self._run[0][0],
                before=math.exp(level),
                now=math.exp(median(last)),
                readings=len(self._run),
                shown=sum(level - value >= HALVED / 2.0 for _, value in self._run),
                last=test[0],
            )

    def _go_on(self, symptom: Symptom, test: tuple[float, float]) -> None:
        self._run = [*self._run[-TESTS_MOST:], test]
        last = median([value for _, value in self._run[-RUN_LEAST:]])
        symptom.last, symptom.now = test[0], math.exp(last)
        symptom.readings += 1
        symptom.shown += self._level - test[1] >= HALVED / 2.0
        if self._level - last < HALVED / 2.0:
            self.symptom = None
            self._run = self._run[-RUN_LEAST:]
            self._settle()
        elif test[0] - symptom.since >= RUN_S:
            self.symptom = None
            self._past.clear()
            self._settle()

    def _settle(self) -> None:
        self._past.extend(self._run)
        self._run, self._sum = [], 0.0
