"""Who gets how much bandwidth: transfers under way share storage and network equally, each up to its own limit.

A flow's rate is the least of its own limit (TCP and disk) and of its shares of the source's reading, the destination's
writing and the path's capacity. Rates change only when a flow joins or leaves, or when a capacity changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from simulator.state import Request


@dataclass(slots=True, eq=False)
class Resource:
    """Something that flows share, in bytes a second. `share` is what each of them gets."""

    capacity: float
    members: dict[str, Flow] = field(default_factory=dict)
    share: float = 0.0

    def divide(self) -> None:
        self.share = self.capacity / max(1, len(self.members))


@dataclass(slots=True, eq=False)
class Flow:
    """A request that moves bytes now. `limit` is what it gets when it is alone."""

    request: Request
    resources: tuple[Resource, Resource, Resource]
    limit: float


class Flows:
    """All flows. `changed(request, now)` is called whenever a request has a new rate."""

    def __init__(self, changed: Callable[[Request, float], None]) -> None:
        self._changed = changed
        self._flows: dict[str, Flow] = {}

    def join(self, request: Request, resources: tuple[Resource, Resource, Resource], limit: float, now: float) -> None:
        flow = self.place(request, resources, limit)
        self._spread(flow.resources, now)

    def place(self, request: Request, resources: tuple[Resource, Resource, Resource], limit: float) -> Flow:
        """Put a flow where it stood, without a change of rates (when a state was read back)."""
        flow = self._flows[request.id] = Flow(request, resources, limit)
        for resource in resources:
            resource.members[request.id] = flow
            resource.divide()
        return flow

    def leave(self, request: Request, now: float) -> None:
        flow = self._flows.pop(request.id)
        for resource in flow.resources:
            del resource.members[request.id]
            resource.divide()
        self._spread(flow.resources, now)

    def change(self, limits: Mapping[str, float], resources: Iterable[Resource], now: float) -> None:
        """Take over new limits (by request id) and the new capacities of resources."""
        for request_id, limit in limits.items():
            self._flows[request_id].limit = limit
        for resource in resources:
            resource.divide()
        for flow in self._flows.values():
            self._set_rate(flow, now)

    def _spread(self, resources: Iterable[Resource], now: float) -> None:
        for resource in resources:
            for flow in resource.members.values():
                self._set_rate(flow, now)

    def _set_rate(self, flow: Flow, now: float) -> None:
        read, write, path = flow.resources
        rate = min(flow.limit, read.share, write.share, path.share)
        request = flow.request
        if rate == request.rate:
            return
        request.left -= request.rate * (now - request.since)
        request.since = now
        request.rate = rate
        self._changed(request, now)
