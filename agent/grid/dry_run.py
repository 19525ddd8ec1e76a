"""A grid on which nothing is done: reads are answered by the real one, acts are recorded and go no further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from models.domain import GridError
from models.grid import RSE, Direction, Grid, NetworkTest, Operation, Request, Rule, Ticket

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What would have been done."""

    method: str
    arguments: tuple[Any, ...]
    key: str


class DryRun:
    """Implements `models.grid.Grid`. `acts` lists what was asked for, each once for its key."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.acts: list[Act] = []

    def rse(self, name: str) -> RSE:
        return self._grid.rse(name)

    def rses(self) -> Sequence[RSE]:
        return self._grid.rses()

    def distance(self, source: str, destination: str) -> int | None:
        return self._grid.distance(source, destination)

    def link_limit(self, source: str, destination: str) -> int | None:
        return self._grid.link_limit(source, destination)

    def storage_limit(self, rse: str, direction: Direction) -> int | None:
        return self._grid.storage_limit(rse, direction)

    def banned(self, rse: str) -> datetime | None:
        return self._grid.banned(rse)

    def rule(self, rule_id: str) -> Rule:
        return self._grid.rule(rule_id)

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        return self._grid.requests(source=source, destination=destination, limit=limit)

    def tickets(self, *, mark: str) -> Sequence[Ticket]:
        return self._grid.tickets(mark=mark)

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        if self._grid.distance(source, destination) is None:
            raise GridError(f"{source} and {destination} are not connected; only an existing distance can be changed")
        self._record("set_distance", key, source, destination, distance)

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None:
        self._record("set_link_limit", key, source, destination, limit)

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Grid's form
        self._record("set_availability", key, rse, operation, available)

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        self._record("update_rule", key, rule_id, priority, source_replica_expression)

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        self._record("open_ticket", key, culprit, title, body)
        return Ticket(id="dry-run", mark=key, culprit=culprit, title=title, state="open")

    def set_storage_limit(self, rse: str, direction: Direction, limit: int | None, *, key: str) -> None:
        self._record("set_storage_limit", key, rse, direction, limit)

    def ban(self, rse: str, *, minutes: float, key: str) -> None:
        self._record("ban", key, rse, minutes)

    def unban(self, rse: str, *, key: str) -> None:
        self._record("unban", key, rse)

    def declare_unavailable(self, rse: str, files: Sequence[str], *, minutes: float, key: str) -> None:
        self._record("declare_unavailable", key, rse, tuple(files), minutes)

    def requeue(self, rule_id: str, *, key: str) -> None:
        self._record("requeue", key, rule_id)

    def test_network(self, source_site: str, destination_site: str, *, key: str) -> NetworkTest:
        self._record("test_network", key, source_site, destination_site)
        return NetworkTest(loss=None, rtt_ms=None, throughput_bps=None)

    def _record(self, method: str, key: str, *arguments: Any) -> None:  # noqa: ANN401 - JSON
        act = Act(method=method, arguments=arguments, key=key)
        if act not in self.acts:
            self.acts.append(act)
            log.info("dry-run-act", method=method, arguments=arguments, key=key)
