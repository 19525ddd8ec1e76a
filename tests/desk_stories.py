"""Made-up incidents and decisions for the tests of the desks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from models.domain import (
    Action,
    ActionStatus,
    BlastRadius,
    Block,
    Candidate,
    Decision,
    DecisionStatus,
    Entity,
    Evidence,
    Example,
    Incident,
    IncidentKind,
    Option,
    Outcome,
    Permission,
    RemedyCard,
    Safety,
    Share,
)
from storage.ledger import Ledger

NOW = datetime(2026, 3, 1, 3, 12, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script> <!channel> & <https://evil.example|click> \x1b[31m\u202ered *bold* {{ 7 * 7 }}"


def card(name: str, title: str, safety: Safety, blast_radius: BlastRadius, settle_min: int = 20) -> RemedyCard:
    return RemedyCard(
        name=name,
        title=title,
        spec=f"remedies.builtin.{name}:Remedy",
        builtin=True,
        addresses=frozenset(IncidentKind),
        safety=safety,
        blast_radius=blast_radius,
        cooldown=timedelta(minutes=30),
        settle_time=timedelta(minutes=settle_min),
        prior=0.4,
    )


CARDS = {
    found.name: found
    for found in (
        card("switch_source", "Take another source", Safety.REVERSIBLE, BlastRadius.LINK),
        card("throttle_link", "Slow the link down", Safety.REVERSIBLE, BlastRadius.LINK),
        card("wait", "Wait and see", Safety.READ_ONLY, BlastRadius.TRANSFER, 15),
        card("exclude_storage", "Take the storage out of service", Safety.DISRUPTIVE, BlastRadius.SITE, 60),
        card("open_ticket", "Open a ticket with the site", Safety.READ_ONLY, BlastRadius.SITE, 240),
    )
}


def incident(name: str = "inc-1", **changes: object) -> Incident:
    told = Incident(
        id=name,
        kind=IncidentKind.FAILING_TRANSFERS,
        culprit=Entity.parse("rse:NEBULA-T2_DATADISK"),
        opened_at=NOW - timedelta(minutes=14),
        updated_at=NOW,
        anomalous=148,
        confidence=0.91,
        severity=0.8,
        evidence=Evidence(
            summary="Writing to NEBULA-T2_DATADISK fails from every source since 02:58; reading from it works.",
            window_s=1800,
            anomalous=148,
            total=203,
            background=0.013,
            as_source=Share(anomalous=1, total=41),
            as_destination=Share(anomalous=147, total=162),
            links={"ORION-T1_DATADISK>NEBULA-T2_DATADISK": 83, "CERN-PROD_DATADISK>NEBULA-T2_DATADISK": 64},
            activities={"Production Output": 101, "Data Consolidation": 47},
            reasons={"destination: no space left": 139, "transfer: timed out": 9},
            rules=("3f1c", "77aa", "90bd", "c0de", "d00d"),
            examples=(
                Example(
                    request_id="9b2f61c0",
                    link="ORION-T1_DATADISK>NEBULA-T2_DATADISK",
                    ended_at=NOW - timedelta(minutes=2),
                    reason="DESTINATION [28] MAKE_PARENT No space left on device",
                ),
                Example(
                    request_id="41d7aa90",
                    link="CERN-PROD_DATADISK>NEBULA-T2_DATADISK",
                    ended_at=NOW - timedelta(minutes=3),
                    duration_s=1843,
                    expected_s=41,
                    threshold_s=420,
                ),
            ),
        ),
    )
    return replace(told, **changes)


def option(remedy: str, summary: str, probability: float, **changes: object) -> Option:
    candidate = Candidate(remedy=remedy, params={}, targets=("rse:NEBULA-T2_DATADISK",), summary=summary)
    told = Option(
        candidate=candidate,
        permission=Permission.ASK,
        blocks=(Block.AUTONOMY_OFF,),
        probability=probability,
        expected_cost=1 - probability,
        trust=0.55,
        samples=14,
    )
    return replace(told, **changes)


def decision(name: str = "dec-1", incident_id: str = "inc-1", **changes: object) -> Decision:
    told = Decision(
        id=name,
        incident_id=incident_id,
        made_at=NOW,
        status=DecisionStatus.OPEN,
        options=(
            option("wait", "Nothing is done; the incident is looked at again in 15 minutes.", 0.12, samples=0),
            option(
                "exclude_storage", "Writing to NEBULA-T2_DATADISK is switched off; reading goes on.", 0.61, samples=1
            ),
            option("open_ticket", "A ticket with the evidence goes to the support of NEBULA-T2.", 0.27),
            option(
                "throttle_link",
                "At most 5 transfers at a time on ORION-T1_DATADISK > NEBULA-T2_DATADISK.",
                0.0,
                permission=Permission.SKIP,
                blocks=(Block.COOLDOWN, Block.TARGET_BUSY),
            ),
        ),
        recommended=1,
        propensity=0.61,
        context={},
        model_hash="m",
        catalogue_hash="c",
        policy_hash="p",
    )
    return replace(told, **changes)


def record(ledger: Ledger, told: Incident, decided: Decision | None = None, action: Action | None = None) -> None:
    with ledger.begin(write=True) as tx:
        tx.save_incident(told)
        if decided is not None:
            tx.record_decision(decided)
        if action is not None:
            tx.add_action(action)


def take_answers(ledger: Ledger, now: datetime = NOW) -> list[Action]:
    """Settle choices and carry them out, as the loop does."""
    done = []
    with ledger.begin(write=True) as tx:
        for row, answer in tx.unsettled_answers():
            decided = tx.decision(answer.decision_id)
            if answer.option is not None and answer.rating is None:
                chosen = {"chosen": answer.option, "chosen_by": answer.by, "chosen_at": now}
                tx.update_decision(replace(decided, status=DecisionStatus.TAKEN, **chosen))
                done.append(
                    Action(
                        id=decided.id,
                        incident_id=decided.incident_id,
                        candidate=decided.options[answer.option].candidate,
                        status=ActionStatus.APPLIED,
                        due_at=now,
                        started_at=now,
                        finished_at=now,
                        judge_at=now + timedelta(hours=1),
                        message="writing is off",
                    )
                )
                tx.add_action(done[-1])
            tx.settle_answer(row, "done", now)
    return done


def judge(ledger: Ledger, action: Action, outcome: Outcome = Outcome.FIXED) -> None:
    with ledger.begin(write=True) as tx:
        tx.save_action(replace(action, outcome=outcome, outcome_note="2 of 80 failed since"))
