"""perfSONAR between the sites: packet loss and one-way delay all the time, throughput a few times a day, a traced route an hour.

Measurements have the faults that real ones have: sites without probes, probes that are silent for hours, documents without
site names, clocks that are off (by more than a hundred milliseconds at worst), loss that no transfer notices, and firewalls
that let transfers pass and no probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from models.domain import aware
from models.measurements import empty_readings
from simulator.draws import Draws, FloatArray, For
from simulator.faults import Conditions
from simulator.readings import Quantity, Readings
from simulator.schema import Probing
from simulator.topology import MSS, IntArray, Topology, tcp_limit

MEASUREMENT = np.dtype(
    [
        ("quantity", "i2"),  # of Quantity
        ("anonymous", "i2"),  # it does not name the sites
        ("source", "i2"),  # of the topology's sites
        ("destination", "i2"),
        ("at", "f8"),  # seconds after the world's start
        ("readable", "f8"),
        ("value", "f8"),  # fraction; mean in ms; bit/s; count; ms of a route, NaN where its end was not reached
        ("more", "f8"),  # of DELAY the standard deviation in ms, of TRACE the hops
    ]
)  # no gaps between the fields, so that equal measurements have equal bytes
Measurements = npt.NDArray[np.void]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PACKETS = 600  # of a test of loss
_THROUGHPUT_S, _TRACE_S = 6 * 3600.0, 3600.0
_IPERF_S = 30.0  # how long throughput is measured
_BURST, _BURST_LOSS, _BURST_SPREAD = 0.015, 0.002, 1.2  # share of tests that meet a burst of loss, and how much
_MOST_BURST = 0.5
_UNREST, _UNREST_MS, _QUIET_MS = 0.3, 8.0, 0.16  # share of tests in which the delay varies much; medians
_OFF_MS, _FAR_OFF_MS = 1.5, 40.0  # clocks: sigma of all, median of those that are far off
_WORST_MS, _MANY_SITES = 150.0, 30  # in a grid of so many sites one clock is off by so much
_FIREWALLED = 0.01  # share of paths
_SILENT, _SILENCE_S = 0.02, 4 * 3600.0  # share of the time that a site's probes do not answer, and how long that lasts
_INDEX_S, _LATE, _LATE_S = 15.0, 0.01, 600.0  # mean delay of a document; share that comes later, by how much
_HOP_MS, _LEAST_HOPS, _DETOUR = 12.0, 6, 5  # of a route: round trip for each hop; hops of a detour
_HOPS_KNOWN = 3  # of a route whose end does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turns:
    """Tests that are due. `path` is the place among the pairs of sites, `number` counts the tests of a path."""

    path: IntArray
    number: IntArray
    at: FloatArray
    key: tuple[int, int, IntArray, IntArray, IntArray]  # of their draws


class Probes:
    """The tests between all pairs of sites that have probes."""

    def __init__(self, topology: Topology, draws: Draws, probing: Probing, start: datetime) -> None:
        self._topology = topology
        self._draws = draws
        self._anonymous = probing.anonymous
        self._every = (probing.every_s, probing.every_s, _THROUGHPUT_S, _THROUGHPUT_S, _TRACE_S)
        self._readings = Readings(topology, (aware(start) - _EPOCH) // timedelta(milliseconds=1))
        sites = np.arange(len(topology.sites))
        rank = np.argsort(draws.uniforms(For.PROBE, 1, sites) * topology.uplink_in)  # the small ones go without first
        probed = np.sort(rank[round(probing.missing * len(sites)) :])
        self.probed = np.isin(sites, probed)  # bool[S]
        pairs = np.array([(a, b) for a in probed for b in probed if a != b], dtype=np.int64).reshape(-1, 2)
        self._source, self._destination = source, destination = pairs[:, 0], pairs[:, 1]
        self._turn = draws.uniforms(For.PROBE, 2, source, destination)  # when in the interval a path is tested
        self._walled = draws.uniforms(For.PROBE, 3, source, destination) < _FIREWALLED
        self._more_hops = (draws.words(For.PROBE, 4, source, destination) % np.uint64(5)).astype(np.int64)
        self._silence = draws.uniforms(For.PROBE, 5, sites)  # when a site's silences may begin
        self._clock_ms = self._clocks(sites, probing.clock_off)

    def measure(self, conditions: Conditions, since: float, until: float) -> Measurements:
        """All that is measured in [since, until) under constant conditions; times are seconds after the start."""
        return np.concatenate([self._measured(quantity, conditions, since, until) for quantity in Quantity])

    def frame(self, measurements: Measurements) -> pd.DataFrame:
        """Them in the form of a batch of readings, in their order: what `models.measurements` decodes from `lines`."""
        return self._readings.frame(measurements) if len(measurements) else empty_readings()

    def text(self, measurements: Measurements) -> bytes:
        """Them as JSON lines, in their order."""
        return self._readings.text(measurements) if len(measurements) else b""

    def lines(self, measurements: Measurements) -> list[bytes]:
        """Them as JSON, in their order."""
        return self.text(measurements).split(b"\n")[:-1]

    def _clocks(self, sites: IntArray, far_off: float) -> FloatArray:
        """How many milliseconds each site's clock is ahead."""
        draws = self._draws
        luck = draws.uniforms(For.PROBE, 6, sites)
        sign = np.where(draws.uniforms(For.PROBE, 7, sites) < 0.5, -1.0, 1.0)
        little = _OFF_MS * draws.normals(For.PROBE, 8, sites)
        ahead = np.where(luck < far_off, sign * draws.lognormals(_FAR_OFF_MS, 0.5, For.PROBE, 9, sites), little)
        if far_off and len(sites) >= _MANY_SITES:
            ahead[np.argmin(luck)] = sign[np.argmin(luck)] * _WORST_MS
        return ahead

    def _measured(self, quantity: Quantity, conditions: Conditions, since: float, until: float) -> Measurements:
        turns = self._due(quantity, since, until)
        value, more = {
            Quantity.LOSS: self._loss,
            Quantity.DELAY: self._delay,
            Quantity.THROUGHPUT: self._throughput,
            Quantity.RETRANSMITS: self._retransmits,
            Quantity.TRACE: self._trace,
        }[quantity](turns, conditions)
        found = np.zeros(len(turns.at), dtype=MEASUREMENT)
        found["quantity"], found["at"], found["value"], found["more"] = quantity, turns.at, value, more
        found["source"], found["destination"] = self._source[turns.path], self._destination[turns.path]
        found["anonymous"] = self._draws.uniforms(*turns.key, 1) < self._anonymous
        late = self._draws.uniforms(*turns.key, 2) < _LATE
        delay = self._draws.exponentials(np.where(late, _LATE_S, _INDEX_S), *turns.key, 3)
        found["readable"] = np.maximum(turns.at + delay, np.floor(turns.at) + 2.0)  # a second is over before it is told
        return found[~np.isnan(value) | ((quantity == Quantity.TRACE) & (more > 0))]

    def _due(self, quantity: Quantity, since: float, until: float) -> _Turns:
        """The tests of that quantity in [since, until), where neither site's probes are silent."""
        every = self._every[quantity]
        turn = self._turn + float(quantity) / every  # one after the other, a second apart
        first, last = (np.ceil(time / every - turn).astype(np.int64) for time in (since, until))
        path = np.repeat(np.arange(len(turn)), last - first)
        number = np.arange(len(path)) - np.repeat(np.cumsum(last - first) - last, last - first)
        at = (number + turn[path]) * every
        heard = np.ones(len(path), dtype=np.bool_)
        for site in (self._source[path], self._destination[path]):
            block = np.floor(at / _SILENCE_S + self._silence[site]).astype(np.int64)
            heard &= self._draws.uniforms(For.PROBE, 10, site, block) >= _SILENT
        path, number, at = path[heard], number[heard], at[heard]
        key = (For.PROBE, 20 + quantity, self._source[path], self._destination[path], number)
        return _Turns(path=path, number=number, at=at, key=key)

    def _lossy(self, turns: _Turns, conditions: Conditions) -> FloatArray:
        """Share of packets that the network loses, firewalls apart."""
        lost: FloatArray = conditions.loss[self._source[turns.path], self._destination[turns.path]]
        return lost

    def _loss(self, turns: _Turns, conditions: Conditions) -> tuple[FloatArray, FloatArray]:
        draws, lost = self._draws, self._lossy(turns, conditions)
        burst = np.minimum(draws.lognormals(_BURST_LOSS, _BURST_SPREAD, *turns.key, 4), _MOST_BURST)
        lost = lost + np.where(draws.uniforms(*turns.key, 5) < _BURST, burst, 0.0)
        lost = np.where(self._walled[turns.path], 1.0, np.minimum(lost, 1.0))
        packets = np.minimum(_poisson(_PACKETS * lost, draws.uniforms(*turns.key, 6)), _PACKETS)
        return np.where(lost == 1.0, 1.0, packets / _PACKETS), np.zeros(len(lost))

    def _delay(self, turns: _Turns, conditions: Conditions) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation; NaN where no packet arrives."""
        draws, source, destination = self._draws, self._source[turns.path], self._destination[turns.path]
        unrest = draws.uniforms(*turns.key, 4) < _UNREST
        deviation = draws.lognormals(np.where(unrest, _UNREST_MS, _QUIET_MS), np.where(unrest, 1.2, 0.5), *turns.key, 5)
        offset = self._clock_ms[destination] - self._clock_ms[source]
        mean = conditions.rtt_s[source, destination] * 500.0 + offset + 0.4 * deviation
        blind = self._walled[turns.path] | (self._lossy(turns, conditions) >= 1.0)
        return np.where(blind, np.nan, np.round(mean, 4)), np.round(deviation, 4)

    def _throughput(self, turns: _Turns, conditions: Conditions) -> tuple[FloatArray, FloatArray]:
        """Bits a second through firewalls, too: this test has a host and ports of its own."""
        topology, source, destination = self._topology, self._source[turns.path], self._destination[turns.path]
        lost, rtt_s = self._lossy(turns, conditions), conditions.rtt_s[source, destination]
        tcp = np.array([tcp_limit(*path) for path in zip(rtt_s.tolist(), lost.tolist(), strict=True)])
        network = np.minimum(topology.capacity[source, destination], topology.uplink_out[source])
        share = 0.6 + 0.35 * self._draws.uniforms(For.PROBE, 11, source, destination, turns.number)
        rate = np.round(8.0 * share * np.minimum(tcp, np.minimum(network, topology.uplink_in[destination])))
        return np.where(lost >= 1.0, np.nan, rate), np.zeros(len(rate))

    def _retransmits(self, turns: _Turns, conditions: Conditions) -> tuple[FloatArray, FloatArray]:
        """Of the throughput's test."""
        rate, nothing = self._throughput(turns, conditions)
        segments = np.nan_to_num(rate) / 8.0 * _IPERF_S / MSS
        count = _poisson(
            segments * np.minimum(self._lossy(turns, conditions), 1.0), self._draws.uniforms(*turns.key, 4)
        )
        return np.where(np.isnan(rate), np.nan, np.minimum(count, 1e6)), nothing

    def _trace(self, turns: _Turns, conditions: Conditions) -> tuple[FloatArray, FloatArray]:
        """Round trip and hops. A route that is longer than it should be has more hops, too."""
        source, destination = self._source[turns.path], self._destination[turns.path]
        usual, rtt_s = self._topology.rtt_s[source, destination], conditions.rtt_s[source, destination]
        hops = _LEAST_HOPS + np.floor(1000.0 * usual / _HOP_MS) + self._more_hops[turns.path]
        hops += np.where(rtt_s > usual, _DETOUR, 0)
        blind = self._walled[turns.path] | (self._lossy(turns, conditions) >= 1.0)
        jitter = self._draws.exponentials(0.3, *turns.key, 4)
        value = np.where(blind, np.nan, np.round(1000.0 * rtt_s + jitter, 3))
        return value, np.where(blind, float(_HOPS_KNOWN), hops)


def _poisson(mean: FloatArray, uniform: FloatArray) -> FloatArray:
    """Poisson's quantiles: by inversion for small means, by the normal limit above 30."""
    count = np.maximum(0.0, np.rint(mean + np.sqrt(mean) * ndtri(uniform)))
    open_rows = np.flatnonzero(mean <= 30.0)
    count[open_rows] = 0.0
    rest, term = uniform[open_rows].copy(), np.exp(-mean[open_rows])
    while len(open_rows := open_rows[more := rest > term]):
        rest, term = rest[more] - term[more], term[more]
        count[open_rows] += 1
        term = term * mean[open_rows] / count[open_rows]
    return count
