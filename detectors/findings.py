"""What is found wrong with the network: its words, and the value that is handed out."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from models.domain import Entity, EntityKind, IncidentKind


class Trouble(enum.StrEnum):
    """What can be wrong with a path."""

    LOSS = "loss"
    DELAY = "delay"  # the level moved, as by another route
    THROUGHPUT = "throughput"
    FIREWALL = "firewall"  # all is lost, and goes on being lost
    CLOCK = "clock"  # of one of the hosts: the path itself is well


QUANTITY: Mapping[Trouble, str] = {
    Trouble.LOSS: "packet_loss",
    Trouble.DELAY: "delay_mean",
    Trouble.THROUGHPUT: "throughput",
    Trouble.FIREWALL: "packet_loss",
    Trouble.CLOCK: "delay_mean",
}


@dataclass(kw_only=True, slots=True)
class Symptom:
    """What one series of readings shows while it shows it. `before` and `now` are in the unit of its quantity."""

    trouble: Trouble
    since: float  # of the first reading that shows it, seconds
    before: float | None  # None: there is no past to compare with
    now: float
    readings: int  # since then
    shown: int  # of them those that show it
    last: float  # of the newest reading, seconds


class Turn(enum.StrEnum):
    """What has just happened to a finding."""

    OPENED = "opened"
    CHANGED = "changed"  # another culprit or name, or one more path
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with one path or with one site's network, as of `updated_at`. Times are those of readings."""

    id: str
    turn: Turn
    trouble: Trouble
    culprit: Entity  # a network or a site
    since: datetime
    opened_at: datetime
    updated_at: datetime
    closed_at: datetime | None
    quantity: str  # of `models.measurements.QUANTITIES`
    before: float | None  # the level of the path that showed it first; None where it has no past
    now: float
    readings: int  # of all its paths, since they show it
    confidence: float  # 0..1
    paths: tuple[str, ...]  # `S>T` of all the pairs that have shown it
    note: str  # why it was closed, else ""

    @property
    def clock_jumped(self) -> bool:
        """Whether it is of a clock that was right before: the delays of its paths are wrong since."""
        return self.trouble is Trouble.CLOCK and self.before is not None

    def lasts(self, at: float) -> bool:
        """Whether it was open at that time, in seconds."""
        closed = math.inf if self.closed_at is None else self.closed_at.timestamp()
        return self.opened_at.timestamp() <= at < closed

    @property
    def kind(self) -> IncidentKind:
        """The kind of the incident that it makes."""
        return IncidentKind.CLOCK_OFF if self.trouble is Trouble.CLOCK else IncidentKind.DEGRADED_NETWORK


def confidence(shown: int, readings: int) -> float:
    """How sure a finding is: Laplace's rule of succession, (shown + 1) / (readings + 2).

    The chance that the next reading shows it too, if nothing was known beforehand (Laplace, «Essai philosophique sur les
    probabilités», 1814).

    >>> round(confidence(3, 3), 2), round(confidence(3, 6), 2)
    (0.8, 0.5)
    """
    return (shown + 1) / (readings + 2)


def sentence(finding: Finding) -> str:
    """What was found, where and since when, in numbers: one line."""
    where = finding.culprit.name.replace(">", " → ")
    if finding.culprit.kind is EntityKind.SITE:
        where += f" ({len(finding.paths)} paths)"
    return f"{finding.trouble} at {where}: {_level(finding)}, since {finding.since:%Y-%m-%d %H:%M} UTC by {finding.readings} readings"


def _level(finding: Finding) -> str:
    now, before = finding.now, finding.before
    match finding.trouble:
        case Trouble.FIREWALL:
            return "all packets are lost (100 %), so that probes do not get through"
        case Trouble.LOSS:
            return f"{100.0 * now:.1f} % of the packets are lost, usually {100.0 * (before or 0.0):.1f} %"
        case Trouble.THROUGHPUT:
            return f"tests reach {now / 1e6:,.0f} Mbit/s, usually {(before or 0.0) / 1e6:,.0f}"
        case _:
            usual = "which cannot be" if before is None else f"usually {before:.0f}"
            return f"the delay is {now:.0f} ms, {usual}"
