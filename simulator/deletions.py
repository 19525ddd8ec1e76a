"""Deletions: planned, carried out a minute later or refused, all of one stretch of time at once."""

from __future__ import annotations

import numpy as np

from simulator.draws import Draws, For
from simulator.errors import Code
from simulator.faults import Conditions
from simulator.records import RECORD, Records, What
from simulator.state import Array

MEAN_S = 60.0  # from plan to deed
TAKES_S, TAKES_SPREAD = 0.2, 1.0  # what a door needs for one: median, sigma of the logarithm
NOT_FOUND = 0.002  # share that is gone already


class Deletions:
    """`pending` are planned deletions, RECORDs whose `started` is when they will be carried out."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def none(self) -> Records:
        return np.zeros(0, dtype=RECORD)

    def live(
        self, planned: Array, pending: Records, conditions: Conditions, closed: Array, since: float, until: float
    ) -> tuple[Records, Records]:
        """What is told in [since, until) under these conditions, and what is pending then.

        `planned` are rows of `simulator.workload.DELETION`, `closed` bool[R] storage that nothing may be deleted from.
        """
        wanted = planned[(planned["at"] >= since) & (planned["at"] < until)]
        new = self._planned(wanted[~closed[wanted["rse"]]])
        both = np.concatenate([pending, new])
        due = both["started"] < until
        return np.concatenate([new, self._carried_out(both[due], conditions)]), both[~due]

    def _planned(self, wanted: Array) -> Records:
        rows = np.zeros(len(wanted), dtype=RECORD)
        rows["what"], rows["source"], rows["fault"] = What.PLANNED, -1, -1
        rows["file"], rows["destination"], rows["bytes"] = wanted["number"], wanted["rse"], wanted["bytes"]
        rows["activity"], rows["at"], rows["created"] = wanted["activity"], wanted["at"], wanted["at"]
        rows["submitted"] = rows["ended"] = np.nan
        rows["started"] = wanted["at"] + self._draws.exponentials(MEAN_S, For.DELETION, wanted["number"], 4)
        return rows

    def _carried_out(self, due: Records, conditions: Conditions) -> Records:
        rows, rse, number = due.copy(), due["destination"].astype(np.int64), due["file"]
        takes = self._draws.lognormals(TAKES_S, TAKES_SPREAD, For.DELETION, number, 5) * conditions.overhead[rse]
        refused = self._draws.uniforms(For.DELETION, number, 3) < np.maximum(
            conditions.refused[rse], conditions.credentials[rse]
        )
        gone = ~refused & (self._draws.uniforms(For.DELETION, number, 6) < NOT_FOUND)
        rows["what"] = np.where(refused, What.NOT_DELETED, np.where(gone, What.NOT_FOUND, What.DELETED))
        rows["code"] = np.where(refused, Code.DELETION_REFUSED, np.where(gone, Code.DELETION_NOT_FOUND, Code.NONE))
        rows["at"], rows["ended"] = due["started"] + takes, takes
        rows["started"] = np.nan
        return rows
