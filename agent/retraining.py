"""Retraining in service, as the daemon sees it: when it is due, the process that does it, and what came of it.

The loop never waits for it. What is due stands in the ledger: a restart neither repeats a night that was dealt with nor forgets
one, and takes up a training that ended with the daemon.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from agent.challenge import VERDICT, Verdict
from models.domain import ModelError
from models.drift import Alarm
from models.versions import Event, Versions, What
from storage.ledger import Ledger

log = structlog.get_logger()

SETTING = "retraining"
EARLY = timedelta(hours=6)  # a drift brings no training within this of the last one
TRIES = 2  # of one training that ends with the daemon; then the next night is waited for
LOG = "log"

_ROOT = str(Path(__file__).resolve().parent.parent)
_START = "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); from agent.cli import main; main()"


class State(BaseModel):
    """What the ledger remembers."""

    model_config = ConfigDict(frozen=True)

    night: AwareDatetime  # the next one
    begun: AwareDatetime | None = None  # the training that has not ended
    tries: int = 0  # of it
    last: AwareDatetime | None = None  # when a training last began
    drift: float = 0.0  # the alarm that was answered last, by when its newest transfer ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What came of a training's process: its verdict, or else what went wrong."""

    verdict: Verdict | None = None
    trouble: str = ""


class Training(Protocol):
    """A training that runs beside the daemon."""

    def ended(self) -> Ending | None:
        """What came of it; None while it runs."""

    def kill(self) -> None:
        """End it, and return when it has ended."""


def night_after(now: datetime, at: str) -> datetime:
    """The first `at` (HH:MM, UTC) after `now`.

    >>> night_after(datetime(2026, 3, 2, 3, 0, tzinfo=UTC), "03:00")
    datetime.datetime(2026, 3, 3, 3, 0, tzinfo=datetime.timezone.utc)
    """
    hours, minutes = map(int, at.split(":"))
    night = now.astimezone(UTC).replace(hour=hours, minute=minutes, second=0, microsecond=0)
    return night if night > now else night + timedelta(days=1)


class Retraining:
    """Starts a training when it is due, and says what came of it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        known: Versions,
        drift: Callable[[], Alarm | None],
        start: Callable[[datetime], Training] | None,
        at: str,
    ) -> None:
        """`start` begins a training at the daemon's time; None where there is none: then only drifts are told of."""
        self._ledger = ledger
        self._known = known
        self._drift = drift
        self._start = start
        self._at = at
        self._training: Training | None = None
        self._state: State | None = None
        self._told = 0.0  # the alarm that was said last

    def tend(self, now: datetime) -> None:
        """See what is due at `now`. Returns at once."""
        alarm = self._drift()
        if alarm is not None and alarm.at > self._told:
            self._told = alarm.at
            _say_drift(alarm, answered=self._start is not None)
        if self._start is None:
            return
        state = self._recalled(now)
        if self._training is not None:
            ending = self._training.ended()
            if ending is None:
                return
            self._training = None
            self._tell(ending, now)
            state = self._remember(state.model_copy(update={"begun": None, "tries": 0}))
        occasion = self._occasion(state, alarm, now)
        if occasion:
            self._begin(state, occasion, alarm, now)

    def close(self) -> None:
        """End what runs; it is taken up when the daemon is back."""
        if self._training is not None:
            self._training.kill()
            self._training = None

    def _recalled(self, now: datetime) -> State:
        """What the ledger says; the first night of all is the next one. So it is where the clock was put back."""
        state = self._state
        if state is None:
            with self._ledger.begin(write=False) as tx:
                kept = tx.setting(SETTING)
            with suppress(ValidationError):
                state = State.model_validate(kept)
        if state is None or state.night > night_after(now, self._at):
            state = self._remember(State(night=night_after(now, self._at)))
        self._state = state
        return state

    def _remember(self, state: State) -> State:
        with self._ledger.begin(write=True) as tx:
            tx.set_setting(SETTING, state.model_dump(mode="json"))
        self._state = state
        return state

    def _occasion(self, state: State, alarm: Alarm | None, now: datetime) -> str:
        """Why a training is due; "" if none is."""
        if state.begun is not None and state.tries < TRIES:
            return "the last one ended with the daemon"
        if now >= state.night:
            return "night"
        if state.begun is not None:
            self._tell(Ending(trouble=f"the daemon ended {state.tries} times while it ran"), now)
            self._remember(state.model_copy(update={"begun": None, "tries": 0}))
            return ""
        fresh = alarm is not None and alarm.at > state.drift
        return "drift" if fresh and (state.last is None or now - state.last >= EARLY) else ""

    def _begin(self, state: State, occasion: str, alarm: Alarm | None, now: datetime) -> None:
        assert self._start is not None  # noqa: S101 - asked for by `tend`
        again = state.begun is not None and state.tries < TRIES
        state = self._remember(
            State(
                night=night_after(now, self._at),
                begun=now,
                tries=state.tries + 1 if again else 1,
                last=now,
                drift=max(state.drift, alarm.at if alarm else 0.0),
            )
        )
        try:
            self._training = self._start(now)
        except OSError as error:
            self._tell(Ending(trouble=f"its process cannot be started: {error}"), now)
            self._remember(state.model_copy(update={"begun": None, "tries": 0}))
            return
        log.info("retraining-started", occasion=occasion)

    def _tell(self, ending: Ending, now: datetime) -> None:
        verdict = ending.verdict
        if verdict is None:
            log.error(
                "challenger-failed",
                reason=ending.trouble,
                cure="what is in service stays, and the next night tries again; retraining/log in the state directory says more",
            )
            with suppress(ModelError):  # it was said in the log
                self._known.record(Event(at=now, what=What.FAILED, version=None, why=ending.trouble))
        elif verdict.what is What.SUCCEEDED:
            log.info("challenger-promoted", version=verdict.version, why=verdict.why)
        elif verdict.what is What.SKIPPED:
            log.info("retraining-skipped", why=verdict.why)
        else:
            log.info("challenger-kept-out", why=verdict.why)


