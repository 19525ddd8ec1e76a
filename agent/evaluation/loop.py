"""Policies in closed loop with simulated grids: every policy lives through the same worlds, one run for each seed and policy.

First each seed's world is lived without faults (the twin) and with its faults and nobody who acts: these say what every other
run is held against. Runs share nothing else, so that it does not matter how many are made at once.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.evaluation.arena import STEP, Arena
from agent.evaluation.options import listed
from agent.evaluation.oracle import Oracle, Twin
from agent.evaluation.policies import AgentPolicy, Nobody, Policy, SeedPolicy
from agent.evaluation.trial import Hurt, Trial
from agent.evaluation.witness import Witness, struck
from agent.evaluation.workers import bar, pool
from simulator.draws import Draws
from simulator.operators import Crew
from simulator.records import RECORD
from simulator.scenario import Scenario
from simulator.world import World

NONE: Final = "none"
POLICIES: Final = (NONE, "seed", "static", "agent", "oracle")
_COSTS: Final = {NONE: 1.0, "seed": 2.5, "static": 4.5, "agent": 5.0, "oracle": 1.5}  # of a run, for the progress bar
START: Final = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
HOUR: Final = 3600.0

Records = NDArray[np.void]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run to be made. `twin` is the file that keeps what ended in the world without faults."""

    scenario: Scenario
    seed: int
    policy: str
    days: float
    twin: Path


def evaluate(
    scenario: Scenario,
    *,
    days: float,
    seeds: Sequence[int],
    policies: Sequence[str],
    workers: int,
    done: Callable[[Trial], None],
) -> list[Trial]:
    """Run every policy, and nobody in any case, over every seed; `done` is told of each run that has ended.

    The trials stand in the order of seeds and policies.
    """
    others = [policy for policy in policies if policy != NONE]
    trials: dict[tuple[int, str], Trial] = {}
    with tempfile.TemporaryDirectory() as directory, pool(workers) as (processes, _):
        tasks = {
            (seed, policy): Task(
                scenario=scenario, seed=seed, policy=policy, days=days, twin=Path(directory) / f"{seed}.npy"
            )
            for seed in seeds
            for policy in (NONE, *others)
        }
        waiting: set[Future[Trial]] = {processes.submit(run, tasks[seed, NONE]) for seed in seeds}
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                trial = future.result()
                trials[trial.seed, trial.policy] = trial
                done(trial)
                if trial.policy == NONE:
                    waiting |= {processes.submit(run, tasks[trial.seed, policy]) for policy in others}
    return [trials[key] for key in tasks]


def policies_of(text: str) -> tuple[str, ...]:
    """The policies that a list with commas names, each once; raise ConfigError with all that there are not."""
    return listed(text, POLICIES, option="--policies", word="policy")


@contextmanager
def progress(what: str, policies: Sequence[str], seeds: int) -> Iterator[Callable[[Trial], None]]:
    """A bar on the terminal, to be told of each run that has ended; nothing is shown where there is none."""
    costs = {policy: _COSTS[policy] for policy in (NONE, *policies)}
    with bar(what, seeds * sum(costs.values())) as advance:
        yield lambda trial: advance(costs[trial.policy])


def run(task: Task) -> Trial:
    """Make one run in this process."""
    gc.collect()  # an agent and its ledger hold each other: the run before would stay beside this one
    arena = Arena(task.scenario, seed=task.seed, start=START)
    if task.policy == NONE:
        np.save(task.twin, _twin(task), allow_pickle=False)
    twin = np.load(task.twin, allow_pickle=False)
    policy = _policy(task, arena, twin)
    end = START + timedelta(days=task.days)
    while arena.now < end:
        policy.live(min(arena.now + STEP, end))
    hurt, hurt_by = _hurt(arena, twin)
    trial = Trial(policy=task.policy, seed=task.seed, days=task.days, faults=struck(arena.world), hurt=hurt)
    policy.tell(trial, hurt_by)
    policy.close()
    return trial


def _twin(task: Task) -> Records:
    """What ends in the world without faults."""
    world = World(task.scenario, seed=task.seed, start=START, faults=False)
    ended = [world.advance(START + timedelta(hours=hour)).ended for hour in _hours(task.days)]
    return np.concatenate([np.zeros(0, dtype=RECORD), *ended])


def _hours(days: float) -> Iterator[float]:
    hours = 24.0 * days
    yield from (float(hour) for hour in range(1, int(hours) + 1))
    if hours != int(hours):
        yield hours


def _policy(task: Task, arena: Arena, twin: Records) -> Policy:
    crew = Crew(task.scenario.operators, Draws(task.seed))
    match task.policy:
        case "none":
            return Nobody(arena)
        case "seed":
            return SeedPolicy(arena, crew)
        case "static":
            return AgentPolicy(arena, crew, asks=False)
        case "agent":
            return AgentPolicy(arena, crew, asks=True)
        case "oracle":
            return Oracle(arena, Twin(twin))
        case _:
            raise ValueError(f"there is no policy {task.policy!r}; there are {', '.join(POLICIES)}")


def _hurt(arena: Arena, twin: Records) -> tuple[Hurt, Mapping[str, int]]:
    """What was hurt, and the fault behind each request that was."""
    here, since, clock, witness = arena.ended(), 0.0, arena.world.clock, Witness(arena.world)
    for until in [*np.arange(HOUR, clock, HOUR).tolist(), clock]:
        parts = (ended[(ended["ended"] >= since) & (ended["ended"] < until)] for ended in (here, twin))
        witness.see(*parts, until=until)
        since = until
    return witness.hurt()
