"""What `gridmedic run`, `grid` and `demo` start: the loop, the desks beside it, and the simulated grid's own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import click
import structlog

from agent import telemetry
from agent.assembly import Service, service
from agent.config import SLACK_APP_TOKEN, SLACK_BOT_TOKEN, Config, SimulatedSource
from agent.daemon import Daemon, wall_clock
from agent.desk.answers import Operators
from agent.desk.console import build_app, serve_in_thread
from agent.desk.slack import SlackDesk, web_client
from agent.loop import Pass
from agent.sources.simulated import SimulatedClock
from models.domain import ConfigError, SourceError
from simulator.server import serve

log = structlog.get_logger()

GRID_START_S = 120.0  # the grid lives through some hours of history before it answers


def run(config: Config, *, once: bool) -> int:
    """Watch until stopped, or `once` until nothing more is to be read; return the exit status."""
    telemetry.configure(config.log.level, config.log.format)
    clock = clock_of(config)
    with ExitStack() as stack:
        running = service(config)
        stack.enter_context(running.closing)
        if once:
            return _until_caught_up(running, clock)
        if config.desk.console.enabled:
            _open_console(config, running, stack)
        publish = _open_slack(config, running, stack)

        def run_once(now: datetime) -> Pass:
            try:
                return running.agent.run_once(now)
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


def _open_console(config: Config, running: Service, stack: ExitStack) -> None:
    settings = config.desk.console
    app = build_app(running.ledger, settings.operator, cards=running.catalog.cards)
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


def grid(config: Config, *, speed: float, seed: int) -> None:
    """Serve the simulated grid at the address that the configuration names, until stopped."""
    telemetry.configure(config.log.level, config.log.format)
    address = urlsplit(config.grid.url)
    if address.hostname is None or address.port is None:
        raise ConfigError(f"grid.url: {config.grid.url!r} must name a host and a port, as http://127.0.0.1:8850 does")
    serve(
        directory=config.state_dir / "grid",
        start=wall_clock(),
        host=address.hostname,
        port=address.port,
        speed=speed,
        seed=seed,
    )


def demo(config: Config, config_path: Path | None) -> int:
    """The simulated grid in a process of its own, and the daemon; a grid that serves already is used as it is.

    The grid outlives a killed daemon, as a real one would; it ends with a daemon that was asked to stop.
    """
    config.state_dir.mkdir(parents=True, exist_ok=True)
    process = None if _answers(config.grid.url) else _start_grid(config, config_path)
    try:
        return run(config, once=False)
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)


def _start_grid(config: Config, config_path: Path | None) -> subprocess.Popen[bytes]:
    record = config.state_dir / "grid.log"
    click.echo(f"Starting the simulated grid; its log is {record}")
    command = [sys.argv[0], "grid", *(("--config", str(config_path)) if config_path else ())]
    with record.open("ab") as out:
        # A session of its own: Ctrl-C in the terminal reaches the daemon, and the daemon ends the grid after itself.
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)  # noqa: S603 - ourselves
    until = time.monotonic() + GRID_START_S
    while not _answers(config.grid.url):
        if process.poll() is not None:
            raise ConfigError(f"the simulated grid ended with status {process.returncode}; see {record}")
        if time.monotonic() > until:
            process.terminate()
            raise ConfigError(f"the simulated grid did not answer within {GRID_START_S:.0f} s; see {record}")
        time.sleep(0.1)
    return process


def _answers(url: str) -> bool:
    try:
        SimulatedClock(url)()
    except SourceError:
        return False
    return True
