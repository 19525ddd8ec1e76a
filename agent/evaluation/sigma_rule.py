"""Three sigma: a transfer is flagged when it is further above the mean of its link than three standard deviations.

Of log(1 + seconds), in which durations stray evenly; in seconds a few long transfers would make sigma as wide as everything. Each link
with a flag is an incident of its own, and the link is to blame.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.evaluation.cases import Case, Casebook, by_key
from agent.evaluation.seed_rule import links_of, requests_of
from models.columns import Rows
from models.domain import Entity, EntityKind, IncidentKind
from models.history import Codes

SIGMAS: Final = 3.0
LEAST: Final = 10  # transfers of a link before it has a mean and a sigma


class SigmaRule:
    """Looks at ended transfers, by what their links had shown before this pass. Give it each stretch of them once, in order."""

    def __init__(self) -> None:
        self._rses, self._links = Codes(), Codes()
        self._moments = np.zeros((0, 3))  # of each link: how many, their mean, the sum of squares around it
        self._book = Casebook("sigma3", IncidentKind.SLOW_TRANSFERS, lambda link: Entity(EntityKind.LINK, link))
        self.flagged: list[str] = []

    @property
    def cases(self) -> list[Case]:
        return self._book.cases

    def look(self, observed: Rows, now: datetime) -> None:
        started, ended = (np.asarray(observed[name], dtype=np.float64) for name in ("started_at", "ended_at"))
        done = np.flatnonzero(~np.asarray(observed["failed"], dtype=np.bool_) & (ended >= started))
        took = np.log1p(ended[done] - started[done])
        source, destination = (
            self._rses.learn(np.asarray(observed[name], dtype=object)[done]) for name in ("source", "destination")
        )
        links = self._links.learn((source << 32) | destination)
        more = max(0, len(self._links) - len(self._moments))
        self._moments = np.vstack([self._moments, np.zeros((more, 3))])
        off = done[self._far(links, took)]
        self._absorb(links, took)
        requests = requests_of(observed, off)
        self.flagged += requests
        self._book.note(by_key(links_of(observed, off), requests), now)

    def _far(self, links: npt.NDArray[np.int64], took: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        count, mean, squares = self._moments[links].T
        sigma = np.sqrt(squares / np.maximum(count - 1.0, 1.0))
        far: npt.NDArray[np.bool_] = (count >= LEAST) & (took > mean + SIGMAS * sigma)
        return far

    def _absorb(self, links: npt.NDArray[np.int64], took: npt.NDArray[np.float64]) -> None:
        """Put two sets of moments together (Chan, Golub and LeVeque 1979)."""
        distinct, place, n = np.unique(links, return_inverse=True, return_counts=True)
        known, mean, squares = self._moments[distinct].T
        own = np.bincount(place, took, minlength=len(distinct)) / n
        away = own - mean
        squares = squares + np.bincount(place, (took - own[place]) ** 2, minlength=len(distinct))
        squares += away**2 * known * n / (known + n)
        self._moments[distinct] = np.column_stack([known + n, mean + away * n / (known + n), squares])
