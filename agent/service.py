"""What `gridmedic run`, `grid` and `demo` start: the loop, the desks beside it, and the simulated grid's own process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click
import structlog

from agent import telemetry
from agent.assembly import Service, retrains, service, versions
from agent.challenge import directory
from agent.config import SLACK_APP_TOKEN, SLACK_BOT_TOKEN, Config, SimulatedSource
from agent.daemon import Daemon, wall_clock
from agent.desk.answers import Operators
from agent.desk.console import build_app, serve_in_thread
from agent.desk.slack import SlackDesk, web_client
from agent.loop import Pass
from agent.retraining import Retraining, TrainingProcess
from agent.sources.simulated import SimulatedClock
from models.domain import ConfigError, GridmedicError, SourceError
from simulator.disk import holder

log = structlog.get_logger()

GRID_START_S = 600.0  # the grid may have to be compiled, and lives through some hours of history before it answers
GRID_STOP_S = 30.0
MORNING = timedelta(hours=8)


def run(config: Config, config_path: Path | None, *, once: bool) -> int:
    """Watch until stopped, or `once` until nothing more is to be read; return the exit status."""
    telemetry.configure(config.log.level, config.log.format)
    with _alone(config.state_dir):
        return _watch(config, config_path, once=once)


def _watch(config: Config, config_path: Path | None, *, once: bool) -> int:
    clock = clock_of(config)
    troubles: Sequence[str] = ()  # of the last pass
    with ExitStack() as stack:
        running = service(config)
        stack.enter_context(running.closing)
        if once:
            return _until_caught_up(running, clock)
        if config.desk.console.enabled:
            _open_console(config, running, stack, troubles=lambda: troubles)
        publish = _open_slack(config, running, stack)
        retraining = _retraining(config, config_path, running)
        stack.callback(retraining.close)

        def run_once(now: datetime) -> Pass:
            nonlocal troubles
            try:
                done = running.agent.run_once(now)
                retraining.tend(now)
            except Exception as error:
                troubles = [str(error) if isinstance(error, GridmedicError) else "a pass broke; the log says why"]
                raise
            else:
                troubles = done.unreachable
                return done
            finally:
                publish()

        return Daemon(run_once, clock=clock, every_s=config.poll.every_s).run()


def clock_of(config: Config) -> Callable[[], datetime]:
    """The wall's clock, or the simulated grid's where that is watched: its troubles happen in its own time."""
    for entry in config.events:
        if isinstance(entry, SimulatedSource):
            return SimulatedClock(entry.url)
    return wall_clock


def _until_caught_up(running: Service, clock: Callable[[], datetime]) -> int:
    while True:
        done = running.agent.run_once(clock())
        log.info("pass", **done.numbers())
        if done.unreachable:
            raise SourceError(done.unreachable[0])
        if done.caught_up:
            return 0


def _retraining(config: Config, config_path: Path | None, running: Service) -> Retraining:
    settings = config.forecast.retrain

    def start(now: datetime) -> TrainingProcess:
        return TrainingProcess(config_path, directory(config), at=now, deadline_h=settings.deadline_h)

    return Retraining(
        ledger=running.ledger,
        known=versions(config),
        drift=lambda: running.agent.drift,
        start=start if retrains(config) else None,
        at=settings.at,
    )


def _open_console(config: Config, running: Service, stack: ExitStack, *, troubles: Callable[[], Sequence[str]]) -> None:
    settings = config.desk.console
    app = build_app(running.ledger, settings.operator, cards=running.catalog.cards, troubles=troubles)
    server = serve_in_thread(app, settings.host, settings.port)
    stack.callback(server.stop)
    log.info("console-open", url=server.url)


def _open_slack(config: Config, running: Service, stack: ExitStack) -> Callable[[], None]:
    """Open the Slack desk if both tokens are in the environment; return what publishes to it."""
    bot, app = os.environ.get(SLACK_BOT_TOKEN), os.environ.get(SLACK_APP_TOKEN)
    if not bot and not app:
        return lambda: None
    if not bot or not app:
        missing = SLACK_APP_TOKEN if bot else SLACK_BOT_TOKEN
        raise ConfigError(f"{missing} is not in the environment; the Slack desk needs both tokens, or neither")
    desk = SlackDesk(
        running.ledger,
        web=web_client(bot),
        app_token=app,
        channel=config.desk.slack.channel,
        operators=Operators.named(config.desk.slack.operators),
        cards=running.catalog.cards,
    )
    desk.start()
    stack.callback(desk.stop)
    return desk.publish


def grid(config: Config, *, speed: float, seed: int | None) -> None:
    """Serve the simulated grid at the address that the configuration names, until stopped."""
    from simulator.scenario import load, names  # noqa: PLC0415 - the simulator's compiler is loaded by whoever simulates
    from simulator.server import serve  # noqa: PLC0415

    telemetry.configure(config.log.level, config.log.format)
    named = config.grid.scenario
    scenario = load(named if named in names() else config.path(named))
    address = urlsplit(config.grid.url)
    if address.hostname is None or address.port is None:
        raise ConfigError(f"grid.url: {config.grid.url!r} must name a host and a port, as http://127.0.0.1:8850 does")
    serve(
        directory=config.state_dir / "grid",
        scenario=scenario,
        start=monday_morning(wall_clock()),
        host=address.hostname,
        port=address.port,
        speed=speed,
        seed=scenario.seed if seed is None else seed,
    )


def monday_morning(now: datetime) -> datetime:
    """The last Monday at eight, in UTC: when a simulated grid begins.

    What is asked of it follows the hours of the week. So whenever a seed is started, its troubles come in the same traffic, and the
    first night's training is far.

    >>> monday_morning(datetime(2026, 3, 9, 7, 59, tzinfo=UTC))
    datetime.datetime(2026, 3, 2, 8, 0, tzinfo=datetime.timezone.utc)
    """
    since = now.astimezone(UTC) - MORNING
    return since.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=since.weekday()) + MORNING


def demo(config: Config, config_path: Path | None) -> int:
    """The simulated grid in a process of its own, and the daemon.

    The grid outlives a killed daemon, as a real one would; the next demo goes on with it. It ends with a daemon that was
    asked to stop, whoever started it. A grid that has its state elsewhere is used as it is and left alone.
    """
    telemetry.configure(config.log.level, config.log.format)
    # Until the daemon listens to signals itself, SIGTERM takes the same way out as Ctrl-C: nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _alone(config.state_dir), ExitStack() as stack:
        _bring_up_grid(config, config_path, stack)
        if config.desk.console.enabled:
            click.echo(f"The console is at http://{config.desk.console.host}:{config.desk.console.port}/")
        click.echo("Ctrl-C ends the daemon and the grid")
        return _watch(config, config_path, once=False)


def _bring_up_grid(config: Config, config_path: Path | None, stack: ExitStack) -> None:
    """Start the grid unless it runs, and wait until it answers; `stack` ends it."""
    directory, process = config.state_dir / "grid", None
    if holder(directory) is not None or _answers(config.grid.url):
        click.echo(f"Using the simulated grid that runs at {config.grid.url}")
    else:
        process = _start_grid(config, config_path)
    stack.callback(_end_grid, directory, process)
    record, until = config.state_dir / "grid.log", time.monotonic() + GRID_START_S
    while not _answers(config.grid.url):
        if process is not None and process.poll() is not None:
            raise ConfigError(f"the simulated grid ended with status {process.returncode}; see {record}")
        if time.monotonic() > until:
            raise ConfigError(
                f"the simulated grid did not answer at {config.grid.url} within {GRID_START_S:.0f} s; see {record}"
            )
        time.sleep(0.1)


def _start_grid(config: Config, config_path: Path | None) -> subprocess.Popen[bytes]:
    record = config.state_dir / "grid.log"
    click.echo(
        f"Starting the simulated grid, which the first time takes a minute or more to compile; its log is {record}"
    )
    command = [sys.argv[0], "grid", *(("--config", str(config_path)) if config_path else ())]
    with record.open("ab") as out:
        # A session of its own: Ctrl-C in the terminal reaches the daemon, and the daemon ends the grid after itself.
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)  # noqa: S603 - ourselves


def _end_grid(directory: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Stop the grid that was started here, or else the one that has its state in the directory."""
    started = process if process is not None and process.poll() is None else None
    pid = started.pid if started else holder(directory)
    if pid is None:
        return
    until = time.monotonic() + GRID_STOP_S
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while (started.poll() is None) if started else holder(directory) == pid:
            if time.monotonic() > until:
                log.error("grid-hangs", pid=pid, after_s=GRID_STOP_S, cure="it is killed; it keeps what it had on disk")
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the state directory: two daemons over one ledger would read and do everything twice."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("a")
    except OSError as error:
        raise ConfigError(f"state: {directory} cannot be used: {error.strerror}; name another directory") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another gridmedic runs on {directory}; stop it, or name another directory under `state`"
            ) from None
        yield


def _answers(url: str) -> bool:
    try:
        SimulatedClock(url)()
    except SourceError:
        return False
    return True
