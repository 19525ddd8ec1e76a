from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    Candidate,
    Decision,
    DecisionStatus,
    Entity,
    Evidence,
    Example,
    FeedbackSource,
    Incident,
    IncidentKind,
    IncidentStatus,
    LedgerError,
    Option,
    Outcome,
    Permission,
    Rating,
    Share,
)
from models.events import Refusal
from storage import database, documents, tables
from storage.ledger import Ledger
from storage.streams import MERGE, SEGMENT_ROWS

NOW = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOSTILE = [
    "\0",
    "a\0b",
    "\ud800 alone",
    "\U0001d54f \u202e right to left",
    "'; DROP TABLE incidents; --",
    '%s %(x)s :x {0} \\u0000 \\ " \n\r\t',
    "<script>alert(1)</script>" * 400,
]


@pytest.fixture
def ledger(ledger_url):
    ledger = Ledger.open(ledger_url)
    yield ledger
    ledger.close()


def an_incident(name="one", **changes):
    incident = Incident(
        id=name,
        kind=IncidentKind.SLOW_TRANSFERS,
        culprit=Entity.parse("link:A>B"),
        opened_at=NOW,
        updated_at=NOW,
        confidence=0.75,
        severity=0.5,
        evidence=Evidence(
            summary="slow",
            window_s=600.0,
            anomalous=7,
            total=9,
            background=0.01,
            as_source=Share(anomalous=3, total=4),
            links={"Z>B": 5, "A>B": 2},
            network={"loss": math.nan, "delay_ms": math.inf},
            limits={"slow_s": 30.5},
            rules=("r1", "r2"),
            examples=(Example(request_id="q", link="A>B", ended_at=NOW, duration_s=0.1 + 0.2),),
        ),
    )
    return replace(incident, **changes)


def a_decision(name="d1", incident="one", **changes):
    candidate = Candidate(
        remedy="wait", params={"minutes": 5, "deep": {"b": [1, 2.5, None]}}, targets=(), summary="wait"
    )
    decision = Decision(
        id=name,
        incident_id=incident,
        made_at=NOW,
        status=DecisionStatus.OPEN,
        options=(Option(candidate=candidate, permission=Permission.ASK, probability=1.0),),
        recommended=0,
        propensity=1 / 3,
        context={"kind": "slow-transfers", "share": 0.3, "digits": "17"},
        model_hash="m",
        catalogue_hash="c",
        policy_hash="p",
    )
    return replace(decision, **changes)


def an_action(name="d1", incident="one", **changes):
    candidate = Candidate(remedy="wait", params={}, targets=("link:A>B",), summary="wait")
    action = Action(id=name, incident_id=incident, candidate=candidate, status=ActionStatus.DUE, due_at=NOW)
    return replace(action, **changes)


def an_answer(key="k1", decision="d1", **changes):
    answer = Answer(key=key, by="ann", via="cli", kind=AnswerKind.APPROVE, decision_id=decision, option=0)
    return replace(answer, **changes)


