from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from agent.desk.answers import Operator, Operators, Right, give, option_of, paused_by, set_paused
from models.domain import Answer, AnswerKind, AnswerRefused, DecisionStatus, Rating
from storage.ledger import Ledger
from tests.desk_stories import NOW, decision, incident, record, take_answers

OPERATORS = Operators(
    {
        "U1": Operator(name="ada"),
        "U2": Operator(name="bob"),
        "U3": Operator(name="eve", rights=frozenset({Right.RATE})),
    }
)


@pytest.fixture
def ledger(ledger_url):
    opened = Ledger.open(ledger_url)
    record(opened, incident(), decision())
    yield opened
    opened.close()


def answer(kind: AnswerKind = AnswerKind.APPROVE, **changes) -> Answer:
    told = Answer(key="k1", by="U1", via="slack", kind=kind, decision_id="dec-1", option=1)
    return replace(told, **changes)


def stored(ledger: Ledger) -> list[Answer]:
    with ledger.begin(write=False) as tx:
        return [found for _, found in tx.unsettled_answers()]


def refusal(ledger: Ledger, told: Answer, operators: Operators = OPERATORS) -> str:
    before = stored(ledger)
    with pytest.raises(AnswerRefused) as caught:
        give(ledger, told, operators=operators)
    assert stored(ledger) == before
    return str(caught.value)


def test_an_approval_is_noted_under_the_operators_name(ledger):
    assert give(ledger, answer(), operators=OPERATORS) == (
        "Noted: ada approves exclude_storage; it starts with the next pass."
    )
    assert stored(ledger) == [answer(by="ada")]


def test_a_rejection_needs_no_remedy(ledger):
    said = give(ledger, answer(AnswerKind.REJECT, option=None), operators=OPERATORS)
    assert said == "Noted: ada rejects every remedy of this proposal."
    assert stored(ledger)[0].kind is AnswerKind.REJECT


@pytest.mark.parametrize("rating", list(Rating))
def test_any_shown_remedy_can_be_rated_even_one_that_cannot_be_approved(ledger, rating):
    said = give(ledger, answer(AnswerKind.RATE, option=3, rating=rating, by="U3"), operators=OPERATORS)
    assert said == f"Noted: eve finds throttle_link {rating.replace('-', ' ')}."
    assert stored(ledger)[0].rating is rating


def test_the_same_answer_delivered_twice_is_one(ledger):
    give(ledger, answer(), operators=OPERATORS)
    assert give(ledger, answer(), operators=OPERATORS) == "This was noted already."
    assert len(stored(ledger)) == 1
    take_answers(ledger)
    assert give(ledger, answer(), operators=OPERATORS) == "This was noted already."
    assert stored(ledger) == []


def test_who_is_not_listed_may_do_nothing_and_learns_how_to_be_added(ledger):
    said = refusal(ledger, answer(by="U9"))
    assert "U9 is not among gridmedic's operators for slack" in said
    assert "desk.slack.operators" in said
    assert "U1 is not among" in refusal(ledger, answer(AnswerKind.RATE, rating=Rating.GOOD), Operators.named({}))


def test_who_may_only_rate_can_neither_approve_nor_reject(ledger):
    assert "eve has no right to approve" in refusal(ledger, answer(by="U3"))
    assert "eve has no right to reject" in refusal(ledger, answer(AnswerKind.REJECT, by="U3"))


def test_the_local_operator_is_known_by_name(ledger):
    give(ledger, answer(by="carol", via="cli"), operators=Operators.local("carol"))
    assert stored(ledger)[0].by == "carol"


def test_only_the_first_choice_counts(ledger):
    give(ledger, answer(), operators=OPERATORS)
    assert "ada has approved already" in refusal(ledger, answer(key="k2", by="U2", option=0))
    assert "ada has approved already" in refusal(ledger, answer(AnswerKind.REJECT, key="k3", by="U2"))
    take_answers(ledger)
    assert "was chosen already, by ada" in refusal(ledger, answer(key="k4", by="U2"))


