"""Which requests stood still: those that had not ended when FTS's own timeout, counted from their submission, was over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detectors.bounds import fts_timeout
from simulator.records import Records, request_ids
from simulator.state import Phase
from simulator.world import World

_WITH_FTS = (Phase.SUBMITTED, Phase.STAGING, Phase.LINED_UP, Phase.OPENING, Phase.FLOWING, Phase.FAILING)


class Standstill:
    """Sees what ends in a world. Memory grows by what stood still alone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended: dict[str, float] = {}

    def see(self, ended: Records) -> None:
        """What ended since the last call."""
        self._ended |= self._over(ended, ended["tries"], ended["file"], ended["ended"])

    def timeouts(self) -> dict[str, float]:
        """When the timeout of each request that stood still was over, in seconds after the world's start; also of those under way."""
        transfers = self._world.state.transfers
        waiting = transfers[np.isin(transfers["phase"], _WITH_FTS)]
        return self._ended | self._over(
            waiting, waiting["tries"], waiting["number"], np.full(len(waiting), self._world.clock)
        )

    def _over(
        self,
        requests: npt.NDArray[np.void],
        tries: npt.NDArray[np.integer],
        file: npt.NDArray[np.int64],
        until: npt.NDArray[np.float64],
    ) -> dict[str, float]:
        timeout = requests["submitted"] + fts_timeout(requests["bytes"].astype(np.float64))
        still = timeout < until
        ids = request_ids(self._world.draws, file[still], tries[still]).to_pylist()
        return dict(zip(ids, timeout[still].tolist(), strict=True))
