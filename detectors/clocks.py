"""Incidents of clocks: a measuring host of a site whose clock has jumped, so that perfSONAR's delays there are wrong.

By itself that slows no transfer. That somebody has to set a clock is all there is to say, so that the severity is
low. A clock that was off from the first reading on is no news, and neither is one of which nobody can tell at which end of a path it is:
these stay findings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from detectors.covers import Covers
from detectors.findings import Finding
from models.domain import Entity, EntityKind, Evidence, Incident, IncidentKind, IncidentStatus

SEVERITY = 0.05
REOPEN_S = 1800.0


class Clocks:
    """One incident for each site whose clock has jumped, at most. A fold over what was found."""

    def __init__(self) -> None:
        self.reset(())

    def reset(self, incidents: Iterable[Incident]) -> None:
        """Start from the ledger's incidents of clocks, in any order."""
        by_age = sorted(incidents, key=lambda one: (not one.closed, one.opened_at))
        self._incidents = {incident.culprit: incident for incident in by_age}  # the latest of each site

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if not incident.closed]

    def review(self, found: Sequence[Finding], at: float, covers: Covers) -> list[Incident]:
        """Open, update and close by what was found and lasts at a time, in seconds; return the incidents that changed."""
        jumped = {finding.culprit: finding for finding in found if _of_site(finding)}
        changed = []
        for site in dict.fromkeys([*self._incidents, *jumped]):
            before = self._incidents.get(site)
            after = _reviewed(before, jumped.get(site), at)
            opens = after is not None and not after.closed and (before is None or before.closed)
            if after is None or after == before or (opens and covers.of(site, at)):
                continue
            self._incidents[site] = after
            changed.append(after)
        return changed


def _of_site(finding: Finding) -> bool:
    return finding.clock_jumped and finding.culprit.kind is EntityKind.SITE


def _reviewed(before: Incident | None, finding: Finding | None, at: float) -> Incident | None:
    now = datetime.fromtimestamp(at, UTC)
    if finding is None:
        if before is None or before.closed:
            return before
        return replace(before, status=IncidentStatus.CLOSED, closed_at=now)
    evidence = Evidence(
        summary=_summary(finding), window_s=at - finding.since.timestamp(), anomalous=0, total=0, background=0.0
    )
    known = before is not None and (not before.closed or _lately(before, at))
    if before is not None and known:
        if not before.closed and before.evidence.summary == evidence.summary:
            return before
        return replace(before, status=IncidentStatus.OPEN, closed_at=None, updated_at=now, evidence=evidence)
    return Incident(
        id=f"inc-{hashlib.blake2b(f'{finding.id} {at}'.encode(), digest_size=4).hexdigest()}",
        kind=IncidentKind.CLOCK_OFF,
        culprit=Entity(EntityKind.SITE, finding.culprit.name),
        opened_at=now,
        updated_at=now,
        confidence=finding.confidence,
        severity=SEVERITY,
        evidence=evidence,
    )


def _lately(incident: Incident, at: float) -> bool:
    return incident.closed_at is not None and at - incident.closed_at.timestamp() <= REOPEN_S


def _summary(finding: Finding) -> str:
    assert finding.before is not None  # noqa: S101 - it has jumped
    paths = f"{len(finding.paths)} paths" if len(finding.paths) > 1 else "one path"
    return (
        f"the clock of a measuring host at {finding.culprit.name} jumped by {abs(finding.now - finding.before):.0f} ms at "
        f"{finding.since:%Y-%m-%d %H:%M} UTC, by the delays of {paths}; that alone slows no transfer"
    )
