"""What is announced: downtimes and silences. Whoever is covered by one is to blame for nothing, and is evidence against nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.localisation import Roles, site_of
from models.domain import Entity, EntityKind

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# A cover lasts this long beyond its announced end. A storage element comes back to a full queue and to the retries of what had
# failed; none of what was submitted by then counts, whenever it ends, and what is submitted later is served as the place now is.
AFTER_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """An announced downtime or a silence of `entity` in [start, end), in seconds since 1970."""

    entity: Entity
    start: float
    end: float
    why: str

    def __post_init__(self) -> None:
        if not self.start < self.end:  # so written, a time that is no number is refused, too
            raise ValueError(f"a cover of {self.entity} from {self.start!r} to {self.end!r} must end after it begins")

    def stands(self, at: float, *, after: float = 0.0) -> bool:
        """Whether it stands at that time, or has ended less than `after` seconds before."""
        return self.start <= at < self.end + after


class Covers:
    """All that is announced, asked by time. Without any, nothing is covered."""

    def __init__(self, covers: Iterable[Cover] = ()) -> None:
        self._covers = tuple(covers)

    def __iter__(self) -> Iterator[Cover]:
        return iter(self._covers)

    def __len__(self) -> int:
        return len(self._covers)

    def of(self, entity: Entity, at: float, *, after: float = AFTER_S) -> Cover | None:
        """What covers the entity at that time, in seconds since 1970; None if nothing does."""
        return next((one for one in self._covers if one.stands(at, after=after) and within(entity, one.entity)), None)

    def standing(self, at: float) -> list[Cover]:
        """Those that stand at that time, in seconds since 1970; one that is over does not."""
        return [one for one in self._covers if one.stands(at)]

    def touched(self, roles: Roles, ended: Floats, began: Floats | None = None) -> Flags:
        """Which of the transfers were covered when they ended or, with `began`, at any time since then; shape (n,).

        `ended` and `began` are seconds since 1970, both of shape (n,); where `began` is NaN, the end alone counts.
        """
        covered = np.zeros(len(ended), dtype=np.bool_)
        if not len(ended):
            return covered
        first = ended if began is None else np.fmin(began, ended)
        earliest, latest = float(first.min()), float(ended.max())
        for one in self._covers:
            # Most of what is announced for a whole grid lies in other weeks.
            if one.start <= latest and earliest < one.end + AFTER_S:
                covered |= (ended >= one.start) & (first < one.end + AFTER_S) & roles.touched(one.entity)
        return covered


def within(inner: Entity, outer: Entity) -> bool:
    """Whether `inner` is `outer` or has an end there: a storage element in its site, a link or network by either of its ends.

    >>> within(Entity.parse("link:A_DISK>B_DISK"), Entity.parse("site:B"))
    True
    >>> within(Entity.parse("site:B"), Entity.parse("rse:B_DISK"))
    False
    """
    if inner == outer:
        return True
    match inner.kind:
        case EntityKind.RSE:
            return outer == Entity(EntityKind.SITE, site_of(inner.name))
        case EntityKind.NETWORK:
            return outer.kind is EntityKind.SITE and outer.name in {inner.link.source, inner.link.destination}
        case EntityKind.LINK:
            source, destination = inner.link.source, inner.link.destination
            path = Entity(EntityKind.NETWORK, f"{site_of(source)}>{site_of(destination)}")
            return any(within(Entity(EntityKind.RSE, end), outer) for end in (source, destination)) or path == outer
        case _:
            return False
