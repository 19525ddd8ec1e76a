"""The report of `gridmedic evaluate detection`, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.evaluation.intervals import shown
from agent.evaluation.verdicts import MEASURES, Sought, Verdict, summary
from simulator.faults import FaultKind

_WIDE: Final = 36  # characters of a column


def report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything as finite JSON: all scenarios together, each of them, and each fault that was sought."""
    names = dict.fromkeys(verdict.scenario for verdict in verdicts)
    own = {name: [verdict for verdict in verdicts if verdict.scenario == name] for name in names}
    return _judged(verdicts) | {
        "scenarios": {name: {"days": found[0].days} | _judged(found) for name, found in own.items()},
        "faults": _faults(verdicts),
    }


def table(found: Mapping[str, Any]) -> str:
    """The same for people: a row for each measure, a column for each rule; and a row for each kind of fault."""
    rules, lines = list(found["rules"]), []
    for name, one in found["scenarios"].items():
        lines.append(f"{name}: {one['days']:g} days, {one['worlds']} seeds, {one['eligible']} faults that count")
    columns = "".join(f"{rule:>{_WIDE}}" for rule in rules)
    lines += ["95 % intervals over seeds", "", f"{'':<26}{columns}"]
    lines += [_row(measure, [found["rules"][rule][measure] for rule in rules]) for measure in MEASURES]
    if not found["by_kind"]:
        return "\n".join(lines)
    lines += ["", f"{'recall':<26}{columns}"]
    lines += [_row(kind, [of[rule]["recall"] for rule in rules]) for kind, of in found["by_kind"].items()]
    told = ("right_culprit", "right_kind", "minutes_to_detect", "precision")
    lines += ["", f"{rules[0]:<26}" + "".join(f"{measure:>{_WIDE}}" for measure in told)]
    lines += [_row(kind, [of[rules[0]][measure] for measure in told]) for kind, of in found["by_kind"].items()]
    return "\n".join(lines)


def _judged(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    rules = list(dict.fromkeys(verdict.rule for verdict in verdicts))
    by_rule = {rule: [verdict for verdict in verdicts if verdict.rule == rule] for rule in rules}
    runs = by_rule[rules[0]]
    occurred = {sought.fault.kind for run in runs for sought in run.sought}
    return {
        "worlds": len(runs),
        "eligible": sum(len(run.sought) for run in runs),
        "rules": {rule: summary(own) for rule, own in by_rule.items()},
        "by_kind": {
            str(kind): {rule: summary([run.of(kind) for run in own]) for rule, own in by_rule.items()}
            for kind in FaultKind
            if kind in occurred
        },
    }


def _faults(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Every fault that was sought, and what each rule made of it; None where it was missed."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for verdict in verdicts:
        for sought in verdict.sought:
            fault = sought.fault
            entry = found.setdefault(
                (verdict.scenario, verdict.seed, fault.number),
                {
                    "scenario": verdict.scenario,
                    "seed": verdict.seed,
                    "number": fault.number,
                    "kind": fault.kind,
                    "culprit": sorted(fault.culprits),
                    "start_s": fault.start,
                    "end_s": fault.end if math.isfinite(fault.end) else None,
                    "hurt": sought.hurt,
                    "rules": {},
                },
            )
            entry["rules"][verdict.rule] = _incident(sought)
    return list(found.values())


def _incident(sought: Sought) -> dict[str, Any] | None:
    alarm = sought.alarm
    if alarm is None:
        return None
    return {"minutes_to_detect": sought.minutes_to_detect, "culprit": alarm.culprit, "kind": alarm.kind}


def _row(name: str, measures: Sequence[Mapping[str, float | None]]) -> str:
    return f"{name:<26}" + "".join(f"{shown(measure):>{_WIDE}}" for measure in measures)
