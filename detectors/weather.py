"""What perfSONAR says of a path at this moment, asked once transfers on it go badly.

The network detector finds lasting changes from the readings alone, and has to be sure by itself. Here transfers have raised the
doubt, so that one reading, which alone would be nothing, helps to decide between network and storage: a reading is bad if it shows far more
lost packets than is usual on the path, or a delay far above the usual. What the detector found says the rest, that throughput has collapsed.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from detectors.findings import Finding, Trouble
from detectors.network import NetworkDetector
from detectors.series import median
from models.columns import Rows
from models.domain import Entity, EntityKind

FRESH_S = (
    1500.0  # a reading that is older says nothing of this moment: two turns of a test that comes every ten minutes
)
JUST_NOW_S = 600.0
SEEN_S = 2700.0  # bad readings of so long ago still are evidence: a path that flaps is well every other time
HELD_S = 3600.0  # what was ill is held to be so for so long, if it is not measured any more
PAST_MOST = 144  # readings that say what is usual: a day of these
PAST_LEAST = 6
LOSS_FLOOR, LOSS_FACTOR = 0.004, 4.0  # a burst of fewer comes on any path now and then
KEPT_OUT = (
    0.5  # of the packets: where so many are usually lost, a firewall keeps probes out, and nobody measures the path
)
DELAY_FLOOR_MS, DELAY_SHARE, JITTERS = 4.0, 0.5, 3.0  # beyond the usual, and beyond what the queues explain
# Log of the odds that bad readings bring. Bursts make one in some hundred bad; two of one path within the hour are next to never by chance.
ONE_BAD, MORE_BAD, SURE = 5.0, 4.0, 12.0
PEERS, PEERS_SHARE = 3, 0.5  # paths of a site that are ill, before all of it is, and of those just measured
TOLD_S = 3 * 3600.0  # what was found is told of for so long after it was over


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
    sure: bool  # it is ill by more than one reading
    doubt: float  # log of the odds that perfSONAR brings against the path, 0 unless it is ill


@dataclass(slots=True)
class _Reading:
    at: float
    value: float
    jitter: float = 0.0  # of a delay: the standard deviation within the test


class _Past:
    """The readings of one quantity on one path."""

    def __init__(self) -> None:
        self._all: deque[_Reading] = deque(maxlen=PAST_MOST)

    def take(self, at: float, value: float) -> None:
        """Take a reading; one that is no newer than the last changes nothing."""
        if not self._all or at > self._all[-1].at:
            self._all.append(_Reading(at, value))

    def take_jitter(self, at: float, value: float) -> None:
        """Take the standard deviation of the test that came last; that of another changes nothing."""
        if self._all and self._all[-1].at == at:
            self._all[-1].jitter = value

    def between(self, begin: float, end: float) -> list[_Reading]:
        return [one for one in self._all if begin <= one.at <= end]

    def before(self, at: float) -> list[_Reading]:
        """What says what is usual at a time; nothing of too few."""
        past = [one for one in self._all if one.at < at - FRESH_S]
        return past if len(past) >= PAST_LEAST else []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usual:
    """What is usual on a path; NaN where that is not known."""

    loss: float
    delay_ms: float
    jitter_ms: float

    def lost(self, one: _Reading) -> bool:
        return one.value >= max(LOSS_FLOOR, LOSS_FACTOR * float(np.nan_to_num(self.loss)))

    def far(self, one: _Reading) -> bool:
        queues = JITTERS * max(0.0, one.jitter - self.jitter_ms)
        return one.value > self.delay_ms + DELAY_FLOOR_MS + DELAY_SHARE * abs(self.delay_ms) + queues


class _Path:
    """What was measured between two sites."""

    def __init__(self) -> None:
        self.losses, self.delays = _Past(), _Past()

    def usual(self, at: float) -> _Usual:
        losses, delays = self.losses.before(at), self.delays.before(at)
        return _Usual(
            loss=_middle([one.value for one in losses]),
            delay_ms=_middle([one.value for one in delays]),
            jitter_ms=_middle([one.jitter for one in delays]),
        )

    def readings(self, usual: _Usual, begin: float, end: float, *, clock_off: bool) -> Iterator[tuple[float, bool]]:
        """When each reading of a time was made and whether it is bad, of one quantity after the other. Delays by a clock say nothing."""
        if not usual.loss >= KEPT_OUT:
            yield from ((one.at, usual.lost(one)) for one in self.losses.between(begin, end))
        if not clock_off:
            yield from ((one.at, usual.far(one)) for one in self.delays.between(begin, end))


class Weather:
    """Give it located readings in the order in which they come."""

    def __init__(self, site: Callable[[str], str] = str) -> None:
        """`site` says what perfSONAR's sites are called where paths are written by the names of storage elements."""
        self._site = site
        self._network = NetworkDetector()
        self.reset()

    def reset(self) -> None:
        self._paths: dict[str, _Path] = {}
        self._of_site: dict[str, list[str]] = {}
        self._network.reset()
        self._found: dict[str, Finding] = {}  # by id, as last told of

    def absorb(self, readings: Rows) -> list[Finding]:
        """Readings with the sites of both ends; return every turn of what the network detector makes of them, in order."""
        names = ("source_site", "destination_site", "quantity", "value", "at")
        columns = [np.asarray(readings[name]).tolist() for name in names]
        for source, destination, quantity, value, at in zip(*columns, strict=True):
            if quantity in {"packet_loss", "delay_mean", "delay_sd"} and source and destination:
                path = f"{source}>{destination}".casefold()
                if path not in self._paths:
                    self._paths[path] = _Path()
                    for site in (source.casefold(), destination.casefold()):
                        self._of_site.setdefault(site, []).append(path)
                measured = self._paths[path]
                match quantity:
                    case "packet_loss":
                        measured.losses.take(at, value)
                    case "delay_mean":
                        measured.delays.take(at, value)
                    case _:
                        measured.delays.take_jitter(at, value)
        turns = self._network.absorb(readings)
        for finding in turns:
            self._found[finding.id] = finding
            for old in [one for one in self._found.values() if _over(one, finding.updated_at.timestamp() - TOLD_S)]:
                del self._found[old.id]
        return turns

    def found(self, at: float) -> list[Finding]:
        """What was found and lasted at a time, in seconds, the oldest first."""
        return [finding for finding in self._found.values() if finding.lasts(at)]

    def found_of(self, culprit: Entity, at: float) -> list[Finding]:
        """What of it is of a site, or of a path, written `S>T`, or one of its ends."""
        ends = [self._site(end).casefold() for end in culprit.name.split(">")]
        return [finding for finding in self.found(at) if _concerns(finding, ends)]

    def of(self, path: str, at: float, *, since: float | None = None) -> Outlook:
        """How a path, written `S>T`, is at a time; by the readings since another time alone if one is given.

        It is ill if its newest reading is bad, or two of the last three quarters of an hour are.
        """
        measured = self._path(path)
        usual, found = measured.usual(at), self.found_of(Entity(EntityKind.NETWORK, path), at)
        known, seen, held = (at - FRESH_S, at - SEEN_S, at - HELD_S) if since is None else (since,) * 3
        readings = list(measured.readings(usual, held, at, clock_off=any(one.clock_jumped for one in found)))
        bad = sum(is_bad for when, is_bad in readings if when >= seen)
        collapsed = any(one.trouble is Trouble.THROUGHPUT for one in found)
        fresh = any(when >= known for when, _ in readings)
        ill = collapsed or _last_bad(readings) or (bad > 1 and fresh)
        sky = Sky.ILL if ill else Sky.WELL if fresh else Sky.UNKNOWN
        return Outlook(
            sky=sky,
            loss=max((one.value for one in measured.losses.between(known, at)), default=float("nan")),
            usual_loss=usual.loss,
            delay_ms=max((one.value for one in measured.delays.between(known, at)), default=float("nan")),
            usual_delay_ms=usual.delay_ms,
            sure=collapsed or (ill and bad > 1),
            doubt=0.0 if not ill else SURE if collapsed else min(SURE, ONE_BAD + MORE_BAD * max(bad - 1, 0)),
        )

    def _path(self, path: str) -> _Path:
        return self._paths.get(">".join(map(self._site, path.split(">"))).casefold(), _Path())

    def blamed(self, path: str, at: float) -> Entity:
        """What is ill if a path is: the site at one end of it, if most of that site's paths are so, or else the path."""
        for site in path.split(">"):
            if self.of(path, at).sky is Sky.ILL and self.sick(site, at):
                return Entity(EntityKind.SITE, site)
        return Entity(EntityKind.NETWORK, path)

    def sick(self, site: str, at: float) -> bool:
        """Whether most of a site's paths are ill by what was measured just now."""
        ill, measured = self.peers(site, at)
        return ill >= PEERS and ill >= PEERS_SHARE * measured

    def peers(self, site: str, at: float) -> tuple[int, int]:
        """How many paths from and to a site are ill by what was measured just now, and of how many that is known."""
        skies = [
            self.of(path, at, since=at - JUST_NOW_S).sky for path in self._of_site.get(self._site(site).casefold(), ())
        ]
        return skies.count(Sky.ILL), len(skies) - skies.count(Sky.UNKNOWN)

    def recovered(self, culprit: Entity, at: float) -> bool:
        """Whether a site or a path that was ill within the hour is well by all that was measured lately."""
        if culprit.kind is EntityKind.SITE:
            ill, measured = self.peers(culprit.name, at)
            return measured >= PEERS and ill < PEERS_SHARE * measured
        path, jumped = self._path(culprit.name), any(one.clock_jumped for one in self.found_of(culprit, at))
        readings = list(path.readings(path.usual(at), at - HELD_S, at, clock_off=jumped))
        late = [bad for when, bad in readings if when >= at - FRESH_S]
        return any(bad for _, bad in readings) and bool(late) and not any(late)


def _middle(values: list[float]) -> float:
    return median(values) if values else float("nan")


def _last_bad(readings: list[tuple[float, bool]]) -> bool:
    """Whether a reading is bad that was made in the newest test; loss and delay are measured within seconds."""
    newest = max((when for when, _ in readings), default=0.0)
    return any(bad for when, bad in readings if when >= newest - 60.0)


def _over(finding: Finding, before: float) -> bool:
    return finding.closed_at is not None and finding.closed_at.timestamp() < before


def _concerns(finding: Finding, ends: list[str]) -> bool:
    """Whether it is of a site, or of the path between two, by their names folded."""
    if finding.culprit.kind is EntityKind.SITE:
        return finding.culprit.name.casefold() in ends
    return ">".join(ends) in {path.casefold() for path in finding.paths}