def some_rows(first, count):
    n = np.arange(first, first + count)
    return pd.DataFrame(
        {
            "request_id": pd.Series([f"r{i}" for i in n], dtype="str"),
            "reason": pd.Series(["", "no such file \0"] * (count // 2) + [""] * (count % 2), dtype="str"),
            "bytes": n.astype(float),
            "path_loss": np.where(n % 2, np.nan, n / 3.0),
            "failed": n % 3 == 0,
        }
    )


def with_incident(tx, *decisions):
    tx.save_incident(an_incident())
    for decision in decisions:
        tx.record_decision(a_decision(decision))


# Transactions


def test_what_was_committed_is_there_after_reopening(ledger, ledger_url):
    with ledger.begin(write=True) as tx:
        tx.save_incident(an_incident())
    ledger.close()
    again = Ledger.open(ledger_url)
    with again.begin(write=False) as tx:
        assert tx.incident("one").culprit == Entity.parse("link:A>B")
    again.close()


def test_an_error_takes_back_the_whole_transaction(ledger):
    def fail():
        with ledger.begin(write=True) as tx:
            tx.save_incident(an_incident())
            tx.append_rows("observed", some_rows(0, 3))
            tx.move_cursor("events", {"at": 1}, 1.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with ledger.begin(write=False) as tx:
        assert tx.incidents() == []
        assert tx.row_count("observed") == 0
        assert tx.cursor("events") is None


def test_reading_refuses_to_write(ledger):
    with pytest.raises(LedgerError, match="write=True"), ledger.begin(write=False) as tx:
        tx.set_setting("a", 1)
    with ledger.begin(write=True) as tx:  # the connection is as good as before
        tx.set_setting("a", 2)


def test_reading_sees_one_state_throughout(ledger):
    with ledger.begin(write=True) as tx:
        tx.set_setting("n", 1)
    with ledger.begin(write=False) as reading:
        assert reading.setting("n") == 1
        with ledger.begin(write=True) as tx:
            tx.set_setting("n", 2)
        assert reading.setting("n") == 1
    with ledger.begin(write=False) as reading:
        assert reading.setting("n") == 2


def test_a_writer_holds_up_other_writers_and_no_reader(ledger):
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1")
    holding, let_go = threading.Event(), threading.Event()
    ended = []

    def make_a_pass():
        with ledger.begin(write=True) as tx:
            tx.update_decision(a_decision(status=DecisionStatus.EXPIRED))
            holding.set()
            assert let_go.wait(20)
            ended.append("pass")

    def give_an_answer():
        with ledger.begin(write=True) as tx:
            seen = tx.decision("d1").status
            tx.add_answer(an_answer())
        ended.append(f"answer to {seen}")

    threads = [threading.Thread(target=make_a_pass), threading.Thread(target=give_an_answer)]
    threads[0].start()
    assert holding.wait(20)
    threads[1].start()
    for _ in range(20):
        with ledger.begin(write=False) as tx:
            assert tx.decision("d1").status is DecisionStatus.OPEN
            assert tx.unsettled_answers() == []
        time.sleep(0.01)
    assert ended == []
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert ended == ["pass", "answer to expired"]
    with ledger.begin(write=False) as tx:
        assert [answer.key for _, answer in tx.unsettled_answers()] == ["k1"]


def test_many_writers_lose_no_count(ledger):
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1")

    def append(name):
        for i in range(20):
            with ledger.begin(write=True) as tx:
                tx.set_setting("sum", (tx.setting("sum") or 0) + 1)
                tx.add_answer(an_answer(f"{name}-{i}"))

    threads = [threading.Thread(target=append, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with ledger.begin(write=False) as tx:
        assert tx.setting("sum") == 60
        assert len(tx.unsettled_answers()) == 60


def test_a_writer_that_never_ends_is_reported(ledger_url, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE_S", 0.2)
    ledger = Ledger.open(ledger_url)

    def write_too():
        with ledger.begin(write=True) as other:
            other.set_setting("a", 2)

    with ledger.begin(write=True) as tx:
        tx.set_setting("a", 1)
        with pytest.raises(LedgerError, match="another process has been writing"):
            write_too()
    with ledger.begin(write=False) as tx:
        assert tx.setting("a") == 1
    ledger.close()


KILLED = """
import sys
from dataclasses import replace
from storage.ledger import Ledger
from storage.documents import load
from models.domain import Action, Decision, Incident
import pandas as pd
ledger = Ledger.open(sys.argv[1])
incident, decision, action = (load(k, t) for k, t in zip((Incident, Decision, Action), sys.argv[2:5]))
while True:
    with ledger.begin(write=True) as tx:
        n = (tx.cursor("events") or {"n": 0})["n"] + 1
        tx.append_rows("observed", pd.DataFrame({"n": [n]}))
        tx.save_incident(replace(incident, id=f"i{n}"))
        tx.record_decision(replace(decision, id=f"d{n}", incident_id=f"i{n}"))
        tx.add_action(replace(action, id=f"d{n}", incident_id=f"i{n}"))
        tx.count("events", {"passes": 1})
        tx.move_cursor("events", {"n": n}, float(n))
    print(n, flush=True)
"""


def test_a_killed_process_leaves_whole_transactions(ledger, ledger_url):
    chance = random.Random(7)
    arguments = [documents.dump(value) for value in (an_incident(), a_decision(), an_action())]
    said = 0
    for _ in range(5):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), ledger_url, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            lines = [child.stdout.readline()]
            time.sleep(chance.uniform(0.0, 0.4))
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        before, said = said, max(int(line) for line in lines if line.endswith("\n"))
        assert said > before
        with ledger.begin(write=True) as tx:  # waits for the dead one's transaction to be taken back
            n = tx.cursor("events")["n"]
            assert said <= n <= said + 1
            assert tx.watermark("events") == n
            assert tx.counts() == {("events", "passes"): n}
            assert tx.rows("observed")["n"].tolist() == list(range(1, n + 1))
            assert {incident.id for incident in tx.incidents()} == {f"i{i}" for i in range(1, n + 1)}
            assert [action.id for action in tx.actions()] == [f"d{i}" for i in range(1, n + 1)]
            assert len(tx.decisions(f"d{i}" for i in range(1, n + 2))) == n


# Streams


def test_cursors(ledger):
    with ledger.begin(write=True) as tx:
        assert tx.cursor("events") is None
        assert tx.watermark("events") is None
        tx.move_cursor("events", {"after": [1, "x\0y"], "pit": None}, None)
        assert tx.watermark("events") is None
        tx.move_cursor("readings", {}, 5.0)
        tx.move_cursor("events", {"after": [2, "x\0y"], "pit": None}, 1_740_830_400.123456)
    with ledger.begin(write=False) as tx:
        assert tx.cursor("events") == {"after": [2, "x\0y"], "pit": None}
        assert tx.watermark("events") == 1_740_830_400.123456
        assert tx.cursor("readings") == {}


def test_keys_are_remembered_and_forgotten(ledger):
    with ledger.begin(write=True) as tx:
        assert tx.known_keys("events").dtype == np.uint64
        tx.remember_keys("events", np.array([2**64 - 1, 0, 7], dtype=np.uint64), 100.0)
        tx.remember_keys("events", np.array([], dtype=np.uint64), 100.0)
        tx.remember_keys("events", np.array([9], dtype=np.uint64), 200.0)
        tx.remember_keys("others", np.array([1], dtype=np.uint64), 100.0)
    with ledger.begin(write=True) as tx:
        assert tx.known_keys("events").tolist() == [2**64 - 1, 0, 7, 9]
        tx.forget_keys("events", before=200.0)
        assert tx.known_keys("events").tolist() == [9]
        assert tx.known_keys("others").tolist() == [1]


def test_refusals_are_counted_and_the_newest_are_kept(ledger):
    def refusals(*numbers):
        return [Refusal(reason="bad-time" if n % 2 else "no-link", detail=str(n), document="{}") for n in numbers]

    with ledger.begin(write=True) as tx:
        tx.quarantine("a", [], NOW)
        tx.quarantine("a", refusals(*range(1500)), NOW)
        tx.quarantine("b", refusals(1500), None)
    with ledger.begin(write=False) as tx:
        kept = tx.quarantined(2000)
        assert [refused.detail for refused in kept] == [str(n) for n in range(1500, 500, -1)]
        assert (kept[0].source, kept[0].reason, kept[0].at) == ("b", "no-link", None)
        assert (kept[1].source, kept[1].reason, kept[1].at) == ("a", "bad-time", NOW)
        assert len(tx.quarantined(3)) == 3
        assert tx.counts() == {
            ("a", "refused:bad-time"): 750,
            ("a", "refused:no-link"): 750,
            ("b", "refused:no-link"): 1,
        }


def test_counts_add_up(ledger):
    for words in ({"read": 2}, {}, {"read": 3, "late": 1}):
        with ledger.begin(write=True) as tx:
            tx.count("a", words)
            tx.count("b", {"read": 2**40})
    with ledger.begin(write=False) as tx:
        assert tx.counts() == {("a", "read"): 5, ("a", "late"): 1, ("b", "read"): 3 * 2**40}


def test_rows_come_back_in_order_however_they_were_appended(ledger):
    sizes = [1, 700, 3] * 20 + [1] * (MERGE * MERGE)
    first, parts = 0, []
    for size in sizes:
        parts.append(some_rows(first, size))
        first += size
        with ledger.begin(write=True) as tx:
            tx.append_rows("observed", parts[-1])
    with ledger.begin(write=True) as tx:
        tx.append_rows("observed", some_rows(0, 0))
        tx.append_rows("readings", some_rows(5, 5))
    with ledger.begin(write=False) as tx:
        found = tx.rows("observed")
        pd.testing.assert_frame_equal(found, pd.concat(parts, ignore_index=True))
        assert found.dtypes["request_id"] == "str"
        assert found.dtypes["failed"].kind == "b"
        assert tx.row_count("observed") == len(found)
        pd.testing.assert_frame_equal(tx.rows("readings"), some_rows(5, 5))
        with ledger._database.begin(write=False) as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM segments").scalar() < 3 * MERGE


def test_rows_are_replaced_at_once(ledger):
    many = pd.DataFrame({"n": np.arange(SEGMENT_ROWS + 10)})
    with ledger.begin(write=True) as tx:
        assert tx.rows("observed").empty
        assert tx.row_count("observed") == 0
        tx.append_rows("observed", some_rows(0, 10))
        tx.append_rows("readings", some_rows(0, 3))
        tx.replace_rows("observed", many)
        tx.append_rows("observed", pd.DataFrame({"n": [-1]}))
    with ledger.begin(write=True) as tx:
        assert tx.rows("observed")["n"].tolist() == [*range(SEGMENT_ROWS + 10), -1]
        tx.replace_rows("observed", many.iloc[0:0])
        assert tx.row_count("observed") == 0
        assert tx.row_count("readings") == 3


def test_rows_of_an_older_version_may_lack_a_column(ledger):
    with ledger.begin(write=True) as tx:
        tx.append_rows("observed", pd.DataFrame({"n": [1.0]}))
        tx.append_rows("observed", pd.DataFrame({"n": [2.0], "new": [3.0]}))
        expected = pd.DataFrame({"n": [1.0, 2.0], "new": [math.nan, 3.0]})
        pd.testing.assert_frame_equal(tx.rows("observed"), expected)


# Incidents, decisions, actions


def test_an_incident_that_was_kept_before_limits_were_told_is_read(ledger):
    plain = documents.load_json(documents.dump(an_incident()))
    del plain["evidence"]["limits"]
    with ledger.begin(write=True) as tx:
        tx.save_incident(an_incident())
        tx._connection.execute(tables.incidents.update().values(document=documents.dump_json(plain)))
    with ledger.begin(write=False) as tx:
        assert tx.incident("one").evidence.limits == {}
        assert tx.incident("one").evidence.anomalous == 7


def test_incidents_come_back_whole_and_newest_first(ledger):
    first = an_incident("first", opened_at=NOW - timedelta(hours=1))
    closed = an_incident("closed", status=IncidentStatus.CLOSED, closed_at=NOW)
    with ledger.begin(write=True) as tx:
        for incident in (first, closed, an_incident("one")):
            tx.save_incident(incident)
        tx.save_incident(replace(first, anomalous=8))
    with ledger.begin(write=False) as tx:
        assert repr(tx.incident("first")) == repr(documents.load(Incident, documents.dump(replace(first, anomalous=8))))
        assert [incident.id for incident in tx.incidents()] == ["one", "closed", "first"]
        assert [incident.id for incident in tx.incidents(limit=1)] == ["one"]
        assert [incident.id for incident in tx.incidents(status=IncidentStatus.OPEN)] == ["one", "first"]
        assert list(tx.incident("one").evidence.links) == ["Z>B", "A>B"]
        assert tx.incident("one").opened_at.utcoffset() == timedelta(0)
        with pytest.raises(LedgerError, match=r"no incident 'none'.*gridmedic incidents"):
            tx.incident("none")


def test_times_of_other_zones_are_ordered_by_the_instant(ledger):
    east = timezone(timedelta(hours=9))
    with ledger.begin(write=True) as tx:
        tx.save_incident(an_incident("older", opened_at=(NOW - timedelta(minutes=1)).astimezone(east)))
        tx.save_incident(an_incident("newer", opened_at=NOW))
        assert [incident.id for incident in tx.incidents()] == ["newer", "older"]
    with pytest.raises(LedgerError, match="no time zone"), ledger.begin(write=True) as tx:
        tx.save_incident(an_incident(opened_at=NOW.replace(tzinfo=None)))


def test_decisions_are_recorded_once_and_updated(ledger):
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1", "d2")
        assert tx.newest_decision("one") == a_decision("d2")
        assert [decision.id for decision in tx.open_decisions()] == ["d1", "d2"]
        tx.update_decision(a_decision("d1", status=DecisionStatus.TAKEN, chosen=0, chosen_by="ann", chosen_at=NOW))
    with ledger.begin(write=False) as tx:
        assert tx.decision("d1").status is DecisionStatus.TAKEN
        assert tx.decision("d1").chosen_at == NOW
        assert tx.newest_decision("one") == a_decision("d2")
        assert tx.newest_decision("none") is None
        assert tx.open_decisions() == [a_decision("d2")]
        assert tx.decisions(["d2", "d1", "none", "d2"]).keys() == {"d1", "d2"}
        assert tx.decisions([]) == {}
        with pytest.raises(LedgerError, match="no decision 'd3'"):
            tx.decision("d3")
    for act, said in (
        (lambda tx: tx.record_decision(a_decision("d1")), "'d1' is recorded already"),
        (lambda tx: tx.update_decision(a_decision("d3")), "'d3' was never recorded"),
        (lambda tx: tx.record_decision(a_decision("d3", incident="none")), "save an incident before its decisions"),
    ):
        with pytest.raises(LedgerError, match=said), ledger.begin(write=True) as tx:
            act(tx)
    with ledger.begin(write=False) as tx:
        assert tx.decision("d1").chosen_by == "ann"


def test_a_thousand_decisions_are_found_at_once(ledger):
    with ledger.begin(write=True) as tx:
        with_incident(tx, *(f"d{n}" for n in range(1100)))
        assert len(tx.decisions(f"d{n}" for n in range(2200))) == 1100


def test_actions_go_through_the_outbox(ledger):
    later = NOW + timedelta(hours=1)
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1", "d2", "d3")
        tx.save_incident(an_incident("two"))
        tx.record_decision(a_decision("d4", incident="two"))
        for name in ("d3", "d1", "d2"):
            tx.add_action(an_action(name))
        tx.add_action(an_action("d4", incident="two", due_at=later))
        tx.save_action(an_action("d1", status=ActionStatus.APPLIED, memory={"before": [1]}, outcome=Outcome.FIXED))
    with ledger.begin(write=False) as tx:
        assert [action.id for action in tx.actions()] == ["d3", "d1", "d2", "d4"]
        due = {ActionStatus.DUE, ActionStatus.RUNNING}
        assert [action.id for action in tx.actions(due)] == ["d3", "d2", "d4"]
        assert [action.id for action in tx.actions([ActionStatus.APPLIED], incident_id="one")] == ["d1"]
        assert [action.id for action in tx.actions(since=later)] == ["d4"]
        assert tx.actions(statuses=[]) == []
        assert tx.action("d1").outcome is Outcome.FIXED
        assert tx.action("d1").memory == {"before": [1]}
        assert tx.action("d9") is None
    for act, said in (
        (lambda tx: tx.add_action(an_action("d1")), "'d1' is in the outbox already"),
        (lambda tx: tx.save_action(an_action("d9")), "'d9' was never added"),
        (lambda tx: tx.add_action(an_action("d9")), "a decision before its actions"),
    ):
        with pytest.raises(LedgerError, match=said), ledger.begin(write=True) as tx:
            act(tx)


# Operators


def test_answers_wait_until_they_are_settled(ledger):
    rate = an_answer("k2", kind=AnswerKind.RATE, rating=Rating.WRONG)
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1", "d2")
        assert tx.add_answer(rate)
        assert tx.pending_choice("d1") is None
        assert tx.add_answer(an_answer("k1"))
        assert not tx.add_answer(an_answer("k1", by="bob"))
    with ledger.begin(write=True) as tx:
        answers = tx.unsettled_answers()
        assert [answer for _, answer in answers] == [rate, an_answer("k1")]
        assert tx.pending_choice("d1") == an_answer("k1")
        assert tx.pending_choice("d2") is None
        tx.settle_answer(answers[1][0], "taken", NOW)
        assert tx.pending_choice("d1") is None
        assert [answer.key for _, answer in tx.unsettled_answers()] == ["k2"]
        assert not tx.add_answer(an_answer("k1"))  # a click that comes again after it was settled
    with pytest.raises(LedgerError, match="settled already"), ledger.begin(write=True) as tx:
        tx.settle_answer(answers[1][0], "again", NOW)


def test_feedback_is_numbered_in_order(ledger):
    def give(tx, value, propensity):
        return tx.add_feedback(
            at=NOW,
            decision_id="d1",
            option=0,
            source=FeedbackSource.RATING,
            value=value,
            by="ann",
            propensity=propensity,
        )

    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1")
        first = give(tx, "good", 1 / 3)
    with ledger.begin(write=True) as tx:
        second = give(tx, "wrong", None)
    assert (first.at, first.propensity, first.source) == (NOW, 1 / 3, FeedbackSource.RATING)
    assert second.row > first.row
    with ledger.begin(write=False) as tx:
        assert tx.feedback() == [first, second]
        assert tx.feedback(after=first.row) == [second]
        assert tx.feedback(after=second.row) == []


def test_proposals_are_the_open_ones_then_the_last_closed(ledger):
    with ledger.begin(write=True) as tx:
        for name, closed_at in (("a", None), ("b", NOW), ("c", None), ("d", NOW + timedelta(1)), ("undecided", None)):
            status = IncidentStatus.OPEN if closed_at is None else IncidentStatus.CLOSED
            tx.save_incident(an_incident(name, status=status, closed_at=closed_at))
        for decision, incident in (("b1", "b"), ("c1", "c"), ("a1", "a"), ("d1", "d"), ("c2", "c")):
            tx.record_decision(a_decision(decision, incident=incident))
        tx.add_action(an_action("c1", incident="c"))
        tx.add_action(an_action("b1", incident="b"))
        rated = ((0, "good"), (1, "wrong"), (0, "not-applicable"))
        for option, value in rated:
            source = FeedbackSource.RATING
            tx.add_feedback(
                at=NOW, decision_id="a1", option=option, source=source, value=value, by="ann", propensity=None
            )
        source = FeedbackSource.OUTCOME
        tx.add_feedback(at=NOW, decision_id="a1", option=0, source=source, value="fixed", by="core", propensity=None)
    with ledger.begin(write=False) as tx:
        proposals = tx.proposals(10)
        assert [proposal.decision.id for proposal in proposals] == ["c2", "a1", "d1", "b1"]
        assert [proposal.incident.id for proposal in proposals] == ["c", "a", "d", "b"]
        assert proposals[0].action is None
        assert proposals[3].action == an_action("b1", incident="b")
        assert proposals[1].ratings == {0: Rating.NOT_APPLICABLE, 1: Rating.WRONG}
        assert [proposal.decision.id for proposal in tx.proposals(3)] == ["c2", "a1", "d1"]
        assert [proposal.decision.id for proposal in tx.proposals(1)] == ["c2"]
        assert tx.proposal("a1") == proposals[1]
        assert tx.proposal("c1").action == an_action("c1", incident="c")
        with pytest.raises(LedgerError, match="no decision 'z'"):
            tx.proposal("z")


def test_settings_and_posts(ledger):
    with ledger.begin(write=True) as tx:
        with_incident(tx)
        assert tx.setting("paused") is None
        assert tx.post("slack", "one") is None
        tx.set_setting("paused", {"by": "ann"})
        tx.set_setting("paused", {"by": "bob"})
        tx.save_post("slack", "one", {"ts": "1.2", "channel": "C"})
        tx.save_post("slack", "one", {"ts": "1.3"})
    with ledger.begin(write=False) as tx:
        assert tx.setting("paused") == {"by": "bob"}
        assert tx.post("slack", "one") == {"ts": "1.3"}
        assert tx.post("console", "one") is None


# Hostile values


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_kept_and_found(ledger, text):
    incident = an_incident(text, culprit=Entity.parse(f"rse:{text}"))
    with ledger.begin(write=True) as tx:
        tx.save_incident(incident)
        tx.record_decision(a_decision(text, incident=text))
        tx.add_action(an_action(text, incident=text, message=text, memory={"said": text}))
        assert tx.add_answer(an_answer(text, decision=text, by=text))
        assert not tx.add_answer(an_answer(text, decision=text))
        source = FeedbackSource.CHOICE
        tx.add_feedback(at=NOW, decision_id=text, option=0, source=source, value=text, by=text, propensity=None)
        tx.quarantine(text, [Refusal(reason=text, detail=text, document=text)], NOW)
        tx.move_cursor(text, {text: text}, None)
        tx.set_setting(text, {text: [text]})
        tx.save_post(text, text, {text: text})
    plain = text.replace("\0", "\ufffd").replace("\ud800", "?")  # in columns
    whole = text.replace("\ud800", "?")  # in documents
    with ledger.begin(write=False) as tx:
        assert tx.incident(text).culprit.name == whole
        assert tx.decisions([text]).keys() == {whole}
        assert tx.proposal(text).action.memory == {"said": whole}
        assert tx.proposals(1)[0].decision.incident_id == whole
        assert tx.unsettled_answers()[0][1].by == plain
        assert tx.feedback()[0].by == plain
        assert tx.quarantined(1)[0].document == plain
        assert tx.counts() == {(plain, f"refused:{plain}"): 1}
        assert tx.cursor(text) == {whole: whole}
        assert tx.setting(text) == {whole: [whole]}
        assert tx.post(text, text) == {whole: whole}


def test_numbers_of_numpy_are_kept_as_numbers():
    incident = an_incident(anomalous=np.int64(3), confidence=np.float32(0.5))
    assert documents.load(Incident, documents.dump(incident)).anomalous == 3
    assert documents.load(Incident, documents.dump(incident)).confidence == 0.5


def test_what_could_not_be_read_back_is_refused_on_the_way_in(ledger):
    with pytest.raises(LedgerError, match="anomalous"), ledger.begin(write=True) as tx:
        tx.save_incident(an_incident(anomalous="many"))
    with ledger.begin(write=True) as tx:
        with_incident(tx, "d1")
    with pytest.raises(LedgerError, match="JSON does not have"), ledger.begin(write=True) as tx:
        tx.add_action(an_action(memory={"lock": threading.Lock()}))


def test_a_document_changed_by_hand_is_named():
    with pytest.raises(LedgerError, match="'not JSON' where a Decision should be"):
        documents.load(Decision, "not JSON")
    with pytest.raises(LedgerError, match="where a Decision should be"):
        documents.load(Decision, '{"id":"d"}')


_numbers = st.floats(allow_nan=False)
_json_numbers = st.floats(allow_nan=False, allow_infinity=False)  # what is declared as JSON has no others
_words = st.text(max_size=20)


@given(
    text=_words,
    number=_numbers,
    context=st.dictionaries(_words, _numbers | _words, max_size=5),
    params=st.dictionaries(_words, _json_numbers | _words | st.lists(_json_numbers), max_size=5),
    at=st.datetimes(timezones=st.just(UTC)),
)
def test_documents_come_back_equal(text, number, context, params, at):
    decision = a_decision(text, incident=text, context=context, propensity=number, made_at=at)
    assert documents.load(Decision, documents.dump(decision)) == decision
    candidate = Candidate(remedy=text, params=params, targets=(text,), summary=text)
    action = an_action(text, candidate=candidate, due_at=at, memory=params)
    assert documents.load(Action, documents.dump(action)) == action
