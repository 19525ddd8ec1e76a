"""Detection judged by the truth: each world is lived once, nobody acts, and every rule reads that one stream.

Runs share nothing, so that it does not matter how many are made at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import numpy as np

from agent.evaluation.alarms import alarm_of
from agent.evaluation.arena import calendar_of
from agent.evaluation.cases import Case
from agent.evaluation.lookout import Lookout
from agent.evaluation.loop import START
from agent.evaluation.opint_rule import OpintRule, floor_of
from agent.evaluation.options import listed
from agent.evaluation.seed_rule import SeedRule
from agent.evaluation.sigma_rule import SigmaRule
from agent.evaluation.standstill import Standstill
from agent.evaluation.verdicts import Verdict, judge
from agent.evaluation.witness import Witness, struck
from agent.evaluation.workers import Steps, advanced, pool
from models.columns import Rows
from models.domain import ConfigError
from simulator.scenario import Scenario
from simulator.world import World, twin

AGENT: Final = "agent"
RULES: Final = (AGENT, "fixed_600s", "opint", "sigma3")
DEFAULT: Final = "gauntlet"
STEP: Final = timedelta(minutes=1)  # between two passes: incidents are judged at whole minutes
_LOOK_S: Final = 1.0  # between two looks at how far the workers are
_DAY: Final = timedelta(days=1)


class Looker(Protocol):
    """One of those who look."""

    flagged: list[str]  # request ids

    @property
    def cases(self) -> list[Case]:
        """Every incident so far."""


class Rule(Looker, Protocol):
    """One of those beside the agent, who look at the rows that it forecast."""

    def look(self, observed: Rows, now: datetime) -> object:
        """Take in what ended since the last pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One world to be lived."""

    scenario: Scenario
    seed: int
    rules: tuple[str, ...]
    days: float


def tasks_of(
    scenarios: Sequence[Scenario], *, days: float | None, seeds: int, rules: tuple[str, ...]
) -> tuple[Task, ...]:
    """Every world that is to be lived; without `days` for as long as its scenario says. Raise ConfigError for two of one name."""
    names = [scenario.name for scenario in scenarios]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        listed_twice = ", ".join(map(repr, twice))
        raise ConfigError(f"more than one scenario is called {listed_twice}; name each once, or give them other names")
    return tuple(
        Task(scenario=scenario, seed=scenario.seed + number, rules=rules, days=days or scenario.days)
        for scenario in scenarios
        for number in range(seeds)
    )


def rules_of(text: str) -> tuple[str, ...]:
    """The rules that a list with commas names, each once; raise ConfigError with all that there are not."""
    return listed(text, RULES, option="--rules", word="rule")


def evaluate(tasks: Sequence[Task], *, workers: int, done: Callable[[float], None]) -> list[Verdict]:
    """Live every world; `done` is told of the simulated days that have passed since it was last told.

    The verdicts stand in the order of tasks and rules.
    """
    with pool(workers) as (processes, steps):
        runs = [processes.submit(run, task) for task in tasks]
        waiting = set(runs)
        while waiting:
            ended, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_EXCEPTION)
            for one in ended:
                one.result()
            done(_sum(steps))
        return [verdict for one in runs for verdict in one.result()]


def run(task: Task) -> list[Verdict]:
    """Live one world in this process; return what each rule made of it."""
    gc.collect()  # an agent and its ledger hold each other: the run before would stay beside this one
    world = World(task.scenario, seed=task.seed, start=START)
    well, witness, still, end = twin(world), Witness(world), Standstill(world), START + timedelta(days=task.days)
    rules = {name: _rule(name, task.scenario) for name in task.rules if name != AGENT}
    transfers = 0
    with closing(Lookout(calendar_of(world))) as lookout:
        while world.now < end:
            before, now = world.now, min(world.now + STEP, end)
            emitted = world.advance(now)
            transfers += len(emitted.ended)
            witness.see(emitted.ended, well.advance(now).ended, until=world.clock)
            still.see(emitted.ended)
            events, readings = world.documents.frame(emitted.events), world.probes.frame(emitted.measurements)
            observed = lookout.look(events, readings, now)
            for rule in rules.values() if len(observed) else ():
                rule.look(observed, now)
            advanced((now - before) / _DAY)
    lookers: dict[str, Looker] = {name: rules.get(name) or lookout for name in task.rules}
    return _judged(task, lookers, world, witness, still.timeouts(), transfers)


def _judged(
    task: Task,
    lookers: Mapping[str, Looker],
    world: World,
    witness: Witness,
    timeouts: Mapping[str, float],
    transfers: int,
) -> list[Verdict]:
    """What each of them made of the world, in which so many transfers ended, and of the requests that stood still."""
    faults, (hurt, hurt_by) = struck(world), witness.hurt()
    unhurt = transfers - int(np.count_nonzero(hurt.ended < world.clock))
    verdicts = []
    for name, looker in lookers.items():
        cases = looker.cases
        alarms = [
            alarm_of(case.incident, (case.opened - START).total_seconds(), case.flagged, hurt_by) for case in cases
        ]
        stalls = in_time(looker.overdue_in(cases), timeouts, hurt_by) if isinstance(looker, Lookout) else None
        wrongly = sum(request not in hurt_by for request in set(looker.flagged))
        verdicts.append(
            judge(
                alarms,
                faults=faults,
                hurt=hurt,
                rule=name,
                scenario=task.scenario.name,
                seed=task.seed,
                days=task.days,
                flagged_share=wrongly / unhurt if unhurt else None,
                stalls=stalls,
            )
        )
    return verdicts


def in_time(
    since: Mapping[str, float], timeouts: Mapping[str, float], hurt_by: Mapping[str, int]
) -> dict[int, list[bool]]:
    """By the number of the fault that hurt it, whether each request that stood still was known before its timeout.

    `since` are seconds since 1970 at which requests were known, `timeouts` those after the world's start at which theirs were over.
    """
    found: dict[int, list[bool]] = {}
    for request, timeout in timeouts.items():
        if request in hurt_by:
            known = since.get(request, np.inf) - START.timestamp()
            found.setdefault(hurt_by[request], []).append(known < timeout)
    return found


def _rule(name: str, scenario: Scenario) -> Rule:
    match name:
        case "fixed_600s":
            return SeedRule()
        case "opint":
            return OpintRule(floor_of(scenario))
        case "sigma3":
            return SigmaRule()
        case _:
            raise ValueError(f"there is no rule {name!r}; there are {', '.join(RULES)}")


def _sum(steps: Steps) -> float:
    """What was told since the last time."""
    total = 0.0
    while not steps.empty():
        total += steps.get()
    return total
