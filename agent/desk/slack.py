"""The Slack desk: one message per incident, a projection of the ledger, with buttons to answer.

Messages go out by the Web API, clicks come in by Socket Mode, so no port is open to the outside. What the ledger
holds is what counts: a message that could not be sent is sent by a later `publish`, and one that may have been sent
when the process died is looked for before it is sent again.
"""

from __future__ import annotations

import hashlib
import json
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any

import structlog
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.client import BaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from agent.desk import words
from agent.desk.answers import SLACK, Operators, give
from agent.desk.message import escape, render
from models.domain import (
    Action,
    Answer,
    AnswerKind,
    AnswerRefused,
    ConfigError,
    DecisionStatus,
    Proposal,
    Rating,
    RemedyCard,
)
from storage.ledger import Ledger

log = structlog.get_logger()

SHOWN = 50  # proposals; those of open incidents come first
CALL_DEADLINE_S = 5  # of one call: the caller of `publish` waits for it
PUBLISH_S = 5.0  # how long `publish` goes on starting calls
AWAY_S = 30.0  # how long Slack is left alone after it did not answer
EVIDENCE_EVERY_S = 60.0  # how often a message is sent again for its evidence alone
LOOK_BACK = 5  # pages of 200 messages to look for one of ours in
EVENT_TYPE = "gridmedic"  # of our messages' metadata
CURES = {
    "invalid_auth": "check the bot token in the environment",
    "not_authed": "check the bot token in the environment",
    "token_revoked": "install the app again and put its new tokens into the environment",
    "account_inactive": "install the app again and put its new tokens into the environment",
    "not_in_channel": "invite the app to the channel",
    "channel_not_found": "check the channel's id in the configuration and invite the app to it",
    "is_archived": "name another channel in the configuration",
    "missing_scope": "give the app the scopes chat:write, channels:history and groups:history, and install it again",
}


def web_client(token: str, base_url: str = WebClient.BASE_URL) -> WebClient:
    """Return a client that fails fast and never repeats a call by itself: a message sent twice is two messages."""
    return WebClient(token, base_url=base_url, timeout=CALL_DEADLINE_S, retry_handlers=[])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    id: str  # of the incident
    proposal: Proposal
    actions: Sequence[Action]
    pending: Answer | None
    post: dict[str, Any]  # what the ledger knows of its message


