"""The web console: one page on the loopback address that shows incidents and proposals and takes answers.

Works without JavaScript; with it, the page keeps itself up to date. Whoever can reach the page acts as the local
operator, so it is served to this machine alone, and a page of another site can neither read nor press anything in it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from urllib.parse import urlsplit

import structlog
import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agent.desk import words
from agent.desk.answers import Operators, give, paused_by, set_paused
from agent.desk.text import clean, moment
from agent.settlement import SEEN_UNTIL
from models.domain import (
    Answer,
    AnswerKind,
    AnswerRefused,
    ConfigError,
    DecisionStatus,
    GridmedicError,
    IncidentStatus,
    Proposal,
    Rating,
    RemedyCard,
)
from storage.ledger import Ledger

log = structlog.get_logger()

SHOWN = 100  # proposals; those of open incidents come first
NOTES = 100  # sentences kept for pages that have not asked for theirs yet
ASSETS = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}
STATES: dict[words.State, str] = {
    "waits": "Waits for you",
    "runs": "In progress",
    "fixed": "Fixed",
    "trouble": "Needs a look",
    "quiet": "Nothing to press",
    "closed": "Closed",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_app(
    ledger: Ledger,
    operator_name: str,
    *,
    cards: Mapping[str, RemedyCard],
    troubles: Callable[[], Sequence[str]] = tuple,
) -> Starlette:
    """Return the console as an ASGI application; answers are given in the name of `operator_name`.

    `cards` holds the remedies' cards by name; `troubles` says what keeps the daemon from seeing the grid now.
    """
    console = _Console(ledger, operator_name, cards, troubles)
    return Starlette(
        routes=[
            Route("/", console.page),
            Route("/now", console.now),
            Route("/answer", console.answer, methods=["POST"]),
            Route("/pause", console.pause, methods=["POST"]),
            Route("/healthz", console.health),
            Route("/assets/{name}", _asset),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=console.guard)],
        exception_handlers={HTTPException: console.refuse},
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A console that is being served by a thread of its own."""

    url: str
    _uvicorn: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        """Stop serving and wait until the thread has ended."""
        self._uvicorn.should_exit = True
        self._thread.join(10)


def serve_in_thread(app: Starlette, host: str, port: int) -> Server:
    """Serve `app` from a thread, on the loopback address alone; port 0 takes any that is free.

    Raises ConfigError for any other address, and if the address is taken.
    """
    if not _is_loopback(host):
        raise ConfigError(
            f"console host {host!r}: the console is served on the loopback address alone, because whoever reaches it may "
            "approve; write 127.0.0.1, and reach it from elsewhere through an SSH tunnel"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"console address {host}:{port}: {error.strerror}; choose another port") from error
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="console", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    return Server(f"http://{shown}:{listener.getsockname()[1]}/", server, thread)


