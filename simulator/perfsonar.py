"""perfSONAR between the sites: packet loss and one-way delay every five minutes, throughput a few times a day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from simulator.draws import Draws, For
from simulator.faults import Conditions
from simulator.state import State
from simulator.topology import Path, Topology, tcp_limit

EVERY = 300.0  # seconds between two readings of loss and delay on a path
_PACKETS = 3000  # sent in that time
_THROUGHPUT_EVERY = 72  # readings
_NO_SITE = 0.1  # share of documents without site names


class Probes:
    """Measures each path between two different sites; they are numbered from 0 to `len - 1`."""

    def __init__(self, *, topology: Topology, draws: Draws, state: State, start: datetime) -> None:
        self._draws = draws
        self._state = state
        self._start = start
        self._paths = tuple(path for path in topology.paths.values() if path.source != path.destination)
        self._number = {site: i for i, site in enumerate(topology.sites)}
        # Clocks are off by a few milliseconds; where the sites are near each other, delays come out negative.
        self._clock_ms = {site: draws.normal(For.PROBE, 9999, i) * 1.5 for site, i in self._number.items()}

    def __len__(self) -> int:
        return len(self._paths)

    def measure(self, number: int, turn: int, conditions: Conditions, now: float) -> None:
        """Post what the path's test of this turn found."""
        path, name = self._paths[number], (For.PROBE, number, turn)
        loss = conditions.loss(path.source, path.destination, path.loss)
        lost = min(_PACKETS, self._draws.poisson(_PACKETS * loss, *name, 1))
        self._post(path, name, "latency", now, {"packet_loss": lost / _PACKETS})
        offset = self._clock_ms[path.destination] - self._clock_ms[path.source]
        jitter = self._draws.lognormal(0.05, 0.8, *name, 2)
        delay = path.rtt_s * 500 + offset + jitter
        readings = {"delay_mean": delay, "delay_median": round(delay, 1), "delay_sd": jitter}
        self._post(path, name, "latency", now + 1.0, readings)
        if (turn + number) % _THROUGHPUT_EVERY == 0:
            rate = min(tcp_limit(path, loss), path.capacity) * self._draws.between(0.6, 0.95, *name, 3)
            self._post(path, name, "bandwidth", now + 2.0, {"throughput": round(8 * rate)})

    def _post(self, path: Path, name: tuple[int, ...], box: str, at: float, readings: Mapping[str, float]) -> None:
        first = sum(map(ord, next(iter(readings))))
        anonymous = self._draws.uniform(*name, first) < _NO_SITE
        document: dict[str, Any] = {"timestamp": round((self._start + timedelta(seconds=at)).timestamp() * 1000)}
        for end, site in (("src", path.source), ("dest", path.destination)):
            document[end] = f"192.0.2.{10 + self._number[site]}"
            document[f"{end}_host"] = f"ps-{box}.{site.lower()}.example"
            document[f"{end}_site"] = None if anonymous else site
            document[f"{end}_VO"] = "ATLAS"
            document[f"{end}_production"] = True
        readable = at + self._draws.exponential(15.0, *name, first + 1)
        self._state.post(readable, "measurements", document | {"ipv6": False} | dict(readings))
