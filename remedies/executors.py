"""Where a remedy's code runs: in a process of its own that nothing of it can leave, or in process, in evaluations.

Whatever the code does (hangs, crashes, prints, forks, closes what it does not own), `execute` returns a report, within the
deadline and a few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import structlog

from models.grid import Grid
from remedies.child import Job, explain, perform

log = structlog.get_logger()

Keep = Callable[[Mapping[str, Any]], None]  # makes durable all that an action has remembered so far

PURE_DEADLINE_S = 10.0  # for describing and planning, which wait for nobody
MAX_SAID = 1024 * 1024  # bytes from one child
MAX_LOGGED = 50  # lines from one job
MAX_LAST_WORDS = 1000
_TICK_S = 0.05
_REAP_S = 5.0

# The child runs the code that the parent runs, installed or from a checkout; `-I` keeps the rest of the outside out.
_ROOT = str(Path(__file__).resolve().parent.parent)
_START = (
    "import sys; sys.argv[1] in sys.path or sys.path.insert(0, sys.argv[1]); from remedies.child import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """How a child opens the grid: `module:function`, called with `settings` (JSON)."""

    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a job.

    `failed` is empty, or says how: `grid` and `unreachable` (the grid's answer), `remedy` and `params` (the contract),
    `error` (anything that it raised), `late` (killed at the deadline), `died` (without a result).
    `acts` is how many acts were begun and not refused: with 0, the grid is as it was.
    """

    value: Any = None
    failed: str = ""
    message: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict)
    acts: int = 0


class Executor(Protocol):
    """Runs jobs, one at a time."""

    def execute(self, job: Job, *, keep: Keep) -> Report:
        """Run the job. `keep` is called before the effect, whenever something is remembered; its errors pass through."""


class _Account:
    """What a job has said so far."""

    def __init__(self, job: Job, keep: Keep) -> None:
        self._job, self._keep = job, keep
        self._memory = dict(job.memory or {})
        self._acts = self._logged = 0
        self.result: Mapping[str, Any] | None = None

    def take(self, message: Mapping[str, Any]) -> None:
        if "remember" in message:
            self._memory |= {k: v for k, v in dict(message["remember"]).items() if k not in self._memory}
            self._keep(dict(self._memory))
        elif "acting" in message:
            self._acts += 1
        elif "refused" in message:
            self._acts -= 1
        elif "log" in message:
            self._say(str(message["log"]), message.get("facts"))
        elif "done" in message or "failed" in message:
            self.result = message

    def _say(self, word: str, facts: object) -> None:
        self._logged += 1
        if self._logged <= MAX_LOGGED:
            log.info("remedy-says", remedy=self._job.spec, key=self._job.key, said=word[:100], facts=str(facts)[:1000])

    def report(self, *, failed: str = "", message: str = "", value: object = None) -> Report:
        return Report(value=value, failed=failed, message=message, memory=dict(self._memory), acts=self._acts)

    def closed(self) -> Report:
        """The report by the child's own result."""
        result = self.result or {}
        if "done" in result:
            return self.report(value=result["done"])
        return self.report(failed=str(result.get("failed")), message=str(result.get("message"))[:1000])


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """Runs jobs here: for evaluations and tests, with remedies that are trusted. There is no deadline."""

    grid: Grid

    def execute(self, job: Job, *, keep: Keep) -> Report:
        account = _Account(job, keep)
        try:
            value = perform(job, open_grid=lambda: self.grid, say=account.take)
        except Exception as error:  # noqa: BLE001 - a remedy may raise anything, and that is a report
            account.take(explain(error))
            return account.closed()
        return account.report(value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """Runs each job in a process of its own, killed with all that it started when it ends or at the deadline."""

    grid: GridSpec | None = None  # None: for jobs that need none
    deadline_s: float = 60.0

    def execute(self, job: Job, *, keep: Keep) -> Report:
        pure = job.what in {"describe", "plan"}
        deadline_s = min(self.deadline_s, PURE_DEADLINE_S) if pure else self.deadline_s
        grid = None if self.grid is None else asdict(self.grid)
        message = {"job": asdict(job), "grid": grid, "deadline_s": deadline_s}
        with _Child(json.dumps(message).encode() + b"\n", _Account(job, keep)) as child:
            return child.converse(deadline_s)


class _Child:
    """One process, and the conversation with it."""

    def __init__(self, first: bytes, account: _Account) -> None:
        self._account = account
        self._to_send = first
        self._said = 0
        self._rest = b""
        self._last_words = b""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter with fixed arguments
            [sys.executable, "-I", "-c", _START, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process and all of its group. It is not reaped before: until then its number is nobody else's."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stdin.close()
        self._stdout.close()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # stuck in the kernel, on a dead file system say; it ends when that lets go
            log.error(  # noqa: TRY400 - no trace of ours says more than this
                "remedy-process-stuck", pid=self._process.pid, cure="look for a hanging mount on this machine"
            )

    def converse(self, deadline_s: float) -> Report:
        """Listen until there is a result, the process has ended, or the deadline has come."""
        end = time.monotonic() + deadline_s
        while self._account.result is None:
            left = end - time.monotonic()
            if left <= 0:
                return self._account.report(
                    failed="late", message=f"did not end within {deadline_s:g} s and was killed"
                )
            if self._said > MAX_SAID:
                return self._account.report(failed="remedy", message=f"said more than {MAX_SAID} bytes and was killed")
            ended = self._ended()  # before the last reading, so that nothing said before the end is missed
            heard = self._turn(0.0 if ended else min(left, _TICK_S))
            if ended and not heard and self._account.result is None:
                return self._account.report(failed="died", message=self._obituary(ended))
        return self._account.closed()

    def _turn(self, wait_s: float) -> bool:
        """Wait until one of the pipes moves; send and hear what there is. True: something was heard."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            if self._to_send:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            ready = [key.fileobj for key, _ in selector.select(wait_s)]
        if self._stdin in ready:
            try:
                self._to_send = self._to_send[os.write(self._stdin.fileno(), self._to_send) :]
            except BrokenPipeError:  # it ended, or closed what it should not have
                self._to_send = b""
        return self._stdout in ready and self._hear()

    def _hear(self) -> bool:
        block = os.read(self._stdout.fileno(), 65536)
        if not block:
            time.sleep(0.001)  # its end of the pipe is closed; the process itself is about to end, or hangs
            return False
        self._said += len(block)
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            self._take(line)
        return True

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._last_words = (self._last_words + line + b" ")[-MAX_LAST_WORDS:]
            return
        self._account.take(message)
        if "remember" in message:
            self._to_send += b"\n"  # it is kept: the child may go on to its effect

    def _ended(self) -> os.waitid_result | None:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _obituary(self, ended: os.waitid_result) -> str:
        if ended.si_code == os.CLD_EXITED:
            how = f"ended with status {ended.si_status}"
        else:
            how = f"died of {signal.Signals(ended.si_status).name}"
        words = " ".join((self._last_words + self._rest[-MAX_LAST_WORDS:]).decode(errors="replace").split())
        return f"{how} and without a result" + (f": {words}" if words else "")
