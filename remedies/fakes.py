"""A grid in memory, for tests and for the authors of remedies: it does what it is told, at once, and keeps a journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from models.domain import GridError, Link
from models.grid import RSE, Direction, NetworkTest, Operation, Request, Rule, Ticket

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)  # in this grid time stands still
WELL = NetworkTest(loss=0.0, rtt_ms=20.0, throughput_bps=5e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One act that the grid received. `effect`: it changed something; the same act with the same key does so once."""

    act: str
    arguments: Mapping[str, Any]
    key: str
    effect: bool


class FakeGrid:
    """A grid in memory, with a journal of every act that it received.

    `network`: what tests of paths between sites find, where that is not that all is well. `dry`: acts are received and
    change nothing. `path`: the state is kept in a file, so that several processes share it.
    """

    def __init__(
        self,
        *,
        rses: Iterable[RSE] = (),
        distances: Mapping[Link, int] | None = None,
        limits: Mapping[Link, int] | None = None,
        rules: Iterable[Rule] = (),
        requests: Iterable[Request] = (),
        network: Mapping[Link, NetworkTest] | None = None,
        dry: bool = False,
        path: Path | None = None,
    ) -> None:
        self._rses = {rse.name: rse for rse in rses}
        self._distances = dict(distances or {})
        self._limits = dict(limits or {})
        self._rules = {rule.id: rule for rule in rules}
        self._requests = list(requests)
        self._network = dict(network or {})
        self._tickets: dict[str, Ticket] = {}
        self._storage_limits: dict[tuple[str, str], int] = {}
        self._bans: dict[str, datetime] = {}
        self._unavailable: dict[tuple[str, str], datetime] = {}
        self._tested: set[Link] = set()
        self._dry = dry
        self._path = path
        self.journal: list[Call] = []
        self.save()

    @classmethod
    def at(cls, path: Path) -> FakeGrid:
        """The grid that another one keeps in `path`."""
        state = json.loads(path.read_text(encoding="utf-8"))
        grid = cls(
            rses=(RSE(**rse) for rse in state["rses"]),
            distances={Link(*ends): n for *ends, n in state["distances"]},
            limits={Link(*ends): n for *ends, n in state["limits"]},
            rules=(Rule(**rule) for rule in state["rules"]),
            requests=(Request(**{**request, "sources": tuple(request["sources"])}) for request in state["requests"]),
            network={Link(*ends): NetworkTest(**found) for *ends, found in state["network"]},
        )
        grid._tickets = {ticket["mark"]: Ticket(**ticket) for ticket in state["tickets"]}
        grid._storage_limits = {(rse, direction): n for rse, direction, n in state["storage_limits"]}
        grid._bans = {rse: datetime.fromisoformat(until) for rse, until in state["bans"]}
        grid._unavailable = {(rse, file): datetime.fromisoformat(until) for rse, file, until in state["unavailable"]}
        grid._tested = {Link(*ends) for ends in state["tested"]}
        grid.journal = [Call(**call) for call in state["journal"]]
        grid._path = path
        return grid

    def save(self) -> None:
        """Write the state to the grid's file, if it has one; in one step, so that a reader never sees half of it."""
        if self._path is not None:
            half = self._path.with_suffix(".half")
            network = [[link.source, link.destination, asdict(found)] for link, found in self._network.items()]
            state = self.state() | {"network": network, "journal": [asdict(call) for call in self.journal]}
            half.write_text(json.dumps(state), encoding="utf-8")
            half.replace(self._path)

    def state(self) -> dict[str, Any]:
        """Everything that acts can change, as JSON."""
        return {
            "rses": [asdict(rse) for rse in self._rses.values()],
            "distances": [[link.source, link.destination, n] for link, n in self._distances.items()],
            "limits": [[link.source, link.destination, n] for link, n in sorted(self._limits.items())],
            "rules": [asdict(rule) for rule in self._rules.values()],
            "requests": [asdict(request) for request in self._requests],
            "tickets": [asdict(ticket) for ticket in self._tickets.values()],
            "storage_limits": [[*of, n] for of, n in sorted(self._storage_limits.items())],
            "bans": [[rse, until.isoformat()] for rse, until in sorted(self._bans.items())],
            "unavailable": [[*replica, until.isoformat()] for replica, until in sorted(self._unavailable.items())],
            "tested": [[link.source, link.destination] for link in sorted(self._tested)],
        }

    @property
    def effects(self) -> list[Call]:
        return [call for call in self.journal if call.effect]

    def rse(self, name: str) -> RSE:
        if name not in self._rses:
            raise GridError(f"there is no RSE {name!r}")
        return self._rses[name]

    def rses(self) -> Sequence[RSE]:
        return list(self._rses.values())

    def distance(self, source: str, destination: str) -> int | None:
        return self._distances.get(Link(source, destination))

    def link_limit(self, source: str, destination: str) -> int | None:
        return self._limits.get(Link(source, destination))

    def storage_limit(self, rse: str, direction: Direction) -> int | None:
        return self._storage_limits.get((self.rse(rse).name, _direction(direction)))

    def banned(self, rse: str) -> datetime | None:
        return self._bans.get(self.rse(rse).name)

    def rule(self, rule_id: str) -> Rule:
        if rule_id not in self._rules:
            raise GridError(f"there is no rule {rule_id!r}")
        return self._rules[rule_id]

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        wanted = [r for r in self._requests if source in {None, r.source} and destination in {None, r.destination}]
        return wanted[:limit]

    def tickets(self, *, mark: str) -> Sequence[Ticket]:
        return [self._tickets[mark]] if mark in self._tickets else []

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        link = Link(source, destination)
        if link not in self._distances:
            raise GridError(f"{source!r} and {destination!r} are not connected")
        with_arguments = {"source": source, "destination": destination, "distance": distance}
        self._act("set_distance", with_arguments, key, lambda: self._distances.update({link: distance}))

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None:
        link = Link(source, destination)

        def effect() -> None:
            self._limits.pop(link, None)
            if limit is not None:
                self._limits[link] = limit

        self._act("set_link_limit", {"source": source, "destination": destination, "limit": limit}, key, effect)

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Grid's
        change: dict[str, Any] = {operation: available}
        changed = replace(self.rse(rse), **change)
        arguments = {"rse": rse, "operation": operation, "available": available}
        self._act("set_availability", arguments, key, lambda: self._rses.update({rse: changed}))

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        rule = self.rule(rule_id)
        if priority is not None:
            rule = replace(rule, priority=priority)
        if source_replica_expression is not None:
            rule = replace(rule, source_replica_expression=source_replica_expression or None)
        arguments = {"rule": rule_id, "priority": priority, "source_replica_expression": source_replica_expression}
        self._act("update_rule", arguments, key, lambda: self._rules.update({rule_id: rule}))

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        ticket = Ticket(id=f"T{len(self._tickets) + 1}", mark=key, culprit=culprit, title=title, state="open")
        arguments = {"culprit": culprit, "title": title, "body": body}
        self._act("open_ticket", arguments, key, lambda: self._tickets.setdefault(key, ticket))
        return self._tickets.get(key, ticket)

    def set_storage_limit(self, rse: str, direction: Direction, limit: int | None, *, key: str) -> None:
        of = self.rse(rse).name, _direction(direction)

        def effect() -> None:
            self._storage_limits.pop(of, None)
            if limit is not None:
                self._storage_limits[of] = limit

        self._act("set_storage_limit", {"rse": rse, "direction": direction, "limit": limit}, key, effect)

    def ban(self, rse: str, *, minutes: float, key: str) -> None:
        until = {self.rse(rse).name: NOW + timedelta(minutes=minutes)}
        self._act("ban", {"rse": rse, "minutes": minutes}, key, lambda: self._bans.update(until))

    def unban(self, rse: str, *, key: str) -> None:
        self.rse(rse)
        self._act("unban", {"rse": rse}, key, lambda: self._bans.pop(rse, None))

    def declare_unavailable(self, rse: str, files: Sequence[str], *, minutes: float, key: str) -> None:
        self.rse(rse)
        held = {request.name for request in self._requests if rse in request.sources}
        until = {(rse, file): NOW + timedelta(minutes=minutes) for file in files if file in held}
        if not until:
            raise GridError(f"none of these files is on its way from a replica at {rse!r}")
        arguments = {"rse": rse, "files": list(files), "minutes": minutes}
        self._act("declare_unavailable", arguments, key, lambda: self._unavailable.update(until))

    def requeue(self, rule_id: str, *, key: str) -> None:
        self.rule(rule_id)
        if not any(request.rule_id == rule_id for request in self._requests):
            raise GridError(f"rule {rule_id!r} has no transfer left")

        def effect() -> None:
            for place, request in enumerate(self._requests):
                if request.rule_id == rule_id:
                    self._requests[place] = replace(request, source=None, state="QUEUED")

        self._act("requeue", {"rule": rule_id}, key, effect)

    def test_network(self, source_site: str, destination_site: str, *, key: str) -> NetworkTest:
        for site in (source_site, destination_site):
            if not any(rse.site == site for rse in self._rses.values()):
                raise GridError(f"there is no site {site!r}")
        link = Link(source_site, destination_site)
        arguments = {"source_site": source_site, "destination_site": destination_site}
        self._act("test_network", arguments, key, lambda: self._tested.add(link))
        return self._network.get(link, WELL)

    def _act(self, act: str, arguments: Mapping[str, Any], key: str, effect: Callable[[], object]) -> None:
        known = any(c.effect and (c.act, c.arguments, c.key) == (act, arguments, key) for c in self.journal)
        has_effect = not known and not self._dry
        self.journal.append(Call(act=act, arguments=arguments, key=key, effect=has_effect))
        if has_effect:
            effect()
        self.save()


def _direction(direction: Direction) -> Direction:
    if direction not in get_args(Direction):
        raise GridError(f"direction {direction!r} is neither source nor destination")
    return direction


def open_fake(settings: Mapping[str, Any]) -> FakeGrid:
    """The grid kept in the file `settings["path"]`: a factory for the child process."""
    return FakeGrid.at(Path(settings["path"]))
