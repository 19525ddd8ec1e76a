from __future__ import annotations

import socket
from dataclasses import replace
from importlib import resources

import httpx
import pytest

from agent.desk.console import build_app, serve_in_thread
from models.domain import (
    AnswerKind,
    ConfigError,
    DecisionStatus,
    Entity,
    FeedbackSource,
    IncidentStatus,
    LedgerError,
    Outcome,
    Rating,
)
from storage.ledger import Ledger
from tests.console_browser import Browser, Page
from tests.desk_stories import CARDS, HOSTILE, NOW, decision, incident, judge, option, record, take_answers


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def browser(ledger):
    server = serve_in_thread(build_app(ledger, "ada", cards=CARDS), "127.0.0.1", 0)
    with httpx.Client(base_url=server.url, trust_env=False, follow_redirects=True) as client:
        yield Browser(client)
    server.stop()


def stored(ledger):
    with ledger.begin(write=False) as tx:
        return [answer for _, answer in tx.unsettled_answers()]


def test_the_page_says_what_is_broken_how_sure_and_what_to_press(ledger, browser):
    record(ledger, incident(), decision())
    page = browser.look()
    assert "1 waits for you · 1 open" in page.text
    assert "Failing transfers at NEBULA-T2_DATADISK" in page.text
    assert "91 % sure who is to blame" in page.text
    assert "148 of 203 transfers in 30 min were anomalous, 73 %; of the others 1 %" in page.text
    assert "It asks because autonomy is off." in page.text
    assert (
        "expected to help 61 % · right at least 55 % of the time (n = 1) · chance to be recommended 61 %" in page.text
    )
    assert "Cannot be approved: it was done here a short while ago" in page.text
    assert [form["fields"]["option"] for form in page.forms if form["fields"].get("kind") == "approve"] == [
        "1",
        "0",
        "2",
    ]
    assert len([form for form in page.forms if form["fields"].get("kind") == "rate"]) == 4


def test_an_empty_page_is_calm(browser):
    assert "Nothing is wrong that gridmedic knows of." in browser.look().text


def test_from_a_press_to_the_outcome(ledger, browser):
    record(ledger, incident(), decision())
    answer = browser.press(browser.look().form(kind="approve", option="1"))
    assert "Noted: ada approves exclude_storage; it starts with the next pass." in answer.text
    (told,) = stored(ledger)
    assert (told.by, told.via, told.kind, told.decision_id, told.option) == (
        "ada",
        "console",
        AnswerKind.APPROVE,
        "dec-1",
        1,
    )
    page = browser.look()
    assert "«Take the storage out of service» was approved by ada; it starts with the next pass." in page.text
    assert "Noted:" not in page.text
    assert page.form(kind="approve") is None
    assert page.form(kind="reject") is None

    (action,) = take_answers(ledger)
    page = browser.look()
    assert (
        "was approved by ada. It was done at 01 Mar 03:12 UTC: writing is off. Judged at 01 Mar 04:12 UTC." in page.text
    )
    assert page.form(kind="approve") is None
    judge(ledger, action, Outcome.UNCHANGED)
    assert "It did not help enough (2 of 80 failed since)." in browser.look().text


def test_rejecting(ledger, browser):
    record(ledger, incident(), decision())
    browser.press(browser.look().form(kind="reject"))
    assert stored(ledger)[0].kind is AnswerKind.REJECT


@pytest.mark.parametrize("rating", list(Rating))
def test_rating(ledger, browser, rating):
    record(ledger, incident(), decision())
    form = browser.look().form(kind="rate", option="3")
    browser.press(form, ("rating", rating.value))
    assert (stored(ledger)[0].option, stored(ledger)[0].rating) == (3, rating)
    with ledger.begin(write=True) as tx:
        tx.add_feedback(
            at=NOW,
            decision_id="dec-1",
            option=3,
            source=FeedbackSource.RATING,
            value=rating.value,
            by="ada",
            propensity=None,
        )
    buttons = browser.look().form(kind="rate", option="3")["buttons"]
    assert [value for _, value, pressed in buttons if pressed == "true"] == [rating.value]


def test_a_button_pressed_twice_is_one_answer_but_a_new_page_makes_a_new_one(ledger, browser):
    record(ledger, incident(), decision())
    form = browser.look().form(kind="rate", option="0")
    browser.press(form, ("rating", "good"))
    assert "This was noted already." in browser.press(form, ("rating", "good")).text
    assert len(stored(ledger)) == 1
    browser.press(browser.look().form(kind="rate", option="0"), ("rating", "good"))
    assert len(stored(ledger)) == 2


