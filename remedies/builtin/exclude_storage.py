"""Take a storage element out of use: no reading where it fails as source, no writing where it fails as destination.

Where a probe keeps Rucio's availability in step with declared downtimes, it may set this back: `verify` notices.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from models.domain import BlastRadius, EntityKind, Incident, IncidentKind, RemedyError, Safety, Share
from models.grid import RSE, Operation
from remedies.builtin.affected import RSEName, is_rse
from remedies.contract import Applied, Parameters, Plan, Remedy, Run


class ExcludeStorageParameters(Parameters):
    rse: RSEName = Field(description="Storage element to take out of use.")
    operations: Annotated[tuple[Operation, ...], Field(min_length=1, max_length=3)] = Field(
        description="What is to be switched off: read, write or delete."
    )


class ExcludeStorage(Remedy[ExcludeStorageParameters]):
    name = "exclude_storage"
    title = "Take the storage element out of use"
    addresses = frozenset(
        {IncidentKind.FAILING_TRANSFERS, IncidentKind.STALLED_TRANSFERS, IncidentKind.FAILING_DELETIONS}
    )
    safety = Safety.DISRUPTIVE
    blast_radius = BlastRadius.SITE
    cooldown = timedelta(hours=6)
    settle_time = timedelta(minutes=30)
    prior = 0.3
    Params = ExcludeStorageParameters

    def plan(self, incident: Incident) -> Plan[ExcludeStorageParameters] | None:
        """None unless one storage element is to blame, and it is known what fails there."""
        operations = _failing(incident)
        if incident.culprit.kind is not EntityKind.RSE or not is_rse(incident.culprit.name) or not operations:
            return None
        params = ExcludeStorageParameters(rse=incident.culprit.name, operations=operations)
        what = " and ".join(operations)
        return Plan(
            params=params, targets=(str(incident.culprit),), summary=f"Switch {what} off at {params.rse}, until undone"
        )

    def apply(self, params: ExcludeStorageParameters, run: Run) -> None:
        now = self._available(params, run)
        run.remember("available", now)
        for operation in params.operations:
            if now[operation]:
                run.grid.set_availability(params.rse, operation, False, key=run.key)  # noqa: FBT003 - Rucio's own form

    def applied(self, params: ExcludeStorageParameters, run: Run) -> Applied:
        return Applied.NO if any(self._available(params, run).values()) else Applied.YES

    def undo(self, params: ExcludeStorageParameters, run: Run) -> None:
        if "available" not in run.memory:
            raise RemedyError("the availability before was not remembered; set it by hand")
        now = self._available(params, run)
        for operation in params.operations:
            if run.memory["available"].get(operation) and not now[operation]:
                run.grid.set_availability(params.rse, operation, True, key=run.key)  # noqa: FBT003 - Rucio's own form

    @staticmethod
    def _available(params: ExcludeStorageParameters, run: Run) -> dict[Operation, bool]:
        rse: RSE = run.grid.rse(params.rse)
        state: dict[Operation, bool] = {"read": rse.read, "write": rse.write, "delete": rse.delete}
        return {operation: state[operation] for operation in params.operations}


def _failing(incident: Incident) -> tuple[Operation, ...]:
    """Which operations go wrong at the culprit: those whose share of anomalous ones is at least half of the worst."""
    if incident.kind is IncidentKind.FAILING_DELETIONS:
        return ("delete",)
    shares: dict[Operation, float] = {
        "read": _share(incident.evidence.as_source),
        "write": _share(incident.evidence.as_destination),
    }
    worst = max(shares.values())
    return tuple(operation for operation, share in shares.items() if share > 0 and share >= worst / 2)


def _share(share: Share) -> float:
    return share.anomalous / share.total if share.total > 0 else 0.0
