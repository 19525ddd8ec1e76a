from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agent.desk import phrases, words
from agent.desk.terminal import incident_table, proposal_table, proposal_text
from agent.desk.text import clean, duration, moment, percent
from models.domain import (
    Action,
    ActionStatus,
    Answer,
    AnswerKind,
    BlastRadius,
    Block,
    DecisionStatus,
    Entity,
    EntityKind,
    IncidentKind,
    IncidentStatus,
    Outcome,
    Permission,
    Proposal,
    Safety,
)
from tests.desk_stories import CARDS, HOSTILE, NOW, decision, incident, option


def action(**changes) -> Action:
    values = {
        "id": "dec-1",
        "incident_id": "inc-1",
        "candidate": decision().options[1].candidate,
        "status": ActionStatus.APPLIED,
        "due_at": NOW,
        "started_at": NOW,
        "finished_at": NOW,
    }
    return Action(**(values | changes))


def status(told=None, taken=None, done=None) -> tuple[str, str]:
    shown = words.of_proposal(Proposal(incident=told or incident(), decision=taken or decision(), action=done), CARDS)
    return shown.state, shown.status


TAKEN = decision(status=DecisionStatus.TAKEN, chosen=1, chosen_by="ada")
CHOSEN = "«Take the storage out of service» was approved by ada."


@pytest.mark.parametrize(
    ("taken", "done", "state", "said"),
    [
        (decision(), None, "waits", "Waits for an operator: approve one remedy, or reject all of them."),
        (decision(options=decision().options[3:], recommended=0), None, "quiet", "Nothing can be approved now"),
        (TAKEN, None, "runs", f"{CHOSEN} It starts with the next pass."),
        (TAKEN, action(status=ActionStatus.RUNNING), "runs", f"{CHOSEN} It is running since 01 Mar 03:12 UTC."),
        (TAKEN, action(message="done."), "runs", f"{CHOSEN} It was done at 01 Mar 03:12 UTC: done."),
        (TAKEN, action(judge_at=NOW), "runs", "It was done at 01 Mar 03:12 UTC. Judged at 01 Mar 03:12 UTC."),
        (TAKEN, action(outcome=Outcome.FIXED), "fixed", "It helped: the incident's signal is back to normal."),
        (TAKEN, action(outcome=Outcome.WORSE, outcome_note="n"), "trouble", "It got worse afterwards (n)."),
        (TAKEN, action(status=ActionStatus.FAILED, message="refused"), "trouble", "It failed before it had an effect"),
        (
            TAKEN,
            action(status=ActionStatus.UNCLEAR),
            "trouble",
            "It may or may not have had its effect at 01 Mar 03:12 UTC: please look at NEBULA-T2_DATADISK.",
        ),
        (decision(status=DecisionStatus.REJECTED, chosen_by="bob"), None, "quiet", "Every remedy was rejected by bob."),
        (decision(status=DecisionStatus.EXPIRED), None, "quiet", "This proposal has expired"),
        (decision(status=DecisionStatus.SHADOW), None, "quiet", "Recorded only"),
    ],
)
def test_what_waits_for_whom_and_what_has_happened(taken, done, state, said):
    found, text = status(taken=taken, done=done)
    assert found == state
    assert said in text


def test_only_what_stands_in_the_way_is_named_as_such():
    shown = words.of_proposal(Proposal(incident=incident(), decision=decision()), CARDS)
    (blocked,) = [remedy for remedy in shown.remedies if remedy.blocked]
    assert blocked.why == ""
    unasked = option("wait", "Nothing.", 0.0, permission=Permission.SKIP, blocks=(Block.COOLDOWN, Block.AUTONOMY_OFF))
    assert phrases.reasons(unasked) == "it was done here a short while ago"
    assert phrases.reasons(option("wait", "Nothing.", 1.0)) == "autonomy is off"


def test_all_that_a_remedy_acts_on_is_named():
    chosen = decision().options[1]
    links = ("link:A>B", "link:A>C", "link:A>D")
    several = replace(chosen, candidate=replace(chosen.candidate, targets=links))
    shown = words.of_proposal(
        Proposal(incident=incident(), decision=decision(options=(several,), recommended=0)), CARDS
    )
    assert shown.remedies[0].touches == "A → B · A → C · A → D"


def test_what_the_summary_says_is_not_said_twice():
    told = incident()
    told = replace(told, evidence=replace(told.evidence, summary="148 of 203 transfers failed"))
    assert dict(words.of_incident(incident()).facts)["Share"]
    assert "Share" not in dict(words.of_incident(told).facts)


