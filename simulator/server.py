"""`gridmedic grid`: the simulated grid as a process of its own, over HTTP on a loopback address.

- `GET /clock` → `{"now", "speed", "run"}`
- `GET /events?after=N&limit=M`, `GET /measurements?…` → `{"run", "first", "last", "end", "documents"}`
- `GET /downtimes` → what is announced, in CRIC's form
- `POST /call/{method}` with the arguments as a JSON object → `{"result", "effect"}`, or 409 with `{"error"}`
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from models.domain import ConfigError, aware
from simulator.keeper import Keeper, Setup
from simulator.scenario import Scenario
from simulator.state import Stream

log = structlog.get_logger()

_TICK = 0.25  # seconds of wall time between two steps of the world
_GAP = 0.002  # seconds between two steps where the world is behind, or those who ask would never get their turn
_LONGEST_STEP = timedelta(minutes=10)  # of simulated time, so that callers never wait long
_MOST_DOCUMENTS = 20_000


def serve(
    *,
    directory: Path,
    scenario: Scenario,
    start: datetime,
    host: str = "127.0.0.1",
    port: int = 8850,
    seed: int = 1,
    speed: float = 60.0,
    history: timedelta = timedelta(hours=6),
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the address once it answers.

    `start` is the simulated instant at which a new run begins to be served, after `history` has been simulated: it is what the
    scenario's times count from. A run that `directory` already holds goes on where it stood. `speed` is simulated seconds a
    second. Port 0 takes any that is free.
    Raise ConfigError for an address that is not loopback or taken, and for a directory that cannot be used.
    """
    if not 0 < speed <= 3600:
        raise ConfigError(f"speed {speed!r} must be above 0 and at most 3600")
    with _bound(host, port) as listener:
        setup = Setup(scenario=scenario.later(history.total_seconds()), seed=seed, start=aware(start) - history)
        keeper = Keeper(directory, setup, until=start)
        lock = threading.Lock()
        server = _Server(
            uvicorn.Config(_application(keeper, lock, speed), log_config=None, access_log=False, lifespan="off")
        )
        pace = _Pace(keeper, lock, speed, stop=lambda: setattr(server, "should_exit", True))
        address = f"http://{host if ':' not in host else f'[{host}]'}:{listener.getsockname()[1]}"
        log.info("grid-serving", url=address, now=keeper.now.isoformat(), speed=speed, run=keeper.run)
        pace.start()
        listener.listen()  # so that whoever is told that it is ready finds somebody, before the server accepts
        ready(address)
        try:
            server.run(sockets=[listener])
        finally:
            pace.finish()
            keeper.close()


class _Pace(threading.Thread):
    """Keeps the world at `speed` times the pace of the wall's clock."""

    def __init__(self, keeper: Keeper, lock: threading.Lock, speed: float, stop: Callable[[], None]) -> None:
        super().__init__(name="pace", daemon=True)
        self._keeper, self._lock, self._speed, self._stop_server = keeper, lock, speed, stop
        self._finished = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        origin, began = self._keeper.now, time.monotonic()
        try:
            while not self._finished.wait(_TICK):
                target = origin + timedelta(seconds=round((time.monotonic() - began) * self._speed, 3))
                while self._keeper.now < target and not self._finished.wait(_GAP):
                    with self._lock:
                        self._keeper.advance(min(target, self._keeper.now + _LONGEST_STEP))
        except Exception as error:  # noqa: BLE001 - whatever it is, the process must end with it and not stand still
            self._error = error
            self._stop_server()

    def finish(self) -> None:
        """Stop; raise what ended the pace, if anything did."""
        self._finished.set()
        self.join()
        if self._error is not None:
            raise self._error


class _Server(uvicorn.Server):
    """Ends by itself on a signal, where uvicorn would raise the signal again and skip what is to be done at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
        yield


def _application(keeper: Keeper, lock: threading.Lock, speed: float) -> Starlette:
    def clock(_: Request) -> Response:
        with lock:
            return JSONResponse({"now": keeper.now.isoformat(), "speed": speed, "run": keeper.run})

    def documents(request: Request) -> Response:
        stream: Stream = "events" if request.url.path == "/events" else "measurements"
        try:
            after, limit = (
                int(request.query_params.get(name, default)) for name, default in (("after", 0), ("limit", 5000))
            )
        except ValueError:
            return JSONResponse({"error": "after and limit must be whole numbers"}, status_code=422)
        with lock:
            body = keeper.read(stream, after=max(0, after), limit=max(1, min(limit, _MOST_DOCUMENTS)))
        return Response(body, media_type="application/json")

    def downtimes(_: Request) -> Response:
        with lock:
            return JSONResponse(keeper.downtimes())

    async def body_of(request: Request) -> Any:  # noqa: ANN401 - whatever JSON there is
        return json.loads(await request.body())

    async def call(request: Request) -> Response:
        try:
            arguments = await body_of(request)
        except ValueError:
            arguments = None
        if request.headers.get("content-type") != "application/json" or not isinstance(arguments, dict):
            return JSONResponse({"error": "send the arguments as a JSON object"}, status_code=422)
        return await run_in_threadpool(carry_out, request.path_params["method"], arguments)

    def carry_out(method: str, arguments: dict[str, Any]) -> Response:
        with lock:
            reply = keeper.call(method, arguments)
        if reply.error:
            return JSONResponse({"error": reply.error}, status_code=409)
        return JSONResponse({"result": reply.result, "effect": reply.effect})

    return Starlette(
        routes=[
            Route("/clock", clock),
            Route("/events", documents),
            Route("/measurements", documents),
            Route("/downtimes", downtimes),
            Route("/call/{method}", call, methods=["POST"]),
        ],
        # A page in some browser on this machine must not reach it under another name.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


def _bound(host: str, port: int) -> socket.socket:
    """A socket on a loopback address."""
    name = "127.0.0.1" if host == "localhost" else host
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        raise ConfigError(f"{host!r} is not an IP address; the grid is served on 127.0.0.1 or ::1") from None
    if not address.is_loopback:
        raise ConfigError(f"{host} is not a loopback address; the grid has no access control: use 127.0.0.1 or ::1")
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((name, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} on {host} cannot be used: {error.strerror}; choose another") from None
    return listener
