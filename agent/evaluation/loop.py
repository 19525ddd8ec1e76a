"""Policies in closed loop with simulated grids: every policy lives through the same worlds, one run for each seed and policy.

First each seed's world is lived without faults (the twin) and with its faults and nobody who acts: these say what every other
run is held against. Runs share nothing else, so that it does not matter how many are made at once.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent import telemetry
from agent.evaluation.arena import STEP, Arena
from agent.evaluation.oracle import Oracle, Twin
from agent.evaluation.policies import AgentPolicy, Nobody, Policy, SeedPolicy
from agent.evaluation.trial import Hurt, Struck, Trial
from models.domain import ConfigError
from simulator.draws import Draws
from simulator.operators import Crew
from simulator.records import RECORD
from simulator.scenario import Scenario
from simulator.topology import Topology
from simulator.truth import Comparison
from simulator.world import World

NONE: Final = "none"
POLICIES: Final = (NONE, "seed", "static", "agent", "oracle")
_COSTS: Final = {NONE: 1.0, "seed": 2.5, "static": 4.5, "agent": 5.0, "oracle": 1.5}  # of a run, for the progress bar
START: Final = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
HOUR: Final = 3600.0
# Sums of floats depend on how they are shared out among threads: one thread for each run, so that it gives the same everywhere.
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

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
    with tempfile.TemporaryDirectory() as directory, _pool(workers) as pool:
        tasks = {
            (seed, policy): Task(
                scenario=scenario, seed=seed, policy=policy, days=days, twin=Path(directory) / f"{seed}.npy"
            )
            for seed in seeds
            for policy in (NONE, *others)
        }
        waiting: set[Future[Trial]] = {pool.submit(run, tasks[seed, NONE]) for seed in seeds}
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                trial = future.result()
                trials[trial.seed, trial.policy] = trial
                done(trial)
                if trial.policy == NONE:
                    waiting |= {pool.submit(run, tasks[trial.seed, policy]) for policy in others}
    return [trials[key] for key in tasks]


def policies_of(text: str) -> tuple[str, ...]:
    """The policies that a list with commas names, each once; raise ConfigError with all that there are not."""
    named = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in named if word not in POLICIES]
    if unknown or not named:
        listed = ", ".join(map(repr, unknown)) or "none named"
        raise ConfigError(f"--policies: there is no policy {listed}; choose out of {', '.join(POLICIES)}")
    return named


@contextmanager
def progress(what: str, policies: Sequence[str], seeds: int) -> Iterator[Callable[[Trial], None]]:
    """A bar on the terminal, to be told of each run that has ended; nothing is shown where there is none."""
    costs = {policy: _COSTS[policy] for policy in (NONE, *policies)}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=seeds * sum(costs.values()))
        yield lambda trial: bar.advance(task, costs[trial.policy])


def run(task: Task) -> Trial:
    """Make one run in this process."""
    telemetry.configure("critical", "text")
    gc.set_threshold(100_000)  # frames come and go without cycles; what is kept is searched for nothing
    arena = Arena(task.scenario, seed=task.seed, start=START)
    if task.policy == NONE:
        np.save(task.twin, _twin(task), allow_pickle=False)
    twin = np.load(task.twin, allow_pickle=False)
    policy = _policy(task, arena, twin)
    end = START + timedelta(days=task.days)
    while arena.now < end:
        policy.live(min(arena.now + STEP, end))
    hurt, hurt_by = _hurt(arena, twin)
    trial = Trial(policy=task.policy, seed=task.seed, days=task.days, faults=_struck(arena), hurt=hurt)
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


def _struck(arena: Arena) -> tuple[Struck, ...]:
    """The faults that have begun."""
    world = arena.world
    return tuple(
        Struck(
            number=fault.number,
            kind=str(fault.kind),
            culprits=_same(fault.culprit, world.topology),
            start=fault.start,
            end=fault.end,
        )
        for fault in world.faults
        if fault.start < world.clock
    )


def _same(culprit: str, topology: Topology) -> frozenset[str]:
    """The names of the culprit: a site with one storage element is that, and so is a network between two of them a link."""
    only = {
        site: topology.rses[int(np.flatnonzero(topology.rse_site == place)[0])]
        for place, site in enumerate(topology.sites)
        if np.count_nonzero(topology.rse_site == place) == 1
    }
    sites = {rse: site for site, rse in only.items()}
    kind, _, name = culprit.partition(":")
    ends = name.split(">")
    if kind == "site" and name in only:
        return frozenset({culprit, f"rse:{only[name]}"})
    if kind == "rse" and name in sites:
        return frozenset({culprit, f"site:{sites[name]}"})
    if kind == "network" and all(end in only for end in ends):
        return frozenset({culprit, "link:" + ">".join(only[end] for end in ends)})
    return frozenset({culprit})


def _hurt(arena: Arena, twin: Records) -> tuple[Hurt, Mapping[str, int]]:
    """What was hurt, each transfer once, and the fault behind each request that was."""
    world, here = arena.world, arena.ended()
    comparison = Comparison(world.topology, world.draws)
    frames, since, clock = [], 0.0, world.clock
    for until in [*np.arange(HOUR, clock, HOUR).tolist(), clock]:
        parts = (ended[(ended["ended"] >= since) & (ended["ended"] < until)] for ended in (here, twin))
        frames.append(comparison.feed(*parts, until=until, faults=world.faults))
        since = until
    frames.append(comparison.finish(clock, world.faults))
    fault = np.concatenate([frame["fault"].to_numpy(np.int64) for frame in frames])
    file = np.concatenate([frame["file"].to_numpy(np.int64) for frame in frames])
    created, ended = (
        np.concatenate([frame[name].to_numpy(np.float64) for frame in frames]) for name in ("created", "ended")
    )
    requests = np.concatenate([frame["request_id"].to_numpy(object) for frame in frames])
    hurt = Hurt(file=file, fault=fault, created=created, ended=np.where(np.isnan(ended), clock, ended))
    return hurt, dict(zip(requests.tolist(), fault.tolist(), strict=True))


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start afresh, with one thread for sums each."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # else hours of work would be done for nobody
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Have this process end with the one that started it, however that ends: a run may take minutes."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
