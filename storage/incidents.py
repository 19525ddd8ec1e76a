"""Incidents, the decisions on them, and the actions that came of those."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from models.domain import Action, ActionStatus, Decision, DecisionStatus, Incident, IncidentStatus, LedgerError
from storage.documents import dump, load
from storage.statements import Statements
from storage.tables import actions, decisions, incidents

_AT_ONCE = 1000  # ids in one statement


class Incidents(Statements):
    def save_incident(self, incident: Incident) -> None:
        """Write the incident, or replace the one with its id."""
        values = {
            "id": incident.id,
            "kind": incident.kind,
            "culprit": str(incident.culprit),
            "status": incident.status,
            "opened_at": incident.opened_at,
            "closed_at": incident.closed_at,
            "document": dump(incident),
        }
        self._put(incidents, values)

    def incident(self, incident_id: str) -> Incident:
        """Return one incident; raise LedgerError if there is none with this id."""
        document = self._connection.scalar(select(incidents.c.document).where(incidents.c.id == incident_id))
        if document is None:
            raise LedgerError(f"there is no incident {incident_id!r}; `gridmedic incidents` lists them")
        return load(Incident, document)

    def incidents(self, status: IncidentStatus | None = None, limit: int | None = None) -> list[Incident]:
        """Return incidents by the time they opened, the newest first."""
        statement = select(incidents.c.document).order_by(incidents.c.opened_at.desc(), incidents.c.id.desc())
        if status is not None:
            statement = statement.where(incidents.c.status == status)
        return [load(Incident, document) for document in self._connection.scalars(statement.limit(limit))]


class Decisions(Statements):
    def record_decision(self, decision: Decision) -> None:
        """Write a new decision; raise LedgerError if its id is taken."""
        if self._add(decisions, {"incident_id": decision.incident_id, **_decision_values(decision)}) is None:
            raise LedgerError(f"decision {decision.id!r} is recorded already; update_decision changes it")

    def update_decision(self, decision: Decision) -> None:
        """Replace a decision; raise LedgerError if it was never recorded."""
        statement = update(decisions).where(decisions.c.id == decision.id).values(_decision_values(decision))
        if self._connection.execute(statement).rowcount == 0:
            raise LedgerError(f"decision {decision.id!r} was never recorded; record_decision comes first")

    def decision(self, decision_id: str) -> Decision:
        """Return one decision; raise LedgerError if there is none with this id."""
        document = self._connection.scalar(select(decisions.c.document).where(decisions.c.id == decision_id))
        if document is None:
            raise LedgerError(f"there is no decision {decision_id!r}; `gridmedic proposals` lists the open ones")
        return load(Decision, document)

    def newest_decision(self, incident_id: str) -> Decision | None:
        """Return the decision last recorded for an incident; None before the first."""
        statement = select(decisions.c.document).where(decisions.c.incident_id == incident_id)
        document = self._connection.scalar(statement.order_by(decisions.c.row.desc()).limit(1))
        return None if document is None else load(Decision, document)

    def open_decisions(self) -> list[Decision]:
        """Return the decisions that wait for an operator, in the order in which they were recorded."""
        statement = select(decisions.c.document).where(decisions.c.status == DecisionStatus.OPEN)
        return [load(Decision, document) for document in self._connection.scalars(statement.order_by(decisions.c.row))]

    def decisions(self, ids: Iterable[str]) -> dict[str, Decision]:
        """Return the decisions with these ids, by id; unknown ids are left out."""
        found: dict[str, Decision] = {}
        wanted = sorted(set(ids))
        for start in range(0, len(wanted), _AT_ONCE):
            statement = select(decisions.c.document).where(decisions.c.id.in_(wanted[start : start + _AT_ONCE]))
            for document in self._connection.scalars(statement):
                decision = load(Decision, document)
                found[decision.id] = decision
        return found


class Actions(Statements):
    def add_action(self, action: Action) -> None:
        """Put an action into the outbox; raise LedgerError if its id is there already."""
        if self._add(actions, {"incident_id": action.incident_id, **_action_values(action)}) is None:
            raise LedgerError(f"action {action.id!r} is in the outbox already: a decision acts once")

    def save_action(self, action: Action) -> None:
        """Replace an action; raise LedgerError if it was never added."""
        statement = update(actions).where(actions.c.id == action.id).values(_action_values(action))
        if self._connection.execute(statement).rowcount == 0:
            raise LedgerError(f"action {action.id!r} was never added; add_action comes first")

    def action(self, action_id: str) -> Action | None:
        """Return the action of a decision; None if nothing was chosen."""
        document = self._connection.scalar(select(actions.c.document).where(actions.c.id == action_id))
        return None if document is None else load(Action, document)

    def actions(
        self,
        statuses: Collection[ActionStatus] | None = None,
        incident_id: str | None = None,
        since: datetime | None = None,
    ) -> list[Action]:
        """Return actions in the order in which they were added; `since` takes those due at or after it."""
        statement = select(actions.c.document).order_by(actions.c.row)
        if statuses is not None:
            statement = statement.where(actions.c.status.in_(statuses))
        if incident_id is not None:
            statement = statement.where(actions.c.incident_id == incident_id)
        if since is not None:
            statement = statement.where(actions.c.due_at >= since)
        return [load(Action, document) for document in self._connection.scalars(statement)]


def _decision_values(decision: Decision) -> dict[str, Any]:
    return {"id": decision.id, "made_at": decision.made_at, "status": decision.status, "document": dump(decision)}


def _action_values(action: Action) -> dict[str, Any]:
    return {"id": action.id, "status": action.status, "due_at": action.due_at, "document": dump(action)}