class _Console:
    def __init__(
        self, ledger: Ledger, operator: str, cards: Mapping[str, RemedyCard], troubles: Callable[[], Sequence[str]]
    ) -> None:
        self._ledger = ledger
        self._operator = operator
        self._cards = cards
        self._troubles = troubles
        self._secret = secrets.token_urlsafe(32)
        self._once = secrets.token_urlsafe(32)  # stands where each answer's page puts a word of its own
        self._notes: OrderedDict[str, tuple[str, bool]] = OrderedDict()  # (sentence, whether it was refused), by key
        loader = PackageLoader("agent.desk")
        self._templates = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined)

    def page(self, request: Request) -> Response:
        said, refused = self._notes.pop(request.query_params.get("note", ""), ("", False))
        return HTMLResponse(self._fresh(self._render("page.html", said=said, refused=refused)))

    def now(self, request: Request) -> Response:
        """Return the part of the page that changes; 304 if it is still as the caller has it."""
        body = self._render("now.html")
        tag = _digest(body)
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return HTMLResponse(self._fresh(body), headers={"ETag": tag})

    async def answer(self, request: Request) -> Response:
        form = await self._form(request)
        return await run_in_threadpool(self._give, form)

    async def pause(self, request: Request) -> Response:
        form = await self._form(request)
        paused = form.get("paused") == "yes"
        said = await run_in_threadpool(set_paused, self._ledger, paused, self._operator)
        return self._back(said)

    def health(self, request: Request) -> Response:  # noqa: ARG002 - the router's signature
        """Say whether the ledger can be read, and what waits."""
        try:
            with self._ledger.begin(write=False) as tx:
                proposals, paused = tx.proposals(SHOWN), paused_by(tx)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the ledger, this is where it is asked
            log.warning("console-ledger-unreadable", error=repr(error))
            return JSONResponse({"status": "ledger-unreadable"}, status_code=503)
        waiting = sum(words.of_proposal(proposal, self._cards).state == "waits" for proposal in proposals)
        status = "troubled" if self._troubles() else "ok"
        return JSONResponse({"status": status, "paused": paused is not None, "proposals_waiting": waiting})

    async def guard(self, request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        """Stand before everything: no foreign name for this machine goes in, and no error comes out as it is.

        A foreign name that was made to point here would let its page read ours.
        """
        if not _is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or ""):
            response = Response("Ask for this page by its loopback address.\n", status_code=421)
        else:
            try:
                response = await proceed(request)
            except GridmedicError as error:
                log.warning("console-ledger-unreadable", error=str(error))
                response = self._refusal(503, str(error))
            except Exception:
                log.exception("console-broke", path=request.url.path)
                response = self._refusal(500, "Something went wrong; gridmedic's log says what.")
        response.headers.update(HEADERS)
        return response

    def refuse(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 - the handler's signature
        known = error if isinstance(error, HTTPException) else HTTPException(500)
        return self._refusal(known.status_code, known.detail)

    def _refusal(self, status: int, detail: str) -> Response:
        body = self._templates.get_template("refusal.html").render(status=status, detail=detail)
        return HTMLResponse(body, status_code=status)

    def _render(self, template: str, **values: object) -> str:
        with self._ledger.begin(write=False) as tx:
            proposals, paused, seen = tx.proposals(SHOWN), paused_by(tx), tx.setting(SEEN_UNTIL)
            unproposed = tx.incidents(status=IncidentStatus.OPEN)
            proposals = [p for p in proposals if p.decision.status is not DecisionStatus.SHADOW]
            actions = {p.incident.id: tx.actions(incident_id=p.incident.id) for p in proposals}
            pending = {p.decision.id: tx.pending_choice(p.decision.id) for p in proposals}
        shown = [
            (
                words.of_proposal(p, self._cards, pending[p.decision.id]),
                [sentence for _, sentence in words.story(p.incident, actions[p.incident.id], self._cards)],
            )
            for p in sorted(proposals, key=_urgency)
        ]
        known = {p.incident.id for p in proposals}
        return self._templates.get_template(template).render(
            open=[entry for entry in shown if not entry[0].incident.closed],
            closed=[entry for entry in shown if entry[0].incident.closed],
            undecided=[words.of_incident(i) for i in unproposed if i.id not in known],
            paused=paused,
            seen=moment(datetime.fromisoformat(seen)) if seen else "",
            troubles=[clean(trouble) for trouble in self._troubles()],
            operator=self._operator,
            token=self._secret,
            once=self._once,
            states=STATES,
            ratings=[(rating.value, rating.replace("-", " ")) for rating in Rating],
            **values,
        )

    def _fresh(self, body: str) -> str:
        """Return a page whose answers are told apart from those of every other page: one press, one answer."""
        return body.replace(self._once, secrets.token_urlsafe(12))

    async def _form(self, request: Request) -> FormData:
        """Return what a form of this very page sent; raise HTTPException for any other's."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "This was sent by a page that is not this console's.")
        form = await request.form(max_files=0, max_fields=10)
        if not hmac.compare_digest(str(form.get("token", "")).encode(), self._secret.encode()):
            raise HTTPException(403, "This page is older than the running daemon. Load it again, then press again.")
        return form

    def _give(self, form: FormData) -> Response:
        try:
            option, rating = form.get("option"), form.get("rating")
            answer = Answer(
                key=f"console:{_digest(json.dumps(sorted(form.items()), default=str))}",
                by=self._operator,
                via="console",
                kind=AnswerKind(str(form["kind"])),
                decision_id=str(form["decision"]),
                option=int(str(option)) if option else None,
                rating=Rating(str(rating)) if rating else None,
            )
        except (KeyError, ValueError) as error:
            raise HTTPException(400, "This is not a form of the console's.") from error
        try:
            return self._back(give(self._ledger, answer, operators=Operators.local(self._operator)))
        except AnswerRefused as refusal:
            return self._back(str(refusal), refused=True)

    def _back(self, said: str, *, refused: bool = False) -> Response:
        # What is said is kept here and not in the address: a link from elsewhere can put no words into our mouth.
        key = secrets.token_urlsafe(8)
        self._notes[key] = said, refused
        while len(self._notes) > NOTES:
            self._notes.popitem(last=False)
        return RedirectResponse(f"/?note={key}", status_code=303)


def _urgency(proposal: Proposal) -> tuple[bool, float]:
    """Sort what waits for an operator before what does not, and the worse before the better."""
    return proposal.decision.status is not DecisionStatus.OPEN, -proposal.incident.severity


def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404, "There is nothing here.")
    return Response(resources.files("agent.desk").joinpath("templates", name).read_bytes(), media_type=ASSETS[name])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