class TrainingProcess:
    """`gridmedic retrain` in a process of its own, which ends when the daemon does, or at its deadline."""

    def __init__(self, config_path: Path | None, directory: Path, *, at: datetime, deadline_h: float) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._hours = deadline_h
        self._until = time.monotonic() + 3600 * deadline_h
        (directory / VERDICT).unlink(missing_ok=True)
        command = [sys.executable, "-P", "-c", _START, _ROOT, "retrain", "--attached", "--at", at.isoformat()]
        command += ["--config", str(config_path)] if config_path else []
        with (directory / LOG).open("wb") as said:
            # A session of its own: Ctrl-C in the terminal reaches the daemon, and standard input ends with the daemon.
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )

    def ended(self) -> Ending | None:
        status = self._process.poll()
        if status is None and time.monotonic() > self._until:
            self.kill()
            return Ending(trouble=f"it did not end within {self._hours:g} h and was killed")
        if status is None:
            return None
        self._let_go()
        if status != 0:
            how = f"ended with status {status}" if status > 0 else f"died of {signal.Signals(-status).name}"
            return Ending(trouble=": ".join(filter(None, (f"its process {how}", self._last_words()))))
        try:
            return Ending(verdict=Verdict.model_validate_json((self._directory / VERDICT).read_bytes()))
        except (OSError, ValidationError) as error:
            return Ending(trouble=f"its verdict cannot be read: {' '.join(str(error).split())[:300]}")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _last_words(self) -> str:
        """The last line that it said."""
        with suppress(OSError):
            lines = (self._directory / LOG).read_bytes()[-4000:].decode(errors="replace").split("\n")
            return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")
        return ""


def _say_drift(alarm: Alarm, *, answered: bool) -> None:
    log.warning(
        "forecast-drifts",
        what=alarm.what,
        transfers=alarm.transfers,
        coverage90=round(alarm.coverage90, 3),
        pinball=round(alarm.pinball, 4),
        pinball_held_out=alarm.pinball_held_out and round(alarm.pinball_held_out, 4),
        cure=f"a training answers it, at most every {EARLY.seconds // 3600} hours; see what comes of it"
        if answered
        else "train anew with `gridmedic train`",
    )
