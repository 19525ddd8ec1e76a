"""Run fewer transfers at once on a link that is asked for more than it carries."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field

from models.domain import BlastRadius, Incident, IncidentKind, RemedyError, Safety
from remedies.builtin.affected import LinkName, parse_link, some, worst_links
from remedies.contract import Applied, Parameters, Plan, Remedy, Run


class ThrottleLinkParameters(Parameters):
    links: Annotated[tuple[LinkName, ...], Field(min_length=1, max_length=10)] = Field(
        description="Links to throttle, each written SOURCE>DESTINATION."
    )
    share: float = Field(
        default=0.5,
        ge=0.1,
        le=0.9,
        description="Share of today's concurrent transfers that may still run; at least one always may.",
    )


class ThrottleLink(Remedy[ThrottleLinkParameters]):
    name = "throttle_link"
    title = "Run fewer transfers at once on the link"
    addresses = frozenset({IncidentKind.SLOW_TRANSFERS, IncidentKind.DEGRADED_NETWORK})
    safety = Safety.REVERSIBLE
    blast_radius = BlastRadius.LINK
    cooldown = timedelta(minutes=45)
    settle_time = timedelta(minutes=20)
    prior = 0.35
    Params = ThrottleLinkParameters

    def plan(self, incident: Incident) -> Plan[ThrottleLinkParameters] | None:
        links = worst_links(incident)
        if not links:
            return None
        params = ThrottleLinkParameters(links=tuple(map(str, links)))
        return Plan(
            params=params,
            targets=tuple(f"link:{link}" for link in links),
            summary=f"Allow {params.share:.0%} of the transfers that run at once now on {some(links)}",
        )

    def apply(self, params: ThrottleLinkParameters, run: Run) -> None:
        limits = run.memory.get("limits") or run.remember("limits", self._limits(params, run))
        for name, limit in limits.items():
            link = parse_link(name)
            if run.grid.link_limit(link.source, link.destination) != limit["set"]:
                run.grid.set_link_limit(link.source, link.destination, limit["set"], key=run.key)

    def applied(self, params: ThrottleLinkParameters, run: Run) -> Applied:  # noqa: ARG002 - the contract's signature
        # The new limit depends on the old one, and is remembered before it is set: without memory nothing was set.
        limits = run.memory.get("limits")
        return Applied.YES if limits and all(self._stands(name, limits[name], run) for name in limits) else Applied.NO

    def undo(self, params: ThrottleLinkParameters, run: Run) -> None:  # noqa: ARG002 - the contract's signature
        if "limits" not in run.memory:
            raise RemedyError("the limits before were not remembered; set them by hand")
        for name, limit in run.memory["limits"].items():
            if self._stands(name, limit, run):
                link = parse_link(name)
                run.grid.set_link_limit(link.source, link.destination, limit["before"], key=run.key)

    @staticmethod
    def _limits(params: ThrottleLinkParameters, run: Run) -> dict[str, dict[str, int | None]]:
        """The limit before and the one to set, by link; links on which no two transfers run are left alone."""
        limits: dict[str, dict[str, int | None]] = {}
        for name in params.links:
            link = parse_link(name)
            before = run.grid.link_limit(link.source, link.destination)
            running = before
            if running is None:  # FTS's optimizer decides: halve what runs by its decision
                requests = run.grid.requests(source=link.source, destination=link.destination)
                running = sum(request.state == "SUBMITTED" for request in requests)
            if running > 1:
                limits[name] = {"before": before, "set": max(1, int(running * params.share))}
        if not limits:
            raise RemedyError(f"no two transfers run at once on {some(params.links)}: there is nothing to throttle")
        return limits

    @staticmethod
    def _stands(name: str, limit: dict[str, Any], run: Run) -> bool:
        link = parse_link(name)
        return bool(run.grid.link_limit(link.source, link.destination) == limit["set"])
