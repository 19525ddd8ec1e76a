"""Events, measurements and downtimes of the simulated grid, and its clock, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import httpx

from agent.sources import EVENTS, Decoder
from models.domain import SourceError
from models.events import Page

_TIMEOUT_S = 10.0
_CURE = "start it with `gridmedic grid`, or correct the url"


class SimulatedSource:
    """One of the grid's two streams. Its cursor is `{"run", "seq"}`; in another run of a grid numbering begins anew."""

    def __init__(self, *, name: str, url: str, decoder: Decoder) -> None:
        self.name = name
        self._decoder = decoder
        self._stream = "events" if decoder is EVENTS else "measurements"
        self._client = _client(url)

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:
        seen = dict(cursor or {})
        answer = self._get(seen.get("seq", 0), limit)
        if seen.get("run", answer["run"]) != answer["run"]:
            answer = self._get(0, limit)
        documents = answer["documents"]
        rows, refusals = self._decoder.documents(documents, now=now)
        return Page(
            rows=rows,
            refusals=tuple(refusals),
            cursor={"run": answer["run"], "seq": answer["last"]},
            caught_up=answer["last"] >= answer["end"],
            read=len(documents),
        )

    def close(self) -> None:
        self._client.close()

    def _get(self, after: object, limit: int) -> Any:  # noqa: ANN401 - JSON
        return _get(self._client, f"/{self._stream}", {"after": str(after), "limit": str(limit)})


class SimulatedDowntimes:
    """What is announced in the simulated grid, in CRIC's form."""

    def __init__(self, url: str) -> None:
        self.name = f"{url.rstrip('/')}/downtimes"
        self._client = _client(url)

    def read(self) -> object:
        """Return the JSON document; raise SourceError if the grid does not answer."""
        return _get(self._client, "/downtimes", {})


class SimulatedClock:
    """Tells the grid's time when called. While the grid does not answer, its time stands still."""

    def __init__(self, url: str) -> None:
        self._client = _client(url)
        self._last: datetime | None = None

    def __call__(self) -> datetime:
        """Raise SourceError if the grid has never answered."""
        try:
            self._last = datetime.fromisoformat(_get(self._client, "/clock", {})["now"])
        except SourceError:
            if self._last is None:
                raise
        return self._last


def _client(url: str) -> httpx.Client:
    """A client that keeps no connection open between two calls and asks no proxy to reach this machine."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=_TIMEOUT_S, limits=limits, trust_env=False)


def _get(client: httpx.Client, path: str, params: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
    try:
        answer = client.get(path, params=dict(params))
        answer.raise_for_status()
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise SourceError(
            f"the simulated grid at {client.base_url} does not answer {path}: {error}; {_CURE}"
        ) from error
