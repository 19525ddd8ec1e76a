from __future__ import annotations

import http.server
import json
import threading
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from agent.desk import slack, words
from agent.desk.message import escape, render
from agent.desk.slack import web_client
from models.domain import Block, ConfigError, DecisionStatus, Entity, IncidentStatus, Permission, Proposal, Rating
from storage.ledger import Ledger
from tests.desk_stories import CARDS, HOSTILE, NOW, decision, incident, judge, option, record, take_answers
from tests.slack_workspace import CHANNEL, buttons, connected, texts, wait_until
from tests.slack_workspace import desk_for as any_desk_for

pytestmark = pytest.mark.usefixtures("direct")


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


# The message


def message_of(told=None, decided=None, pending=None):
    shown = words.of_proposal(Proposal(incident=told or incident(), decision=decided or decision()), CARDS, pending)
    return render(shown)


def test_a_message_says_what_is_broken_how_sure_and_what_to_press():
    text, blocks = message_of()
    assert text.startswith("🔔 Failing transfers at NEBULA-T2_DATADISK. Waits for an operator")
    shown = "\n".join(texts(blocks))
    assert "91 % sure who is to blame" in shown
    assert "148 of 203 transfers in 30 min were anomalous, 73 %; of the others 1 %" in shown
    assert "Writing to NEBULA-T2_DATADISK is switched off; reading goes on." in shown
    approve = buttons(blocks, "approve")
    assert [json.loads(button["value"])["option"] for button in approve] == [1, 0, 2]  # the recommended first
    assert [button.get("style") for button in approve] == ["primary", None, None]
    assert [bool(button.get("confirm")) for button in approve] == [True, False, False]  # the disruptive one asks again
    assert len(buttons(blocks, "rate")) == 3 * 4
    assert len(buttons(blocks, "reject")) == 1


def test_a_message_keeps_slacks_limits_whatever_comes():
    long = HOSTILE * 200
    many = tuple(option(f"remedy_{n}", long, 0.02) for n in range(40))
    told = incident(culprit=Entity.parse(f"activity:{long}"))
    told = replace(told, evidence=replace(told.evidence, summary=long, links=dict.fromkeys(map(str, range(500)), 9)))
    text, blocks = message_of(told, decision(options=many))
    assert len(blocks) <= 50
    assert len(text) <= 3000
    assert all(0 < len(shown) <= 3000 for shown in texts(blocks))
    assert all(len(block["elements"]) <= 25 for block in blocks if block["type"] == "actions")
    assert all(len(button["text"]["text"]) <= 75 and len(button["value"]) <= 2000 for button in buttons(blocks))
    assert all(len(button["confirm"]["text"]["text"]) <= 300 for button in buttons(blocks) if "confirm" in button)
    assert "And 20 more remedies" in "\n".join(texts(blocks))
    assert "<" not in text.replace("&lt;", "")


def test_hostile_text_is_text():
    told = incident(culprit=Entity.parse(f"activity:{HOSTILE}"))
    told = replace(told, evidence=replace(told.evidence, summary=HOSTILE, links={HOSTILE: 1}, reasons={HOSTILE: 1}))
    _, blocks = message_of(told, decision(options=(option("wait", HOSTILE, 1.0),), recommended=0))
    shown = "\n".join(texts(blocks))
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt;" in shown
    assert not any(mark in shown for mark in ("<", "\x1b", "\u202e"))
    assert all(text.get("verbatim") for block in blocks if (text := block.get("text")))


def test_escaping_cuts_between_characters_and_not_within_an_escape():
    assert escape("a<b") == "a&lt;b"
    assert escape("&&&", limit=11) == "&amp;&amp;…"


@pytest.mark.parametrize("status", [DecisionStatus.EXPIRED, DecisionStatus.SHADOW])
def test_what_cannot_be_chosen_has_no_buttons_to_choose(status):
    _, blocks = message_of(decided=decision(status=status))
    assert not buttons(blocks, "approve")
    assert not buttons(blocks, "reject")


def test_a_closed_incident_has_only_the_rating_of_what_was_done():
    closed = incident(status=IncidentStatus.CLOSED, closed_at=NOW)
    assert buttons(message_of(closed)[1]) == []
    taken = decision(status=DecisionStatus.TAKEN, chosen=1, chosen_by="ada")
    assert [button["action_id"] for button in buttons(message_of(closed, taken)[1])] == [
        "rate:good",
        "rate:wrong",
        "rate:not-applicable",
    ]


def test_a_remedy_that_cannot_be_approved_says_why():
    only = option("wait", "Nothing.", 0, permission=Permission.SKIP, blocks=(Block.PAUSED,))
    _, blocks = message_of(decided=decision(options=(only,), recommended=0))
    assert "Cannot be approved: gridmedic is paused." in "\n".join(texts(blocks))
    assert not buttons(blocks, "approve")
    assert not buttons(blocks, "reject")


