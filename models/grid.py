"""What can be read from a grid and done to it: the only door through which a remedy acts.

The simulated grid, the real clients and the dry run all implement `Grid`. Reads change nothing. Every act takes
`key`, the id of the decision behind it: the same act with the same key has its effect once. An act raises
`GridError` when it was refused and `GridUnreachable` when nobody can tell whether it had its effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

Operation = Literal["read", "write", "delete"]
Direction = Literal["source", "destination"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RSE:
    """A storage element as Rucio knows it."""

    name: str
    site: str
    kind: Literal["DISK", "TAPE"]
    read: bool
    write: bool
    delete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A replication rule. A higher `priority` is served first (FTS: 1 to 5, 3 is the default)."""

    id: str
    scope: str
    name: str
    rse_expression: str
    state: str
    priority: int
    source_replica_expression: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A transfer that has not ended, of the file `name` (scope:name). `source` is None while none is chosen."""

    id: str
    rule_id: str
    name: str
    source: str | None
    destination: str
    activity: str
    state: Literal["QUEUED", "SUBMITTED", "WAITING"]
    bytes: int
    sources: tuple[str, ...]  # RSEs that hold a replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A ticket with a site's support. `mark` is the key of the act that opened it."""

    id: str
    mark: str
    culprit: str
    title: str
    state: Literal["open", "solved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTest:
    """What a test of a path found. None is what could not be measured: of a path that lets nothing through, all but `loss`."""

    loss: float | None  # fraction of packets
    rtt_ms: float | None
    throughput_bps: float | None


class Grid(Protocol):
    """The calls that remedies may make."""

    def rse(self, name: str) -> RSE:
        """Raise GridError if there is none of that name."""

    def rses(self) -> Sequence[RSE]: ...

    def distance(self, source: str, destination: str) -> int | None:
        """How far `source` stands from `destination` when sources are ranked (1 is nearest); None: not connected."""

    def link_limit(self, source: str, destination: str) -> int | None:
        """Most concurrent transfers that FTS runs on the link; None: its optimizer decides."""

    def storage_limit(self, rse: str, direction: Direction) -> int | None:
        """Most concurrent transfers with the RSE as source, or as destination; None: FTS's own limit holds."""

    def banned(self, rse: str) -> datetime | None:
        """Until when FTS starts nothing from or to the RSE; None: it is not banned."""

    def rule(self, rule_id: str) -> Rule:
        """Raise GridError if there is none of that id."""

    def requests(
        self, *, source: str | None = None, destination: str | None = None, limit: int = 1000
    ) -> Sequence[Request]:
        """Transfers that have not ended, the oldest first."""

    def tickets(self, *, mark: str) -> Sequence[Ticket]: ...

    def set_distance(self, source: str, destination: str, distance: int, *, key: str) -> None:
        """Change an existing distance; raise GridError if the two are not connected."""

    def set_link_limit(self, source: str, destination: str, limit: int | None, *, key: str) -> None: ...

    def set_availability(self, rse: str, operation: Operation, available: bool, *, key: str) -> None:  # noqa: FBT001 - Rucio's own form
        ...

    def update_rule(
        self, rule_id: str, *, priority: int | None = None, source_replica_expression: str | None = None, key: str
    ) -> None:
        """Change what is given and leave the rest; an empty `source_replica_expression` clears it."""

    def open_ticket(self, culprit: str, title: str, body: str, *, key: str) -> Ticket:
        """Open a ticket that carries `key` as its mark; if there is one with that mark already, return it."""

    def set_storage_limit(self, rse: str, direction: Direction, limit: int | None, *, key: str) -> None: ...

    def ban(self, rse: str, *, minutes: float, key: str) -> None:
        """Start nothing from or to the RSE for so long from now on; what runs goes on, and what waits keeps waiting.

        A ban that stands is replaced.
        """

    def unban(self, rse: str, *, key: str) -> None: ...

    def declare_unavailable(self, rse: str, files: Sequence[str], *, minutes: float, key: str) -> None:
        """Have the RSE's replicas of these files (scope:name) left out when sources are chosen, for so long from now on.

        Files that are not on their way from a replica at the RSE are left out; raise GridError if that is all of them.
        """

    def requeue(self, rule_id: str, *, key: str) -> None:
        """Cancel the rule's transfers, whether they wait or run, and have Rucio ask for them anew.

        Raise GridError if none is left.
        """

    def test_network(self, source_site: str, destination_site: str, *, key: str) -> NetworkTest:
        """Measure the path between two sites, which loads it for half a minute.

        Raise GridError if one of them cannot measure.
        """
