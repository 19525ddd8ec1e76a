"""What truly was wrong in a world: its faults, and the transfers that they hurt, by the world's fault-free twin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from agent.evaluation.trial import Hurt, Struck
from simulator.records import Records
from simulator.topology import Topology
from simulator.truth import Comparison
from simulator.world import World


class Witness:
    """Sees what ends in a world and in its twin. Memory grows by what was hurt alone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._comparison = Comparison(world.topology, world.draws)
        self._frames: list[pd.DataFrame] = []

    def see(self, here: Records, twin: Records, *, until: float) -> None:
        """What ended in both before `until` (seconds after the start), and after the last call."""
        found = self._comparison.feed(here, twin, until=until, faults=self._world.faults)
        if len(found):
            self._frames.append(found)

    def hurt(self) -> tuple[Hurt, Mapping[str, int]]:
        """All that was hurt by now, each transfer once, and the fault behind each request that was. Call it once, at the end."""
        clock = self._world.clock
        frame = pd.concat([*self._frames, self._comparison.finish(clock, self._world.faults)], ignore_index=True)
        file, fault = (frame[name].to_numpy(np.int64) for name in ("file", "fault"))
        created, ended = (frame[name].to_numpy(np.float64) for name in ("created", "ended"))
        requests = frame["request_id"].to_numpy(dtype=object)
        hurt = Hurt(file=file, fault=fault, created=created, ended=np.where(np.isnan(ended), clock, ended))
        return hurt, dict(zip(requests.tolist(), fault.tolist(), strict=True))


def struck(world: World) -> tuple[Struck, ...]:
    """The faults that have begun."""
    return tuple(
        Struck(
            number=fault.number,
            kind=str(fault.kind),
            culprits=_same(fault.culprit, world.topology),
            start=fault.start,
            end=fault.end,
        )
        for fault in world.faults
        if fault.start < world.clock
    )


def _same(culprit: str, topology: Topology) -> frozenset[str]:
    """The names of the culprit: a site with one storage element is that, and so is a network between two of them a link."""
    only = {
        site: topology.rses[int(np.flatnonzero(topology.rse_site == place)[0])]
        for place, site in enumerate(topology.sites)
        if np.count_nonzero(topology.rse_site == place) == 1
    }
    sites = {rse: site for site, rse in only.items()}
    kind, _, name = culprit.partition(":")
    ends = name.split(">")
    if kind == "site" and name in only:
        return frozenset({culprit, f"rse:{only[name]}"})
    if kind == "rse" and name in sites:
        return frozenset({culprit, f"site:{sites[name]}"})
    if kind == "network" and all(end in only for end in ends):
        return frozenset({culprit, "link:" + ">".join(only[end] for end in ends)})
    return frozenset({culprit})
