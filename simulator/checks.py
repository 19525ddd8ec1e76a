"""What a scenario says that no grid can do: names that do not exist, faults that cannot strike there, times that run backwards.

Each entry is looked at with those of its keys that make sense by themselves, so that one mistake does not hide the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from simulator.activities import ACTIVITIES
from simulator.faults import NATURES, DisturbanceKind, FaultKind, Target
from simulator.schema import ANYTHING, DisturbanceEntry, FaultEntry, GridSize, Outbreaks, Section, is_open, nearest
from simulator.topology import MOST_SITES, MOST_SPACES, Topology, build

Parts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One of a list: `given` as it stands there, `sound` what of it makes sense."""

    path: str
    given: Parts
    sound: Parts


def impossible(content: Parts) -> Iterator[str]:
    """One line for each problem, with its key path. `content` need not be sound otherwise."""
    topology = _topology(content.get("grid"))
    faults = _entries("faults", FaultEntry, content)
    disturbances = _entries("disturbances", DisturbanceEntry, content)
    yield from _size(_sound(GridSize, content.get("grid")))
    for entry in faults:
        yield from _times(entry)
        yield from _strength(entry)
        yield from _culprit(entry, topology)
    for entry in disturbances:
        yield from _times(entry)
        yield from _where(entry, topology)
    yield from _overlaps(faults, "culprit")
    yield from _overlaps(disturbances, "where")
    yield from _outbreaks(_sound(Outbreaks, content.get("outbreaks")), topology)


def _sound(section: type[Section], given: object) -> Parts:
    """Those keys of the section whose values are sound, with these values."""
    found: dict[str, Any] = {}
    if not isinstance(given, Mapping):
        return found
    for name, field in section.model_fields.items():
        if name in given:
            kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            with contextlib.suppress(ValidationError):
                found[name] = TypeAdapter(kind).validate_python(given[name], strict=True)
    return found


def _entries(key: str, section: type[Section], content: Parts) -> list[_Entry]:
    listed = content.get(key)
    return [
        _Entry(path=f"{key}.{place}", given=given, sound=_sound(section, given))
        for place, given in enumerate(listed if isinstance(listed, list) else ())
        if isinstance(given, Mapping)
    ]


def _topology(given: object) -> Topology:
    """The grid that is meant; where its size makes no sense, the largest."""
    sound = _sound(GridSize, given)
    if given is None or (isinstance(given, Mapping) and all(key in sound for key in ("sites", "rses") if key in given)):
        with contextlib.suppress(ValueError):
            return build(sites=sound.get("sites", GridSize().sites), rses=sound.get("rses"), capacity=1.0, seed=0)
    return build(sites=MOST_SITES, rses=MOST_SITES * MOST_SPACES, capacity=1.0, seed=0)


def _size(grid: Parts) -> Iterator[str]:
    sites, rses = grid.get("sites", GridSize().sites), grid.get("rses")
    if rses is not None and not sites <= rses <= sites * MOST_SPACES:
        yield f"grid.rses: {sites} sites have {sites} to {sites * MOST_SPACES} storage elements (it is {rses!r})"


def _times(entry: _Entry) -> Iterator[str]:
    start, end = entry.sound.get("start"), entry.sound.get("end")
    if "duration" in entry.given and "end" in entry.given:
        yield f"{entry.path}.end: the duration is given too; leave one of them out"
    elif "duration" not in entry.given and "end" not in entry.given:
        yield f"{entry.path}.duration: say how long it lasts, or with `end` when it ends"
    elif start is not None and end is not None and end <= start:
        yield f"{entry.path}.end: it ends at {end:g} s, which is not after its start at {start:g} s"
    every, lasts = entry.sound.get("every"), _lasts(entry)
    if every is not None and lasts is not None and every < lasts:
        yield f"{entry.path}.every: it lasts {lasts:g} s and comes again after {every:g} s"


def _lasts(entry: _Entry) -> float | None:
    if "duration" in entry.sound:
        return float(entry.sound["duration"])
    return float(entry.sound["end"] - entry.sound["start"]) if {"start", "end"} <= entry.sound.keys() else None


def _strength(entry: _Entry) -> Iterator[str]:
    kind, strength = entry.sound.get("kind"), entry.sound.get("strength")
    if kind is None or strength is None:
        return
    nature = NATURES[kind]
    if not nature.low <= strength <= nature.high:
        bounds = f"{nature.low:g} to {nature.high:g}"
        yield f"{entry.path}.strength: of {kind} it is the {nature.means}, from {bounds} (it is {strength!r})"


