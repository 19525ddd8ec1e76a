"""The simulated grid as remedies see it: `models.grid.Grid` over a world, in this process.

Reads change nothing. An act has its effect at the world's `now`, once for each key, and what follows from it follows by the
world's physics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from models.domain import GridError
from models.grid import Direction, NetworkTest, Operation, Ticket
from simulator import engine
from simulator.expressions import matching
from simulator.inventory import Inventory, dids_of, direction_of
from simulator.state import NOBODY, N
from simulator.state import Ticket as Case
from simulator.topology import tcp_limit
from simulator.world import TEST_S, TEST_SHARE, World

READS = ("rse", "rses", "distance", "link_limit", "storage_limit", "banned", "rule", "requests", "tickets")
ACTS = (
    "set_distance",
    "set_link_limit",
    "set_storage_limit",
    "set_availability",
    "ban",
    "unban",
    "declare_unavailable",
    "update_rule",
    "requeue",
    "test_network",
    "open_ticket",
)

_MOST = 1_000_000  # of a distance and of a limit
_LONGEST_MIN = 7 * 24 * 60.0


class SimulatedGrid(Inventory):
    """`effects` counts the acts that had their effect; an act that was known by its key leaves it as it was."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.effects = 0

    def prepare(self) -> None:
        """Have what acts need compiled, so that none of them waits for that."""
        surroundings, _ = self._world.around()
        engine.reorder(self._world.state, NOBODY)
        engine.look_again(self._world.state, surroundings, NOBODY, 0.0)
        engine.requeue(self._world.state, surroundings, NOBODY, 0.0)

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        if self.distance(source, destination) is None:
            raise GridError(f"{source} and {destination} are not connected; only an existing distance can be changed")
        _whole("distance", distance)

        def act() -> None:
            self._world.state.distance[self._rse(source), self._rse(destination)] = distance

        self._once("set_distance", [source, destination, distance], key, act)

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None:
        link = self._rse(source), self._rse(destination)
        if limit is not None:
            _whole("link limit", limit)

        def act() -> None:
            self._world.state.link_limit[link] = limit or 0
            self._world.touched()

        self._once("set_link_limit", [source, destination, limit], key, act)

    def set_storage_limit(self, rse: str, direction: Direction, limit: int | None, *, key: str) -> None:
        place = self._rse(rse), direction_of(direction)
        if limit is not None:
            _whole("storage limit", limit)

        def act() -> None:
            self._world.state.storage_limit[place] = limit or 0
            self._world.touched()

        self._once("set_storage_limit", [rse, direction, limit], key, act)

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Grid's form
        if operation not in get_args(Operation):
            raise GridError(f"operation {operation!r} is not one of {', '.join(get_args(Operation))}")
        place = self._rse(rse), get_args(Operation).index(operation)

        def act() -> None:
            self._world.state.closed[place] = not available
            self._world.touched()

        self._once("set_availability", [rse, operation, available], key, act)

    def ban(self, rse: str, *, minutes: float, key: str) -> None:
        place = self._rse(rse)
        _within("minutes", minutes, _LONGEST_MIN)
        self._once("ban", [rse, minutes], key, lambda: self._ban(place, self._after(minutes)))

    def unban(self, rse: str, *, key: str) -> None:
        place = self._rse(rse)
        self._once("unban", [rse], key, lambda: self._ban(place, 0.0))

    def declare_unavailable(self, rse: str, files: Sequence[str], *, minutes: float, key: str) -> None:
        held_by = self._rse(rse)
        _within("minutes", minutes, _LONGEST_MIN)

        def act() -> None:
            state = self._world.state
            slots = np.flatnonzero(state.transfers["phase"])
            slot, replica = np.nonzero(state.sources[state.transfers["rule"][slots]] == held_by)
            slots = slots[slot]
            rows = state.transfers[slots]
            named = np.isin(dids_of(rows["number"], state.rules["activity"][rows["rule"]]), files)
            if not named.any():
                raise GridError(f"none of these {len(files)} files is on its way from a replica at {rse}")
            state.blocked_until[slots[named], replica[named]] = self._after(minutes)

        self._once("declare_unavailable", [rse, list(files), minutes], key, act)

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        rule = self._rule(rule_id)
        if priority is not None and not 1 <= priority <= 5:
            raise GridError(f"priority {priority!r} of rule {rule_id} must be from 1 to 5")
        if source_replica_expression:
            matching(source_replica_expression, self._world.topology)
        arguments = [rule_id, priority, source_replica_expression]
        self._once("update_rule", arguments, key, lambda: self._update(rule, priority, source_replica_expression))

    def requeue(self, rule_id: str, *, key: str) -> None:
        rule = self._rule(rule_id)

        def act() -> None:
            if not self._world.state.rules[rule]["pending"]:
                raise GridError(f"rule {rule_id} has no transfer left")
            self._make_room(rule)
            engine.requeue(self._world.state, self._world.around()[0], rule, self._world.clock)

        self._once("requeue", [rule_id], key, act)

    def test_network(self, source_site: str, destination_site: str, *, key: str) -> NetworkTest:
        path = self._site(source_site), self._site(destination_site)

        def act() -> None:
            world = self._world
            under_way = [test for test in world.chronicle.tests if test[2] > world.clock]
            world.chronicle.tests = [*under_way, (*path, world.clock + TEST_S)]
            world.touched()

        self._once("test_network", [source_site, destination_site], key, act)
        return self._measured(*path)

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        def act() -> None:
            world, number = self._world, len(self._world.chronicle.tickets)
            world.chronicle.tickets.append(
                Case(
                    id=f"GGUS-{160_000 + number}",
                    mark=key,
                    culprit=culprit,
                    title=title,
                    body=body,
                    opened_at=world.clock,
                    solved_at=world.mend_sooner(culprit, number),
                )
            )

        self._once("open_ticket", [], key, act)  # one ticket for each mark, whatever it says
        return self.tickets(mark=key)[0]

    def _update(self, rule: int, priority: int | None, expression: str | None) -> None:
        world = self._world
        if expression is not None:
            world.state.rules[rule]["mask"] = self._mask(expression) if expression else NOBODY
        if priority is not None:
            world.state.rules[rule]["priority"] = priority
            engine.reorder(world.state, rule)
        self._make_room(rule)
        engine.look_again(world.state, world.around()[0], rule, world.clock)

    def _mask(self, expression: str) -> int:
        """The place of the expression among those that rules have."""
        world, known = self._world, self._world.chronicle.expressions
        if expression not in known:
            mask = matching(expression, world.topology)
            world.state = world.state._replace(masks=np.concatenate([world.state.masks, mask[None]]))
            known.append(expression)
        return known.index(expression)

    def _make_room(self, rule: int) -> None:
        """Room on the heap for one event more of each of the rule's transfers: the void ones stay there until they are due."""
        state = self._world.state
        most = len(state.transfers) + len(state.rules) + state.numbers[N.EVENTS] + state.rules[rule]["pending"]
        if len(state.heap) < most:
            more = np.zeros(most - len(state.heap), dtype=state.heap.dtype)
            self._world.state = state._replace(heap=np.concatenate([state.heap, more]))

    def _ban(self, rse: int, until: float) -> None:
        self._world.state.banned_until[rse] = until
        self._world.touched()

    def _measured(self, source: int, destination: int) -> NetworkTest:
        """What a test finds now."""
        topology, conditions = self._world.topology, self._world.around()[1]
        loss, rtt_s = float(conditions.loss[source, destination]), float(conditions.rtt_s[source, destination])
        if loss >= 1.0:
            return NetworkTest(loss=1.0, rtt_ms=None, throughput_bps=None)
        most = min(topology.capacity[source, destination], topology.uplink_out[source], topology.uplink_in[destination])
        return NetworkTest(
            loss=loss, rtt_ms=1000 * rtt_s, throughput_bps=8 * float(min(TEST_SHARE * most, tcp_limit(rtt_s, loss)))
        )

    def _once(self, method: str, arguments: list[Any], key: str, act: Callable[[], None]) -> None:
        if not key:
            raise GridError(f"{method} needs a key: the id of the decision behind it")
        name, acts = json.dumps([key, method, *arguments]), self._world.chronicle.acts
        if name in acts:
            return
        act()
        acts[name] = True
        self.effects += 1

    def _after(self, minutes: float) -> float:
        return self._world.clock + 60 * minutes

    def _site(self, name: str) -> int:
        """A site that can measure."""
        topology = self._world.topology
        try:
            site = topology.site(name)
        except KeyError:
            raise GridError(f"there is no site {name!r}") from None
        if not self._world.probes.probed[site]:
            raise GridError(f"site {name} has no perfSONAR host to measure with")
        return site


def _whole(what: str, value: int) -> None:
    if not isinstance(value, int):
        raise GridError(f"{what} {value!r} must be a whole number")
    _within(what, value, _MOST)


def _within(what: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise GridError(f"{what} {value!r} must be above 0 and at most {most:,.0f}")
