"""The policy, asked with the ledger's facts and the calendar's: before a decision, and again when it is about to be acted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from agent.calendar import Calendar
from models.domain import Candidate, Entity, Incident, RemedyCard
from remedies.policy import LOOK_BACK, Limits, Ruling, rule, standing
from storage.ledger import Transaction

PAUSED = "paused"  # setting of the ledger


class Guards:
    """Rules on candidates from what the ledger holds, never from memory, and from what is announced."""

    def __init__(self, *, cards: Mapping[str, RemedyCard], limits: Limits, calendar: Calendar) -> None:
        self._cards = cards
        self._calendar = calendar
        self.limits = limits

    def ruling(
        self,
        tx: Transaction,
        candidate: Candidate,
        incident: Incident,
        *,
        now: datetime,
        trust: float = 1.0,
        best: bool = True,
    ) -> Ruling:
        """`trust` and `best` are what the candidate has earned; their defaults lift what only the ranking can tell."""
        facts = standing(
            candidate,
            tx.actions(since=now - LOOK_BACK),
            cards=self._cards,
            now=now,
            paused=bool(tx.setting(PAUSED)),
            proposed=self._proposed(tx, candidate.remedy, incident),
            downtimes=self._calendar.touched([incident.culprit, *_entities(candidate.targets)], now),
        )
        return rule(
            candidate, self._cards[candidate.remedy], incident, replace(facts, trust=trust, best=best), self.limits
        )

    def _proposed(self, tx: Transaction, remedy: str, incident: Incident) -> frozenset[str]:
        """Targets for which the remedy is recommended in another incident, and waits for an answer there."""
        targets: set[str] = set()
        for decision in tx.open_decisions():
            option = decision.options[decision.recommended]
            if decision.incident_id != incident.id and option.candidate.remedy == remedy:
                targets |= set(option.candidate.targets)
        return frozenset(targets)


def _entities(targets: Iterable[str]) -> Iterator[Entity]:
    """The targets that are entities: a rule, for one, is none."""
    for target in targets:
        try:
            yield Entity.parse(target)
        except ValueError:
            continue


def eligible_cards(cards: Mapping[str, RemedyCard], incident: Incident, limits: Limits) -> list[RemedyCard]:
    """Remedies that address the incident and are not disabled, by name."""
    named = [card for card in cards.values() if incident.kind in card.addresses and card.name not in limits.disabled]
    return sorted(named, key=lambda card: card.name)
