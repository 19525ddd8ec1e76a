"""What the runs show: measures over all seeds, each with an interval that comes from drawing the seeds anew. See docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent.evaluation.intervals import UNSAID, Measure, interval
from agent.evaluation.matching import eligible, matched, minutes_to_detect
from agent.evaluation.trial import Hurt, Struck, Trial

QUARTER_S: Final = 900.0
STRAY: Final = 3  # transfers in a quarter of an hour: fewer are no outage any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One run, judged. Lists hold a value for each eligible fault; None: this policy does not look."""

    days: float
    detected: list[bool] | None
    minutes_to_detect: list[float] | None  # infinite for a miss
    right_culprit: list[bool] | None
    false_incidents: int | None
    minutes_to_recover: list[float]
    transfers_hurt: int
    right_actions: int
    wrong_actions: int
    questions: int
    first_choices: list[tuple[int, bool]]


def judge(trial: Trial, untreated: Trial) -> Judged:
    """Judge a run; `untreated` is that of the same world in which nobody acts."""
    asked, alarms = eligible(trial.faults, untreated.hurt), trial.alarms
    by_fault = matched(alarms, trial.faults) if alarms is not None else {}
    found = [by_fault.get(fault.number) for fault in asked]
    return Judged(
        days=trial.days,
        detected=None if alarms is None else [alarm is not None for alarm in found],
        minutes_to_detect=None
        if alarms is None
        else [
            minutes_to_detect(alarm, fault, _felt(fault, trial, untreated))
            for alarm, fault in zip(found, asked, strict=True)
        ],
        right_culprit=None
        if alarms is None
        else [alarm is not None and alarm.culprit in fault.culprits for alarm, fault in zip(found, asked, strict=True)],
        false_incidents=None if alarms is None else len(alarms) - len(by_fault),
        minutes_to_recover=[_minutes_to_recover(fault, trial) for fault in asked],
        transfers_hurt=trial.hurt.transfers,
        right_actions=trial.right_actions,
        wrong_actions=trial.wrong_actions,
        questions=trial.questions,
        first_choices=trial.first_choices,
    )


def _felt(fault: Struck, trial: Trial, untreated: Trial) -> Hurt:
    """What the fault hurt; where what was done spared all of it, what it hurts where nobody acts."""
    hurt = trial.hurt.of(fault.number)
    return hurt if len(hurt.created) else untreated.hurt.of(fault.number)


def _minutes_to_recover(fault: Struck, trial: Trial) -> float:
    """From the fault's start to the end of the last quarter of an hour in which transfers that it hurt ended, strays apart."""
    hurt = trial.hurt.of(fault.number)
    _, last = np.unique(hurt.file[::-1], return_index=True)
    quarters = np.ceil((hurt.ended[::-1][last] - fault.start) / QUARTER_S).astype(np.int64) - 1
    counts = np.bincount(np.maximum(quarters, 0), minlength=1)
    sick = np.flatnonzero(counts >= STRAY)
    return float(sick[-1] + 1) * QUARTER_S / 60.0 if len(sick) else 0.0


def summary(runs: Sequence[Judged]) -> dict[str, Any]:
    """The measures over all seeds: `mean`, `low` and `high`, and `n` values behind it; None for what cannot be said."""
    found: dict[str, Any] = {name: _over(runs, values, middle) for name, (values, middle) in _MEASURES.items()}
    days = sorted({day for run in runs for day, _ in run.first_choices})
    found["curve"] = [
        {
            "day": day + 1,
            "first_choice_right": float(
                np.mean([right for run in runs for when, right in run.first_choices if when == day])
            ),
        }
        for day in days
    ]
    return found


def _over(
    runs: Sequence[Judged], values: Callable[[Judged], Sequence[float] | None], middle: Callable[[Any], Any]
) -> Measure:
    parts = [part for run in runs if (part := values(run)) is not None]
    return interval(parts, middle) if len(parts) == len(runs) else UNSAID


def _per_day(value: Callable[[Judged], int | None]) -> Callable[[Judged], Sequence[float] | None]:
    def found(run: Judged) -> Sequence[float] | None:
        count = value(run)
        return None if count is None else [count / run.days]

    return found


_MEASURES: Final[Mapping[str, tuple[Callable[[Judged], Sequence[float] | None], Callable[[Any], Any]]]] = {
    "recall": (lambda run: run.detected, np.mean),
    "false_incidents_per_day": (_per_day(lambda run: run.false_incidents), np.mean),
    "minutes_to_detect": (lambda run: run.minutes_to_detect, np.median),
    "right_culprit": (lambda run: run.right_culprit, np.mean),
    "minutes_to_recover": (lambda run: run.minutes_to_recover, np.mean),
    "transfers_hurt": (lambda run: [run.transfers_hurt], np.mean),
    "right_actions": (lambda run: [run.right_actions], np.mean),
    "wrong_actions": (lambda run: [run.wrong_actions], np.mean),
    "questions_per_day": (_per_day(lambda run: run.questions), np.mean),
}
MEASURES: Final = tuple(_MEASURES)
