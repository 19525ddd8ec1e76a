"""What perfSONAR says of a path at this moment, asked once transfers on it go badly.

The network detector finds lasting changes from the readings alone, and has to be sure by itself. Here transfers have raised the
doubt, so that one reading, which alone would be nothing, decides between network and storage. A path is ill if it loses far more
packets than it usually does, or if its delay lies far above the usual.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detectors.series import median
from models.columns import Rows

FRESH_S = (
    1500.0  # a reading that is older says nothing of this moment: two turns of a test that comes every ten minutes
)
JUST_NOW_S = 600.0
PAST_MOST = 144  # readings that say what is usual: a day of these
PAST_LEAST = 6
LOSS_FLOOR, LOSS_FACTOR = 0.004, 4.0  # a burst of fewer comes on any path now and then
LOST = 0.01  # one reading in a thousand shows so much by chance
DELAY_FLOOR_MS, DELAY_SHARE, JITTERS = 4.0, 0.5, 3.0  # beyond the usual, and beyond what the queues explain


class Sky(enum.Enum):
    """What is known of a path."""

    ILL = "ill"
    WELL = "well"
    UNKNOWN = "unknown"  # nobody measures it, or has not lately


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A path as of a time. Loss is a fraction, delay in ms; NaN where it was not measured lately."""

    sky: Sky
    loss: float
    usual_loss: float
    delay_ms: float
    usual_delay_ms: float
    sure: bool  # it is ill by more than one reading, or by one that no burst explains


@dataclass(slots=True)
class _Reading:
    at: float
    value: float


class _Past:
    """The readings of one quantity on one path."""

    def __init__(self) -> None:
        self._all: deque[_Reading] = deque(maxlen=PAST_MOST)

    def take(self, at: float, value: float) -> None:
        """Take a reading; one that is no newer than the last changes nothing."""
        if not self._all or at > self._all[-1].at:
            self._all.append(_Reading(at, value))

    def between(self, begin: float, end: float) -> list[float]:
        return [one.value for one in self._all if begin <= one.at <= end]

    def usual(self, at: float) -> float:
        """The median of what came before; NaN of too few."""
        values = [one.value for one in self._all if one.at < at - FRESH_S]
        return median(values) if len(values) >= PAST_LEAST else float("nan")


class Weather:
    """Give it located readings in the order in which they come."""

    def __init__(self, site: Callable[[str], str] = str) -> None:
        """`site` says what perfSONAR's sites are called where paths are written by the names of storage elements."""
        self._site = site
        self.reset()

    def reset(self) -> None:
        self._paths: dict[str, dict[str, _Past]] = {}
        self._of_site: dict[str, list[str]] = {}

    def absorb(self, readings: Rows) -> None:
        """Readings with the sites of both ends; those of which one is not known are left out."""
        names = ("source_site", "destination_site", "quantity", "value", "at")
        columns = [np.asarray(readings[name]).tolist() for name in names]
        for source, destination, quantity, value, at in zip(*columns, strict=True):
            if quantity in {"packet_loss", "delay_mean", "delay_sd"} and source and destination:
                path = f"{source}>{destination}".casefold()
                if path not in self._paths:
                    self._paths[path] = {}
                    for site in (source.casefold(), destination.casefold()):
                        self._of_site.setdefault(site, []).append(path)
                self._paths[path].setdefault(quantity, _Past()).take(at, value)

    def of(self, path: str, at: float, *, since: float | None = None) -> Outlook:
        """How a path, written `S>T`, is at a time; by the readings since another time alone if one is given."""
        past = self._paths.get(">".join(map(self._site, path.split(">"))).casefold(), {})
        begin = at - FRESH_S if since is None else since
        losses = past.get("packet_loss")
        loss, usual_loss = _worst(losses, begin, at)
        delay, usual_delay = _worst(past.get("delay_mean"), begin, at)
        jitter, usual_jitter = _worst(past.get("delay_sd"), begin, at)
        queues = JITTERS * max(0.0, np.nan_to_num(jitter) - np.nan_to_num(usual_jitter))
        limit = max(LOSS_FLOOR, LOSS_FACTOR * np.nan_to_num(usual_loss))
        lossy = loss >= limit
        far = delay - usual_delay > DELAY_FLOOR_MS + DELAY_SHARE * abs(usual_delay) + queues
        known = not (np.isnan(loss) and np.isnan(delay))
        return Outlook(
            sky=Sky.ILL if lossy or far else Sky.WELL if known else Sky.UNKNOWN,
            loss=loss,
            usual_loss=usual_loss,
            delay_ms=delay,
            usual_delay_ms=usual_delay,
            sure=bool(far or loss >= LOST or (losses and sum(one >= limit for one in losses.between(begin, at)) > 1)),
        )

    def peers(self, site: str, at: float) -> tuple[int, int]:
        """How many paths from and to a site are ill by what was measured just now, and of how many that is known."""
        skies = [
            self.of(path, at, since=at - JUST_NOW_S).sky for path in self._of_site.get(self._site(site).casefold(), ())
        ]
        return skies.count(Sky.ILL), len(skies) - skies.count(Sky.UNKNOWN)


def _worst(past: _Past | None, begin: float, at: float) -> tuple[float, float]:
    """The highest of the latest readings, and the usual; NaN where they are not known."""
    if past is None:
        return float("nan"), float("nan")
    return max(past.between(begin, at), default=float("nan")), past.usual(at)
