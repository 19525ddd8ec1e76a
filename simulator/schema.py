"""The sections of a scenario: what each key is called, what it may be, and what it is if nobody says."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from simulator.faults import DisturbanceKind, FaultKind, Target
from simulator.topology import MOST_SITES

_SPAN = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?")
_UNITS = (86_400.0, 3600.0, 60.0, 1.0)
_LONGEST_S = 100 * 365 * 86_400.0


def seconds(value: Any) -> float:  # noqa: ANN401 - whatever the file holds; this is where it is looked at
    """Seconds, given as a number or as in `90s`, `20m`, `2h30m`, `1d12h`; raise ValueError for what is no such time."""
    found = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            found = float(value)
    elif isinstance(value, str) and value and (parts := _SPAN.fullmatch(value.replace(" ", ""))):
        try:
            found = sum(float(part) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True) if part)
        except ValueError:  # 1.2.3h
            found = None
    if found is None or not 0 <= found <= _LONGEST_S:
        raise ValueError("give seconds as a number of 0 or more, or a time as 90s, 20m, 2h30m or 1d12h")
    return found


ANYTHING: Final[Mapping[str, Mapping[str, bool | None]]] = {  # what the seed may choose from, and whether that is tape
    Target.RSE: {"any": None, "any-disk": False, "any-tape": True},
    Target.NETWORK: {"any": None},
    Target.SITE: {"any": None},
    Target.FTS: {"any": None},
}


def is_open(culprit: str) -> bool:
    """Whether it leaves the choice to the seed, as `site:any` does."""
    what, _, name = culprit.partition(":")
    return name in ANYTHING.get(what, {})


def on_tape(culprit: str) -> bool | None:
    """Of one that leaves the choice: whether among tape only (True) or among disks only (False)."""
    what, _, name = culprit.partition(":")
    return ANYTHING[what][name]


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that was perhaps meant, as the end of a sentence; empty if none is near."""
    words = {one.casefold(): str(one) for one in known}
    found = difflib.get_close_matches(str(word).casefold(), words, 1, 0.6)
    return f"; did you mean {words[found[0]]!r}?" if found else ""


def meant(word: object, known: Iterable[str]) -> str:
    """The same, or where the known ones are listed."""
    return nearest(word, known) or "; docs/scenarios.md lists those there are"


def _fault_kind(value: object) -> FaultKind:
    if value not in list(FaultKind):
        raise ValueError(f"there is no such fault{meant(value, FaultKind)}")
    return FaultKind(str(value))


def _disturbance_kind(value: object) -> DisturbanceKind:
    if value not in list(DisturbanceKind):
        raise ValueError(f"there is no such disturbance{meant(value, DisturbanceKind)}")
    return DisturbanceKind(str(value))


Kind = Annotated[FaultKind, BeforeValidator(_fault_kind)]
Seconds = Annotated[float, BeforeValidator(seconds)]
Lasts = Annotated[Seconds, Field(ge=1)]
Span = Annotated[Seconds, Field(ge=60)]  # of outbreaks: their sequence has to get on
Period = Annotated[Seconds, Field(ge=3600)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GridSize(Section):
    sites: Annotated[int, Field(ge=2, le=MOST_SITES)] = 20
    rses: Annotated[int, Field(ge=2)] | None = None  # two and a half a site
    capacity: Annotated[float, Field(gt=0, le=1000)] | None = None  # factor of all bandwidths; by the load


class Load(Section):
    transfers_per_day: Annotated[float, Field(gt=0, le=5_000_000)] = 20_000.0
    deletions_per_day: Annotated[float, Field(ge=0, le=5_000_000)] | None = None  # three for ten transfers
    rhythm: Share = 0.0  # how much of the load comes and goes with the day


class Probing(Section):
    """perfSONAR, and what is wrong with it on a good day."""

    every_s: Annotated[float, Field(ge=10, le=86_400)] = 600.0  # between two readings of loss and delay on a path
    missing: Share = 0.2  # of the sites, that have none
    anonymous: Share = 0.1  # of the documents, that name no sites
    clock_off: Share = 0.15  # of the sites, whose clocks are off by more than a few milliseconds


class Operators(Section):
    """The people who approve and rate."""

    skill: Share = 0.9  # how often they know which remedy is right
    delay_min: Annotated[float, Field(ge=0)] = 10.0  # median time until one of them answers
    disagreement: Share = 0.1  # how often a second one would have said otherwise


class Lasting(Section):
    """Something that begins and ends."""

    start: Seconds
    duration: Lasts | None = None
    end: Lasts | None = None

    @property
    def until(self) -> float:
        return self.end if self.end is not None else self.start + (self.duration or 0.0)

    def later(self, by_s: float) -> Self:
        """The same, so many seconds later."""
        end = None if self.end is None else self.end + by_s
        return self.model_copy(update={"start": self.start + by_s, "end": end})


class FaultEntry(Lasting):
    kind: Kind
    culprit: Annotated[str, Field(min_length=1)]
    strength: float | None = None  # drawn from the kind's usual range
    recovers: bool = True  # by itself; else it lasts until a ticket finds it

    @property
    def until(self) -> float:
        return super().until if self.recovers else math.inf


class DisturbanceEntry(Lasting):
    kind: Annotated[DisturbanceKind, BeforeValidator(_disturbance_kind)]
    where: str = ""
    strength: Annotated[float, Field(gt=0, le=100)] | None = None
    every: Period | None = None  # it comes again and again, for a year


class Outbreaks(Section):
    """Faults without end, drawn by the seed: every kind once before any comes again, in places where much is moved."""

    first: Seconds = 3600.0
    every: Span = 8 * 3600.0  # on average, from one's start to the next one's
    shortest: Span = 3600.0
    longest: Span = 4 * 3600.0
    at_once: Share = 0.0  # of the faults, that break out within minutes of the one before
    kinds: Annotated[list[Kind], Field(min_length=1)] | None = None
    first_kind: Kind | None = None  # it is strong then, and in one of the busiest places