def test_a_page_that_is_out_of_date_is_told_why(ledger, browser):
    record(ledger, incident(), decision())
    form = browser.look().form(kind="approve")
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(status=DecisionStatus.EXPIRED))
    assert "Nothing was done: this proposal has expired" in browser.press(form).text
    assert stored(ledger) == []


def test_pausing_and_resuming(ledger, browser):
    record(ledger, incident(), decision())
    (pause,) = [form for form in browser.look().forms if form["action"] == "/pause"]
    page = Page(browser.press(pause, ("paused", "yes")).text)
    assert "Paused by ada" in page.text
    assert "paused by ada; resume it first" in browser.press(page.form(kind="approve")).text
    (resume,) = [form for form in page.forms if form["action"] == "/pause"]
    assert resume["buttons"][0][1] == "no"
    assert "Paused" not in Page(browser.press(resume, ("paused", "no")).text).words


def test_hostile_text_is_text(ledger, browser):
    told = incident('"><img src=x onerror=alert(1)>', culprit=Entity.parse(f"activity:{HOSTILE}"))
    told = replace(told, evidence=replace(told.evidence, summary=HOSTILE, links={HOSTILE: 1}, reasons={HOSTILE: 1}))
    record(ledger, told, decision(incident_id=told.id, options=(option("wait", HOSTILE, 1.0),), recommended=0))
    page = browser.look()
    assert "<script>alert(1)</script> <!channel> & <https://evil.example|click>" in page.text
    assert page.tags.count("script") == 1  # our own
    assert "img" not in page.tags
    assert not any(name.startswith("on") for name in page.attributes)
    assert "{{ 7 * 7 }}" in page.text
    assert "\x1b" not in page.source
    assert "\u202e" not in page.source


def test_every_answer_forbids_foreign_content_and_frames(browser):
    for path in ("/", "/now", "/healthz", "/assets/console.css", "/nowhere"):
        headers = browser.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    page = browser.look()
    assert "style" not in page.attributes  # the policy would not let it work
    assert "style" not in page.tags


def test_only_a_form_of_this_page_is_taken(ledger, browser):
    record(ledger, incident(), decision())
    form = browser.look().form(kind="approve")
    address = str(browser.client.base_url).rstrip("/")
    forged = {**form, "fields": form["fields"] | {"token": "guess"}}
    assert browser.press(forged).status_code == 403
    assert browser.press({**form, "fields": {"decision": "dec-1", "kind": "approve", "option": "1"}}).status_code == 403
    for origin in ("null", "http://evil.example", "http://127.0.0.1:1", address.replace("http", "https")[:-1]):
        assert browser.press(form, Origin=origin).status_code == 403
    assert browser.client.get("/answer", params=form["fields"]).status_code == 405
    assert browser.client.post("/pause", data={"paused": "yes"}).status_code == 403
    assert stored(ledger) == []
    assert browser.press(form, Origin=address).status_code == 200
    assert len(stored(ledger)) == 1


@pytest.mark.parametrize("fields", [{"kind": "launch"}, {"option": "first"}, {"kind": "rate", "rating": "superb"}])
def test_a_form_that_makes_no_sense_is_refused(ledger, browser, fields):
    record(ledger, incident(), decision())
    form = browser.look().form(kind="approve")
    answer = browser.press({**form, "fields": form["fields"] | fields})
    assert answer.status_code == 400
    assert "not a form of the console" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8860", "169.254.0.1", "", "127.0.0.1.evil.example"])
def test_a_foreign_name_for_this_machine_is_refused(browser, host):
    assert browser.client.get("/", headers={"Host": host}).status_code in {400, 421}


@pytest.mark.parametrize("host", ["localhost", "localhost:8860", "127.0.0.1:1", "[::1]:8860"])
def test_names_of_the_loopback_are_taken(browser, host):
    assert browser.client.get("/", headers={"Host": host}).status_code == 200


