"""What the runs show: measures over all seeds, each with an interval that comes from drawing the seeds anew. See docs/evaluation.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent.evaluation.trial import Alarm, Struck, Trial

ELIGIBLE: Final = 20  # transfers that a fault hurts where nobody acts: those that hurt fewer are not asked for
AFTER_S: Final = 1800.0  # after the end of a fault, an incident may still be opened for it
QUARTER_S: Final = 900.0
STRAY: Final = 3  # transfers in a quarter of an hour: fewer are no outage any more
RESAMPLES: Final = 2000
INTERVAL: Final = (2.5, 97.5)  # percentiles

Measure = Mapping[str, float | int | None]


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
    eligible = [fault for fault in trial.faults if untreated.hurt.of(fault.number).transfers >= ELIGIBLE]
    alarms = trial.alarms
    matched = _matched(alarms, trial.faults) if alarms is not None else {}
    found = [matched.get(fault.number) for fault in eligible]
    return Judged(
        days=trial.days,
        detected=None if alarms is None else [alarm is not None for alarm in found],
        minutes_to_detect=None
        if alarms is None
        else [_minutes_to_detect(alarm, fault, trial, untreated) for alarm, fault in zip(found, eligible, strict=True)],
        right_culprit=None
        if alarms is None
        else [
            alarm is not None and alarm.culprit in fault.culprits for alarm, fault in zip(found, eligible, strict=True)
        ],
        false_incidents=None if alarms is None else len(alarms) - len(matched),
        minutes_to_recover=[_minutes_to_recover(fault, trial) for fault in eligible],
        transfers_hurt=trial.hurt.transfers,
        right_actions=trial.right_actions,
        wrong_actions=trial.wrong_actions,
        questions=trial.questions,
        first_choices=trial.first_choices,
    )


def _matched(alarms: Sequence[Alarm], faults: Iterable[Struck]) -> dict[int, Alarm]:
    """The first alarm that is rightly raised for each fault, by the fault's number; each alarm is of one fault at most."""
    lasted = {fault.number: (fault.start, fault.end + AFTER_S) for fault in faults}
    found: dict[int, Alarm] = {}
    for alarm in sorted(alarms, key=lambda alarm: alarm.opened):
        for number, count in sorted(alarm.hurt.items(), key=lambda entry: (-entry[1], entry[0])):
            start, end = lasted[number]
            if 2 * count >= alarm.anomalous and start <= alarm.opened <= end and number not in found:
                found[number] = alarm
                break
    return found


def _minutes_to_detect(alarm: Alarm | None, fault: Struck, trial: Trial, untreated: Trial) -> float:
    """From the first request that the fault hurt to the alarm."""
    if alarm is None:
        return math.inf
    hurt = trial.hurt.of(fault.number)
    created = hurt.created if len(hurt.created) else untreated.hurt.of(fault.number).created
    return max(0.0, alarm.opened - max(fault.start, float(created.min()))) / 60.0


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
    found: dict[str, Any] = {name: _interval(runs, values, middle) for name, (values, middle) in _MEASURES.items()}
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


def _interval(
    runs: Sequence[Judged], values: Callable[[Judged], Sequence[float] | None], middle: Callable[[Any], Any]
) -> Measure:
    parts = [values(run) for run in runs]
    if any(part is None for part in parts):
        return {"mean": None, "low": None, "high": None, "n": 0}
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
    n = sum(map(len, arrays))
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0}
    draws = np.random.default_rng(0).integers(len(arrays), size=(RESAMPLES, len(arrays)))
    sampled = (np.concatenate([arrays[seed] for seed in row]) for row in draws)
    spread = np.array([middle(sample) for sample in sampled if len(sample)])
    low, high = np.percentile(spread, INTERVAL, method="nearest")
    return {"mean": _sayable(middle(np.concatenate(arrays))), "low": _sayable(low), "high": _sayable(high), "n": n}


def _sayable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


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
