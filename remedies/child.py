"""What runs in the process of one action: do one job, and tell the parent each step on a pipe that nobody else writes to.

A line of JSON from the parent on stdin is the job; after it come acknowledgements, one line each; its end means that the
parent is gone, and then this process must not act any more. Lines of JSON to the parent: `remember` (before the effect; waits
until it is kept), `acting` and `refused` (around each act), `log`, and at last `done` or `failed`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, cast

from pydantic import TypeAdapter, ValidationError

from models.domain import GridError, GridUnreachable, Incident, RemedyCard, RemedyError
from models.grid import Grid
from remedies.contract import Remedy, Run, check_plan

LOOKING = frozenset(  # all else of Grid acts
    {"rse", "rses", "distance", "link_limit", "storage_limit", "banned", "rule", "requests", "tickets"}
)
MAX_MEMORY = 2 * 1024**3  # bytes of data: a remedy that eats memory fails alone
ORPHANED = 3  # exit status

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do with one remedy. All of it is JSON."""

    what: str  # describe, plan, apply, applied, verify or undo
    spec: str  # module:Class
    key: str = ""
    params: Mapping[str, Any] | None = None
    memory: Mapping[str, Any] | None = None
    incident: Mapping[str, Any] | None = None


class Door:
    """The grid as a remedy sees it: tells of each act before it happens, and lets none through where only looking is due."""

    def __init__(self, grid: Grid, *, key: str, may_act: bool, say: Say) -> None:
        self._grid, self._key, self._may_act, self._say = grid, key, may_act, say

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the grid has
        call = getattr(self._grid, name)
        return call if name in LOOKING else self._acting(name, call)

    def _acting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def act(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
            if not self._may_act:
                raise RemedyError(f"run.grid.{name} was called where only looking is allowed; act in apply and undo")
            if kwargs.get("key") != self._key:
                raise RemedyError(f"run.grid.{name} was called with key={kwargs.get('key')!r}; give it key=run.key")
            self._say({"acting": name})
            try:
                return call(*args, **kwargs)
            except GridUnreachable:
                raise
            except GridError:
                self._say({"refused": name})
                raise

        return act


def perform(job: Job, *, open_grid: Callable[[], Grid], say: Say) -> Any:  # noqa: ANN401 - any JSON, by the kind of job
    """Do the job and return its result as JSON; whatever the remedy raises passes through."""
    remedy = load(job.spec)
    match job.what:
        case "describe":
            return TypeAdapter(RemedyCard).dump_python(remedy.card(builtin=False), mode="json")
        case "plan":
            incident = TypeAdapter(Incident).validate_python(job.incident)
            return planned(remedy, incident)
        case "apply" | "applied" | "verify" | "undo":
            may_act = job.what in {"apply", "undo"}
            run = Run(
                grid=cast("Grid", Door(open_grid(), key=job.key, may_act=may_act, say=say)),
                key=job.key,
                memory=job.memory,
                keep=lambda name, value: say({"remember": {name: value}}),
                log=lambda word, facts: say({"log": word, "facts": dict(facts)}),
            )
            result = getattr(remedy(), job.what)(remedy.Params.model_validate(job.params), run)
            return None if may_act else result
        case _:
            raise RemedyError(f"{job.what!r} is no job")


def load(spec: str) -> type[Remedy[Any]]:
    """Import `module:Class`; raise RemedyError if it is not a remedy."""
    module, _, path = spec.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, Remedy)):
        raise RemedyError(f"{spec!r} is {found!r}; name a subclass of remedies.contract.Remedy")
    return found


def planned(remedy: type[Remedy[Any]], incident: Incident) -> dict[str, Any] | None:
    """Plan and check the plan; as JSON."""
    plan = remedy().plan(incident)
    if plan is None:
        return None
    plan = check_plan(remedy, plan)
    return {"params": plan.params.model_dump(mode="json"), "targets": list(plan.targets), "summary": plan.summary}


def explain(error: BaseException) -> dict[str, str]:
    """An error as the parent is told of it: which of ours it is, and its text, cut."""
    kinds = {GridUnreachable: "unreachable", GridError: "grid", RemedyError: "remedy", ValidationError: "params"}
    kind = next((word for of, word in kinds.items() if isinstance(error, of)), "error")
    text = str(error) if kind in {"unreachable", "grid", "remedy"} else f"{type(error).__name__}: {error}"
    return {"failed": kind, "message": " ".join(text.split())[:1000]}


class _Parent:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._kept = threading.Semaphore(0)
        self._lock = threading.Lock()
        # Stdout and stderr are the remedy's to fill, and go nowhere; the parent hears what is written to the copy alone.
        self._pipe = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        faulthandler.enable(file=self._pipe, all_threads=False)  # the last words of a segmentation fault
        self._stdin = os.dup(0)
        self._rest = b""

    def hear(self) -> dict[str, Any]:
        """The job; afterwards a thread waits for acknowledgements, and for the parent's end."""
        while b"\n" not in self._rest:
            self._rest += self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        threading.Thread(target=self._listen, daemon=True).start()
        job: dict[str, Any] = json.loads(line)
        return job

    def say(self, message: Mapping[str, Any]) -> None:
        """Write one line; of something to remember, return when it is kept."""
        line = json.dumps(message, default=str).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]
        if "remember" in message:
            self._kept.acquire()

    def _read(self) -> bytes:
        block = b""
        with contextlib.suppress(OSError):  # the remedy may have closed what it does not own
            block = os.read(self._stdin, 65536)
        if not block:
            os._exit(ORPHANED)
        return block

    def _listen(self) -> None:
        while True:
            for _ in range(self._read().count(b"\n")):
                self._kept.release()


def main() -> NoReturn:
    """Do the one job that stands on stdin, and leave without waiting for threads or exit handlers of the remedy."""
    parent = _Parent()
    message = parent.hear()
    _confine(float(message["deadline_s"]))
    try:
        job = Job(**message["job"])
        parent.say({"done": perform(job, open_grid=lambda: open_grid(message["grid"]), say=parent.say)})
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        parent.say(explain(error))
    os._exit(0)


def open_grid(grid: Mapping[str, Any]) -> Grid:
    """Call the grid's factory, `module:function`, with its settings."""
    module, _, name = str(grid["factory"]).partition(":")
    factory = getattr(importlib.import_module(module), name)
    return cast("Grid", factory(grid["settings"]))


def _confine(deadline_s: float) -> None:
    """Let the kernel end this process should both the parent's hand and the listening thread fail."""
    signal.setitimer(signal.ITIMER_REAL, deadline_s + 1.0)
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, MAX_MEMORY)):
        with contextlib.suppress(OSError, ValueError):  # a stricter limit stands already
            resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123
        score.write("1000")  # when memory is short, this goes first and not the daemon
