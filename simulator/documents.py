"""Rucio's messages about transfers and deletions, as `hermes` delivers them: late, now and then out of order or twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from simulator.draws import Draws, For
from simulator.state import File, Request, Rule, State
from simulator.topology import Storage, Topology

_PORTS = {"davs": 443, "gsiftp": 2811, "srm": 8446}
_OFTEN_LATE = 0.02  # share of documents that the index shows minutes later
_TWICE = 0.005  # share that it shows twice
_TYPES = ("transfer-queued", "transfer-waiting", "transfer-submitted", "transfer-done", "transfer-failed")
_DELETIONS = ("deletion-planned", "deletion-done", "deletion-failed")


class Documents:
    """Writes each message and posts it for when it can be read. `now` is seconds after the world's start."""

    def __init__(self, *, topology: Topology, draws: Draws, state: State, start: datetime) -> None:
        self._topology = topology
        self._draws = draws
        self._state = state
        self._start = start.astimezone(UTC).replace(tzinfo=None)  # Rucio writes UTC without saying so
        self._ids = {name: draws.hex(For.TOPOLOGY, 9999, i) for i, name in enumerate(topology.storages)}

    def waits(self, rule: Rule, request: Request, now: float) -> None:
        """A request was made (QUEUED), or has no source or destination that may be used (WAITING)."""
        payload = self._request(rule, request) | {"state": request.phase, "rule-id": rule.id}
        self._post(f"transfer-{request.phase.lower()}", payload, now, request)

    def submitted(self, rule: Rule, request: Request, now: float) -> None:
        source = self._topology.storages[request.source or ""]
        payload = self._request(rule, request) | {
            "state": "SUBMITTED",
            "src-rse": source.name,
            "src-rse-id": self._ids[source.name],
            "external-id": _uuid(request.id),
            "external-host": self._endpoint(rule),
            "datatype": rule.dataset.split(".")[-1],
        }
        self._post("transfer-submitted", payload, now, request)

    def ended(self, rule: Rule, request: Request, now: float, reason: str) -> None:
        """Done, or failed where there is a reason."""
        source = self._topology.storages[request.source or ""]
        destination = self._topology.storages[rule.destination]
        file, endpoint, job = request.file, self._endpoint(rule), _uuid(request.id)
        payload = {
            "activity": rule.activity,
            "request-id": request.id,
            "previous-request-id": request.previous_id,
            "duration": int(now) - int(request.started_at),
            "checksum-adler": request.id[:8],
            "checksum-md5": None,
            "file-size": file.bytes,
            "bytes": file.bytes,
            "guid": None,
            "protocol": destination.protocol,
            "scope": rule.scope,
            "name": file.name,
            "dataset": rule.dataset,
            "datasetScope": rule.scope,
            "src-type": source.kind,
            "src-rse": source.name,
            "src-url": _url(source, rule.scope, file.name, file.number),
            "dst-type": destination.kind,
            "dst-rse": destination.name,
            "dst-url": _url(destination, rule.scope, file.name, file.number),
            "reason": reason,
            "transfer-endpoint": endpoint,
            "transfer-id": job,
            "transfer-link": f"{endpoint}/fts3/ftsmon/#/job/{job}",
            "created_at": self._time(request.queued_at),
            "submitted_at": self._time(request.submitted_at),
            "started_at": self._time(request.started_at),
            "transferred_at": self._time(now),
            "tool-id": "rucio-conveyor",
            "account": None,
            "datatype": rule.dataset.split(".")[-1],
        }
        polled = now + self._draws.between(3, 45, For.DELIVERY, file.number, file.tries, 10)
        self._post("transfer-failed" if reason else "transfer-done", payload, polled, request)

    def deletion(
        self, number: int, step: str, storage: Storage, file: File, scope: str, now: float, reason: str
    ) -> None:
        """`step` is planned, done or failed; `number` names the deletion."""
        payload = {
            "scope": scope,
            "name": file.name,
            "rse": storage.name,
            "file-size": file.bytes,
            "bytes": file.bytes,
            "url": _url(storage, scope, file.name, file.number),
            "protocol": storage.protocol,
            "datatype": file.name.split(".")[0],
        }
        if step == "done":
            payload["duration"] = self._draws.lognormal(0.2, 1.0, For.DELETION, number, 5)
        elif step == "failed":
            payload["reason"] = reason
        event_type = f"deletion-{step}"
        self._deliver(event_type, payload, now, (2, number, 0, _DELETIONS.index(event_type)))

    def _request(self, rule: Rule, request: Request) -> dict[str, Any]:
        return {
            "request-id": request.id,
            "request-type": "transfer",
            "scope": rule.scope,
            "name": request.file.name,
            "dst-rse-id": self._ids[rule.destination],
            "dst-rse": rule.destination,
            "retry-count": request.retries or None,
            "activity": rule.activity,
            "file-size": request.file.bytes,
            "bytes": request.file.bytes,
            "checksum-md5": None,
            "checksum-adler": request.id[:8],
            "queued_at": str(self._start + timedelta(seconds=request.queued_at)),
        }

    def _post(self, event_type: str, payload: dict[str, Any], at: float, request: Request) -> None:
        self._deliver(event_type, payload, at, (1, request.file.number, request.file.tries, _TYPES.index(event_type)))

    def _deliver(self, event_type: str, payload: dict[str, Any], at: float, name: tuple[int, ...]) -> None:
        draw, state = self._draws, self._state
        created = at + draw.exponential(2.0, For.DELIVERY, *name, 1)
        readable = created + draw.exponential(3.0, For.DELIVERY, *name, 2)
        luck = draw.uniform(For.DELIVERY, *name, 3)
        if luck < _OFTEN_LATE:
            readable += 60 + draw.exponential(120.0, For.DELIVERY, *name, 4)
        document = {"event_type": event_type, "payload": payload, "created_at": self._time(created)}
        state.post(readable, "events", document)
        if luck > 1 - _TWICE:
            state.post(readable + draw.exponential(60.0, For.DELIVERY, *name, 4), "events", document)

    def _time(self, at: float) -> str:
        return str(self._start + timedelta(seconds=int(at)))

    def _endpoint(self, rule: Rule) -> str:
        return f"https://{self._topology.fts[self._topology.storages[rule.destination].site]}:8446"


def _url(storage: Storage, scope: str, name: str, number: int) -> str:
    place = storage.name.rpartition("_")[2].lower()
    path = f"atlas{place}/rucio/{scope.replace('.', '/')}/{number % 251:02x}/{number % 241:02x}/{name}"
    door = "/srm/managerv2?SFN=" if storage.protocol == "srm" else ""
    return f"{storage.protocol}://{storage.host}:{_PORTS[storage.protocol]}{door}/pnfs/{path}"


def _uuid(request_id: str) -> str:
    job = request_id[::-1]
    return f"{job[:8]}-{job[8:12]}-5{job[13:16]}-a{job[17:20]}-{job[20:]}"
