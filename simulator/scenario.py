"""Scenarios: how large a grid is, what it has to carry, what goes wrong there and who looks after it. See docs/scenarios.md.

A scenario is YAML. The library of them lies in `simulator/scenarios`; a path names one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError

from models.domain import ConfigError
from models.yamlfile import read
from simulator.checks import impossible
from simulator.draws import Draws, For
from simulator.faults import NATURES, Disturbance, DisturbanceKind, Fault
from simulator.outbreaks import Plan
from simulator.places import Places
from simulator.schema import (
    DisturbanceEntry,
    FaultEntry,
    GridSize,
    Load,
    Operators,
    Outbreaks,
    Probing,
    Section,
    is_open,
    nearest,
    on_tape,
)
from simulator.topology import Topology, build
from simulator.workload import Workload

__all__ = ["GridSize", "Load", "Operators", "Outbreaks", "Probing", "Scenario", "load", "names", "parse"]

SHOWN = 80  # characters of a value that cannot be
YEAR_S = 366 * 86_400.0
CAPACITY_LOAD = 20_000.0  # transfers a day and site that the bandwidths of the topology are made for
LEAST_CAPACITY = 0.1
MOST_SEEDS = 1 << 64  # draws tell no more of them apart
_USUAL = {DisturbanceKind.LARGE_FILES: 6.0, DisturbanceKind.BUSY_DAY: 2.0, DisturbanceKind.DOWNTIME: 1.0}
_LIBRARY = files("simulator") / "scenarios"
_SUFFIX = ".yaml"


class Scenario(Section):
    """One scenario, checked. Whatever it leaves open is drawn by the seed."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=MOST_SEEDS)] = 1
    days: Annotated[float, Field(gt=0, le=3660)] = 14.0
    grid: GridSize = GridSize()
    load: Load = Load()
    perfsonar: Probing = Probing()
    faults: Annotated[list[FaultEntry], Field(default_factory=list)]
    outbreaks: Outbreaks | None = None
    disturbances: Annotated[list[DisturbanceEntry], Field(default_factory=list)]
    operators: Operators = Operators()

    @property
    def capacity(self) -> float:
        """Factor of all bandwidths: as given, or as much as the load asks for."""
        if self.grid.capacity is not None:
            return self.grid.capacity
        return max(LEAST_CAPACITY, self.load.transfers_per_day / self.grid.sites / CAPACITY_LOAD)

    def later(self, by_s: float) -> Scenario:
        """The same, with all that befalls the grid so many seconds later."""
        changes: dict[str, Any] = {
            "faults": [entry.later(by_s) for entry in self.faults],
            "disturbances": [entry.later(by_s) for entry in self.disturbances],
        }
        if self.outbreaks is not None:
            changes["outbreaks"] = self.outbreaks.model_copy(update={"first": self.outbreaks.first + by_s})
        return self.model_copy(update=changes)

    def topology(self, seed: int) -> Topology:
        return build(sites=self.grid.sites, rses=self.grid.rses, capacity=self.capacity, seed=seed)

    def plan(self, topology: Topology, seed: int) -> Plan:
        """What goes wrong in the grid that `topology` made of the same seed."""
        draws = Draws(seed)
        disturbances = self.disturbances_of(topology, seed)
        downtimes = [one for one in disturbances if one.kind is DisturbanceKind.DOWNTIME]
        places = Places(topology, draws, Workload(topology, draws, self.load, disturbances), downtimes)
        named: list[Fault] = []
        for number, entry in enumerate(self.faults):
            named.append(_fault(number, entry, named, places, draws))
        return Plan(named, outbreaks=self.outbreaks, places=places, draws=draws)

    def disturbances_of(self, topology: Topology, seed: int) -> list[Disturbance]:
        """What is unusual and no fault, in the order of time; what repeats does so for a year."""
        draws = Draws(seed)
        places = Places(topology, draws, Workload(topology, draws, self.load))
        every = [one for place, entry in enumerate(self.disturbances) for one in _repeated(place, entry, places, draws)]
        return sorted(every, key=lambda one: one.start)


def load(scenario: str | Path) -> Scenario:
    """A scenario of the library by its name, or one's own by its path; raise ConfigError that lists all problems by key path."""
    if str(scenario) in names():
        text = (_LIBRARY / f"{scenario}{_SUFFIX}").read_text(encoding="utf-8")
        return _checked(*_read(text, str(scenario)), str(scenario))
    path = Path(scenario)
    if path.suffix not in {_SUFFIX, ".yml"} and not path.exists():
        meant = nearest(scenario, names()) or f"; name a YAML file, or one of {', '.join(names())}"
        raise ConfigError(f"there is no scenario {str(scenario)!r}{meant}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name a YAML file, or one of {', '.join(names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a readable UTF-8 YAML file") from None
    content, problems = _read(text, str(path))
    return _checked({"name": path.stem} | dict(content), problems, str(path))


