"""The life of a transfer: a source is chosen, FTS queues it, the doors open, bytes flow, it ends, and may be tried again."""

from __future__ import annotations

import heapq
import math

from simulator import errors
from simulator.documents import Documents
from simulator.draws import Draws, For
from simulator.expressions import matching
from simulator.faults import Conditions
from simulator.flows import Flows, Resource
from simulator.state import File, Request, Rule, State
from simulator.topology import Path, Storage, Topology, tcp_limit

OPTIMIZED = 12  # transfers that FTS's optimizer runs on a link at once
RETRIES = 3
HOUR = 3600.0
_PATIENCE = 24 * HOUR  # how long a request waits for a source or a destination
_HICCUP = 0.04  # share of transfers that a busy door keeps waiting
_MISHAP = 0.004  # share that fails on a grid that is well
_MIB = 1 << 20


class Conveyor:
    """Moves requests through their phases; `now` is seconds after the world's start throughout."""

    def __init__(self, *, topology: Topology, draws: Draws, state: State, documents: Documents) -> None:
        self._topology = topology
        self._draws = draws
        self._state = state
        self._documents = documents
        self._conditions = Conditions(())
        self._read = {name: Resource(storage.read) for name, storage in topology.storages.items()}
        self._write = {name: Resource(storage.write) for name, storage in topology.storages.items()}
        self._paths = {sites: Resource(path.capacity) for sites, path in topology.paths.items()}
        self._selected: dict[str, frozenset[str]] = {}
        self._flows = Flows(self._expect)

    def resume(self, conditions: Conditions) -> None:
        """Put the flows of a state that was read back where they were."""
        self._set(conditions)
        for request in sorted((r for r in self._state.requests.values() if r.flow), key=lambda r: r.flow):
            self._flows.place(request, self._resources(request), self._limit(request))

    def change(self, conditions: Conditions, now: float) -> None:
        """Faults began or ended."""
        self._set(conditions)
        limits = {r.id: self._limit(r) for r in self._state.requests.values() if r.flow}
        self._flows.change(limits, (*self._read.values(), *self._write.values()), now)

    def request(self, rule: Rule, file: File, now: float, after: Request | None = None) -> None:
        """Ask for a file, for the first time or `after` a request that failed."""
        request = Request(
            id=self._draws.hex(For.REQUEST, file.number, file.tries),
            previous_id=after.id if after else None,
            retries=after.retries + 1 if after else 0,
            rule_id=rule.id,
            file=file,
            priority=rule.priority,
            queued_at=now,
        )
        file.tries += 1
        self._state.requests[request.id] = request
        self._documents.waits(rule, request, now)
        pause = self._draws.exponential(120.0 if after else 20.0, For.REQUEST, file.number, file.tries, 1)
        self._state.schedule(now + 2.0 + pause, "submit", request.id)

    def submit(self, request_id: str, _: int, now: float) -> None:
        """Choose a source and hand the request to FTS; or wait, and look again in five minutes."""
        state, request = self._state, self._state.requests[request_id]
        rule = state.rules[request.rule_id]
        source = None if f"{rule.destination} write" in state.closed else self._source(rule, request.file)
        if source is None:
            if now - request.queued_at > _PATIENCE:
                self._give_up(rule, request, now)
                return
            if request.phase != "WAITING":
                request.phase = "WAITING"
                self._documents.waits(rule, request, now)
            state.schedule(now + 300.0, "submit", request_id)
            return
        request.phase, request.source, request.submitted_at, request.priority = "SUBMITTED", source, now, rule.priority
        self._documents.submitted(rule, request, now)
        file = request.file
        state.schedule(
            now + self._draws.lognormal(15.0, 1.5, For.REQUEST, file.number, file.tries, 2), "ready", request_id
        )

    def ready(self, request_id: str, _: int, now: float) -> None:
        """FTS's scheduler has seen it: it stands in its link's queue."""
        state, request = self._state, self._state.requests[request_id]
        link = self._link(request)
        state.order += 1
        heapq.heappush(state.queues.setdefault(link, []), (-request.priority, state.order, request_id))
        self.dispatch(link, now)

    def dispatch(self, link: str, now: float) -> None:
        """Start what the link's limit allows."""
        state, queue = self._state, self._state.queues.get(link, [])
        while queue and state.running.get(link, 0) < state.limits.get(link, OPTIMIZED):
            request = state.requests[heapq.heappop(queue)[2]]
            state.running[link] = state.running.get(link, 0) + 1
            request.started_at = now
            state.schedule(now + self._overhead(request), "begin", request.id)

    def reorder(self, rule: Rule) -> None:
        """Give the rule's queued requests its priority."""
        requests = self._state.requests
        for request in requests.values():
            if request.rule_id == rule.id:
                request.priority = rule.priority
        for queue in self._state.queues.values():
            queue[:] = [(-requests[request_id].priority, order, request_id) for _, order, request_id in queue]
            heapq.heapify(queue)

    def begin(self, request_id: str, _: int, now: float) -> None:
        """The doors have answered: the bytes flow, or it has failed."""
        request = self._state.requests[request_id]
        reason = self._failure(request)
        if reason:
            self._end(request, now, reason)
            return
        self._state.flows += 1
        request.flow, request.left, request.since = self._state.flows, float(request.file.bytes), now
        self._flows.join(request, self._resources(request), self._limit(request), now)

    def end(self, request_id: str, version: int, now: float) -> None:
        """All bytes are there, or FTS's timeout has passed."""
        request = self._state.requests.get(request_id)
        if request is None or request.version != version:
            return
        left = request.left - request.rate * (now - request.since)
        self._flows.leave(request, now)
        self._end(request, now, errors.TIMED_OUT if left > 1.0 + 1e-6 * request.file.bytes else "")

    def repair(self, rule_id: str, version: int, now: float) -> None:
        """Rucio looks at a stuck rule again."""
        rule = self._state.rules[rule_id]
        if rule.repairs != version or not rule.stuck:
            return
        files, rule.stuck, rule.state = rule.stuck, [], "REPLICATING"
        for file in files:
            file.failures.clear()
            self.request(rule, file, now)

    def look_again(self, rule: Rule, now: float) -> None:
        """Have Rucio look at the rule within minutes if it is stuck: someone has touched it."""
        if rule.stuck:
            rule.repairs += 1
            self._state.schedule(now + 180.0, "repair", rule.id, rule.repairs)

    def _source(self, rule: Rule, file: File) -> str | None:
        """Rucio's choice: what failed least for this file, then the least distance, then luck."""
        state, best, found = self._state, (0, 0, 0), None
        allowed = self._allowed(rule.expression)
        for place, source in enumerate(rule.sources):
            link = f"{source}>{rule.destination}"
            distance = state.distances.get(link) or self._topology.distances.get(link)
            if distance is None or f"{source} read" in state.closed or (allowed is not None and source not in allowed):
                continue
            rank = (file.failures.get(source, 0), distance, self._draws.bits(For.FILE, file.number, 9, place))
            if found is None or rank < best:
                best, found = rank, source
        return found

    def _allowed(self, expression: str | None) -> frozenset[str] | None:
        if expression is None:
            return None
        if expression not in self._selected:
            self._selected[expression] = matching(expression, self._topology.storages)
        return self._selected[expression]

    def _overhead(self, request: Request) -> float:
        source, destination, path = self._ends(request)
        doors = sum(s.overhead_s * self._conditions.storage(s.name).slowness for s in (source, destination))
        name = (For.REQUEST, request.file.number, request.file.tries)
        spread = self._draws.lognormal(1.0, 0.6, *name, 3)
        if self._draws.uniform(*name, 4) < _HICCUP:
            spread *= self._draws.lognormal(12.0, 0.9, *name, 5)
        loss = self._conditions.loss(path.source, path.destination, path.loss)
        return doors * spread + 15 * path.rtt_s + 100 * loss  # about a hundred packets, each lost one costs a second

    def _failure(self, request: Request) -> str:
        """Why it fails before a byte flows; "" where it does not."""
        source, destination, _ = self._ends(request)
        well, draws = self._conditions.storage, self._draws
        name = (For.REQUEST, request.file.number, request.file.tries)
        if draws.uniform(*name, 6) < well(source.name).refuses:
            return errors.source_refuses(source)
        if draws.uniform(*name, 7) < well(destination.name).refuses:
            return errors.destination_refuses(destination, self._topology.fts[destination.site])
        if draws.uniform(*name, 8) < well(destination.name).full:
            return errors.disk_full(destination)
        for side, storage in (("SOURCE", source), ("DESTINATION", destination)):
            most = well(storage.name).connections or storage.connections
            if len(self._read[storage.name].members) + len(self._write[storage.name].members) >= most:
                return errors.door_busy(side)
        if draws.uniform(*name, 9) < _MISHAP:
            return errors.mishaps(source, destination)[draws.bits(*name, 10) % 6]
        return ""

    def _limit(self, request: Request) -> float:
        """Bytes a second that the transfer gets when it is alone."""
        source, destination, path = self._ends(request)
        loss = self._conditions.loss(path.source, path.destination, path.loss)
        return min(
            source.stream * self._conditions.storage(source.name).read,
            destination.stream * self._conditions.storage(destination.name).write,
            tcp_limit(path, loss),
        )

    def _resources(self, request: Request) -> tuple[Resource, Resource, Resource]:
        source, destination, path = self._ends(request)
        return self._read[source.name], self._write[destination.name], self._paths[path.source, path.destination]

    def _expect(self, request: Request, now: float) -> None:
        request.version += 1
        deadline = request.started_at + 600.0 + 2.0 * request.file.bytes / _MIB  # FTS's own timeout
        at = max(now, min(now + request.left / request.rate, deadline))
        self._state.schedule(at, "end", request.id, request.version)

    def _end(self, request: Request, now: float, reason: str) -> None:
        state, file, link = self._state, request.file, self._link(request)
        rule = state.rules[request.rule_id]
        self._documents.ended(rule, request, now, reason)
        del state.requests[request.id]
        state.running[link] -= 1
        self.dispatch(link, now)
        if not reason:
            rule.pending -= 1
            if not rule.pending:
                rule.state = "OK"
                state.schedule(now + 6 * HOUR, "forget", rule.id)
            return
        source = request.source or ""
        file.failures[source] = file.failures.get(source, 0) + 1
        if request.retries < RETRIES:
            finished = now + self._draws.between(20, 90, For.REQUEST, file.number, file.tries, 11)
            self.request(rule, file, finished, after=request)
        else:
            self._stick(rule, file, now)

    def _give_up(self, rule: Rule, request: Request, now: float) -> None:
        del self._state.requests[request.id]
        self._stick(rule, request.file, now)

    def _stick(self, rule: Rule, file: File, now: float) -> None:
        rule.state = "STUCK"
        rule.stuck.append(file)
        if len(rule.stuck) == 1:
            pause = self._draws.between(HOUR, 3 * HOUR, For.REQUEST, file.number, file.tries, 12)
            self._state.schedule(now + pause, "repair", rule.id, rule.repairs)

    def _set(self, conditions: Conditions) -> None:
        self._conditions = conditions
        for name, storage in self._topology.storages.items():  # many slow files together lose less than each of them
            self._read[name].capacity = storage.read * math.sqrt(conditions.storage(name).read)
            self._write[name].capacity = storage.write * math.sqrt(conditions.storage(name).write)

    def _ends(self, request: Request) -> tuple[Storage, Storage, Path]:
        source = self._topology.storages[request.source or ""]
        destination = self._topology.storages[self._state.rules[request.rule_id].destination]
        return source, destination, self._topology.paths[source.site, destination.site]

    def _link(self, request: Request) -> str:
        return f"{request.source}>{self._state.rules[request.rule_id].destination}"
