"""Where announced downtimes are read: a file, or an address over HTTP."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol

import httpx

from models.domain import SourceError

_TIMEOUT_S = 10.0  # without a byte
_DEADLINE_S = 30.0  # of the whole answer: the loop waits for it
_LARGEST = 64 * 1024 * 1024  # bytes; CRIC's list of the whole grid is below one


class DowntimeList(Protocol):
    """A list of announced downtimes, in CRIC's JSON form."""

    name: str  # the file or the address; the ledger knows it by that

    def read(self) -> object:
        """Return the JSON document as it is now; raise SourceError if it cannot be had, with what to do."""


class DowntimesFile:
    """A list in a file, which others may replace at any time."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read(self) -> object:
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise SourceError(
                f"{self.name}: cannot be read ({error.strerror}); fetch CRIC's list into it, or correct downtimes.lists"
            ) from error
        return _parsed(content, self.name)


class DowntimesUrl:
    """A list at an address. Authorities, proxies and the like are taken from the environment, as SSL_CERT_FILE is."""

    def __init__(self, url: str) -> None:
        self.name = url

    def read(self) -> object:
        try:
            with httpx.stream("GET", self.name, timeout=_TIMEOUT_S, follow_redirects=True) as answer:
                answer.raise_for_status()
                content = self._content(answer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # OSError: SSL_CERT_FILE names no certificates
            told = str(error).partition("\n")[0] or type(error).__name__
            raise SourceError(
                f"{self.name}: cannot be fetched ({told}); correct downtimes.lists, or fetch it into a file by other means"
            ) from error
        return _parsed(content, self.name)

    def _content(self, answer: httpx.Response) -> bytes:
        until, content = time.monotonic() + _DEADLINE_S, bytearray()
        for part in answer.iter_bytes():
            content += part
            if len(content) > _LARGEST or time.monotonic() > until:
                raise SourceError(
                    f"{self.name}: its answer takes more than {_DEADLINE_S:.0f} s or {_LARGEST >> 20} MiB; ask for less"
                )
        return bytes(content)


def _parsed(content: bytes, where: str) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # a ValueError also where it is not UTF-8
        raise SourceError(
            f"{where}: is not JSON (it begins with {content[:40]!r}: {error}); ask CRIC for its JSON, by ?json"
        ) from error
