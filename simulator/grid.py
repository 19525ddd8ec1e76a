"""The simulated grid as remedies see it: `models.grid.Grid` over a world, in this process.

Reads change nothing. An act has its effect at the world's `now`, once for each key, and what follows from it follows by the
world's physics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from models.domain import GridError
from models.grid import RSE, Operation, Request, Rule, Ticket
from simulator.expressions import matching
from simulator.state import Ticket as Case
from simulator.world import World

READS = ("rse", "rses", "distance", "link_limit", "rule", "requests", "tickets")
ACTS = ("set_distance", "set_link_limit", "set_availability", "update_rule", "open_ticket")


class SimulatedGrid:
    """`effects` counts the acts that had their effect; an act that was known by its key leaves it as it was."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.effects = 0

    def rse(self, name: str) -> RSE:
        storages, closed = self._world.topology.storages, self._world.state.closed
        if name not in storages:
            raise GridError(f"there is no RSE {name!r}")
        storage = storages[name]
        return RSE(
            name=name,
            site=storage.site,
            kind=storage.kind,
            read=f"{name} read" not in closed,
            write=f"{name} write" not in closed,
            delete=f"{name} delete" not in closed,
        )

    def rses(self) -> Sequence[RSE]:
        return [self.rse(name) for name in self._world.topology.storages]

    def distance(self, source: str, destination: str) -> int | None:
        link = self._link(source, destination)
        return self._world.state.distances.get(link, self._world.topology.distances.get(link))

    def link_limit(self, source: str, destination: str) -> int | None:
        return self._world.state.limits.get(self._link(source, destination))

    def rule(self, rule_id: str) -> Rule:
        rule = self._world.state.rules.get(rule_id)
        if rule is None:
            raise GridError(f"there is no rule {rule_id!r}; rules are forgotten some hours after they are OK")
        return Rule(
            id=rule.id,
            scope=rule.scope,
            name=rule.dataset,
            rse_expression=rule.destination,
            state=rule.state,
            priority=rule.priority,
            source_replica_expression=rule.expression,
        )

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        found: list[Request] = []
        for request in self._world.state.requests.values():
            rule = self._world.state.rules[request.rule_id]
            if source not in {None, request.source} or destination not in {None, rule.destination}:
                continue
            if len(found) == limit:
                break
            found.append(
                Request(
                    id=request.id,
                    rule_id=rule.id,
                    source=request.source,
                    destination=rule.destination,
                    activity=rule.activity,
                    state=request.phase,
                    bytes=request.file.bytes,
                    sources=tuple(rule.sources),
                )
            )
        return found

    def tickets(self, *, mark: str) -> Sequence[Ticket]:
        return [_ticket(case) for case in self._world.state.tickets if case.mark == mark]

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        if self.distance(source, destination) is None:
            raise GridError(f"{source} and {destination} are not connected; only an existing distance can be changed")
        if distance < 1:
            raise GridError(f"distance {distance!r} must be at least 1")
        link = self._link(source, destination)
        self._once("set_distance", [link, distance], key, lambda: self._world.state.distances.update({link: distance}))

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None:
        link = self._link(source, destination)
        if limit is not None and limit < 1:
            raise GridError(f"link limit {limit!r} must be at least 1, or None to leave it to the optimizer")

        def act() -> None:
            self._world.state.limits.pop(link, None)
            if limit is not None:
                self._world.state.limits[link] = limit
            self._world.conveyor.dispatch(link, self._world.state.clock)

        self._once("set_link_limit", [link, limit], key, act)

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Grid's form
        self.rse(rse)
        if operation not in get_args(Operation):
            raise GridError(f"operation {operation!r} is not one of {', '.join(get_args(Operation))}")
        closed, name = self._world.state.closed, f"{rse} {operation}"

        def act() -> None:
            closed.pop(name, None)
            if not available:
                closed[name] = True

        self._once("set_availability", [name, available], key, act)

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        self.rule(rule_id)
        if priority is not None and not 1 <= priority <= 5:
            raise GridError(f"priority {priority!r} of rule {rule_id} must be from 1 to 5")
        if source_replica_expression:
            matching(source_replica_expression, self._world.topology.storages)
        arguments = [rule_id, priority, source_replica_expression]
        self._once("update_rule", arguments, key, lambda: self._update(rule_id, priority, source_replica_expression))

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        def act() -> None:
            world, number = self._world, len(self._world.state.tickets)
            world.state.tickets.append(
                Case(
                    id=f"GGUS-{160_000 + number}",
                    mark=key,
                    culprit=culprit,
                    title=title,
                    body=body,
                    opened_at=world.state.clock,
                )
            )
            world.mend_sooner(culprit, number)

        self._once("open_ticket", [], key, act)  # one ticket for each mark, whatever it says
        return self.tickets(mark=key)[0]

    def _update(self, rule_id: str, priority: int | None, expression: str | None) -> None:
        rule = self._world.state.rules[rule_id]
        if priority is not None:
            rule.priority = priority
            self._world.conveyor.reorder(rule)
        if expression is not None:
            rule.expression = expression or None
        self._world.conveyor.look_again(rule, self._world.state.clock)

    def _once(self, method: str, arguments: list[Any], key: str, act: Callable[[], None]) -> None:
        if not key:
            raise GridError(f"{method} needs a key: the id of the decision behind it")
        name = json.dumps([key, method, *arguments])
        if name in self._world.state.acts:
            return
        act()
        self._world.state.acts[name] = True
        self.effects += 1

    def _link(self, source: str, destination: str) -> str:
        self.rse(source)
        self.rse(destination)
        return f"{source}>{destination}"


def _ticket(case: Case) -> Ticket:
    state: Literal["open", "solved"] = "solved" if case.solved else "open"
    return Ticket(id=case.id, mark=case.mark, culprit=case.culprit, title=case.title, state=state)