def _culprit(entry: _Entry, topology: Topology) -> Iterator[str]:
    culprit, kind = entry.sound.get("culprit"), entry.sound.get("kind")
    if culprit is None:
        return
    path, (what, _, name) = f"{entry.path}.culprit", culprit.partition(":")
    if what not in ANYTHING or not name:
        yield f"{path}: a culprit is rse:NAME, network:SITE>SITE, site:NAME or fts:HOST (it is {culprit!r})"
        return
    if kind is not None and what != NATURES[kind].target:
        yield f"{path}: {kind} strikes {_FORMS[NATURES[kind].target]}, not {culprit!r}"
        return
    unknown = list(_unknown(what, name, topology, path))
    yield from unknown
    if kind is FaultKind.TAPE_SLOW and not unknown and not _is_tape(name, topology):
        yield f"{path}: {kind} strikes a tape robot, which {name!r} has not"


def _is_tape(name: str, topology: Topology) -> bool:
    return name != "any-disk" and (name in ANYTHING[Target.RSE] or bool(topology.tape[topology.rse(name)]))


_FORMS = {
    Target.RSE: "a storage element, rse:NAME",
    Target.NETWORK: "a path, network:SITE>SITE",
    Target.SITE: "a site, site:NAME",
    Target.FTS: "an FTS server, fts:HOST",
}
_KNOWN = {
    Target.RSE: ("rses", "RSE"),
    Target.NETWORK: ("sites", "site"),
    Target.SITE: ("sites", "site"),
    Target.FTS: ("fts", "FTS server"),
}


def _unknown(what: str, name: str, topology: Topology, path: str) -> Iterator[str]:
    """What is wrong with a name, or with a word for what the seed may choose from."""
    if name in ANYTHING[what]:
        if name == "any-tape" and not topology.tape.any():
            yield f"{path}: there is no tape in this grid (it is '{what}:{name}')"
        return
    known, called = _KNOWN[Target(what)]
    names: tuple[str, ...] = getattr(topology, known)
    ends = name.split(">") if what == Target.NETWORK else [name]
    if what == Target.NETWORK and (len(ends) != 2 or ends[0] == ends[1]):
        yield f"{path}: a path leads from one site to another, network:SITE>SITE (it is {name!r})"
        return
    for end in ends:
        if end not in names:
            words = [*names, *ANYTHING[what]] if len(ends) == 1 else names
            yield f"{path}: there is no {called} {end!r} in this grid{nearest(end, words)}"


def _where(entry: _Entry, topology: Topology) -> Iterator[str]:
    where, kind, path = entry.sound.get("where", ""), entry.sound.get("kind"), f"{entry.path}.where"
    what, _, name = where.partition(":")
    if not where:
        if kind is DisturbanceKind.DOWNTIME:
            yield f"{path}: name what is down: rse:NAME or site:NAME"
    elif what == "activity":
        known = [each.name for each in ACTIVITIES]
        if kind is DisturbanceKind.DOWNTIME:
            yield f"{path}: a downtime is of rse:NAME or site:NAME (it is {where!r})"
        elif name not in known:
            yield f"{path}: there is no activity {name!r}{nearest(name, known)}"
    elif what in {Target.RSE, Target.SITE} and name:
        yield from _unknown(what, name, topology, path)
    else:
        yield f"{path}: it is empty, site:NAME, rse:NAME or activity:NAME (it is {where!r})"


def _overlaps(entries: list[_Entry], where: str) -> Iterator[str]:
    """The same thing twice at once, which says only once what it says."""
    for i, entry in enumerate(entries):
        for earlier in entries[:i]:
            if _same(entry, earlier, where):
                place = entry.sound.get(where) or "everything"
                yield f"{entry.path}: {entry.sound['kind']} of {place} overlaps {earlier.path}"


def _same(entry: _Entry, other: _Entry, where: str) -> bool:
    lasts, others = _lasts(entry), _lasts(other)
    if (
        lasts is None
        or others is None
        or any("kind" not in each.sound or "start" not in each.sound for each in (entry, other))
    ):
        return False
    place, start, since = entry.sound.get(where, ""), entry.sound["start"], other.sound["start"]
    alike = entry.sound["kind"] is other.sound["kind"] and place == other.sound.get(where, "") and not is_open(place)
    return alike and start < since + others and since < start + lasts


def _outbreaks(outbreaks: Parts, topology: Topology) -> Iterator[str]:
    shortest, longest = outbreaks.get("shortest"), outbreaks.get("longest")
    if shortest is not None and longest is not None and longest < shortest:
        yield f"outbreaks.longest: {longest:g} s is less than the shortest, {shortest:g} s"
    kinds, first = outbreaks.get("kinds"), outbreaks.get("first_kind")
    if kinds is not None and first is not None and first not in kinds:
        yield f"outbreaks.first_kind: {first} is not among the kinds (they are {', '.join(kinds)})"
    if kinds == [FaultKind.TAPE_SLOW] and not topology.tape.any():
        yield f"outbreaks.kinds: {FaultKind.TAPE_SLOW} strikes tape robots, and this grid has none"
