"""What can be read from a simulated grid: the half of `models.grid.Grid` that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, get_args

import numpy as np

from models.domain import GridError
from models.grid import RSE, Direction, Request, Rule, Ticket
from simulator.activities import ACTIVITIES
from simulator.fields import datasets_of, names_of, scopes_of
from simulator.records import parse_rule_id, request_ids, rule_ids
from simulator.state import NOBODY, Array, Phase
from simulator.state import Ticket as Case
from simulator.texts import joined
from simulator.world import World

_STATES: dict[int, Literal["QUEUED", "WAITING"]] = {Phase.QUEUED: "QUEUED", Phase.WAITING: "WAITING"}


class Inventory:
    """The reads, and where in the world what they name is."""

    def __init__(self, world: World) -> None:
        self._world = world

    def rse(self, name: str) -> RSE:
        return self._shown(self._rse(name), self._closed())

    def rses(self) -> Sequence[RSE]:
        closed = self._closed()
        return [self._shown(rse, closed) for rse in range(len(closed))]

    def distance(self, source: str, destination: str) -> int | None:
        return _number(self._world.state.distance[self._rse(source), self._rse(destination)])

    def link_limit(self, source: str, destination: str) -> int | None:
        return _number(self._world.state.link_limit[self._rse(source), self._rse(destination)])

    def storage_limit(self, rse: str, direction: Direction) -> int | None:
        return _number(self._world.state.storage_limit[self._rse(rse), direction_of(direction)])

    def banned(self, rse: str) -> datetime | None:
        until = float(self._world.state.banned_until[self._rse(rse)])
        return self._world.start + timedelta(seconds=until) if until > self._world.clock else None

    def rule(self, rule_id: str) -> Rule:
        world = self._world
        row = world.state.rules[self._rule(rule_id)]
        return Rule(
            id=rule_id,
            scope=ACTIVITIES[row["activity"]].scope,
            name=datasets_of(row["number"][None], row["activity"][None])[0].as_py(),
            rse_expression=world.topology.rses[row["destination"]],
            state="OK" if not row["pending"] else "STUCK" if row["stuck"] else "REPLICATING",
            priority=int(row["priority"]),
            source_replica_expression=None if row["mask"] == NOBODY else world.chronicle.expressions[row["mask"]],
        )

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        world, transfers, rules = self._world, self._world.state.transfers, self._world.state.rules
        wanted = (transfers["phase"] != 0) & (transfers["phase"] != Phase.RESTING)
        if source is not None:
            wanted &= transfers["source"] == self._rse(source)
        if destination is not None:
            wanted &= rules["destination"][transfers["rule"]] == self._rse(destination)
        rows = transfers[wanted]
        rows = rows[np.lexsort([rows["number"], rows["created"]])][: max(limit, 0)]
        rule, names = rules[rows["rule"]], world.topology.rses
        held = world.state.sources[rows["rule"]]
        return [
            Request(
                id=request_id,
                rule_id=rule_id,
                name=name,
                source=None if row["source"] == NOBODY else names[row["source"]],
                destination=names[of["destination"]],
                activity=ACTIVITIES[of["activity"]].name,
                state=_STATES.get(int(row["phase"]), "SUBMITTED"),
                bytes=int(row["bytes"]),
                sources=tuple(names[replica] for replica in replicas if replica != NOBODY),
            )
            for row, of, replicas, request_id, rule_id, name in zip(
                rows,
                rule,
                held,
                request_ids(world.draws, rows["number"], rows["tries"]).to_pylist(),
                rule_ids(world.draws, rule["number"]).to_pylist(),
                dids_of(rows["number"], rule["activity"]),
                strict=True,
            )
        ]

    def tickets(self, *, mark: str) -> Sequence[Ticket]:
        chronicle = self._world.chronicle
        return [_ticket(case, chronicle.clock) for case in chronicle.tickets if case.mark == mark]

    def _shown(self, rse: int, closed: Array) -> RSE:
        topology = self._world.topology
        read, write, delete = (not shut for shut in closed[rse])
        return RSE(
            name=topology.rses[rse],
            site=topology.sites[topology.rse_site[rse]],
            kind="TAPE" if topology.tape[rse] else "DISK",
            read=read,
            write=write,
            delete=delete,
        )

    def _closed(self) -> Array:
        """What operators have closed, and downtimes that were announced; bool[R, 3]."""
        world, closed = self._world, self._world.state.closed.copy()
        for one in world.downtimes():
            if one.start <= world.clock < one.end:
                closed[one.rses(world.topology)] = True
        return closed

    def _rse(self, name: str) -> int:
        try:
            return self._world.topology.rse(name)
        except KeyError:
            raise GridError(f"there is no RSE {name!r}") from None

    def _rule(self, rule_id: str) -> int:
        """The row of a rule."""
        draws, rules = self._world.draws, self._world.state.rules
        number = parse_rule_id(draws, rule_id)
        found = np.flatnonzero((rules["number"] == number) & (rules["used"] != 0))
        if not len(found) or rule_ids(draws, rules["number"][found])[0].as_py() != rule_id:
            raise GridError(f"there is no rule {rule_id!r}; rules are forgotten some hours after they are OK")
        return int(found[0])


def dids_of(files: Array, activities: Array) -> list[str]:
    """What the files are called, as `scope:name`."""
    names: list[str] = joined(scopes_of(activities), ":", names_of(files, activities)).to_pylist()
    return names


def direction_of(direction: Direction) -> int:
    """Its column among the limits of storage."""
    if direction not in get_args(Direction):
        raise GridError(f"direction {direction!r} is not one of {', '.join(get_args(Direction))}")
    return get_args(Direction).index(direction)


def _number(value: np.int64) -> int | None:
    """0 stands for what is not set."""
    return int(value) or None


def _ticket(case: Case, clock: float) -> Ticket:
    state: Literal["open", "solved"] = "solved" if case.solved_at <= clock else "open"
    return Ticket(id=case.id, mark=case.mark, culprit=case.culprit, title=case.title, state=state)