def test_two_operators_at_the_same_moment_make_one_choice(ledger):
    together, said = threading.Barrier(2), []

    def press(user: str) -> None:
        together.wait()
        try:
            said.append(give(ledger, answer(key=user, by=user), operators=OPERATORS))
        except AnswerRefused as error:
            said.append(str(error))

    threads = [threading.Thread(target=press, args=(user,)) for user in ("U1", "U2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored(ledger)) == 1
    assert sorted(text.split(":")[0] for text in said) == ["Noted", "Nothing was done"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": DecisionStatus.REJECTED, "chosen_by": "bob"}, "was rejected already, by bob"),
        ({"status": DecisionStatus.EXPIRED}, "has expired"),
        ({"status": DecisionStatus.SHADOW}, "only recorded"),
    ],
)
def test_what_is_no_longer_open_cannot_be_approved(ledger, changes, why):
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(**changes))
    assert why in refusal(ledger, answer())


def test_a_newer_proposal_makes_the_older_one_stale(ledger):
    with ledger.begin(write=True) as tx:
        tx.record_decision(decision("dec-2"))
    assert "newer proposal" in refusal(ledger, answer())
    assert "newer proposal" in refusal(ledger, answer(AnswerKind.REJECT))


def test_what_was_done_can_still_be_rated(ledger):
    with ledger.begin(write=True) as tx:
        tx.update_decision(decision(status=DecisionStatus.TAKEN, chosen=1, chosen_by="ada", chosen_at=NOW))
    give(ledger, answer(AnswerKind.RATE, rating=Rating.GOOD), operators=OPERATORS)
    assert len(stored(ledger)) == 1


def test_what_the_policy_took_out_cannot_be_approved(ledger):
    said = refusal(ledger, answer(option=3))
    assert "throttle_link cannot be approved: it was done here a short while ago" in said


@pytest.mark.parametrize("option", [None, -1, 4])
def test_an_option_that_is_not_there_is_refused(ledger, option):
    assert f"{option!r} is none of the 4 remedies" in refusal(ledger, answer(option=option))
    assert f"{option!r} is none of the 4" in refusal(ledger, answer(AnswerKind.RATE, option=option, rating=Rating.GOOD))


def test_a_rating_must_say_which(ledger):
    assert "good, wrong or not applicable" in refusal(ledger, answer(AnswerKind.RATE))


def test_an_unknown_proposal_is_refused(ledger):
    assert "there is no proposal 'dec-9'" in refusal(ledger, answer(decision_id="dec-9"))


def test_nothing_can_be_approved_while_paused_but_rejected_and_rated(ledger):
    assert "paused" in set_paused(ledger, paused=True, by="bob")
    with ledger.begin(write=False) as tx:
        assert paused_by(tx) == "bob"
    assert "paused by bob" in refusal(ledger, answer())
    give(ledger, answer(AnswerKind.RATE, key="k2", rating=Rating.WRONG), operators=OPERATORS)
    give(ledger, answer(AnswerKind.REJECT, key="k3"), operators=OPERATORS)
    assert set_paused(ledger, paused=False, by="ada") == "gridmedic goes on (it was paused by bob)."
    assert set_paused(ledger, paused=False, by="ada") == "gridmedic was not paused."
    with ledger.begin(write=False) as tx:
        assert paused_by(tx) is None


def test_remedies_are_found_by_name_and_the_recommended_one_without(ledger):
    assert option_of(ledger, "dec-1", "open_ticket") == 2
    assert option_of(ledger, "dec-1", None) == 1
    with pytest.raises(AnswerRefused, match="no remedy 'reboot'; it has wait, exclude_storage"):
        option_of(ledger, "dec-1", "reboot")
    with pytest.raises(AnswerRefused, match="no proposal 'dec-9'"):
        option_of(ledger, "dec-9", None)


def test_answering_from_the_command_line_imports_nothing_heavy():
    heavy = "pandas numpy pyarrow alembic starlette uvicorn slack_sdk jinja2 tensorflow vowpalwabbit"
    code = (
        "import sys, agent.desk.answers, agent.desk.terminal, agent.desk.words; "
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
