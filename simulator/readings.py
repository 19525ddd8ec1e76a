"""perfSONAR's documents: measurements as JSON lines, and as the batch of readings that is decoded from these."""

from __future__ import annotations

import enum
import hashlib
import json
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from models.measurements import READING_COLUMNS
from simulator.texts import Template, Texts, chosen, floats, joined, spread, table, together, whole
from simulator.topology import Topology


class Quantity(enum.IntEnum):
    """What a document tells of."""

    LOSS = 0
    DELAY = 1
    THROUGHPUT = 2
    RETRANSMITS = 3
    TRACE = 4


_NAMES = (("packet_loss",), ("delay_mean", "delay_sd"), ("throughput",), ("retransmits",), ("hops", "rtt"))
_COUNTS = np.array([len(names) for names in _NAMES])
_NAME_TABLE = table((*names, names[-1])[place] for names in _NAMES for place in (0, 1))
_BANDWIDTH = (Quantity.THROUGHPUT, Quantity.RETRANSMITS)  # measured by another host of the site
_BACKBONES = (20965, 293, 11537, 2603)  # GEANT, ESnet, Internet2, NORDUnet
_PRIVATE = 64512  # the first number of private networks
_DOCUMENT = Template(
    '{"src": "<source_address>", "dest": "<destination_address>", "src_host": "<source_host>", '
    '"dest_host": "<destination_host>", "src_site": <source_name>, "dest_site": <destination_name>, "src_VO": "ATLAS", '
    '"dest_VO": "ATLAS", "src_production": true, "dest_production": true, "ipv6": false, "timestamp": <timestamp>, '
    "<readings>}\n"
)


class Readings:
    """Documents of one grid's probes."""

    def __init__(self, topology: Topology, start_ms: int) -> None:
        self.start_ms = start_ms
        sites = topology.sites
        hosts = [site.lower().replace("_", "-") for site in sites]
        self.sites = table(sites)
        self.quoted = table((*(f'"{site}"' for site in sites), "null"))
        self.addresses = table(f"192.0.2.{10 + place}" for place in range(len(sites)))
        self.hosts = table(f"ps-{box}.{host}.example" for box in ("latency", "bandwidth") for host in hosts)

    def frame(self, measurements: npt.NDArray[np.void]) -> pd.DataFrame:
        """One row for each quantity of each measurement, in their order."""
        counts = _COUNTS[measurements["quantity"]] - np.isnan(measurements["value"])
        rows = np.repeat(np.arange(len(measurements)), counts)
        place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        shown = measurements[rows]
        fields = _Fields(self, shown)
        named = shown["anonymous"] == 0
        text = {
            "source_site": spread(chosen(self.sites, shown["source"][named]), named),
            "destination_site": spread(chosen(self.sites, shown["destination"][named]), named),
            "source_host": fields.source_host,
            "destination_host": fields.destination_host,
            "quantity": chosen(_NAME_TABLE, 2 * shown["quantity"] + place),
        }
        frame = pd.DataFrame({name: pd.Series(column, dtype="str") for name, column in text.items()})
        second = (place == 1) ^ (shown["quantity"] == Quantity.TRACE)  # of a route the hops come first
        frame["value"] = np.where(second, shown["more"], shown["value"])
        frame["at"] = fields.milliseconds / 1000.0
        return frame[list(READING_COLUMNS)]

    def text(self, measurements: npt.NDArray[np.void]) -> bytes:
        """JSON lines."""
        return together(_DOCUMENT.filled(_Fields(self, measurements)))


class _Fields:
    """The fields of documents, column by column, as text for JSON."""

    def __init__(self, around: Readings, measurements: npt.NDArray[np.void]) -> None:
        self._around = around
        self._measurements = measurements
        bandwidth = np.isin(measurements["quantity"], _BANDWIDTH)
        self._box = np.where(bandwidth, len(around.sites), 0)

    @cached_property
    def milliseconds(self) -> npt.NDArray[np.int64]:
        """Times since 1970."""
        at: npt.NDArray[np.int64] = np.rint(self._measurements["at"] * 1000.0).astype(np.int64)
        return self._around.start_ms + at

    @cached_property
    def timestamp(self) -> Texts:
        return whole(self.milliseconds)

    @cached_property
    def source_address(self) -> Texts:
        return chosen(self._around.addresses, self._measurements["source"])

    @cached_property
    def destination_address(self) -> Texts:
        return chosen(self._around.addresses, self._measurements["destination"])

    @cached_property
    def source_host(self) -> Texts:
        return chosen(self._around.hosts, self._measurements["source"] + self._box)

    @cached_property
    def destination_host(self) -> Texts:
        return chosen(self._around.hosts, self._measurements["destination"] + self._box)

    @cached_property
    def source_name(self) -> Texts:
        return self._name("source")

    @cached_property
    def destination_name(self) -> Texts:
        return self._name("destination")

    @cached_property
    def readings(self) -> Texts:
        """What was measured, in the words of its kind of document."""
        parts, order = [], []
        for quantity in Quantity:
            rows = np.flatnonzero(self._measurements["quantity"] == quantity)
            parts.append(_told(quantity, self._measurements[rows]))
            order.append(rows)
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(order))))

    def _name(self, end: str) -> Texts:
        unnamed = len(self._around.sites)
        return chosen(self._around.quoted, np.where(self._measurements["anonymous"], unnamed, self._measurements[end]))


def _told(quantity: Quantity, rows: npt.NDArray[np.void]) -> Texts:
    value, more = rows["value"], rows["more"]
    if quantity is Quantity.LOSS:
        return joined('"packet_loss": ', floats(value))
    if quantity is Quantity.DELAY:
        median = floats(np.round(value - 0.4 * more, 1))
        return joined('"delay_mean": ', floats(value), ', "delay_median": ', median, ', "delay_sd": ', floats(more))
    if quantity is Quantity.TRACE:
        ends = zip(rows["source"].tolist(), rows["destination"].tolist(), strict=True)
        routes = zip(ends, value.tolist(), more.tolist(), strict=True)
        return table(_route(source, destination, rtt, int(hops)) for (source, destination), rtt, hops in routes)
    return joined(
        '"throughput": ' if quantity is Quantity.THROUGHPUT else '"retransmits": ', whole(value.astype(np.int64))
    )


def _route(source: int, destination: int, rtt_ms: float, hops: int) -> str:
    """A traced route, hop by hop."""
    reached = rtt_ms == rtt_ms  # noqa: PLR0124 - not NaN
    networks = [_PRIVATE + source, _BACKBONES[source % 4], _BACKBONES[destination % 4], _PRIVATE + destination]
    asns = [networks[4 * hop // hops if reached else 0] for hop in range(hops)]
    addresses = [f"198.51.100.{(7 * source + 13 * destination + 31 * hop) % 254 + 1}" for hop in range(hops)]
    rtts = (
        [round(rtt_ms * (hop + 1) / hops, 3) for hop in range(hops)] if reached else [0.5 + hop for hop in range(hops)]
    )
    told = {
        "hops": addresses,
        "asns": asns,
        "rtts": rtts,
        "ttls": list(range(1, hops + 1)),
        "n_hops": hops,
        "max_rtt": max(rtts),
        "destination_reached": reached,
        "path_complete": reached,
        "looping": False,
        "route-sha1": hashlib.sha1(" ".join(addresses).encode(), usedforsecurity=False).hexdigest(),
    }
    return json.dumps(told)[1:-1]
