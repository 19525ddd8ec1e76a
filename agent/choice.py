"""Deciding: candidates from the catalogue, what the policy allows, the bandit's ranking, and then AUTO or ASK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from agent.experience import Experience
from agent.guards import PAUSED, Guards, eligible_cards
from agent.settlement import take
from models.domain import (
    Action,
    ActionStatus,
    Candidate,
    Decision,
    DecisionStatus,
    Incident,
    Option,
    Outcome,
    Permission,
    RemedyCard,
)
from ranking.features import context
from ranking.reward import AUTONOMY
from remedies.policy import policy_hash
from remedies.runner import Runner
from storage.ledger import Transaction

log = structlog.get_logger()

ASK_AGAIN_AFTER = timedelta(minutes=30)  # after a rejection, and after a remedy that helped only for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An incident that needs a decision, and what could be done about it."""

    incident: Incident
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Makes a decision for each incident that needs one. The loop owns it."""

    cards: Mapping[str, RemedyCard]
    catalogue_hash: str
    runner: Runner
    guards: Guards
    experience: Experience
    acting: bool  # False: decisions are recorded as SHADOW, and that is all

    def prepare(self, tx: Transaction, incidents: Sequence[Incident], now: datetime) -> list[Prepared]:
        """Plan for the open incidents that need a decision. Remedies of others may take their time: nothing is locked."""
        if tx.setting(PAUSED):
            return []
        return [self._planned(incident) for incident in incidents if self._is_due(tx, incident, now)]

    def decide(self, tx: Transaction, prepared: Sequence[Prepared], changed: Sequence[Incident], now: datetime) -> int:
        """Decide on what was prepared, let go of what has closed; return the number of new decisions."""
        for incident in changed:
            if incident.closed:
                self._let_go(tx, incident)
        for one in prepared:
            self._decide_on(tx, one.incident, one.candidates, now)
        return len(prepared)

    def _planned(self, incident: Incident) -> Prepared:
        cards = eligible_cards(self.cards, incident, self.guards.limits)
        planned = [self.runner.plan(card, incident) for card in cards]
        return Prepared(
            incident=incident, candidates=tuple(candidate for candidate in planned if candidate is not None)
        )

    def _let_go(self, tx: Transaction, incident: Incident) -> None:
        newest = tx.newest_decision(incident.id)
        if newest is not None and newest.status is DecisionStatus.OPEN:
            tx.update_decision(replace(newest, status=DecisionStatus.EXPIRED))

    def _is_due(self, tx: Transaction, incident: Incident, now: datetime) -> bool:
        newest = tx.newest_decision(incident.id)
        if newest is None:
            return True
        match newest.status:
            case DecisionStatus.OPEN:
                # Of another culprit or kind, what is proposed would no longer be to the point.
                proposed_for = (newest.culprit, newest.context.get("kind"))
                return proposed_for != (str(incident.culprit), str(incident.kind))
            case DecisionStatus.SHADOW:
                return False
            case DecisionStatus.EXPIRED:
                return True
            case DecisionStatus.REJECTED:
                return newest.chosen_at is not None and now - newest.chosen_at >= ASK_AGAIN_AFTER
            case DecisionStatus.TAKEN:
                return _is_over(tx.action(newest.id), now)

    def _decide_on(self, tx: Transaction, incident: Incident, candidates: Sequence[Candidate], now: datetime) -> None:
        self._let_go(tx, incident)
        decision_id = _next_id(tx.newest_decision(incident.id), incident)
        options, propensity, features = self._ranked(tx, incident, candidates, decision_id, now)
        if not options:
            log.error(
                "nothing-to-propose", incident=incident.id, kind=str(incident.kind), cure="enable the remedy `wait`"
            )
            return
        decision = Decision(
            id=decision_id,
            incident_id=incident.id,
            culprit=str(incident.culprit),
            made_at=now,
            status=DecisionStatus.OPEN if self.acting else DecisionStatus.SHADOW,
            options=options,
            recommended=0,
            propensity=propensity,
            context=features,
            model_hash=self.experience.bandit.hash,
            catalogue_hash=self.catalogue_hash,
            policy_hash=policy_hash(self.guards.limits),
        )
        tx.record_decision(decision)
        recommended = options[0]
        log.info(
            "decided",
            decision=decision.id,
            incident=f"{incident.kind} {incident.culprit}",
            recommended=recommended.candidate.remedy,
            permission=str(recommended.permission),
            probability=round(propensity, 3),
        )
        if self.acting and recommended.permission is Permission.AUTO:
            take(tx, decision, 0, by=AUTONOMY, now=now)

    def _ranked(
        self, tx: Transaction, incident: Incident, candidates: Sequence[Candidate], key: str, now: datetime
    ) -> tuple[tuple[Option, ...], float, Mapping[str, float | str]]:
        """Options in the order shown (the recommendation first, what may not be done last) and its propensity."""
        features = context(incident, now)
        first = {c.remedy: self.guards.ruling(tx, c, incident, now=now) for c in candidates}
        slate = [c for c in candidates if first[c.remedy].permission is not Permission.SKIP]
        if not slate:
            return (), 0.0, features
        ranking = self.experience.bandit.rank(features, [c.remedy for c in slate])
        drawn = self.experience.bandit.draw(ranking, key)
        options = []
        for place, candidate in enumerate(slate):
            trust = self.experience.trust(candidate.remedy, incident)
            best = place == drawn == ranking.best
            ruling = self.guards.ruling(tx, candidate, incident, now=now, trust=trust.lower, best=best)
            option = Option(
                candidate=candidate,
                permission=ruling.permission,
                blocks=ruling.blocks,
                probability=ranking.probabilities[place],
                expected_cost=ranking.expected_costs[place],
                trust=trust.lower,
                samples=trust.samples,
            )
            options.append((place != drawn, option.expected_cost, candidate.remedy, option))
        shown = tuple(option for *_, option in sorted(options, key=lambda entry: entry[:3]))
        skipped = tuple(
            Option(candidate=c, permission=Permission.SKIP, blocks=first[c.remedy].blocks)
            for c in candidates
            if first[c.remedy].permission is Permission.SKIP
        )
        return shown + skipped, ranking.probabilities[drawn], features


def _is_over(action: Action | None, now: datetime) -> bool:
    """Whether the incident needs another decision after this action."""
    if action is None or action.status in {ActionStatus.FAILED, ActionStatus.UNDONE}:
        return True
    if action.status is not ActionStatus.APPLIED or action.outcome is None:
        return False  # in flight, settling, or waiting for a human to look
    if action.outcome is Outcome.FIXED:
        return action.judge_at is not None and now - action.judge_at >= ASK_AGAIN_AFTER
    return True


def _next_id(newest: Decision | None, incident: Incident) -> str:
    number = 1 if newest is None else int(newest.id.rpartition("-")[2]) + 1
    return f"{incident.id}-{number}"