@pytest.mark.parametrize("channel", ["", "grid operations", "@ada", "c01ops"])
def test_a_channel_must_be_one(ledger, channel):
    with pytest.raises(ConfigError, match=r"desk\.slack\.channel"):
        desk_for(ledger, web_client("xoxb"), channel=channel)


# Against a Slack that can fail


class FaultySlack(http.server.ThreadingHTTPServer):
    """Keeps messages with their metadata; `faults` are used up, one for each call: (method, fault)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.messages, self.calls, self.faults, self.ephemeral = [], [], [], []

    @property
    def web(self):
        return web_client("xoxb-test", f"http://127.0.0.1:{self.server_port}/api/")

    def answer(self, method, told):
        if method == "chat.postMessage":
            metadata = json.loads(told["metadata"]) if isinstance(told.get("metadata"), str) else told.get("metadata")
            message = told | {"ts": f"{len(self.messages) + 1}.0", "metadata": metadata}
            self.messages.append(message)
            return {"ok": True, "ts": message["ts"], "channel": CHANNEL}
        if method == "chat.update":
            for message in self.messages:
                if message["ts"] == told["ts"]:
                    message.update(told)
                    return {"ok": True, "ts": told["ts"], "channel": CHANNEL}
            return {"ok": False, "error": "message_not_found"}
        if method == "chat.postEphemeral":
            self.ephemeral.append(told)
            return {"ok": True}
        thread = told.get("ts") if method == "conversations.replies" else None
        assert str(told["include_all_metadata"]).lower() in {"1", "true"}
        return {"ok": True, "messages": [m for m in self.messages if m.get("thread_ts") == thread]}


class FaultyHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        told = json.loads(body) if "json" in self.headers.get("content-type", "") else dict(parse_qsl(body))
        method = self.path.removeprefix("/api/")
        self.server.calls.append(method)
        fault = None
        if self.server.faults and self.server.faults[0][0] in {method, "*"}:
            fault = self.server.faults.pop(0)[1]
        if fault == "rate-limit":
            return self.reply(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "7"})
        if fault == "down":
            return self.reply(503, {"ok": False, "error": "service_unavailable"})
        if fault is not None and fault != "lost":
            return self.reply(200, {"ok": False, "error": fault})
        answer = self.server.answer(method, told)
        if fault == "lost":  # it was done, but nobody hears of it
            self.close_connection = True
            return None
        return self.reply(200, answer)

    def reply(self, status, answer, headers=None):
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def faulty():
    server = FaultySlack()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def desk_for(ledger, web, channel=CHANNEL):
    return any_desk_for(ledger, web, cards=CARDS, channel=channel)


def test_an_incident_is_one_message_that_is_sent_again_only_for_news(ledger, faulty):
    desk = desk_for(ledger, faulty.web)
    record(ledger, incident(), decision())
    desk.publish()
    desk.publish()
    assert faulty.calls == ["chat.postMessage"]
    assert faulty.messages[0]["metadata"]["event_payload"] == {"mark": "inc-1"}
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(status=DecisionStatus.REJECTED, chosen_by="ada"))
    desk.publish()
    desk_for(ledger, faulty.web).publish()  # as after a restart
    assert faulty.calls == ["chat.postMessage", "chat.update"]
    assert "rejected by ada" in faulty.messages[0]["text"]


def test_evidence_alone_is_sent_only_now_and_then(ledger, faulty, monkeypatch):
    desk = desk_for(ledger, faulty.web)
    record(ledger, incident(), decision())
    desk.publish()
    for minute in range(5):
        record(ledger, incident(updated_at=NOW.replace(minute=20 + minute)))
        desk.publish()
    assert faulty.calls == ["chat.postMessage", "chat.update"]
    monkeypatch.setattr(slack, "EVIDENCE_EVERY_S", 0.0)
    desk.publish()
    assert faulty.calls == ["chat.postMessage", "chat.update", "chat.update"]


@pytest.mark.parametrize("channel", [CHANNEL, "#ops"])
def test_a_message_whose_sending_was_not_heard_of_does_not_double(ledger, faulty, channel):
    if channel.startswith("#"):  # the channel's id is known from an earlier message
        record(ledger, incident("inc-0", severity=0.1), decision("dec-0", "inc-0"))
        desk_for(ledger, faulty.web, channel).publish()
    record(ledger, incident(), decision())
    faulty.faults = [("chat.postMessage", "lost")]
    desk_for(ledger, faulty.web, channel).publish()
    desk_for(ledger, faulty.web, channel).publish()  # as after a restart
    marks = [message["metadata"]["event_payload"]["mark"] for message in faulty.messages]
    assert marks.count("inc-1") == 1
    assert "conversations.history" in faulty.calls
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(status=DecisionStatus.REJECTED, chosen_by="ada"))
    desk_for(ledger, faulty.web, channel).publish()
    assert "rejected by ada" in faulty.messages[-1]["text"]


def test_a_line_of_the_story_does_not_double_either(ledger, faulty):
    record(ledger, incident(), decision())
    desk_for(ledger, faulty.web).publish()
    with ledger.begin(write=True) as tx:
        tx.save_incident(incident(status=IncidentStatus.CLOSED, closed_at=NOW))
    faulty.faults = [("chat.postMessage", "lost")]
    desk_for(ledger, faulty.web).publish()
    desk_for(ledger, faulty.web).publish()
    replies = [message for message in faulty.messages if message.get("thread_ts")]
    assert [reply["text"] for reply in replies] == ["The incident closed at 01 Mar 03:12 UTC."]
    assert "conversations.replies" in faulty.calls


def test_without_leave_to_look_it_is_sent_again_rather_than_not_at_all(ledger, faulty):
    record(ledger, incident(), decision())
    faulty.faults = [("chat.postMessage", "lost"), ("conversations.history", "missing_scope")]
    desk_for(ledger, faulty.web).publish()
    desk_for(ledger, faulty.web).publish()
    assert len(faulty.messages) == 2


def test_a_rate_limit_is_kept_to(ledger, faulty, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(slack.time, "monotonic", lambda: now[0])
    record(ledger, incident(), decision())
    faulty.faults = [("*", "rate-limit")]
    desk = desk_for(ledger, faulty.web)
    desk.publish()
    now[0] += 6.9
    desk.publish()
    assert faulty.calls == ["chat.postMessage"]
    now[0] += 0.2
    desk.publish()
    assert len(faulty.messages) == 1


@pytest.mark.parametrize("fault", ["down", "invalid_auth", "not_in_channel"])
def test_what_slack_will_not_take_from_us_is_tried_again_later(ledger, faulty, monkeypatch, fault):
    now = [1000.0]
    monkeypatch.setattr(slack.time, "monotonic", lambda: now[0])
    record(ledger, incident(), decision())
    faulty.faults = [("*", fault)]
    desk = desk_for(ledger, faulty.web)
    desk.publish()
    desk.publish()
    assert faulty.messages == []
    now[0] += 60
    desk.publish()
    assert len(faulty.messages) == 1


def test_slack_being_away_is_no_error(ledger, monkeypatch):
    record(ledger, incident(), decision())
    desk = desk_for(ledger, web_client("xoxb-test", "http://127.0.0.1:9/api/"))
    desk.publish()
    monkeypatch.setattr(desk._web, "chat_postMessage", lambda **_: pytest.fail("Slack is left alone for a while"))
    desk.publish()


def test_one_message_that_slack_refuses_does_not_hold_up_the_others(ledger, faulty):
    record(ledger, incident(), decision())
    record(ledger, incident("inc-2"), decision("dec-2", "inc-2"))
    faulty.faults = [("chat.postMessage", "invalid_blocks")]
    desk = desk_for(ledger, faulty.web)
    desk.publish()
    desk.publish()
    assert faulty.calls == ["chat.postMessage"] * 2
    assert len(faulty.messages) == 1


def test_a_message_that_somebody_deleted_comes_back_with_news(ledger, faulty):
    record(ledger, incident(), decision())
    desk = desk_for(ledger, faulty.web)
    desk.publish()
    faulty.messages.clear()
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(status=DecisionStatus.EXPIRED))
    desk.publish()
    desk.publish()
    assert faulty.messages == []
    with ledger.begin(write=True) as tx:
        tx.record_decision(decision("dec-2"))
    desk.publish()
    assert len(faulty.messages) == 1


def test_what_is_over_before_it_was_shown_is_not_shown(ledger, faulty):
    record(ledger, incident(status=IncidentStatus.CLOSED, closed_at=NOW), decision())
    record(ledger, incident("inc-2"), decision("dec-2", "inc-2", status=DecisionStatus.SHADOW))
    desk_for(ledger, faulty.web).publish()
    assert faulty.calls == []


def test_clicks_that_are_not_ours_change_nothing(ledger, faulty):
    desk = desk_for(ledger, faulty.web)
    place = {"user": {"id": "U01ADA"}, "channel": {"id": CHANNEL}, "message": {"ts": "1.0"}}
    for action in (
        {},
        {"action_id": "launch", "value": "{}", "action_ts": "1"},
        {"action_id": "approve", "value": "not JSON", "action_ts": "1"},
        {"action_id": "approve", "value": "[]", "action_ts": "1"},
        {"action_id": "approve", "value": '{"decision": "dec-1", "option": []}', "action_ts": "1"},
        {"action_id": "rate:superb", "value": '{"decision": "dec-1", "option": 0}', "action_ts": "1"},
    ):
        desk._take(place | {"actions": [action]})
    desk._take({"actions": [{"action_id": "approve"}]})
    assert faulty.calls == []


def test_an_operator_hears_of_it_when_the_ledger_fails(ledger, faulty, monkeypatch):
    monkeypatch.setattr(slack, "give", lambda *_, **__: 1 / 0)
    value = json.dumps({"decision": "dec-1", "option": 0})
    click = {"user": {"id": "U01ADA"}, "channel": {"id": CHANNEL}, "message": {"ts": "1.0"}}
    desk_for(ledger, faulty.web)._take(
        click | {"actions": [{"action_id": "approve", "value": value, "action_ts": "1"}]}
    )
    assert "could not note this down" in faulty.ephemeral[0]["text"]


# Against the emulator


@pytest.fixture
def desks(ledger, emulator):
    """Start any number of desks."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(connected(desk_for(ledger, emulator.web)))


