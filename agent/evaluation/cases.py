"""Incidents of a rule that blames whatever it flags: opened with the first flag, over after an hour without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind

QUIET: Final = timedelta(hours=1)


@dataclass(slots=True, kw_only=True)
class Case:
    """An incident, and the transfers that were flagged."""

    incident: Incident
    opened: datetime  # when whoever watches could know of it
    flagged: list[str] = field(default_factory=list)  # request ids


class Casebook:
    """The cases of one rule, each under a key that tells it from the others. Give it each pass's flags once, in order."""

    def __init__(self, rule: str, kind: IncidentKind, culprit: Callable[[str], Entity]) -> None:
        """`culprit` says who is to blame for what is flagged under a key."""
        self._rule, self._kind, self._culprit = rule, kind, culprit
        self.open: dict[str, Case] = {}  # by key
        self.closed: list[Case] = []

    @property
    def cases(self) -> list[Case]:
        return [*self.closed, *self.open.values()]

    def note(self, flagged: Mapping[str, Sequence[str]], now: datetime) -> list[Case]:
        """Take in the request ids that were flagged since the last pass, by key; return the cases that this opens."""
        for key, case in list(self.open.items()):
            if now - case.incident.updated_at >= QUIET:
                self.closed.append(self.open.pop(key))
        opened = []
        for key, requests in flagged.items():
            if key not in self.open:
                self.open[key] = Case(incident=self._new(key, now), opened=now)
                opened.append(self.open[key])
            case = self.open[key]
            case.flagged += requests
            case.incident = _seen(case.incident, len(case.flagged), now)
        return opened

    def _new(self, key: str, now: datetime) -> Incident:
        return Incident(
            id=f"{self._rule}-{key}-{now.astimezone(UTC):%Y%m%d%H%M%S}",
            kind=self._kind,
            culprit=self._culprit(key),
            opened_at=now,
            updated_at=now,
            confidence=1.0,
            severity=0.0,
            evidence=Evidence(summary="", window_s=0.0, anomalous=0, total=0, background=0.0),
        )


def _seen(incident: Incident, count: int, now: datetime) -> Incident:
    links = {incident.culprit.name: count} if incident.culprit.kind is EntityKind.LINK else {}
    return replace(incident, updated_at=now, anomalous=count, evidence=replace(incident.evidence, links=links))


def by_key(keys: Sequence[str], requests: Sequence[str]) -> dict[str, list[str]]:
    """The requests of each key, both of the same length, in their order."""
    found: dict[str, list[str]] = {}
    for key, request in zip(keys, requests, strict=True):
        found.setdefault(key, []).append(request)
    return found