class SlackDesk:
    """Shows proposals in one channel and takes answers there.

    `web` is made by `web_client`; `channel` is a channel's id or its name with a `#`; `cards` holds the remedies' cards
    by name. Raises ConfigError if `channel` is neither.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        web: WebClient,
        app_token: str,
        channel: str,
        operators: Operators,
        cards: Mapping[str, RemedyCard],
    ) -> None:
        if not re.fullmatch(r"[CG][A-Z0-9]{2,}|#[^\s#]+", channel):
            raise ConfigError(
                f"desk.slack.channel {channel!r} is no Slack channel; write its name with a # before it, or its id (like "
                "C0123456789, at the bottom of the channel's details)"
            )
        self._ledger = ledger
        self._web = web
        self._app_token = app_token
        self._channel = channel
        self._operators = operators
        self._cards = cards
        self._publishing = threading.Lock()
        self._quiet_until = 0.0
        self._refused: dict[str, str] = {}  # hash of what Slack would not take, by incident
        self._updated: dict[str, float] = {}  # when the message was last sent, by incident
        self._channel_id = None if channel.startswith("#") else channel  # Slack wants it wherever it looks things up
        self._clicks: queue.Queue[Mapping[str, Any] | None] = queue.Queue(maxsize=1000)
        self._stopped = threading.Event()
        self._socket: SocketModeClient | None = None
        self._worker = threading.Thread(target=self._work, name="slack-desk", daemon=True)

    def start(self) -> None:
        """Begin to take clicks, as soon as Slack can be reached; return at once."""
        self._worker.start()

    def stop(self) -> None:
        """Take no more clicks."""
        self._stopped.set()
        with suppress(queue.Full):
            self._clicks.put_nowait(None)
        if self._worker.is_alive():
            self._worker.join(2 * CALL_DEADLINE_S)
        if self._socket is not None:
            self._socket.close()

    def publish(self) -> None:
        """Bring Slack up to what the ledger says. Never raises for Slack: what fails now is tried by a later call."""
        if time.monotonic() < self._quiet_until or not self._publishing.acquire(blocking=False):
            return
        try:
            entries = self._read()
            shown = {entry.id for entry in entries}
            for memory in (self._updated, self._refused):
                for gone in memory.keys() - shown:
                    memory.pop(gone)
            until = time.monotonic() + PUBLISH_S
            for entry in entries:
                if time.monotonic() > until:
                    break  # the caller has other things to do; what was shown costs the next call nothing
                self._show(entry)
        except SlackApiError as error:
            self._be_quiet(error)
        except (SlackClientError, HTTPException, OSError, ValueError) as error:
            self._quiet_until = time.monotonic() + AWAY_S
            log.warning("slack-away", error=str(error), cure=f"trying again in {AWAY_S:.0f} s")
        finally:
            self._publishing.release()

    def _read(self) -> list[_Entry]:
        with self._ledger.begin(write=False) as tx:
            entries = [
                _Entry(
                    id=proposal.incident.id,
                    proposal=proposal,
                    actions=tx.actions(incident_id=proposal.incident.id),
                    pending=tx.pending_choice(proposal.decision.id),
                    post=tx.post(SLACK, proposal.incident.id) or {},
                )
                for proposal in tx.proposals(SHOWN)
                if proposal.decision.status is not DecisionStatus.SHADOW
            ]
        places = (entry.post.get("channel") for entry in entries if entry.post.get("asked") == self._channel)
        self._channel_id = self._channel_id or next(places, None)
        return entries

    def _show(self, entry: _Entry) -> None:
        shown = words.of_proposal(entry.proposal, self._cards, entry.pending)
        text, blocks = render(shown)
        whole = _digest([text, blocks])
        # The evidence of an open incident changes with every pass: that alone is not worth a call each time.
        matter = _digest([shown.decision_id, shown.status, [asdict(remedy) for remedy in shown.remedies]])
        post = entry.post
        if self._refused.get(entry.id) == whole or ("ts" not in post and shown.incident.closed):
            return  # Slack would not take it, or it is news that came and went while Slack was away
        try:
            if "ts" not in post:
                post = self._once(
                    entry.id, post, entry.id, {"whole": whole, "matter": matter}, text=text, blocks=blocks
                )
            fresh = time.monotonic() - self._updated.get(entry.id, -EVIDENCE_EVERY_S) < EVIDENCE_EVERY_S
            if post["whole"] != whole and (post["matter"] != matter or not fresh):
                self._web.chat_update(channel=post["channel"], ts=post["ts"], text=text, blocks=blocks)
                self._updated[entry.id] = time.monotonic()
                post = self._save(entry.id, post | {"whole": whole, "matter": matter})
            for key, sentence in words.story(entry.proposal.incident, entry.actions, self._cards):
                if key not in post["told"]:
                    post = self._once(entry.id, post, key, {}, text=escape(sentence))
        except SlackApiError as error:
            problem = error.response.get("error")
            if error.response.status_code == 429 or error.response.status_code >= 500 or problem in CURES:
                raise
            if problem == "message_not_found":
                self._save(entry.id, {})  # somebody deleted it: posted anew when there is news
            self._refused[entry.id] = whole
            log.warning("slack-refused", incident=entry.id, error=problem, cure="waiting for the incident to change")

    def _once(
        self,
        incident_id: str,
        post: dict[str, Any],
        mark: str,
        sent: Mapping[str, str],
        **message: Any,  # noqa: ANN401 - Slack's own arguments
    ) -> dict[str, Any]:
        """Post the incident's message, or one in its thread, that carries `mark`, unless it is there already.

        Returns the incident's record in the ledger; it takes up what is in `sent` only if the message was posted now.
        """
        thread = post.get("ts")
        place = {"channel": self._channel_id, "asked": self._channel, "whole": None, "matter": None, "told": []} | post
        ts = self._find(mark, place["channel"], thread) if post.get("sending") == mark else None
        if ts is None:
            self._save(incident_id, post | {"sending": mark})
            answer = self._web.chat_postMessage(
                channel=place["channel"] or self._channel,
                thread_ts=thread,
                metadata={"event_type": EVENT_TYPE, "event_payload": {"mark": mark}},
                unfurl_links=False,
                unfurl_media=False,
                **message,
            )
            ts, place = str(answer["ts"]), place | dict(sent) | {"channel": str(answer["channel"])}
        told = [*place["told"], mark] if thread else []
        return self._save(incident_id, place | {"ts": thread or ts, "told": told, "sending": None})

    def _save(self, incident_id: str, post: dict[str, Any]) -> dict[str, Any]:
        with self._ledger.begin(write=True) as tx:
            tx.save_post(SLACK, incident_id, post)
        return post

    def _find(self, mark: str, channel: str | None, thread: str | None) -> str | None:
        """Return the time stamp of our message with that mark, in the thread or else in the channel."""
        cursor = None
        if channel is None:
            return None  # its id is told by the first message, and that one has never come through
        for _ in range(LOOK_BACK):
            try:
                page = (
                    self._web.conversations_replies(
                        channel=channel, ts=thread, limit=200, cursor=cursor, include_all_metadata=True
                    )
                    if thread
                    else self._web.conversations_history(
                        channel=channel, limit=200, cursor=cursor, include_all_metadata=True
                    )
                )
            except SlackApiError as error:
                if error.response.get("error") != "missing_scope":
                    raise
                # An incident that is shown twice does less harm than one that is not shown.
                log.warning("slack-history-refused", mark=mark, cure=CURES["missing_scope"])
                return None
            for message in page.get("messages") or []:
                payload = (message.get("metadata") or {}).get("event_payload") or {}
                if payload.get("mark") == mark:
                    return str(message["ts"])
            cursor = (page.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                break
        return None

    def _be_quiet(self, error: SlackApiError) -> None:
        problem = error.response.get("error")
        asked = {name.lower(): value for name, value in error.response.headers.items()}.get("retry-after", "")
        wait = float(asked) if asked.isdigit() else AWAY_S
        self._quiet_until = time.monotonic() + wait
        log.warning("slack-refused", error=problem, cure=CURES.get(problem, f"trying again in {wait:.0f} s"))

    # What follows runs on the desk's own threads.

    def _work(self) -> None:
        self._connect()
        while not self._stopped.is_set():
            click = self._clicks.get()
            if click is not None:
                self._take(click)

    def _connect(self) -> None:
        self._socket = socket = SocketModeClient(self._app_token, web_client=self._web)
        socket.socket_mode_request_listeners.append(self._acknowledge)
        while not self._stopped.is_set():
            try:
                socket.connect_to_new_endpoint()
            except SlackApiError as error:
                problem = error.response.get("error")
                log.warning("slack-refused", error=problem, cure="check the app token in the environment")
            except (SlackClientError, HTTPException, OSError, ValueError) as error:
                log.warning("slack-away", error=str(error), cure=f"trying again in {AWAY_S:.0f} s")
            else:
                log.info("slack-connected", channel=self._channel)
                return  # from now on the client reconnects by itself
            self._stopped.wait(AWAY_S)

    def _acknowledge(self, client: BaseSocketModeClient, request: SocketModeRequest) -> None:
        client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
        if request.type == "interactive" and request.payload.get("type") == "block_actions":
            try:
                self._clicks.put_nowait(request.payload)
            except queue.Full:
                log.warning("slack-click-dropped", cure="a thousand clicks wait already: is the ledger stuck?")

    def _take(self, click: Mapping[str, Any]) -> None:
        try:
            answers = [_answer(click, action) for action in click["actions"]]
            user, channel = str(click["user"]["id"]), str(click["channel"]["id"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("slack-click-unreadable", error=repr(error), cure="it is not one of gridmedic's own buttons")
            return
        for answer in answers:
            try:
                said = give(self._ledger, answer, operators=self._operators)
            except AnswerRefused as refusal:
                said = str(refusal)
            except Exception:
                # The desk's only thread must outlive whatever the ledger does; the operator has to hear of it.
                log.exception("slack-click-failed", decision=answer.decision_id)
                said = "Nothing was done: gridmedic could not note this down. Please try again."
            self._whisper(channel, user, said)

    def _whisper(self, channel: str, user: str, said: str) -> None:
        try:
            self._web.chat_postEphemeral(channel=channel, user=user, text=escape(said))
        except (SlackClientError, HTTPException, OSError, ValueError) as error:
            log.warning("slack-away", error=str(error), unsaid=said, cure="the answer itself is as the text says")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _answer(click: Mapping[str, Any], action: Mapping[str, Any]) -> Answer:
    """Read one click; raise KeyError, TypeError or ValueError if the button is none of ours."""
    kind, _, rating = str(action["action_id"]).partition(":")
    value = json.loads(action["value"])
    user = str(click["user"]["id"])
    same = (click["channel"]["id"], click["message"]["ts"], action["action_id"], action["value"])
    option = value["option"]
    return Answer(
        key=f"slack:{_digest([*same, action['action_ts'], user])}",
        by=user,
        via=SLACK,
        kind=AnswerKind(kind),
        decision_id=str(value["decision"]),
        option=None if option is None else int(option),
        rating=Rating(rating) if rating else None,
    )