def names() -> tuple[str, ...]:
    """The library."""
    return tuple(
        sorted(entry.name.removesuffix(_SUFFIX) for entry in _LIBRARY.iterdir() if entry.name.endswith(_SUFFIX))
    )


def parse(content: Mapping[str, Any], where: str) -> Scenario:
    """Check what was read from `where`; raise ConfigError with one line for each problem."""
    return _checked(content, [], where)


def _checked(content: Mapping[str, Any], unread: Sequence[str], where: str) -> Scenario:
    """The same; `unread` is what is wrong with its YAML, and then no more is said about the same keys."""
    found: list[str] = []
    given = {str(key): value for key, value in content.items()}
    try:
        scenario = Scenario.model_validate({"name": where} | given)
    except ValidationError as error:
        found += [_line(entry) for entry in error.errors()]
    found += impossible(given)
    known = {_path(problem) for problem in unread}
    problems = [*unread, *(problem for problem in found if _path(problem) not in known)]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{where} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{listed}")
    return scenario


def _path(problem: str) -> str:
    return problem.partition(": ")[0]


def _read(text: str, where: str) -> tuple[Mapping[str, Any], list[str]]:
    """What stands there, and what is wrong with its YAML."""
    try:
        content, problems = read(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply; see docs/scenarios.md for what scenarios look like") from None
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{where} holds {what} where a scenario's keys are expected; see docs/scenarios.md")
    return content, problems


def _line(entry: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails is a TypedDict of Any
    path, key = ".".join(str(part) for part in entry["loc"]), entry["loc"][-1]
    if entry["type"] == "extra_forbidden":
        return f"{path}: there is no such key{nearest(key, _keys(entry['loc'][:-1])) or '; see docs/scenarios.md'}"
    if entry["type"] == "missing":
        return f"{path}: it is missing"
    message, value = entry["msg"].removeprefix("Value error, "), repr(entry.get("input"))
    shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    return f"{path}: {message}" + ("" if isinstance(entry.get("input"), (dict, list)) else f" (it is {shown})")


def _keys(path: Sequence[object]) -> Iterator[str]:
    """The keys that there are at a path."""
    sections: dict[object, type[Section]] = {
        "grid": GridSize,
        "load": Load,
        "perfsonar": Probing,
        "faults": FaultEntry,
        "outbreaks": Outbreaks,
        "disturbances": DisturbanceEntry,
        "operators": Operators,
    }
    yield from sections.get(path[0], Scenario).model_fields if path else Scenario.model_fields


def _fault(number: int, entry: FaultEntry, before: Sequence[Fault], places: Places, draws: Draws) -> Fault:
    nature, strength = NATURES[entry.kind], entry.strength
    if strength is None:
        strength = draws.between(nature.gravest, nature.mildest, For.FAULT, number, 20)
    culprit = entry.culprit
    if is_open(culprit):
        culprit = places.choose(
            entry.kind,
            strength,
            (entry.start, entry.until),
            draws.uniform(For.FAULT, number, 21),
            apart=[fault.culprit for fault in before if fault.start < entry.until and entry.start < fault.end],
            tape=on_tape(culprit),
        )
    return Fault(
        number=number,
        kind=entry.kind,
        culprit=culprit,
        start=entry.start,
        end=entry.until,
        strength=strength,
        recovers=entry.recovers,
    )


def _repeated(place: int, entry: DisturbanceEntry, places: Places, draws: Draws) -> Iterator[Disturbance]:
    """The entry's disturbance, as often as it comes within a year."""
    times = 1 if entry.every is None else max(1, math.ceil((YEAR_S - entry.start) / entry.every))
    wheres = [entry.where] * times
    if is_open(entry.where):
        wheres = places.usual(entry.where, draws.uniforms(For.DISTURBANCE, place, np.arange(times)))
    for time, where in enumerate(wheres):
        later = time * (entry.every or 0.0)
        yield Disturbance(
            kind=entry.kind,
            where=where,
            start=entry.start + later,
            end=entry.until + later,
            strength=_USUAL[entry.kind] if entry.strength is None else entry.strength,
        )
