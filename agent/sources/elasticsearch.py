"""Events or measurements from Elasticsearch, oldest first, with late documents found again.

A sweep pages through one point in time, sorted by the time field and, where many documents share one time, by their place in the
shard. The next sweep starts an overlap before the newest document, because documents appear later than their times say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from elastic_transport import SerializationError, TlsError, TransportError
from elastic_transport.client_utils import DEFAULT
from elasticsearch import (
    ApiError,
    AuthenticationException,
    AuthorizationException,
    BadRequestError,
    Elasticsearch,
    NotFoundError,
    UnsupportedProductError,
)

from agent.sources import Decoder
from models.domain import ConfigError, SourceError
from models.events import Page

_KEEP_ALIVE = "5m"  # of a point in time between two polls; if it is gone, the sweep goes on in a new one
_LARGEST_REQUEST = 10_000  # the server's default `max_result_window`
_TIMEOUT_S = 30.0
_OPENING_S = 5.0  # a server that does not answer must not hold up what else a pass does, nor a stop

Hit = Mapping[str, Any]


class ElasticsearchSource:
    """Documents of the indices that match `index` and that have `time_field` (a date, or epoch milliseconds).

    The cursor is JSON: the newest time that was read, and where the sweep that is under way stands. A document of the
    overlap that this process has delivered already is not delivered again while the cursors that come in are those that went
    out; after a restart or an error it is, and the durable keys of `models.events` tell it from a new one.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str | Sequence[str],
        index: str,
        time_field: str,
        decoder: Decoder,
        overlap: timedelta = timedelta(minutes=10),
        lookback: timedelta | None = None,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: str | None = None,
    ) -> None:
        """`lookback`: how far before `now` the first poll of all starts; None: at the oldest document.

        Nothing is sent before the first poll. Raise ConfigError if a URL or a file of certificates cannot be one.
        """
        urls = [url] if isinstance(url, str) else list(url)
        self.name = name
        self._shown = f"{', '.join(urls)} (index {index!r})"
        self._index = index
        self._time_field = time_field
        self._decoder = decoder
        self._overlap = int(overlap.total_seconds() * 1000)
        self._lookback = lookback
        self._delivered = _Delivered()
        if any("@" in address for address in urls):
            raise ConfigError(f"source {name!r}: a URL holds credentials; give them by the environment")
        if ca_certs is not None and not Path(ca_certs).is_file():
            raise ConfigError(f"source {name!r}: there is no file of certificates {ca_certs!r}; correct ca_certs")
        try:
            self._client = Elasticsearch(
                urls,
                request_timeout=_TIMEOUT_S,
                max_retries=2,
                api_key=api_key,
                basic_auth=basic_auth,
                ca_certs=DEFAULT if ca_certs is None else ca_certs,
            )
        except (ValueError, OSError) as error:
            raise ConfigError(f"source {name!r}: {self._shown} cannot be used: {error}") from error

    def poll(self, cursor: Mapping[str, object] | None, *, limit: int, now: datetime) -> Page:
        """Return at most `limit` documents, in the order of their times; raise SourceError with the URL and the cure."""
        place = _Place.of(cursor, start=self._start(now))
        if not self._delivered.fit(place.poll):
            self._delivered = _Delivered()
        with self._errors():
            hits, place = self._sweep(place, limit=limit, latest=int(now.timestamp() * 1000))
        place = replace(place, poll=place.poll + 1)
        self._delivered.add(hits, since=max(place.newest, place.at) - self._overlap, poll=place.poll)
        rows, refusals = self._decoder.documents([hit.get("_source") for hit in hits], now=now)
        return Page(
            rows=rows, refusals=tuple(refusals), cursor=place.cursor(), caught_up=place.pit is None, read=len(hits)
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _start(self, now: datetime) -> int:
        return 0 if self._lookback is None else int((now - self._lookback).timestamp() * 1000)

    def _sweep(self, place: _Place, *, limit: int, latest: int) -> tuple[list[Hit], _Place]:
        """Documents that were not delivered, and the place after them; `pit` is None there if the sweep has ended."""
        resumed = place.pit is not None
        if not resumed:
            place = replace(place, pit=self._open(), at=max(0, place.newest - self._overlap))
        fresh: list[Hit] = []
        while True:
            size = min(_LARGEST_REQUEST, max(limit, 1000))
            try:
                pit, hits = self._search(place, size)
            except ApiError:
                if not resumed:
                    raise
                place, resumed = place.reopened(self._open()), False  # the point in time is gone
                continue
            resumed = False
            taken = 0
            for hit, known in zip(hits, self._delivered.holds(hits), strict=True):
                if len(fresh) == limit:
                    break
                taken += 1
                if not known:
                    fresh.append(hit)
            place = replace(place, pit=pit)
            if taken:
                place = place.after_hit(hits[taken - 1], latest=latest)
            if taken == len(hits) < size:
                self._close(pit)
                return fresh, place.ended()
            if len(fresh) == limit:
                return fresh, place

    def _open(self) -> str:
        client = self._client.options(request_timeout=_OPENING_S)
        opened = client.open_point_in_time(index=self._index, keep_alive=_KEEP_ALIVE)
        if opened["_shards"]["total"] == 0:
            raise SourceError(
                f"{self._shown}: there is no index of this name; correct the pattern, or create the index"
            )
        return str(opened["id"])

    def _close(self, pit: str) -> None:
        with suppress(ApiError, TransportError):  # it expires by itself
            self._client.close_point_in_time(id=pit)

    def _search(self, place: _Place, size: int) -> tuple[str, list[Hit]]:
        found = self._client.search(
            pit={"id": place.pit, "keep_alive": _KEEP_ALIVE},
            size=size,
            query={"range": {self._time_field: {"gte": place.at, "format": "epoch_millis"}}},
            sort=[{self._time_field: {"order": "asc", "numeric_type": "date"}}, {"_shard_doc": "asc"}],
            search_after=list(place.after) if place.after else None,
            track_total_hits=False,
            allow_partial_search_results=False,
        )
        return str(found["pit_id"]), found["hits"]["hits"]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ApiError, TransportError) as error:
            raise SourceError(f"{self._shown}: {self._cure(error)}") from error

    def _cure(self, error: ApiError | TransportError) -> str:
        said = str(error)[:300]
        match error:
            case AuthenticationException() | AuthorizationException():
                return f"refuses us ({said}); set the credentials in the environment, with the right to read the index"
            case UnsupportedProductError() | SerializationError() | ApiError(body=str()):
                return f"what answers is no Elasticsearch, or a proxy before it ({said}); correct the URL"
            case NotFoundError():
                return f"there is no such index ({said}); correct its name, or create it"
            case BadRequestError():
                return (
                    f"refuses the search ({said}); is {self._time_field!r} a date in this index? name the field that is"
                )
            case TlsError():
                return f"no secure connection ({said}); correct http or https, or name its certificates in ca_certs"
            case TransportError():
                return f"does not answer ({said}); check that it runs and that the URL is right"
        return f"answers with an error ({said}); look into the server's log"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the reading stands; times in epoch milliseconds."""

    newest: int  # everything up to here was read by the sweeps that have ended
    at: int  # where the sweep that is under way started or started anew, then the time of its last document
    again: int | None = None  # where a point in time was lost: late documents since then are for the next sweep
    pit: str | None = None
    after: tuple[int, ...] = ()
    poll: int = 0

    @classmethod
    def of(cls, cursor: Mapping[str, Any] | None, *, start: int) -> _Place:
        if cursor is None:
            return cls(newest=start, at=start)
        return cls(**{**cursor, "after": tuple(cursor["after"])})

    def cursor(self) -> dict[str, object]:
        return {
            "newest": self.newest,
            "at": self.at,
            "again": self.again,
            "pit": self.pit,
            "after": list(self.after),
            "poll": self.poll,
        }

    def reopened(self, pit: str) -> _Place:
        again = self.at if self.again is None else min(self.at, self.again)
        return replace(self, pit=pit, after=(), again=again)

    def after_hit(self, hit: Hit, *, latest: int) -> _Place:
        """A document from the future moves nothing beyond `latest`: what comes before it must still be read."""
        after = tuple(hit["sort"])
        return replace(self, at=min(after[0], latest), after=after)

    def ended(self) -> _Place:
        newest = max(self.newest, self.at)
        newest = newest if self.again is None else min(newest, self.again)
        return _Place(newest=newest, at=newest, poll=self.poll)


class _Delivered:
    """Which documents of the overlap went out, as sorted hashes; valid for the cursor that went out with the last of them."""

    def __init__(self) -> None:
        self._poll: int | None = None
        self._keys = np.empty(0, dtype=np.uint64)
        self._times = np.empty(0, dtype=np.int64)

    def fit(self, poll: int) -> bool:
        return self._poll == poll

    def holds(self, hits: Sequence[Hit]) -> npt.NDArray[np.bool_]:
        keys = _hashes(hits)
        place = np.searchsorted(self._keys, keys)
        inside = place < len(self._keys)
        held = np.zeros(len(keys), dtype=np.bool_)
        held[inside] = self._keys[place[inside]] == keys[inside]
        return held

    def add(self, hits: Sequence[Hit], *, since: int, poll: int) -> None:
        keys = np.concatenate([self._keys, _hashes(hits)])
        times = np.concatenate([self._times, np.array([hit["sort"][0] for hit in hits], dtype=np.int64)])
        kept = np.flatnonzero(times >= since)
        order = kept[np.argsort(keys[kept], kind="stable")]
        self._keys, self._times, self._poll = keys[order], times[order], poll


def _hashes(hits: Sequence[Hit]) -> npt.NDArray[np.uint64]:
    names = np.array([f"{hit['_index']}/{hit['_id']}" for hit in hits], dtype=object)
    return pd.util.hash_array(names, categorize=False)
