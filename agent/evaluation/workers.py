"""Processes that share the runs of an evaluation, and how far they are."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Final, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent import telemetry

Steps: TypeAlias = "Queue[float]"  # how much of the work was done since it was last told
# Sums of floats depend on how they are shared out among threads: one thread for each run, so that it gives the same everywhere.
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_steps: Steps | None = None  # of this worker


def advanced(by: float) -> None:
    """Tell who started this worker that so much is done."""
    if _steps is not None:
        _steps.put(by)


@contextmanager
def pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Steps]]:
    """Processes that start afresh, with one thread for sums each; and the steps that they tell of."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        context = multiprocessing.get_context("spawn")
        steps: Steps = context.Queue()
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(steps,)) as processes:
            try:
                yield processes, steps
            except BaseException:
                processes.shutdown(wait=False, cancel_futures=True)  # else hours of work would be done for nobody
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar on the terminal, to be told of what has been done since; nothing is shown where there is none."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)


def _begin(steps: Steps) -> None:
    """Make this process fit for long runs: only what is fatal is logged, and what is kept is not searched for cycles.

    It ends with the one that started it, however that ends: a run may take minutes.
    """
    global _steps  # noqa: PLW0603 - a worker is told once to whom it reports, before its first run
    _steps = steps
    telemetry.configure("critical", "text")
    gc.set_threshold(100_000)  # frames come and go without cycles
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
