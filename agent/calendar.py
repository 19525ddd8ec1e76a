"""What is announced, as of any moment: downtimes by the lists that are configured, and the configuration's silences.

What was read last is in the ledger, too: a daemon that is started while a list cannot be read knows what was announced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from agent.sources.cric import Announced, decode
from agent.sources.downtimes import DowntimeList
from detectors.covers import Cover, Covers, within
from models.domain import Entity, SourceError
from models.events import Refusal
from models.measurements import SiteMap
from storage.ledger import Transaction

log = structlog.get_logger()

ANNOUNCED = "announced-downtimes"  # setting of the ledger: by list, what was read of it last
_KEPT_S = 7 * 86_400.0  # a downtime that is over counts for events that come late, and for those read after a pause
EVERY = timedelta(minutes=10)


@dataclass(kw_only=True)
class _Known:
    """What is known of one list."""

    covers: tuple[Cover, ...] = ()
    digest: str = ""  # of what was read last, maybe by an earlier process
    decoded: bool = False  # by this process, and so by the map of sites that it has
    asked: datetime | None = None
    failure: str = ""  # why it cannot be read now


class Calendar:
    """Reads the lists when it is time, and answers what is covered. The loop owns it; nothing that it does ends a pass."""

    def __init__(
        self,
        lists: Sequence[DowntimeList] = (),
        silences: Iterable[Cover] = (),
        *,
        every: timedelta = EVERY,
        sites: SiteMap | None = None,
    ) -> None:
        """`every`: how long what was read, or could not be, is left at that. `sites`: whose storage elements a name means."""
        self._lists = lists
        self._silences = tuple(silences)
        self._every = every
        self._sites = sites or SiteMap()
        self._known = {one.name: _Known() for one in lists}
        self._untold: list[
            tuple[str, Announced]
        ] = []  # read, and not in the ledger yet; what an earlier process read is empty
        self.covers = Covers(self._silences)

    def refresh(self, now: datetime) -> None:
        """Read again what is due. A list that cannot be read stays as it was known; that is logged when it changes."""
        for one in self._lists:
            known = self._known[one.name]
            if known.asked is not None and abs(now - known.asked) < self._every:
                continue
            known.asked = now
            try:
                document = one.read()
                digest = _digest(document, one.name)
                if digest != known.digest or not known.decoded:
                    announced = decode(document, where=one.name, sites=self._sites)
                    self._untold.append((one.name, announced if digest != known.digest else Announced()))
                    known.covers = _succeeded(known.covers, announced.covers, now.timestamp())
                    known.digest, known.decoded = digest, True
                    _log_read(one.name, announced)
            except SourceError as error:
                if str(error) != known.failure:
                    known.failure = str(error)
                    log.warning("downtimes-unreadable", error=known.failure, known=len(known.covers))
                continue
            if known.failure:
                log.info("downtimes-readable-again", list=one.name)
                known.failure = ""
        self._recall()

    def touched(self, entities: Iterable[Entity], now: datetime) -> frozenset[str]:
        """All that is in a downtime or silence at `now`, and those of the entities that lie within, each as `kind:name`."""
        standing = self.covers.standing(now.timestamp())
        inside = {str(one) for one in entities if any(within(one, cover.entity) for cover in standing)}
        return frozenset(inside | {str(cover.entity) for cover in standing})

    def record(self, tx: Transaction, now: datetime) -> None:
        """Note in the ledger what was read since the last time, and what of it was refused."""
        if not self._untold:
            return
        for name, announced in self._untold:
            tx.quarantine(name, announced.refusals, now)
            if announced.read:
                tx.count(name, {"read": announced.read})
        kept = {
            name: {"digest": known.digest, "covers": [_written(one) for one in known.covers]}
            for name, known in self._known.items()
        }
        tx.set_setting(ANNOUNCED, kept)

    def recorded(self) -> None:
        """What was noted is durable."""
        self._untold.clear()

    def restore(self, tx: Transaction) -> None:
        """Take from the ledger what this process has not read itself yet."""
        kept = tx.setting(ANNOUNCED) or {}
        for name, known in self._known.items():
            if not known.decoded and name in kept:
                known.digest = kept[name]["digest"]
                known.covers = tuple(map(_cover, kept[name]["covers"]))
        self._recall()

    def _recall(self) -> None:
        listed = (cover for known in self._known.values() for cover in known.covers)
        self.covers = Covers((*self._silences, *listed))


def _succeeded(before: Iterable[Cover], after: Sequence[Cover], now: float) -> tuple[Cover, ...]:
    """What a list says now, and what it said of the time until `now`: lists drop what is over, and what stood has had its effect.

    A downtime that has begun and is no longer listed ends now.
    """
    listed = set(after)
    past = (replace(one, end=min(one.end, now)) for one in before if one not in listed and one.start < now)
    return tuple(one for one in (*after, *past) if one.end > now - _KEPT_S)


def _digest(document: object, where: str) -> str:
    try:
        text = json.dumps(document, sort_keys=True)
    except RecursionError:
        raise SourceError(f"{where}: is nested too deeply; give CRIC's JSON, an object by site") from None
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _written(cover: Cover) -> dict[str, Any]:
    return {"entity": str(cover.entity), "start": cover.start, "end": cover.end, "why": cover.why}


def _cover(written: Mapping[str, Any]) -> Cover:
    return Cover(**{**written, "entity": Entity.parse(written["entity"])})


def _log_read(name: str, announced: Announced) -> None:
    numbers = {"covers": len(announced.covers), "passed_over": announced.passed_over}
    if announced.refusals:
        first: Refusal = announced.refusals[0]
        log.warning("downtimes-refused", list=name, refused=len(announced.refusals), first=first.detail, **numbers)
    else:
        log.info("downtimes-read", list=name, **numbers)