def stored(ledger):
    with ledger.begin(write=False) as tx:
        return [answer for _, answer in tx.unsettled_answers()]


@pytest.mark.slack
def test_from_the_message_over_a_click_to_the_outcome(ledger, emulator, desks):
    desk = desks()
    told = incident()
    told = replace(told, evidence=replace(told.evidence, summary=HOSTILE))
    record(ledger, told, decision())
    desk.publish()
    (message,) = emulator.messages()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &lt;!channel&gt; &amp;" in "\n".join(texts(message["blocks"]))

    emulator.click(buttons(message["blocks"], "approve")[0])
    wait_until(emulator.ephemeral)
    assert emulator.ephemeral() == [("U01ADA", "Noted: ada approves exclude_storage; it starts with the next pass.")]
    (answer,) = stored(ledger)
    assert (answer.by, answer.via, answer.decision_id, answer.option) == ("ada", "slack", "dec-1", 1)
    desk.publish()
    assert "was approved by ada; it starts with the next pass" in emulator.messages()[0]["text"]
    assert not buttons(emulator.messages()[0]["blocks"], "approve")

    (action,) = take_answers(ledger)
    desk.publish()
    (message,) = emulator.messages()
    assert "«Take the storage out of service» was approved by ada. It was done" in message["text"]
    assert not buttons(message["blocks"], "approve")
    assert not buttons(message["blocks"], "reject")
    judge(ledger, action)
    with ledger.begin(write=True) as tx:
        tx.save_incident(replace(told, status=IncidentStatus.CLOSED, closed_at=NOW))
    desk.publish()
    assert [reply["text"] for reply in emulator.messages(thread=message["ts"])] == [
        "«Take the storage out of service» was done at 01 Mar 03:12 UTC: writing is off.",
        "«Take the storage out of service»: it helped: the incident's signal is back to normal (2 of 80 failed since).",
        "The incident closed at 01 Mar 03:12 UTC.",
    ]


