"""The rule that everything here began with: a transfer is flagged when it took 600 s more or less than was forecast.

Each link with a flag is an incident of its own, the link is to blame, and the remedy is always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pandas as pd

from agent.intake import SeenKeys, ended_columns
from detectors.failures import error_classes
from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind
from models.events import event_keys
from models.forecaster import Forecaster
from models.measurements import Paths

OFF_S: Final = 600.0
_SHOWN: Final = ("source", "destination", "request_id")
QUIET: Final = timedelta(hours=1)  # without a flag: then it is over


@dataclass(slots=True, kw_only=True)
class Case:
    """An incident of the rule's, and the transfers that were flagged."""

    incident: Incident
    flagged: list[str] = field(default_factory=list)  # request ids


class SeedRule:
    """Looks at what ended. Give it each stretch of events and readings once, in order."""

    def __init__(self, forecaster: Forecaster, paths: Paths) -> None:
        self._forecaster = forecaster
        self._paths = paths
        self._seen = SeenKeys(np.empty(0, dtype=np.uint64))
        self.open: dict[str, Case] = {}  # by link
        self.closed: list[Case] = []

    def look(self, events: pd.DataFrame, readings: pd.DataFrame, now: datetime) -> list[Case]:
        """Return the cases that this opens."""
        if len(readings):
            self._paths.absorb(readings)
        for link, case in list(self.open.items()):
            if now - case.incident.updated_at >= QUIET:
                self.closed.append(self.open.pop(link))
        flagged = self._flagged(events) if len(events) else {}
        opened = []
        for link, requests in flagged.items():
            if link not in self.open:
                self.open[link] = Case(incident=_incident(link, now))
                opened.append(self.open[link])
            case = self.open[link]
            case.flagged += requests
            case.incident = _seen(case.incident, link, len(case.flagged), now)
        return opened

    def _flagged(self, events: pd.DataFrame) -> Mapping[str, list[str]]:
        """Request ids of what was flagged, by link."""
        keys = event_keys(events)
        new = self._seen.unseen(keys)
        self._seen.add(keys[new])
        ended = ended_columns(events[new], lambda ids: ids, error_classes)
        median = np.expm1(self._forecaster.score(ended | self._paths.of(ended))[:, 2])
        off = np.abs(ended["ended_at"] - ended["started_at"] - median) > OFF_S
        found: dict[str, list[str]] = {}
        for source, destination, request in zip(*(ended[name][off] for name in _SHOWN), strict=True):
            found.setdefault(f"{source}>{destination}", []).append(request)
        return found


def _incident(link: str, now: datetime) -> Incident:
    evidence = Evidence(summary="", window_s=0.0, anomalous=0, total=0, background=0.0)
    return Incident(
        id=f"seed-{link}-{now.astimezone(UTC):%Y%m%d%H%M%S}",
        kind=IncidentKind.SLOW_TRANSFERS,
        culprit=Entity(EntityKind.LINK, link),
        opened_at=now,
        updated_at=now,
        confidence=1.0,
        severity=0.0,
        evidence=evidence,
    )


def _seen(incident: Incident, link: str, count: int, now: datetime) -> Incident:
    return replace(incident, updated_at=now, anomalous=count, evidence=replace(incident.evidence, links={link: count}))
