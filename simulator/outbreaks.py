"""What goes wrong in a world: the faults that its scenario names, and the endless sequence of them that it may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from simulator.draws import Draws, For
from simulator.faults import NATURES, Fault, FaultKind
from simulator.places import Places
from simulator.schema import Outbreaks

APART: Final = 4  # so many faults in a row are at different sites
SPREAD: Final = 1 / 3  # how much the time between two outbreaks varies
TOGETHER_S: Final = 300.0  # most between two that break out at once
WORST: Final = 4  # an opening fault is at one of so many places that it hurts most
LASTS: Final = {  # so much longer last faults that touch few transfers at a time
    FaultKind.TAPE_SLOW: 3.0,
    FaultKind.LINK_LOSSY: 2.0,
    FaultKind.LINK_FLAPPING: 2.0,
    FaultKind.ROUTE_LONGER: 2.0,
}
_KINDS = list(FaultKind)


def outbreak(number: int, before: Sequence[Fault], *, outbreaks: Outbreaks, places: Places, draws: Draws) -> Fault:
    """The fault of that place in the sequence, from 0, given those before it."""

    def between(low: float, high: float, purpose: int) -> float:
        return draws.between(low, high, For.FAULT, number, purpose)

    gap = between(1 - SPREAD, 1 + SPREAD, 0) * outbreaks.every
    if draws.uniform(For.FAULT, number, 4) < outbreaks.at_once:
        gap = between(0.0, min(TOGETHER_S, outbreaks.every), 5)
    start = round(before[-1].start + gap if before else outbreaks.first)
    kind = _kind(number, outbreaks, places, draws)
    nature, opening = NATURES[kind], number == 0 and outbreaks.first_kind is kind
    lasts = between(outbreaks.shortest, outbreaks.longest, 2) * LASTS.get(kind, 1.0)
    end = start + round(lasts)
    mildest = nature.gravest + (nature.mildest - nature.gravest) / 4 if opening else nature.mildest
    strength = between(nature.gravest, mildest, 3)
    culprit = places.choose(
        kind,
        strength,
        (start, end),
        draws.uniform(For.FAULT, number, 1),
        apart=[fault.culprit for fault in before[-APART:]],
        tape=kind is FaultKind.TAPE_SLOW,
        among=WORST if opening else None,
    )
    return Fault(number=number, kind=kind, culprit=culprit, start=start, end=end, strength=strength)


def _kind(number: int, outbreaks: Outbreaks, places: Places, draws: Draws) -> FaultKind:
    """Each kind once in every so many, in a new order each time."""
    kinds = [kind for kind in outbreaks.kinds or FaultKind if places.possible(kind)]
    block, place = divmod(number, len(kinds))
    order = sorted(kinds, key=lambda kind: draws.uniform(For.FAULT, block, 1000 + _KINDS.index(kind)))
    if block == 0:
        order.sort(key=lambda kind: kind is not outbreaks.first_kind)
    return order[place]


class Plan:
    """A world's faults: those that its scenario names, numbered in their order, and then the sequence of outbreaks."""

    def __init__(self, named: Sequence[Fault], *, outbreaks: Outbreaks | None, places: Places, draws: Draws) -> None:
        self._named = list(named)
        self._outbreaks = outbreaks
        self._places = places
        self._draws = draws
        self._drawn: list[Fault] = []  # outbreaks, the last of which may not have begun

    def until(self, clock: float) -> list[Fault]:
        """The faults that the scenario names, and the outbreaks that start before `clock`; the same objects each time."""
        while self._outbreaks and (not self._drawn or self._drawn[-1].start < clock):
            number = len(self._drawn)
            fault = outbreak(number, self._drawn, outbreaks=self._outbreaks, places=self._places, draws=self._draws)
            fault.number += len(self._named)
            self._drawn.append(fault)
        return self._named + [fault for fault in self._drawn if fault.start < clock]

    def copy(self) -> Plan:
        """The same plan, as far as it is drawn, whose faults are others: they may end at other times."""
        other = Plan(
            [replace(fault) for fault in self._named],
            outbreaks=self._outbreaks,
            places=self._places,
            draws=self._draws,
        )
        other._drawn += [replace(fault) for fault in self._drawn]
        return other
