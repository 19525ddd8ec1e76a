"""The rule of Operational Intelligence: a site is in trouble when fewer than one in five of its transfers go well.

It looks at the last hour, at each site as a source and as a destination apart, where enough was moved to say so. What it flags are
the failed transfers of a site in trouble.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.evaluation.cases import Case, Casebook
from detectors.localisation import site_of
from models.columns import Rows
from models.domain import Entity, EntityKind, IncidentKind
from simulator.scenario import Scenario

LEAST_EFFICIENCY: Final = 0.2
FLOOR: Final = 200  # transfers an hour, where a site has as many as one of ATLAS's
ATLAS_LOAD: Final = 20_000.0  # transfers a day and site, as in the scenario `atlas`
WINDOW_S: Final = 3600.0

_ENDED = np.dtype([("request", "O"), ("source", "O"), ("destination", "O"), ("ended", "f8"), ("failed", "?")])
_TOLD = np.dtype([("source", "?"), ("destination", "?")])  # in which role a transfer was flagged already
_NAMES: Final = {"request": "request_id", "ended": "ended_at"}  # where the rows' columns are called otherwise


def floor_of(scenario: Scenario) -> float:
    """Transfers an hour below which nothing is said of a site: the rule's, by the load of a site."""
    return FLOOR * scenario.load.transfers_per_day / scenario.grid.sites / ATLAS_LOAD


class OpintRule:
    """Looks at ended transfers. Give it each stretch of them once, in order."""

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._ended, self._told = np.empty(0, _ENDED), np.empty(0, _TOLD)
        self._book = Casebook("opint", IncidentKind.FAILING_TRANSFERS, _culprit)
        self.flagged: list[str] = []

    @property
    def cases(self) -> list[Case]:
        return self._book.cases

    def look(self, observed: Rows, now: datetime) -> None:
        fresh = np.empty(len(observed["request_id"]), _ENDED)
        for name in _ENDED.names or ():
            fresh[name] = np.asarray(observed[_NAMES.get(name, name)], dtype=_ENDED[name])
        ended = np.concatenate([self._ended, fresh])
        told = np.concatenate([self._told, np.zeros(len(fresh), _TOLD)])
        late = ended["ended"] >= now.timestamp() - WINDOW_S
        self._ended, self._told = ended[late], told[late]
        found: dict[str, list[str]] = {}
        for end in _TOLD.names or ():
            found |= self._troubled(end)
        self._book.note(found, now)

    def _troubled(self, end: str) -> dict[str, list[str]]:
        """The failed transfers that were not told of yet, of each site that is in trouble in this role."""
        sites = np.array([site_of(rse) for rse in self._ended[end]], dtype=object)
        names, codes = np.unique(sites.astype(str), return_inverse=True)
        moved = np.bincount(codes, minlength=len(names))
        failed = np.bincount(codes, self._ended["failed"], minlength=len(names))
        sick = (moved >= max(self._floor, 1.0)) & (moved - failed < LEAST_EFFICIENCY * moved)
        found = {}
        for site in np.flatnonzero(sick):
            new: npt.NDArray[np.bool_] = (codes == site) & self._ended["failed"] & ~self._told[end]
            self._told[end][new] = True
            found[f"{end}:{names[site]}"] = self._ended["request"][new].tolist()
            self.flagged += found[f"{end}:{names[site]}"]
        return found


def _culprit(key: str) -> Entity:
    return Entity(EntityKind.SITE, key.partition(":")[2])