def test_autonomy_is_named_as_such():
    by_itself = decision(status=DecisionStatus.TAKEN, chosen=1, chosen_by=words.AUTONOMY)
    assert "was chosen by gridmedic itself" in status(taken=by_itself)[1]


def test_a_choice_that_is_not_settled_yet_takes_the_buttons_away():
    pending = Answer(key="k", by="ada", via="slack", kind=AnswerKind.REJECT, decision_id="dec-1")
    shown = words.of_proposal(Proposal(incident=incident(), decision=decision()), CARDS, pending)
    assert shown.status == "Every remedy was rejected by ada; it takes effect with the next pass."
    assert not shown.rejectable
    assert not any(remedy.approvable for remedy in shown.remedies)


def test_the_story_is_told_in_keys_that_stay():
    assert words.story(incident(), [action(status=ActionStatus.DUE)], CARDS) == []
    told = words.story(incident(), [action(status=ActionStatus.RUNNING)], CARDS)
    assert [key for key, _ in told] == ["dec-1:running"]
    assert told[0][1].startswith("«Take the storage out of service» has started: Writing to")
    earlier = action(id="dec-0", due_at=NOW - timedelta(hours=1), outcome=Outcome.UNCHANGED)
    closed = incident(status=IncidentStatus.CLOSED, closed_at=NOW)
    told = words.story(closed, [action(), earlier], CARDS)
    assert [key for key, _ in told] == ["dec-0:applied", "dec-0:outcome", "dec-1:applied", "inc-1:closed"]


def test_every_word_of_the_vocabulary_has_its_phrase():
    assert set(phrases.PROBLEM) == set(IncidentKind)
    assert set(phrases.PLACE) == set(EntityKind)
    assert set(phrases.SAFETY) == set(Safety)
    assert set(phrases.REACH) == set(BlastRadius)
    assert set(phrases.BLOCK) == set(Block)
    assert set(phrases.OUTCOME) == set(Outcome)


@pytest.mark.parametrize(
    ("kind", "culprit", "headline"),
    [
        (IncidentKind.SLOW_TRANSFERS, "link:A>B", "Slow transfers on the link A → B"),
        (IncidentKind.DEGRADED_NETWORK, "network:S>T", "Degraded network on the path S → T"),
        (IncidentKind.FAILING_DELETIONS, "rse:X", "Failing deletions at X"),
        (IncidentKind.FAILING_TRANSFERS, "fts:fts3.example", "Failing transfers through the FTS server fts3.example"),
        (IncidentKind.STALLED_TRANSFERS, "activity:User", "Stalled transfers in the activity User"),
        (IncidentKind.CLOCK_OFF, "site:S", "Clock off at the site S"),
        (IncidentKind.SILENT_FEED, "feed:events", "No news from the feed events"),
    ],
)
def test_headlines(kind, culprit, headline):
    assert words.of_incident(incident(kind=kind, culprit=Entity.parse(culprit))).headline == headline


def test_text_is_one_line_without_anything_that_cannot_be_seen():
    assert clean("a\n\tb\x00 \u202ec\u200b\x9bd\u2028e") == "a b c d e"
    assert clean("x" * 400) == "x" * 299 + "…"
    assert clean("\n" * 10_000_000, 10) == ""


def test_numbers():
    assert [percent(share) for share in (0, 0.004, 0.5, 0.994, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]
    assert [duration(s) for s in (0.4, 119, 1800, 9000, 14_400, 259_200)] == [
        "0 s",
        "119 s",
        "30 min",
        "2.5 h",
        "4 h",
        "3 d",
    ]
    assert moment(datetime(2026, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))) == "28 Feb 23:00 UTC"
    assert moment(datetime(2026, 3, 1, 1, 0, tzinfo=UTC)) == "01 Mar 01:00 UTC"


def test_a_terminal_shows_tables_and_everything_about_one_proposal():
    hostile = incident("inc-2", culprit=Entity.parse(f"activity:{HOSTILE}"))
    table = incident_table([incident(), hostile])
    assert table.splitlines()[1].startswith("inc-1     open    01 Mar 02:58 UTC  91 %  148")
    assert "\x1b" not in table
    assert len(table.splitlines()) == 3
    assert incident_table([]) == ""
    proposal = Proposal(incident=incident(), decision=decision())
    assert proposal_table([proposal]).splitlines()[1].split()[:3] == ["dec-1", "waits", "exclude_storage"]
    shown = proposal_text(proposal, CARDS)
    assert "- exclude_storage: Take the storage out of service [recommended]" in shown
    assert "disruptive: work in progress may suffer" in shown
    assert "- exclude_storage: Exclude storage [recommended]" in proposal_text(proposal)
