"""What the built-in remedies read out of an incident: the links that suffer most, and names that are safe to act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from models.domain import Entity, EntityKind, Incident, Link

MAX_LINKS = 3  # at once: enough to see whether it helps, few enough to undo

_RSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

RSEName = Annotated[str, Field(pattern=rf"^{_RSE.pattern}$")]
LinkName = Annotated[str, Field(pattern=rf"^{_RSE.pattern}>{_RSE.pattern}$")]


def is_rse(name: str) -> bool:
    """Whether this can be the name of a storage element: names in events are whatever somebody sent."""
    return _RSE.fullmatch(name) is not None


def worst_links(incident: Incident, *, as_source: bool = False) -> tuple[Link, ...]:
    """Up to three links of the culprit, those with the most anomalous transfers first.

    `as_source`: only links that start at the culprit; none, if most of what is wrong is not on these. A culprit that has
    no links of its own (an FTS server, an activity, a feed) gives none.
    """
    if incident.culprit.kind is EntityKind.LINK:
        links = {incident.culprit.link: 1}
    elif incident.culprit.kind in {EntityKind.RSE, EntityKind.SITE, EntityKind.NETWORK}:
        links = {Entity(EntityKind.LINK, name).link: n for name, n in incident.evidence.links.items()}
    else:
        return ()
    chosen = {
        link: n
        for link, n in links.items()
        if is_rse(link.source) and is_rse(link.destination) and not (as_source and _is_inbound(incident.culprit, link))
    }
    if 2 * sum(chosen.values()) < sum(links.values()):
        return ()
    return tuple(sorted(chosen, key=lambda link: (-chosen[link], link))[:MAX_LINKS])


def _is_inbound(culprit: Entity, link: Link) -> bool:
    """Whether the link ends at the culprit and does not start there; a link and a network have but one direction."""
    if culprit.kind is EntityKind.RSE:
        return link.source != culprit.name
    if culprit.kind is EntityKind.SITE:
        return not link.source.startswith(culprit.name + "_")  # an RSE's name starts with that of its site
    return False


def parse_link(name: str) -> Link:
    return Entity(EntityKind.LINK, name).link


def some(names: Sequence[object]) -> str:
    """The first of the names, and how many more: for a summary of one line."""
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{rest}"


def plain(text: str, *, most: int) -> str:
    r"""Text from events as one line without control characters, cut to `most` characters.

    >>> plain("no\x1b[31m such\nfile", most=20)
    'no [31m such file'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
