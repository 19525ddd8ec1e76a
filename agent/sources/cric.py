"""Announced downtimes in the JSON form of CRIC, the grid's information system.

Its address is https://atlas-cric.cern.ch/api/core/downtime/query/?json. Four nestings of the same entries are found in
programs that read it, and all are read here: by site and by id, by site in a list, by id, and in one list. An entry is known by
its own fields; unknown ones do not matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from detectors.covers import Cover
from models.columns import clean_text
from models.domain import Entity, EntityKind, SourceError
from models.events import LONGEST_NAME, Refusal, RefusalReason, refusal
from models.measurements import SiteMap

_MARKS = frozenset(("start_time", "end_time", "severity", "classification"))  # an object with one of them is an entry
_SITE_FIELDS = ("site", "atlas_site", "rc_site", "rcsite")  # the best first: RSEs begin with the experiment's own name
_RSE_FIELDS = ("ddmendpoints", "ddmendpoint", "rses", "rse")
_DEEPEST = 3  # objects and lists around an entry
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()  # beyond it a time is an error, milliseconds for instance
_LONGEST_WHY = 200  # characters
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")

# Words by which services are known in GOCDB, OSG's topology and CRIC that neither keep nor move files. FTS does, but not of
# the site where it happens to stand. Of a service with another name it is taken that transfers need it.
_OTHER_SERVICES = frozenset(
    [
        "ce",
        "arc",
        "arex",
        "cream",
        "htcondor",
        "htcondorce",
        "batch",
        "squid",
        "frontier",
        "cvmfs",
        "bdii",
        "apel",
        "argus",
        "voms",
        "vobox",
        "myproxy",
        "perfsonar",
        "fts",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a list held."""

    covers: tuple[Cover, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    passed_over: int = 0  # downtimes that stop no transfer: of computing alone, or a mere warning
    read: int = 0  # entries, refused ones included


def decode(document: object, *, where: str, sites: SiteMap) -> Announced:
    """Read every downtime of a JSON document; one that cannot be used is refused and stops no other.

    `sites` tells which site of storage elements a name in the list means. Raise SourceError if nothing in the document is a
    downtime, as in an answer that tells of an error.
    """
    entries = list(_entries(document, ()))
    if entries and not any(isinstance(entry, dict) for _, entry in entries):
        raise SourceError(
            f"{where}: holds no downtimes (it begins with {str(document)[:60]!r}); give CRIC's JSON, an object by site"
        )
    covers: list[Cover] = []
    refusals: list[Refusal] = []
    passed_over = 0
    for keys, entry in entries:
        found = _read(keys, entry, where, sites)
        if isinstance(found, Refusal):
            refusals.append(found)
        else:
            covers += found
            passed_over += not found
    return Announced(covers=tuple(covers), refusals=tuple(refusals), passed_over=passed_over, read=len(entries))


def _entries(document: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every entry, or what stands where one should, with the keys on the way to it."""
    inner: list[tuple[str, object]]
    if isinstance(document, dict) and _MARKS.isdisjoint(document):
        inner = list(document.items())
    elif isinstance(document, list):
        inner = [(str(place), one) for place, one in enumerate(document)]
    else:
        yield keys, document
        return
    for key, one in inner:
        if len(keys) < _DEEPEST:
            yield from _entries(one, (*keys, key))
        else:
            yield (*keys, key), None


def _read(keys: tuple[str, ...], entry: object, where: str, sites: SiteMap) -> list[Cover] | Refusal:
    """What an entry covers: nothing if it stops no transfer."""
    place = repr(".".join(keys)[:_LONGEST_WHY])  # keys are anybody's
    if not isinstance(entry, dict):
        return refusal(
            RefusalReason.NOT_AN_OBJECT,
            f"{where}, {place}: no downtime stands here; give an object with start_time and end_time",
            entry,
        )
    if not _stops_transfers(entry):
        return []
    start, end = _seconds(entry.get("start_time")), _seconds(entry.get("end_time"))
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment is None:
            shown = clean_text(str(entry.get(name)))[:60]
            return refusal(
                RefusalReason.BAD_TIME,
                f"{where}, {place}: {name} {shown!r} is no time; write it as 2026-03-02T05:00:00, in UTC",
                entry,
            )
    if start is None or end is None or start >= end:
        return refusal(
            RefusalReason.ENDS_BEFORE_START, f"{where}, {place}: the downtime must end after it begins", entry
        )
    entities = _entities(keys, entry, sites)
    if not entities:
        return refusal(
            RefusalReason.NO_SITE,
            f"{where}, {place}: it names no site; set `site`, or list the entries by site",
            entry,
        )
    if not all(map(_is_name, entities)):
        return refusal(
            RefusalReason.BAD_NAME, f"{where}, {place}: its site or storage element cannot be one; correct it", entry
        )
    why = _why(entry)
    return [Cover(entity=entity, start=start, end=end, why=why) for entity in entities]


def _stops_transfers(entry: Mapping[str, Any]) -> bool:
    """Whether transfers are to be expected to fail. A site that is only at risk works, and is watched as ever."""
    severity = str(entry.get("severity") or "OUTAGE").strip().upper()
    services = [*_services(entry.get("affected_services")), *_services(entry.get("services"))]
    return severity == "OUTAGE" and (not services or any(map(_concerns_files, services)))


def _concerns_files(service: str) -> bool:
    """Whether transfers may need a service of that name.

    >>> [_concerns_files(name) for name in ("SRM", "XRootD", "ARC-CE", "org.opensciencegrid.htcondorce", "Site-BDII")]
    [True, True, False, False, False]
    """
    return _OTHER_SERVICES.isdisjoint(_BETWEEN_WORDS.split(service.casefold()))


def _services(value: object) -> list[str]:
    """The names of services: written with commas, in a list, or as objects that say their type."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if isinstance(value, dict):
        return _services(list(value.values()))
    if isinstance(value, list):
        texts = [one.get("type") or one.get("flavour") if isinstance(one, dict) else one for one in value]
        return [word for text in texts if isinstance(text, str) for word in _services(text)]
    return []


def _entities(keys: tuple[str, ...], entry: Mapping[str, Any], sites: SiteMap) -> list[Entity]:
    """The storage elements that the entry names, or else its site."""
    for name in _RSE_FIELDS:
        if rses := _names(entry.get(name)):
            return [Entity(EntityKind.RSE, rse) for rse in rses]
    outer = "" if not keys or keys[0].isdigit() else keys[0]  # an id, or a place in a list
    for found in (*(_names(entry.get(name)) for name in _SITE_FIELDS), _names(outer), _names(entry.get("name"))):
        if found:
            return [Entity(EntityKind.SITE, sites.of_site(site)) for site in found]
    return []


def _names(value: object) -> list[str]:
    """One name, a list of names or of objects with a name, or an object by name."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, (list, dict)):
        texts = [one.get("name") if isinstance(one, dict) else one for one in value]
        return list(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
    return []


def _is_name(entity: Entity) -> bool:
    name = entity.name
    return len(name) <= LONGEST_NAME and name.isprintable() and not set(name) & set("<>")


def _seconds(value: object) -> float | None:
    """A time in seconds since 1970; CRIC writes it without a zone and means UTC. None if it is no time."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = float(value) if math.isfinite(value) else -1.0
    else:
        return None
    return found if 0 <= found < _LATEST else None


def _why(entry: Mapping[str, Any]) -> str:
    """What was announced, in a line."""
    kind = str(entry.get("classification") or "announced").lower()
    number, text = entry.get("id"), entry.get("description")
    told = f"{kind} downtime{f' {number}' if number else ''}{f': {text}' if text else ''}"
    return clean_text(" ".join(told.split()))[:_LONGEST_WHY]
