"""Do nothing and look again: the baseline that each remedy must beat."""

from __future__ import annotations

from datetime import timedelta

from models.domain import BlastRadius, Incident, IncidentKind, Safety
from remedies.contract import BASELINE, Applied, Parameters, Plan, Remedy, Run


class WaitParameters(Parameters):
    """Waiting has nothing to set."""


class Wait(Remedy[WaitParameters]):
    name = BASELINE
    title = "Wait and see whether it passes"
    addresses = frozenset(IncidentKind)
    safety = Safety.READ_ONLY
    blast_radius = BlastRadius.TRANSFER
    cooldown = timedelta(0)
    settle_time = timedelta(minutes=15)
    prior = 0.3
    Params = WaitParameters

    def plan(self, incident: Incident) -> Plan[WaitParameters]:
        summary = "Nothing is changed; the incident is looked at again in 15 minutes"
        return Plan(params=WaitParameters(), targets=(str(incident.culprit),), summary=summary)

    def apply(self, params: WaitParameters, run: Run) -> None:
        """Nothing."""

    def applied(self, params: WaitParameters, run: Run) -> Applied:  # noqa: ARG002 - the contract's signature
        return Applied.YES
