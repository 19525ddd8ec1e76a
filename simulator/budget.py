"""How much of storage, uplinks and paths may be ordered for good, so that a grid that is well keeps up with its work."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from simulator.activities import Activity
from simulator.draws import FloatArray
from simulator.topology import IntArray, Topology, tcp_limit

FULL = 0.4  # of whatever carries it: most that is ordered for good; bursts need the rest
POPULAR_RANK = 0.6  # standard deviations by which data on popular routes come sooner than the others
COMMON = 0.25  # most that the long tail of all routes takes of one storage element


_NORMAL = ndtri((np.arange(4096) + 0.5) / 4096)


def mean_bytes(activity: Activity) -> float:
    """Mean size of the files on the activity's popular routes: where data come in bulk, large ones are more."""
    logs = [np.log(median) + np.hypot(apart, within) * _NORMAL for _, median, apart, within in activity.sizes]
    share = np.repeat([share / len(_NORMAL) for share, *_ in activity.sizes], len(_NORMAL))
    sizes = np.concatenate(logs)
    order = np.argsort(sizes, kind="stable")
    sizes, share = np.exp(sizes[order]), share[order]
    rank = ndtri(np.clip(np.cumsum(share) - 0.5 * share, 1e-9, 1 - 1e-9))
    weight = share * np.exp(activity.bulk * (activity.files_sigma + POPULAR_RANK) * rank)
    return float((weight * sizes).sum() / weight.sum())


class Budget:
    """What may still be ordered, in bytes a second."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._read, self._write = FULL * topology.read, FULL * topology.write
        self._out, self._in = FULL * topology.uplink_out, FULL * topology.uplink_in
        self._path = FULL * topology.capacity
        self._line = FULL * topology.link_limit.astype(np.float64)  # transfers at once: on each link,
        self._outbound, self._inbound = FULL * topology.outbound, FULL * topology.inbound  # from storage and to it

    def trimmed(self, weights: FloatArray, arriving: FloatArray, leaving: FloatArray) -> FloatArray:
        """Weights [R] of the long tail, less where what would arrive and leave with them (bytes a second) is too much."""
        topology = self._topology
        most = COMMON * np.stack([topology.write, topology.read])
        return weights * np.minimum(1.0, most / np.maximum(np.stack([arriving, leaving]), 1e-9)).min(axis=0)

    def take(self, activity: Activity, source: IntArray, target: IntArray, wanted: FloatArray) -> FloatArray:
        """Order `wanted` files a second on the activity's routes [n]; return how many can be had.

        What one route cannot carry goes to the others, the first of them first.
        """
        size = mean_bytes(activity)
        taken = np.zeros(len(source))
        left = 0.0
        for turn in range(2):
            for place, (one, other) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
                more = float(wanted[place]) if turn == 0 else left
                given = more if activity.within else min(more, self._room(one, other, size))
                self._use(one, other, given, size)
                taken[place] += given
                left += more - given if turn == 0 else -given
        return taken

    def _room(self, source: int, target: int, size: float) -> float:
        """Files of that size a second."""
        site, here, there = self._topology.rse_site, *self._sites(source, target)
        bandwidth = min(self._read[source], self._write[target], self._path[here, there])
        if site[source] != site[target]:
            bandwidth = min(bandwidth, self._out[here], self._in[there])
        slots = min(self._line[source, target], self._outbound[source], self._inbound[target])
        return max(0.0, float(min(bandwidth / size, slots / self.lasts(source, target, size))))

    def _use(self, source: int, target: int, files: float, size: float) -> None:
        here, there = self._sites(source, target)
        self._read[source] -= files * size
        self._write[target] -= files * size
        self._path[here, there] -= files * size
        slots = files * self.lasts(source, target, size)
        self._line[source, target] -= slots
        self._outbound[source] -= slots
        self._inbound[target] -= slots
        if here != there:
            self._out[here] -= files * size
            self._in[there] -= files * size

    def lasts(self, source: int, target: int, size: float) -> float:
        """Seconds of a transfer that is alone."""
        topology = self._topology
        here, there = self._sites(source, target)
        tcp = tcp_limit(float(topology.rtt_s[here, there]), float(topology.loss[here, there]))
        rate = min(topology.stream[source], topology.stream[target], tcp)
        return float(topology.overhead_s[source] + topology.overhead_s[target] + size / rate)

    def _sites(self, source: int, target: int) -> tuple[int, int]:
        return int(self._topology.rse_site[source]), int(self._topology.rse_site[target])