@pytest.mark.slack
def test_a_click_that_arrives_twice_counts_once(ledger, emulator, desks):
    desk, _ = desks(), desks()  # the emulator sends each click to every connection
    record(ledger, incident(), decision())
    desk.publish()
    (message,) = emulator.messages()
    emulator.click(buttons(message["blocks"], "rate:wrong")[0])
    wait_until(lambda: len(emulator.ephemeral()) == 2)
    assert [answer.rating for answer in stored(ledger)] == [Rating.WRONG]
    assert sorted(said for _, said in emulator.ephemeral()) == [
        "Noted: ada finds exclude_storage wrong.",
        "This was noted already.",
    ]


@pytest.mark.slack
def test_who_may_not_and_who_comes_too_late_hear_why_and_nobody_else_does(ledger, emulator, desks):
    desk = desks()
    record(ledger, incident(), decision())
    desk.publish()
    approve = buttons(emulator.messages()[0]["blocks"], "approve")[1]
    emulator.click(approve, user="U02EVE")
    wait_until(emulator.ephemeral)
    with ledger.begin(write=True) as tx:
        tx.record_decision(decision("dec-2"))
    emulator.click(approve)
    wait_until(lambda: len(emulator.ephemeral()) == 2)
    (eve, refused), (ada, late) = emulator.ephemeral()
    assert (eve, ada) == ("U02EVE", "U01ADA")
    assert "U02EVE is not among gridmedic's operators" in refused
    assert "there is a newer proposal for this incident" in late
    assert stored(ledger) == []
