"""Let transfers come from elsewhere: a source that stands farther away is taken only where there is no other replica.

Nothing is excluded: a file whose only replica lies at the bad source still travels. Logged downloads from a bad source succeeded
84 times of 100 from another one, and 13 times of 100 when tried again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from models.domain import BlastRadius, GridError, Incident, IncidentKind, RemedyError, Safety
from remedies.builtin.affected import LinkName, parse_link, some, worst_links
from remedies.contract import Applied, Parameters, Plan, Remedy, Run


class SwitchSourceParameters(Parameters):
    links: Annotated[tuple[LinkName, ...], Field(min_length=1, max_length=10)] = Field(
        description="Links whose source is to be avoided, each written SOURCE>DESTINATION."
    )
    distance: int = Field(
        default=100,
        ge=2,
        le=10_000,
        description="Distance that the sources are moved to, as Rucio counts it: 1 is nearest and taken first.",
    )


class SwitchSource(Remedy[SwitchSourceParameters]):
    name = "switch_source"
    title = "Take the files from other sources"
    addresses = frozenset(
        {
            IncidentKind.SLOW_TRANSFERS,
            IncidentKind.FAILING_TRANSFERS,
            IncidentKind.STALLED_TRANSFERS,
            IncidentKind.DEGRADED_NETWORK,
        }
    )
    safety = Safety.REVERSIBLE
    blast_radius = BlastRadius.LINK
    cooldown = timedelta(hours=1)
    settle_time = timedelta(minutes=15)
    prior = 0.6
    Params = SwitchSourceParameters

    def plan(self, incident: Incident) -> Plan[SwitchSourceParameters] | None:
        """The link to blame, or the worst links out of the culprit; None where the trouble is not on its way out."""
        links = worst_links(incident, as_source=True)
        if not links:
            return None
        params = SwitchSourceParameters(links=tuple(map(str, links)))
        return Plan(
            params=params,
            targets=tuple(f"link:{link}" for link in links),
            summary=f"Set the distance of {some(links)} to {params.distance}, so that other sources are taken first",
        )

    def apply(self, params: SwitchSourceParameters, run: Run) -> None:
        now = self._distances(params, run)
        missing = [name for name, distance in now.items() if distance is None]
        if missing:
            raise GridError(f"{missing[0]} has no distance: the two are not connected, so nothing comes that way")
        run.remember("distances", now)
        for name, distance in now.items():
            if distance is not None and distance < params.distance:
                link = parse_link(name)
                run.grid.set_distance(link.source, link.destination, params.distance, key=run.key)

    def applied(self, params: SwitchSourceParameters, run: Run) -> Applied:
        far = [d is not None and d >= params.distance for d in self._distances(params, run).values()]
        return Applied.YES if all(far) else Applied.NO

    def undo(self, params: SwitchSourceParameters, run: Run) -> None:
        if "distances" not in run.memory:
            raise RemedyError("the distances before were not remembered; set them by hand")
        for name, before in run.memory["distances"].items():
            link = parse_link(name)
            if before < params.distance == run.grid.distance(link.source, link.destination):
                run.grid.set_distance(link.source, link.destination, before, key=run.key)

    @staticmethod
    def _distances(params: SwitchSourceParameters, run: Run) -> dict[str, int | None]:
        links = {name: parse_link(name) for name in params.links}
        return {name: run.grid.distance(link.source, link.destination) for name, link in links.items()}
