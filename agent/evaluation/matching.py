"""Which incident is of which fault."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from agent.evaluation.trial import Alarm, Hurt, Struck

ELIGIBLE: Final = 20  # transfers that a fault hurts: those that hurt fewer are not asked for
AFTER_S: Final = 1800.0  # after the end of a fault, an incident may still be opened for it


def eligible(faults: Iterable[Struck], hurt: Hurt) -> list[Struck]:
    """The faults that hurt enough."""
    return [fault for fault in faults if hurt.of(fault.number).transfers >= ELIGIBLE]


def matched(alarms: Sequence[Alarm], faults: Iterable[Struck]) -> dict[int, Alarm]:
    """The first alarm that is rightly raised for each fault, by the fault's number; each alarm is of one fault at most."""
    lasted = {fault.number: (fault.start, fault.end + AFTER_S) for fault in faults}
    found: dict[int, Alarm] = {}
    for alarm in sorted(alarms, key=lambda alarm: alarm.opened):
        for number in alarm.causes:
            start, end = lasted[number]
            if start <= alarm.opened <= end and number not in found:
                found[number] = alarm
                break
    return found


def minutes_to_detect(alarm: Alarm | None, fault: Struck, hurt: Hurt) -> float:
    """From the first request that the fault hurt to the alarm; infinite without one. `hurt` is what the fault hurt."""
    if alarm is None:
        return math.inf
    return max(0.0, alarm.opened - max(fault.start, float(hurt.created.min()))) / 60.0
