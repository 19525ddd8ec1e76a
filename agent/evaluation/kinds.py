"""Which kinds of incident are right for which kinds of fault: those with which an operator would look at what is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from models.domain import IncidentKind
from simulator.faults import FaultKind

_SLOW, _FAILING, _STALLED = (
    IncidentKind.SLOW_TRANSFERS,
    IncidentKind.FAILING_TRANSFERS,
    IncidentKind.STALLED_TRANSFERS,
)
_DELETIONS, _NETWORK = IncidentKind.FAILING_DELETIONS, IncidentKind.DEGRADED_NETWORK

RIGHT: Final[Mapping[FaultKind, frozenset[IncidentKind]]] = {
    FaultKind.READ_SLOW: frozenset({_SLOW, _STALLED}),
    FaultKind.WRITE_SLOW: frozenset({_SLOW, _STALLED}),
    FaultKind.STORAGE_FULL: frozenset({_FAILING}),
    FaultKind.CREDENTIALS_EXPIRED: frozenset({_FAILING, _DELETIONS}),
    FaultKind.DISK_CORRUPT: frozenset({_FAILING}),
    FaultKind.FILES_MISSING: frozenset({_FAILING}),
    FaultKind.OVERLOADED: frozenset({_FAILING}),
    FaultKind.LINK_LOSSY: frozenset({_NETWORK}),
    FaultKind.SITE_LOSSY: frozenset({_NETWORK}),
    FaultKind.ROUTE_LONGER: frozenset({_NETWORK}),
    FaultKind.LINK_FLAPPING: frozenset({_NETWORK}),
    FaultKind.FTS_STALLED: frozenset({_STALLED}),
    FaultKind.TAPE_SLOW: frozenset({_STALLED, _SLOW}),
    FaultKind.SITE_DARK: frozenset({_FAILING, _NETWORK}),
    FaultKind.BLACK_HOLE: frozenset({_FAILING}),
}
