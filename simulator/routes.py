"""Where datasets are and where they are wanted: a few popular routes for good, and a long tail of all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulator.activities import ACTIVITIES, Activity
from simulator.budget import Budget, mean_bytes
from simulator.draws import Draws, FloatArray, For
from simulator.topology import IntArray, Topology

Places = npt.NDArray[np.int16]

CANDIDATES, REPLICAS = 3, 4
NEAR_S = 0.05  # round trip within which a popular route is likely to lie
_COPIES = np.array([0.25, 0.65, 0.9, 1.0])  # cumulative share of the datasets with one replica, two, three, four
_TRIES = 5  # draws for each place that is to be filled with something new


class Wheel:
    """A list of numbers with weights for each activity, drawn from for many activities at once."""

    def __init__(self, weights: Sequence[FloatArray], numbers: Sequence[IntArray]) -> None:
        self._marks = np.concatenate([i + np.cumsum(each) / max(each.sum(), 1e-9) for i, each in enumerate(weights)])
        self._numbers = np.concatenate(numbers).astype(np.int64)
        self._stop = np.cumsum([len(each) for each in weights])

    def draw(self, activity: IntArray, uniform: FloatArray) -> IntArray:
        """The numbers at these places of the wheels: `uniform` between 0 and 1, broadcast against `activity`."""
        places = np.minimum(np.searchsorted(self._marks, activity + uniform, side="right"), self._stop[activity] - 1)
        return self._numbers[places]


class Routes:
    """Destinations and sources of datasets by activity. `share` f8[A]: of the transfers, 0 where the grid lacks something."""

    def __init__(self, topology: Topology, draws: Draws, transfers_per_day: float) -> None:
        self._topology = topology
        self._draws = draws
        self._weights = topology.weight * topology.site_weight[topology.rse_site]
        space = np.array(topology.space)
        sources = [np.flatnonzero(space == each.source) for each in ACTIVITIES]
        sources = [
            each[topology.rse_site[each] == 0] if activity.export else each
            for each, activity in zip(sources, ACTIVITIES, strict=True)
        ]
        targets = [np.flatnonzero(np.isin(space, each.target)) for each in ACTIVITIES]
        targets = [
            each[topology.rse_site[each] != 0] if activity.export and not activity.within else each
            for each, activity in zip(targets, ACTIVITIES, strict=True)
        ]
        spaces = list(zip(sources, targets, strict=True))
        works = np.array([_works(topology, *each) for each in zip(ACTIVITIES, sources, targets, strict=True)])
        share = np.array([activity.share for activity in ACTIVITIES]) * works
        self.share = share / share.sum()
        rates = self.share * transfers_per_day / 86_400
        budget = Budget(topology)
        self._weights = self._trimmed(budget, rates, spaces)
        popular, loads = [], []
        for number, (activity, (source, target)) in enumerate(zip(ACTIVITIES, spaces, strict=True)):
            routes = self._popular(number, source, target, budget)
            zipf = np.arange(1.0, len(routes) + 1) ** -activity.steep
            wanted = activity.popular * rates[number] * zipf / max(zipf.sum(), 1e-9)
            taken = budget.take(activity, *np.divmod(routes, len(topology.rses)), wanted)
            popular.append(routes)
            loads.append(taken / max(rates[number], 1e-12))
        self._popular_share = np.array([each.sum() for each in loads])
        self._sources = Wheel([self._weights[each] for each in sources], sources)
        self._targets = Wheel([self._weights[each] for each in targets], targets)
        self._routes = Wheel(loads, popular)

    def choose(self, activity: IntArray, dataset: IntArray, quantiles: FloatArray) -> tuple[Places, Places]:
        """Candidates [n, CANDIDATES] and replicas [n, REPLICAS] in the order drawn, padded with -1, for n datasets.

        `quantiles` [n, 2] between 0 and 1 stand for the first destination and the first source, the lowest for the most popular
        routes. No replica is among the candidates, and there is one of each.
        """
        rses = len(self._topology.rses)
        place, edge = quantiles[:, 0], self._popular_share[activity]
        hot = place < edge
        scaled = np.where(hot, place / np.maximum(edge, 1e-9), (place - edge) / np.maximum(1 - edge, 1e-9))
        source, target = np.divmod(self._routes.draw(activity, np.where(hot, scaled, 0.0)), rses)
        drawn_targets = self._draw(self._targets, 1, activity, dataset, _TRIES * CANDIDATES)
        drawn_sources = self._draw(self._sources, 2, activity, dataset, _TRIES * REPLICAS)
        drawn_sources[:, 0] = self._sources.draw(activity, quantiles[:, 1])
        first_target = np.where(hot, target, self._targets.draw(activity, scaled))
        first_source = np.where(hot, source, _first_other(drawn_sources, first_target))
        lost = first_source == first_target  # all draws fell on the destination
        first_source[lost] = self._any_source(activity[lost], first_target[lost])
        copies = 1 + np.searchsorted(_COPIES, self._draws.uniforms(For.RULE, 3, activity, dataset))
        candidates = _distinct(first_target, drawn_targets, first_source[:, None], CANDIDATES)
        replicas = _distinct(first_source, drawn_sources, candidates, REPLICAS)
        replicas[np.arange(REPLICAS)[None, :] >= copies[:, None]] = -1
        return candidates.astype(np.int16), replicas.astype(np.int16)

    def _draw(self, wheel: Wheel, purpose: int, activity: IntArray, dataset: IntArray, times: int) -> IntArray:
        uniform = self._draws.uniforms(
            For.RULE, 3 + purpose, activity[:, None], dataset[:, None], np.arange(times)[None, :]
        )
        return wheel.draw(activity[:, None], uniform)

    def _any_source(self, activity: IntArray, target: IntArray) -> IntArray:
        """For each the likeliest source that is not the target."""
        found = np.empty(len(activity), dtype=np.int64)
        for row, (one, there) in enumerate(zip(activity.tolist(), target.tolist(), strict=True)):
            spaces = [i for i, name in enumerate(self._topology.space) if name == ACTIVITIES[one].source and i != there]
            found[row] = max(spaces, key=lambda rse: self._weights[rse])
        return found

    def _trimmed(self, budget: Budget, rates: FloatArray, spaces: Sequence[tuple[IntArray, IntArray]]) -> FloatArray:
        """The weights, less where the long tail would order too much."""
        leaving, arriving = np.zeros(len(self._weights)), np.zeros(len(self._weights))
        for activity, rate, (sources, targets) in zip(ACTIVITIES, rates, spaces, strict=True):
            common = rate * (1.0 - activity.popular) * mean_bytes(activity)
            leaving[sources] += common * self._weights[sources] / max(self._weights[sources].sum(), 1e-9)
            arriving[targets] += common * self._weights[targets] / max(self._weights[targets].sum(), 1e-9)
        return budget.trimmed(self._weights, arriving, leaving)

    def _popular(self, number: int, sources: IntArray, targets: IntArray, budget: Budget) -> IntArray:
        """An activity's popular routes as source times R + destination: the more one can carry, the more popular."""
        activity, topology = ACTIVITIES[number], self._topology
        source, target = (each.ravel() for each in np.meshgrid(sources, targets, indexing="ij"))
        here, there = topology.rse_site[source], topology.rse_site[target]
        may = (source != target) & ((here == there) | (not activity.within))
        source, target, here, there = (each[may] for each in (source, target, here, there))
        weight = np.sqrt(self._weights[source] * self._weights[target]) * np.exp(-topology.rtt_s[here, there] / NEAR_S)
        wait = self._draws.exponentials(1.0, For.RULE, 2, number, source, target) / weight
        order = np.argsort(wait, kind="stable")[: activity.routes]
        source, target, size = source[order], target[order], mean_bytes(activity)
        carried = [
            topology.link_limit[one, other] / budget.lasts(one, other, size)
            for one, other in zip(source.tolist(), target.tolist(), strict=True)
        ]
        routes: IntArray = source * len(topology.rses) + target
        return routes[np.argsort(-np.array(carried), kind="stable")]


def _works(topology: Topology, activity: Activity, sources: IntArray, targets: IntArray) -> bool:
    """There is a way to go for each rule of the activity, whatever is drawn."""
    if activity.within:
        return len(np.intersect1d(topology.rse_site[sources], topology.rse_site[targets])) > 0
    return len(sources) > 0 and len(targets) > 0 and (len(sources) > 1 or sources[0] not in targets)


def _first_other(drawn: IntArray, than: IntArray) -> IntArray:
    """The first of each row that is not `than`; `than` itself if there is none."""
    place = np.argmax(drawn != than[:, None], axis=1)
    return drawn[np.arange(len(drawn)), place]


def _distinct(first: IntArray, drawn: IntArray, without: IntArray, width: int) -> IntArray:
    """`first` [n] and what is drawn [n, m], each once and none of `without` [n, k]; [n, width], padded with -1."""
    found = np.full((len(first), width), -1, dtype=np.int64)
    found[:, 0] = first
    count = np.ones(len(first), dtype=np.int64)
    for column in drawn.T:
        new = (count < width) & (found != column[:, None]).all(axis=1) & (without != column[:, None]).all(axis=1)
        found[new, count[new]] = column[new]
        count += new
    return found