def test_the_page_is_brought_up_to_date_only_by_news(ledger, browser):
    record(ledger, incident(), decision())
    first = browser.client.get("/now")
    assert browser.client.get("/now", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    record(ledger, incident(severity=0.2))
    second = browser.client.get("/now", headers={"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    assert Page(second.text).form(kind="approve") is not None


def test_it_works_without_a_script(browser):
    assert '<noscript><meta http-equiv="refresh" content="20; url=/"></noscript>' in browser.look().source


def test_what_went_before_a_proposal_is_told_without_a_press(ledger, browser):
    record(ledger, incident(), decision())
    browser.press(browser.look().form(kind="approve"))
    (action,) = take_answers(ledger)
    judge(ledger, action, Outcome.UNCHANGED)
    record(ledger, incident(), decision("dec-2"))
    page = browser.look()
    assert "Before that: «Take the storage out of service»: it did not help enough (2 of 80 failed since)." in page.text
    assert "proposal dec-2" in page.text


def test_the_page_says_how_far_events_were_read_and_what_keeps_them_away(ledger):
    with ledger.begin(write=True) as tx:
        tx.set_setting("seen-until", NOW.isoformat())
    troubles = ["no Elasticsearch at <b>; start it"]
    server = serve_in_thread(build_app(ledger, "ada", cards=CARDS, troubles=lambda: troubles), "127.0.0.1", 0)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        page = Browser(client).look()
        assert "events read up to 01 Mar 03:12 UTC" in page.text
        assert "What stands here may be out of date: no Elasticsearch at <b>; start it" in page.text
        assert client.get("/healthz").json()["status"] == "troubled"
        troubles.clear()
        assert "out of date: no" not in Browser(client).look().text
    server.stop()


def test_what_waits_comes_first_and_the_worst_of_it(ledger, browser):
    record(ledger, incident("inc-1", severity=0.9), decision("dec-1", "inc-1", status=DecisionStatus.REJECTED))
    record(ledger, incident("inc-2", severity=0.2), decision("dec-2", "inc-2"))
    record(ledger, incident("inc-3", severity=0.8), decision("dec-3", "inc-3"))
    page = browser.look()
    assert page.text.index("Waits for you") < page.text.index("Nothing to press")
    shown = [form["fields"]["decision"] for form in page.forms if form["fields"].get("kind") == "reject"]
    assert shown == ["dec-3", "dec-2"]


def test_an_incident_without_a_proposal_is_shown_and_a_replayed_one_has_no_buttons(ledger, browser):
    record(ledger, incident("inc-1"))
    record(ledger, incident("inc-2"), decision("dec-2", "inc-2", status=DecisionStatus.SHADOW))
    page = browser.look()
    assert page.text.count("No proposal yet") == 2
    assert [form["action"] for form in page.forms] == ["/pause"]


def test_what_has_closed_stays_with_its_outcome_and_can_be_rated(ledger, browser):
    record(ledger, incident(), decision())
    browser.press(browser.look().form(kind="approve"))
    (action,) = take_answers(ledger)
    judge(ledger, action)
    record(ledger, incident(status=IncidentStatus.CLOSED, closed_at=NOW))
    page = browser.look()
    assert "0 wait for you · 0 open" in page.text
    assert "It helped: the incident's signal is back to normal (2 of 80 failed since)." in page.text
    assert "The incident closed at 01 Mar 03:12 UTC." in page.text
    assert [form["fields"]["option"] for form in page.forms if form["fields"].get("kind") == "rate"] == ["1"]


def test_health(ledger, browser):
    record(ledger, incident(), decision())
    told = browser.client.get("/healthz")
    assert told.json() == {"status": "ok", "paused": False, "proposals_waiting": 1}


@pytest.mark.parametrize(("error", "status"), [(LedgerError("no disk"), 503), (OSError("secret"), 500)])
def test_an_error_is_told_without_a_traceback(ledger, browser, monkeypatch, error, status):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(Ledger, "begin", broken)
    told = browser.client.get("/healthz")
    assert (told.status_code, told.json()) == (503, {"status": "ledger-unreadable"})
    page = browser.client.get("/")
    assert page.status_code == status
    assert "Traceback" not in page.text
    assert "secret" not in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "console.example", ""])
def test_it_is_served_to_this_machine_alone(ledger, host):
    with pytest.raises(ConfigError, match="loopback address alone"):
        serve_in_thread(build_app(ledger, "ada", cards={}), host, 0)


def test_a_port_that_is_taken_is_said_so(ledger):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*choose another port"):
            serve_in_thread(build_app(ledger, "ada", cards={}), "127.0.0.1", port)


def test_assets_are_those_of_the_package_and_no_others(browser):
    for name, kind in (("console.css", "text/css"), ("console.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        answer = browser.client.get(f"/assets/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.content == resources.files("agent.desk").joinpath("templates", name).read_bytes()
    for name in ("page.html", "..%2fconsole.py", "%2e%2e/console.py"):
        assert browser.client.get(f"/assets/{name}").status_code == 404
