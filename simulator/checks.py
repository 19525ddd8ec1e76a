"""What a scenario says that no grid can do: names that do not exist, faults that cannot strike there, times that run backwards.

Each entry is looked at with those of its keys that make sense by themselves, so that one mistake does not hide the others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from simulator.activities import ACTIVITIES
from simulator.faults import NATURES, DisturbanceKind, FaultKind, Target, possible
from simulator.schema import ANYTHING, DisturbanceEntry, FaultEntry, GridSize, Outbreaks, Section, meant
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
        yield from _factor(entry)
        yield from _where(entry, topology)
    yield from _outbreaks(content.get("outbreaks"), topology)


def _sound(section: type[Section], given: object) -> Parts:
    """Those keys of the section whose values are sound, with these values; not those that are left empty."""
    found: dict[str, Any] = {}
    if not isinstance(given, Mapping):
        return found
    for name, adapter in _adapters(section).items():
        if given.get(name) is not None:
            with contextlib.suppress(ValidationError):
                found[name] = adapter.validate_python(given[name])
    return found


@functools.cache
def _adapters(section: type[Section]) -> Mapping[str, TypeAdapter[Any]]:
    """What checks the value of each of its keys."""
    config = ConfigDict(strict=True, allow_inf_nan=False)
    kinds: dict[str, Any] = {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in section.model_fields.items()
    }
    return {name: TypeAdapter(kind, config=config) for name, kind in kinds.items()}


def _entries(key: str, section: type[Section], content: Parts) -> list[_Entry]:
    listed = content.get(key)
    return [
        _Entry(
            path=f"{key}.{place}",
            given={name: value for name, value in given.items() if value is not None},
            sound=_sound(section, given),
        )
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
    if entry.sound.get("recovers") is False:
        yield from (
            f"{entry.path}.{key}: it does not recover, so only a ticket ends it; leave this out, or `recovers`"
            for key in ("duration", "end")
            if key in entry.given
        )
    elif "duration" in entry.given and "end" in entry.given:
        yield f"{entry.path}.end: the duration is given too; leave one of them out"
    elif "duration" not in entry.given and "end" not in entry.given:
        yield f"{entry.path}.duration: say how long it lasts, or with `end` when it ends"
    elif start is not None and end is not None and end < start + 1:
        yield f"{entry.path}.end: it ends at {end:g} s, which is not a second after its start at {start:g} s"
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


def _factor(entry: _Entry) -> Iterator[str]:
    """What is wrong with the strength of a disturbance."""
    kind, strength = entry.sound.get("kind"), entry.sound.get("strength")
    if kind is None or strength is None:
        return
    if kind is DisturbanceKind.DOWNTIME:
        yield f"{entry.path}.strength: a downtime has none, what it names is closed; leave it out"
    elif kind is DisturbanceKind.BUSY_DAY and strength < 1:
        yield f"{entry.path}.strength: of {kind} it is the factor of what is asked for, from 1 to 100 (it is {strength!r})"


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
    if unknown := list(_unknown(what, name, topology, path)):
        yield from unknown
    elif kind is not None and not possible(kind, topology):
        yield f"{path}: {_NO_TAPE.format(kind=kind)}"
    elif kind is FaultKind.TAPE_SLOW and not _is_tape(name, topology):
        yield f"{path}: {kind} strikes a tape robot, which {name!r} has not"


def _is_tape(name: str, topology: Topology) -> bool:
    return name != "any-disk" and (name in ANYTHING[Target.RSE] or bool(topology.tape[topology.rse(name)]))


_NO_TAPE = "{kind} strikes a tape robot, and this grid has none"


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
            yield f"{path}: there is no {called} {end!r} in this grid{meant(end, words)}"


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
            yield f"{path}: there is no activity {name!r}{meant(name, known)}"
    elif what in {Target.RSE, Target.SITE} and name:
        yield from _unknown(what, name, topology, path)
    else:
        yield f"{path}: it is empty, site:NAME, rse:NAME or activity:NAME (it is {where!r})"


def _outbreaks(given: object, topology: Topology) -> Iterator[str]:
    sound = _sound(Outbreaks, given)
    named = set(given) if isinstance(given, Mapping) else set()
    shortest, longest = (
        sound[key] if key in sound else None if key in named else Outbreaks.model_fields[key].default
        for key in ("shortest", "longest")
    )
    if shortest is not None and longest is not None and longest < shortest:
        if "longest" in named:
            yield f"outbreaks.longest: {longest:g} s is less than the shortest, {shortest:g} s"
        else:
            yield f"outbreaks.shortest: {shortest:g} s is more than the longest, {longest:g} s"
    kinds, first = sound.get("kinds"), sound.get("first_kind")
    if kinds is not None and first is not None and first not in kinds:
        yield f"outbreaks.first_kind: {first} is not among the kinds (they are {', '.join(kinds)})"
    elif first is not None and not possible(first, topology):
        yield f"outbreaks.first_kind: {_NO_TAPE.format(kind=first)}"
    for place, kind in enumerate(kinds or ()):
        if not possible(kind, topology):
            yield f"outbreaks.kinds.{place}: {_NO_TAPE.format(kind=kind)}"
