"""The simulated grid of another process, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from models.domain import GridError, GridUnreachable
from models.grid import RSE, Direction, NetworkTest, Operation, Request, Rule, Ticket

_TIMEOUT_S = 10.0
_REFUSED = 409

T = TypeVar("T")
_NOTHING: TypeAdapter[None] = TypeAdapter(None)
_NUMBER: TypeAdapter[int | None] = TypeAdapter(int | None)
_INSTANT: TypeAdapter[datetime | None] = TypeAdapter(datetime | None)
_RSE = TypeAdapter(RSE)
_RSES = TypeAdapter(list[RSE])
_RULE = TypeAdapter(Rule)
_REQUESTS = TypeAdapter(list[Request])
_TICKET = TypeAdapter(Ticket)
_TICKETS = TypeAdapter(list[Ticket])
_NETWORK_TEST = TypeAdapter(NetworkTest)


class SimulatedGrid:
    """Implements `models.grid.Grid`."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # nothing to close, and no connection that has gone stale
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, limits=limits, trust_env=False)

    def rse(self, name: str) -> RSE:
        return self._call("rse", _RSE, name=name)

    def rses(self) -> Sequence[RSE]:
        return self._call("rses", _RSES)

    def distance(self, source: str, destination: str) -> int | None:
        return self._call("distance", _NUMBER, source=source, destination=destination)

    def link_limit(self, source: str, destination: str) -> int | None:
        return self._call("link_limit", _NUMBER, source=source, destination=destination)

    def storage_limit(self, rse: str, direction: Direction) -> int | None:
        return self._call("storage_limit", _NUMBER, rse=rse, direction=direction)

    def banned(self, rse: str) -> datetime | None:
        return self._call("banned", _INSTANT, rse=rse)

    def rule(self, rule_id: str) -> Rule:
        return self._call("rule", _RULE, rule_id=rule_id)

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        return self._call("requests", _REQUESTS, source=source, destination=destination, limit=limit)

    def tickets(self, *, mark: str) -> Sequence[Ticket]:
        return self._call("tickets", _TICKETS, mark=mark)

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        self._call("set_distance", _NOTHING, source=source, destination=destination, distance=distance, key=key)

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None:
        self._call("set_link_limit", _NOTHING, source=source, destination=destination, limit=limit, key=key)

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Grid's form
        self._call("set_availability", _NOTHING, rse=rse, operation=operation, available=available, key=key)

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        changes = {"priority": priority, "source_replica_expression": source_replica_expression}
        self._call("update_rule", _NOTHING, rule_id=rule_id, key=key, **changes)

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        return self._call("open_ticket", _TICKET, culprit=culprit, title=title, body=body, key=key)

    def set_storage_limit(self, rse: str, direction: Direction, limit: int | None, *, key: str) -> None:
        self._call("set_storage_limit", _NOTHING, rse=rse, direction=direction, limit=limit, key=key)

    def ban(self, rse: str, *, minutes: float, key: str) -> None:
        self._call("ban", _NOTHING, rse=rse, minutes=minutes, key=key)

    def unban(self, rse: str, *, key: str) -> None:
        self._call("unban", _NOTHING, rse=rse, key=key)

    def declare_unavailable(self, rse: str, files: Sequence[str], *, minutes: float, key: str) -> None:
        self._call("declare_unavailable", _NOTHING, rse=rse, files=list(files), minutes=minutes, key=key)

    def requeue(self, rule_id: str, *, key: str) -> None:
        self._call("requeue", _NOTHING, rule_id=rule_id, key=key)

    def test_network(self, source_site: str, destination_site: str, *, key: str) -> NetworkTest:
        sites = {"source_site": source_site, "destination_site": destination_site}
        return self._call("test_network", _NETWORK_TEST, key=key, **sites)

    def _call(self, method: str, result: TypeAdapter[T], **arguments: Any) -> T:  # noqa: ANN401 - JSON
        """Raise GridError if the grid refuses, GridUnreachable for any other answer or none."""
        try:
            answer = self._client.post(f"/call/{method}", json=arguments)
            body = answer.json()
            if answer.status_code == _REFUSED:
                raise GridError(str(body["error"]))
            answer.raise_for_status()
            return result.validate_python(body["result"], strict=False)
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError, ValueError, KeyError, TypeError) as error:
            raise GridUnreachable(
                f"the simulated grid at {self._client.base_url} gave no answer to {method}: {error}; start it with "
                "`gridmedic grid`, or correct grid.url"
            ) from error
