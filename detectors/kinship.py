"""How entities lie within each other, and what two of them share."""

from __future__ import annotations

from detectors.localisation import site_of
from models.domain import Entity, EntityKind

_PAIRED = {EntityKind.LINK, EntityKind.NETWORK}


def akin(one: Entity, other: Entity) -> bool:
    """Whether one of the two lies within the other."""
    return lies_within(one, other) or lies_within(other, one)


def same_place(one: Entity, other: Entity) -> bool:
    """Whether one is a narrower name of the other's place: a storage element of its site, a link of its path, but no end of a link."""
    return akin(one, other) and (one.kind in _PAIRED) == (other.kind in _PAIRED)


def shared_end(one: Entity, other: Entity) -> Entity | None:
    """The end that two links or paths share: a storage element if both are links, or else a site."""
    if not {one.kind, other.kind} <= _PAIRED:
        return None
    ends = [{entity.link.source, entity.link.destination} for entity in (one, other)]
    if one.kind is other.kind is EntityKind.LINK and (shared := ends[0] & ends[1]):
        return Entity(EntityKind.RSE, min(shared)) if len(shared) == 1 else None
    shared = _sites(one) & _sites(other)
    return Entity(EntityKind.SITE, min(shared)) if len(shared) == 1 else None


def _sites(paired: Entity) -> set[str]:
    ends = paired.link.source, paired.link.destination
    return set(map(site_of, ends) if paired.kind is EntityKind.LINK else ends)


def lies_within(inner: Entity, outer: Entity) -> bool:
    """Whether `outer` is the same, an end of the link, or the site or network of it."""
    if inner == outer:
        return True
    paired = inner.kind in _PAIRED
    ends = [inner.link.source, inner.link.destination] if paired else [inner.name]
    match outer.kind:
        case EntityKind.RSE:
            return outer.name in ends
        case EntityKind.SITE:
            return outer.name in {*ends, *map(site_of, ends)}
        case EntityKind.NETWORK:
            return inner.kind is EntityKind.LINK and outer.name == ">".join(map(site_of, ends))
        case _:
            return False
