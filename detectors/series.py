"""Series of loss and of throughput between two hosts, and what each shows: lasting changes, not single readings.

Each series judges itself against its own past and no other's. All tests are sequential, so that what they say depends on the order
of the readings alone. One reading, however bad, is never enough: every test needs three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from detectors.findings import Symptom, Trouble

DAY_S = 86_400.0
GAP_S = DAY_S  # losses so far apart are not of one kind

LOSS_REFERENCE = 0.01  # half of the 2 % that operators alarm on, as a CUSUM has half of the shift to be found
LOSS_ALARM, LOSS_MOST = 3.0, 4.0  # bad readings without a good one between; what good ones have to make up for at most
TOTAL = 0.999  # as good as all packets
WALLED = 3  # readings of total loss

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
        self._level, self._spread = 0.0, 0.0  # before the symptom

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
        wide = max(SPREAD_LOG, spread(past, level))
        below = (level - test[1]) / wide
        self._sum = max(0.0, self._sum + min(MOST, below) - DRIFT)
        self._run = [*self._run[-TESTS_MOST:], test]
        if self._sum == 0.0 or test[0] - self._run[0][0] > RUN_S:
            self._settle()
            return
        last = [value for _, value in self._run[-RUN_LEAST:]]
        if self._sum >= ALARM and len(last) == RUN_LEAST and level - median(last) >= HALVED:
            self._level, self._spread = level, wide
            self._run = self._run[_begun([level - value for _, value in self._run]) :]
            self.symptom = self._symptom()

    def _symptom(self) -> Symptom:
        last = [value for _, value in self._run[-RUN_LEAST:]]
        return Symptom(
            trouble=Trouble.THROUGHPUT,
            since=self._run[0][0],
            before=math.exp(self._level),
            now=math.exp(median(last)),
            readings=len(self._run),
            shown=sum(self._level - value >= HALVED / 2.0 for _, value in self._run),
            last=self.last,
        )

    def _go_on(self, symptom: Symptom, test: tuple[float, float]) -> None:
        self._run = [*self._run[-TESTS_MOST:], test]
        last = median([value for _, value in self._run[-RUN_LEAST:]])
        symptom.last, symptom.now = test[0], math.exp(last)
        symptom.readings += 1
        symptom.shown += self._level - test[1] >= HALVED / 2.0
        earlier = [value for _, value in self._run[:-RUN_LEAST]]
        if len(earlier) >= RUN_LEAST and median(earlier) - last >= max(HALVED, self._spread):
            self._level = median(earlier)  # it has halved again
            self._run = self._run[-RUN_LEAST:]
            self.symptom = self._symptom()
        elif self._level - last < HALVED / 2.0:
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
