"""The long-running process: APScheduler calls the loop, signals stop it, a watchdog sees to it that it goes on.

The only file that reads a clock.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from agent.loop import Pass
from models.domain import GridmedicError

log = structlog.get_logger()

STOP_GRACE_S = 90.0  # a pass that is carrying out a remedy is given this long to end


def wall_clock() -> datetime:
    return datetime.now(UTC)


class Daemon:
    """Runs passes until it is told to stop. `run_once` makes one pass at the time that `clock` gives."""

    def __init__(self, run_once: Callable[[datetime], Pass], *, clock: Callable[[], datetime], every_s: float) -> None:
        self._run_once = run_once
        self._clock = clock
        self._every_s = every_s
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    def graceful_stop(self) -> None:
        """Let the pass that is running end, start no other."""
        self._stop.set()

    def run(self) -> int:
        """Block until stopped; return the exit status: 0 if asked to stop, 1 if the scheduler died."""
        self._catch_signals()
        scheduler = self._scheduler()
        scheduler.start()
        log.info("daemon-started", every_s=self._every_s)
        status = 0
        # APScheduler's thread can die while the scheduler still says that it runs, so its thread is watched itself.
        while not self._stop.wait(1.0):
            if not _alive(scheduler):
                log.error("scheduler-died", cure="start the daemon again; nothing is lost")
                status = 1
                break
        self._stop.set()
        scheduler.shutdown(wait=False)
        if not self._idle.wait(STOP_GRACE_S):
            log.error("pass-hangs", after_s=STOP_GRACE_S, cure="what it was doing is looked at after the next start")
            status = 1
        log.info("daemon-stopped", status=status)
        return status

    def _scheduler(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600},
        )
        # A pass that catches up with a backlog outlasts its interval; that is no news, and APScheduler would warn of it.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        scheduler.add_listener(_report, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        # Without a first time the first pass would come one interval late.
        scheduler.add_job(self._passes, "interval", seconds=self._every_s, id="passes", next_run_time=datetime.now(UTC))
        return scheduler

    def _passes(self) -> None:
        """One pass, and at once another while there is more to be read."""
        self._idle.clear()
        try:
            while not self._stop.is_set():
                if self._guarded_pass():
                    break
        finally:
            self._idle.set()

    def _guarded_pass(self) -> bool:
        """Make one pass; True if nothing more is to be had now. No error of a pass ends the daemon."""
        try:
            done = self._run_once(self._clock())
        except GridmedicError as error:
            log.error("pass-failed", error=str(error), cure="the next pass tries again")  # noqa: TRY400 - says it all
            return True
        except Exception:
            log.exception("pass-broke", cure="this is a defect of gridmedic; the next pass starts from the ledger")
            return True
        if done.read or done.actions:
            log.info("pass", **done.numbers())
        return done.caught_up

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.graceful_stop())


def _alive(scheduler: BackgroundScheduler) -> bool:
    thread = getattr(scheduler, "_thread", None)
    return thread is not None and thread.is_alive()


def _report(event: JobEvent) -> None:
    if event.code == EVENT_JOB_ERROR:
        log.error("job-failed", job=event.job_id, error=repr(event.exception))
    else:
        log.debug("job-late", job=event.job_id, cure="a pass took longer than poll.every_s; raise it if this goes on")
