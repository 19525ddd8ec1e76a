"""The report of `gridmedic evaluate loop`, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.evaluation.intervals import shown
from agent.evaluation.loop import NONE
from agent.evaluation.measures import MEASURES, judge, summary
from agent.evaluation.trial import Trial


def report(scenario: str, trials: Sequence[Trial], policies: Sequence[str]) -> dict[str, Any]:
    """Everything as finite JSON. `trials` hold a run of nobody for every seed."""
    untreated = {trial.seed: trial for trial in trials if trial.policy == NONE}
    judged = {
        policy: [judge(trial, untreated[trial.seed]) for trial in trials if trial.policy == policy]
        for policy in policies
    }
    found = {policy: summary(runs) for policy, runs in judged.items()}
    return {
        "scenario": scenario,
        "days": trials[0].days,
        "seeds": len(untreated),
        "policies": found,
        "curve": found.get("agent", {}).get("curve", []),  # the one that is asked for: only the agent proposes
    }


def table(found: Mapping[str, Any]) -> str:
    """The same for people: a row for each measure, a column for each policy."""
    policies = found["policies"]
    lines = [
        f"scenario {found['scenario']}, {found['days']:g} days, {found['seeds']} seeds; 95 % intervals over seeds",
        "",
        f"{'':<26}" + "".join(f"{policy:>24}" for policy in policies),
    ]
    lines += [
        f"{measure:<26}" + "".join(f"{shown(policies[policy][measure]):>24}" for policy in policies)
        for measure in MEASURES
    ]
    if found["curve"]:
        curve = ", ".join(f"{entry['day']}: {entry['first_choice_right']:.0%}" for entry in found["curve"])
        lines += ["", f"agent's first choice right, by day: {curve}"]
    return "\n".join(lines)
