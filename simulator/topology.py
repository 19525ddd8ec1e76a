"""What the small grid is made of: sites on the map, storage elements with their capacities, the paths between them.

Capacities are bytes a second, times are seconds. Names have ATLAS's form (`SITE_DATADISK`); hosts are under `.example`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.draws import Draws, For

MB = 1e6
MSS = 1460  # bytes of a TCP segment
STREAMS = 4  # TCP streams of one transfer
WINDOW = 4 * MB  # bytes that one stream may have in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One storage element. `overhead_s` is what its door takes to open and close a file."""

    name: str
    site: str
    kind: Literal["DISK", "TAPE"]
    protocol: str
    host: str
    weight: float  # its share of the data, relative to the others
    read: float
    write: float
    stream: float  # most that one transfer gets
    overhead_s: float
    connections: int  # above this many at once the door turns transfers away


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The network from one site to another, in this direction."""

    source: str
    destination: str
    rtt_s: float
    loss: float  # fraction of packets, when nothing is wrong
    capacity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole grid when nothing is wrong and nobody has changed anything. Links are written `A>B`."""

    sites: tuple[str, ...]
    storages: Mapping[str, Storage]
    paths: Mapping[tuple[str, str], Path]
    distances: Mapping[str, int]
    fts: Mapping[str, str]  # site -> host of the FTS server that moves files to it


# name, latitude, longitude, weight of its data, storage bandwidth, storage elements, FTS server
_SITES = (
    ("CERN-PROD", 46.2, 6.1, 3.0, 900, "DATADISK SCRATCHDISK DATATAPE", "fts3-cern.example"),
    ("BNL-OSG2", 40.9, -72.9, 2.2, 600, "DATADISK SCRATCHDISK DATATAPE", "fts3-us.example"),
    ("FZK-LCG2", 49.1, 8.4, 1.6, 450, "DATADISK SCRATCHDISK DATATAPE", "fts3-cern.example"),
    ("RAL-LCG2", 51.6, -1.3, 1.4, 400, "DATADISK SCRATCHDISK DATATAPE", "fts3-uk.example"),
    ("IN2P3-CC", 45.8, 4.9, 1.4, 400, "DATADISK SCRATCHDISK", "fts3-cern.example"),
    ("TRIUMF-LCG2", 49.2, -123.2, 1.1, 320, "DATADISK SCRATCHDISK", "fts3-us.example"),
    ("NIKHEF-ELPROD", 52.4, 4.9, 1.0, 280, "DATADISK", "fts3-cern.example"),
    ("DESY-HH", 53.6, 9.9, 1.1, 300, "DATADISK SCRATCHDISK", "fts3-cern.example"),
    ("MWT2", 41.8, -87.6, 1.2, 300, "DATADISK", "fts3-us.example"),
    ("AGLT2", 42.3, -83.7, 0.9, 240, "DATADISK", "fts3-us.example"),
    ("TOKYO-LCG2", 35.7, 139.8, 0.9, 260, "DATADISK SCRATCHDISK", "fts3-cern.example"),
    ("UKI-LT2-QMUL", 51.5, 0.0, 0.8, 200, "DATADISK", "fts3-uk.example"),
)


def small_grid(seed: int) -> Topology:
    """Twelve sites with 24 storage elements. The seed varies capacities, overheads and loss, never the names."""
    draws = Draws(seed)
    storages = {storage.name: storage for storage in _storages(draws)}
    paths = {(path.source, path.destination): path for path in _paths(draws)}
    distances = {
        f"{source.name}>{destination.name}": _distance(paths[source.site, destination.site])
        for source in storages.values()
        for destination in storages.values()
        if source is not destination and source.kind == "DISK"
    }
    return Topology(
        sites=tuple(site[0] for site in _SITES),
        storages=storages,
        paths=paths,
        distances=distances,
        fts={site[0]: site[6] for site in _SITES},
    )


def tcp_limit(path: Path, loss: float) -> float:
    """Most that one transfer's streams carry: by window and, where packets are lost, by Mathis' formula."""
    window = WINDOW / path.rtt_s
    mathis = math.sqrt(1.5) * MSS / (path.rtt_s * math.sqrt(loss)) if loss > 0 else math.inf
    return STREAMS * min(window, mathis)


def _storages(draws: Draws) -> list[Storage]:
    found = []
    for number, (site, _, _, weight, bandwidth, kinds, _) in enumerate(_SITES):
        for place, token in enumerate(kinds.split()):
            key = (For.TOPOLOGY, number, place)
            tape, scratch = token == "DATATAPE", token == "SCRATCHDISK"  # noqa: S105 - Rucio's word for a kind of space
            share = 0.5 if tape or scratch else 1.0
            found.append(
                Storage(
                    name=f"{site}_{token}",
                    site=site,
                    kind="TAPE" if tape else "DISK",
                    protocol=("davs", "gsiftp", "srm")[draws.bits(For.TOPOLOGY, number) % 3],
                    host=f"se{place + 1}.{site.lower()}.example",
                    weight=weight * (0.35 if scratch else 1.0),
                    read=bandwidth * MB * share * draws.lognormal(1.0, 0.2, *key, 1),
                    write=bandwidth * MB * share * draws.lognormal(0.7, 0.2, *key, 2),
                    stream=draws.lognormal(30 * MB, 0.5, *key, 3),
                    overhead_s=draws.lognormal(6.0 if tape else 3.2, 0.6, *key, 4),
                    connections=200,
                )
            )
    return found


def _paths(draws: Draws) -> list[Path]:
    found = []
    for i, (source, *here, _, bandwidth_out, _, _) in enumerate(_SITES):
        for j, (destination, *there, _, bandwidth_in, _, _) in enumerate(_SITES):
            key = (For.TOPOLOGY, 1000 + i, j)
            near = i == j
            found.append(
                Path(
                    source=source,
                    destination=destination,
                    rtt_s=0.0005 if near else 0.003 + _fibre_km(*here, *there) * 2 / 200_000,
                    loss=0.0 if near else draws.lognormal(2e-6, 1.0, *key),
                    capacity=10_000 * MB if near else 0.6 * MB * min(bandwidth_out, bandwidth_in),
                )
            )
    return found


def _fibre_km(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """Length of the fibre: the great circle and two fifths more."""
    a, b = math.radians(latitude), math.radians(to_latitude)
    turn = math.radians(to_longitude - longitude)
    cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)
    return 1.4 * 6371 * math.acos(min(1.0, cosine))


def _distance(path: Path) -> int:
    """Rucio's ranking number, as operators set it: by round trip."""
    return 1 if path.source == path.destination else 2 + round(path.rtt_s / 0.02)
