"""What a rule's incidents are worth, by the truth, and what that makes over all runs. See docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent.evaluation.intervals import Measure, interval
from agent.evaluation.kinds import RIGHT
from agent.evaluation.matching import eligible, matched, minutes_to_detect
from agent.evaluation.trial import Alarm, Hurt, Struck
from simulator.faults import FaultKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """An eligible fault, and the incident that matches it."""

    fault: Struck
    hurt: int  # transfers
    alarm: Alarm | None
    minutes_to_detect: float  # infinite for a miss
    stalls: tuple[
        bool, ...
    ] = ()  # of each transfer that it stalled, whether that was found in time; empty if nobody looked

    @property
    def right_culprit(self) -> bool:
        return self.alarm is not None and self.alarm.culprit in self.fault.culprits

    @property
    def right_kind(self) -> bool:
        return self.alarm is not None and self.alarm.kind in RIGHT[FaultKind(self.fault.kind)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An incident."""

    matches: bool  # a fault
    cause: str  # the kind of the fault that hurt at least half of its transfers, "" if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One rule in one world."""

    rule: str
    scenario: str
    seed: int
    days: float
    sought: tuple[Sought, ...]
    raised: tuple[Raised, ...]
    flagged_share: float | None  # of the transfers that were not hurt; None if there are none

    def of(self, kind: str) -> Verdict:
        """The same for the faults of one kind, and the incidents that they are behind."""
        return Verdict(
            rule=self.rule,
            scenario=self.scenario,
            seed=self.seed,
            days=self.days,
            sought=tuple(one for one in self.sought if one.fault.kind == kind),
            raised=tuple(one for one in self.raised if one.cause == kind),
            flagged_share=None,
        )


def judge(
    alarms: Sequence[Alarm],
    *,
    faults: Sequence[Struck],
    hurt: Hurt,
    rule: str,
    scenario: str,
    seed: int,
    days: float,
    flagged_share: float | None,
    stalls: Mapping[int, Sequence[bool]] | None = None,
) -> Verdict:
    """Hold the incidents of a rule against what truly was wrong.

    `stalls` says by the number of a fault whether each transfer that it stalled was found in time; None: the rule does not look
    at what is under way.
    """
    found, kinds = matched(alarms, faults), {fault.number: fault.kind for fault in faults}
    right = {id(alarm) for alarm in found.values()}
    sought = []
    for fault in eligible(faults, hurt):
        own, alarm = hurt.of(fault.number), found.get(fault.number)
        minutes = minutes_to_detect(alarm, fault, own)
        sought.append(
            Sought(
                fault=fault,
                hurt=own.transfers,
                alarm=alarm,
                minutes_to_detect=minutes,
                stalls=tuple((stalls or {}).get(fault.number, ())),
            )
        )
    raised = [
        Raised(matches=id(alarm) in right, cause=kinds[alarm.causes[0]] if alarm.causes else "") for alarm in alarms
    ]
    return Verdict(
        rule=rule,
        scenario=scenario,
        seed=seed,
        days=days,
        sought=tuple(sought),
        raised=tuple(raised),
        flagged_share=flagged_share,
    )


def summary(verdicts: Sequence[Verdict]) -> dict[str, Measure]:
    """The measures of one rule over these runs."""
    return {name: interval([values(one) for one in verdicts], middle) for name, (values, middle) in _MEASURES.items()}


_MEASURES: Final[Mapping[str, tuple[Callable[[Verdict], Sequence[float]], Callable[[Any], Any]]]] = {
    "recall": (lambda run: [one.alarm is not None for one in run.sought], np.mean),
    "precision": (lambda run: [one.matches for one in run.raised], np.mean),
    "right_culprit": (lambda run: [one.right_culprit for one in run.sought], np.mean),
    "right_kind": (lambda run: [one.right_kind for one in run.sought], np.mean),
    "minutes_to_detect": (lambda run: [one.minutes_to_detect for one in run.sought], np.median),
    "stalls_found_in_time": (lambda run: [found for one in run.sought for found in one.stalls], np.mean),
    "false_incidents_per_day": (lambda run: [sum(not one.matches for one in run.raised) / run.days], np.mean),
    "flagged_share": (lambda run: [] if run.flagged_share is None else [run.flagged_share], np.mean),
}
MEASURES: Final = tuple(_MEASURES)
