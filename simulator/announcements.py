"""Announced downtimes as CRIC, the grid's information system, gives them: by site and by id, with times in UTC without a zone."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

from simulator.faults import Disturbance
from simulator.topology import Topology
from simulator.world import World

_KNOWN_S = 7 * 86_400.0  # how far ahead a downtime is announced
_LISTED_S = 86_400.0  # how long one that is over stays in the list


def announced(world: World) -> dict[str, dict[str, dict[str, Any]]]:
    """What the grid's own list says now."""
    return listed(world, since=world.clock - _LISTED_S, until=world.clock + _KNOWN_S)


def listed(world: World, *, since: float, until: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Every downtime that has a part between two times, in seconds after the world's start."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, one in enumerate(world.downtimes(), start=1):
        if one.start < until and one.end > since:
            entry = _entry(number, one, world)
            found.setdefault(entry["rc_site"], {})[str(number)] = entry
    return found


def _entry(number: int, one: Disturbance, world: World) -> dict[str, Any]:
    kind, _, name = one.where.partition(":")
    return {
        "id": number,
        "rc_site": _site(one, world.topology),
        "ddmendpoints": [name] if kind == "rse" else [],  # none: the whole site
        "severity": "OUTAGE",
        "classification": "SCHEDULED",
        "affected_services": "SRM, WEBDAV, XROOTD",
        "description": "maintenance of the storage",
        "start_time": _instant(world, one.start),
        "end_time": _instant(world, one.end),
    }


def _site(one: Disturbance, topology: Topology) -> str:
    return topology.sites[topology.rse_site[one.rses(topology)[0]]]


def _instant(world: World, seconds: float) -> str:
    return (world.start + timedelta(seconds=seconds)).astimezone(UTC).replace(tzinfo=None).isoformat()
