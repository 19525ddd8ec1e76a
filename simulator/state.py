"""Everything that changes in a world, as plain data: it goes to JSON and comes back equal.

Times are float seconds after the world's start. Dicts keep the order of insertion, and the physics relies on it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from simulator.faults import Fault

Stream = Literal["events", "measurements"]
Phase = Literal["QUEUED", "WAITING", "SUBMITTED"]
Due = tuple[float, int, str, str, int]  # when, order among equals, what, of what, its version
Posted = tuple[float, int, Stream, dict[str, Any]]  # when it can be read, order among equals, stream, document


@dataclass(slots=True, kw_only=True)
class File:
    """A file that a rule still has to place. `tries` counts the requests made for it."""

    number: int
    name: str
    bytes: int
    tries: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # per source


@dataclass(slots=True, kw_only=True)
class Rule:
    id: str
    activity: str
    scope: str
    dataset: str
    destination: str
    sources: list[str]
    priority: int
    expression: str | None = None
    state: Literal["REPLICATING", "OK", "STUCK"] = "REPLICATING"
    pending: int = 0
    stuck: list[File] = field(default_factory=list)
    repairs: int = 0  # version of the repair that is due


@dataclass(slots=True, kw_only=True)
class Request:
    """One attempt to place a file. `left`, `rate` and `since` are of the flow; `flow` its number, 0 before it flows."""

    id: str
    previous_id: str | None
    retries: int
    rule_id: str
    file: File
    phase: Phase = "QUEUED"
    priority: int
    queued_at: float
    source: str | None = None
    submitted_at: float = -1.0
    started_at: float = -1.0
    flow: int = 0
    left: float = 0.0
    rate: float = 0.0
    since: float = 0.0
    version: int = 0


@dataclass(slots=True, kw_only=True)
class Ticket:
    id: str
    mark: str
    culprit: str
    title: str
    body: str
    opened_at: float
    solved: bool = False


@dataclass(slots=True, kw_only=True)
class State:
    """The world at `clock`. `acts` holds every act that had its effect: its key, method and arguments."""

    clock: float = 0.0
    order: int = 0
    due: list[Due] = field(default_factory=list)
    posted: list[Posted] = field(default_factory=list)
    emitted: dict[Stream, int] = field(default_factory=lambda: {"events": 0, "measurements": 0})
    flows: int = 0
    rules: dict[str, Rule] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    queues: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)  # per link
    running: dict[str, int] = field(default_factory=dict)  # per link
    distances: dict[str, int] = field(default_factory=dict)  # those that were changed
    limits: dict[str, int] = field(default_factory=dict)
    closed: dict[str, bool] = field(default_factory=dict)  # `RSE operation` -> True
    faults: list[Fault] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    acts: dict[str, bool] = field(default_factory=dict)

    def schedule(self, at: float, what: str, subject: str, version: int = 0) -> None:
        self.order += 1
        heapq.heappush(self.due, (at, self.order, what, subject, version))

    def post(self, at: float, stream: Stream, document: dict[str, Any]) -> None:
        self.order += 1
        heapq.heappush(self.posted, (at, self.order, stream, document))


STATE = TypeAdapter(State)
