"""One fixed remedy for each kind of incident: what the agent's choices are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.choice import Chooser, Prepared
from models.domain import Candidate, Incident, IncidentKind, Option, Permission
from ranking.features import context
from storage.ledger import Transaction

FIXED: Final[Mapping[IncidentKind, str]] = {
    IncidentKind.SLOW_TRANSFERS: "switch_source",
    IncidentKind.FAILING_TRANSFERS: "exclude_storage",
    IncidentKind.STALLED_TRANSFERS: "switch_source",
    IncidentKind.FAILING_DELETIONS: "open_ticket",
    IncidentKind.DEGRADED_NETWORK: "switch_source",
    IncidentKind.CLOCK_OFF: "open_ticket",
    IncidentKind.SILENT_FEED: "wait",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedChooser(Chooser):
    """One remedy for each kind of incident, once, at once: no ranking, no policy, and nobody is asked."""

    def prepare(self, tx: Transaction, incidents: Sequence[Incident], now: datetime) -> list[Prepared]:  # noqa: ARG002 - as the chooser's
        fresh = [incident for incident in incidents if self._is_new(tx, incident)]
        planned = [(incident, self.runner.plan(self.cards[FIXED[incident.kind]], incident)) for incident in fresh]
        return [Prepared(incident=incident, candidates=(found,)) for incident, found in planned if found is not None]

    def _is_new(self, tx: Transaction, incident: Incident) -> bool:
        newest = tx.newest_decision(incident.id)
        return newest is None or newest.culprit != str(incident.culprit)

    def _ranked(
        self,
        tx: Transaction,  # noqa: ARG002 - as the chooser's
        incident: Incident,
        candidates: Sequence[Candidate],
        key: str,  # noqa: ARG002
        now: datetime,
    ) -> tuple[tuple[Option, ...], float, Mapping[str, float | str]]:
        options = tuple(Option(candidate=one, permission=Permission.AUTO, probability=1.0) for one in candidates)
        return options, 1.0, context(incident, now)
