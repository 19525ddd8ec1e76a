"""What a call to the grid is worth, judged by the truth: whether it can help with a fault that is running.

Who pulls the load away from what is broken helps, and so does who tells the people that can mend it. Whatever else is done to the
grid costs something and helps nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.grid.dry_run import Act
from simulator.faults import NATURES, Fault, FaultKind, Target
from simulator.topology import Topology

TELLS: Final = 0.5  # a ticket: the fault ends sooner, and hurts until then
WAITS: Final = 0.5  # doing nothing, where nothing else would help
HARMS: Final = -1.0

_READING = frozenset(
    {
        FaultKind.READ_SLOW,
        FaultKind.DISK_CORRUPT,
        FaultKind.FILES_MISSING,
        FaultKind.CREDENTIALS_EXPIRED,
        FaultKind.OVERLOADED,
        FaultKind.TAPE_SLOW,
        FaultKind.SITE_DARK,
        FaultKind.SITE_LOSSY,
    }
)
_WRITING = frozenset(
    {
        FaultKind.WRITE_SLOW,
        FaultKind.STORAGE_FULL,
        FaultKind.CREDENTIALS_EXPIRED,
        FaultKind.OVERLOADED,
        FaultKind.BLACK_HOLE,
        FaultKind.SITE_DARK,
        FaultKind.SITE_LOSSY,
    }
)
_PATHS = frozenset({FaultKind.LINK_LOSSY, FaultKind.LINK_FLAPPING, FaultKind.ROUTE_LONGER})
_OBSERVES = frozenset({"test_network"})  # looks at the grid, and leaves it as it is


def worth(acts: Sequence[Act], faults: Sequence[Fault], topology: Topology) -> float:
    """What these calls together are worth while `faults` are running: 1 helps, 0 nothing is done, -1 harms.

    They help if at least half of them can help with one of the faults.
    """
    changing = [act for act in acts if act.method not in _OBSERVES]
    if not changing:
        return 0.0
    found = [max((_helps(act, fault, topology) for fault in faults), default=0.0) for act in changing]
    helping = [value for value in found if value > 0]
    return max(helping) if 2 * len(helping) >= len(found) else HARMS


def _helps(act: Act, fault: Fault, topology: Topology) -> float:
    match act.method, act.arguments:
        case "open_ticket", (str(culprit), *_):
            return TELLS if fault.found_by(culprit, topology) else 0.0
        case "set_distance", (str(source), str(destination), *_):
            return float(_avoids(fault, source, destination, topology))
        case "set_availability", (str(rse), "read", False):
            return float(_strikes(fault, rse, _READING, topology))
        case "set_availability", (str(rse), "write", False):
            return float(_strikes(fault, rse, _WRITING, topology))
        case "ban", (str(rse), *_):
            return float(_strikes(fault, rse, _READING | _WRITING, topology))
        case "declare_unavailable", (str(rse), *_):
            return float(_strikes(fault, rse, _READING, topology))
        case "set_storage_limit", (str(rse), _, int(_)):
            return float(_strikes(fault, rse, {FaultKind.OVERLOADED}, topology))
        case "set_link_limit", (str(source), str(destination), int(_)):
            return float(any(_strikes(fault, end, {FaultKind.OVERLOADED}, topology) for end in (source, destination)))
        case _:
            return 0.0


def _avoids(fault: Fault, source: str, destination: str, topology: Topology) -> bool:
    """Whether less on this link is less that the fault can hurt."""
    if fault.kind in _PATHS:
        return f"{_site(source, topology)}>{_site(destination, topology)}" == fault.where
    if _strikes(fault, source, _READING, topology):
        return True
    return fault.kind is FaultKind.SITE_LOSSY and _site(destination, topology) == fault.where


def _strikes(fault: Fault, rse: str, kinds: frozenset[FaultKind] | set[FaultKind], topology: Topology) -> bool:
    if fault.kind not in kinds:
        return False
    return fault.where == (_site(rse, topology) if NATURES[fault.kind].target is Target.SITE else rse)


def _site(rse: str, topology: Topology) -> str:
    return topology.sites[topology.rse_site[topology.rse(rse)]] if rse in topology.rses else ""
