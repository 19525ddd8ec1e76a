"""What the grid is made of when nothing is wrong: sites on the map, storage elements, FTS servers, the paths between them.

Capacities are bytes a second, times are seconds. Names have ATLAS's form (`SITE_DATADISK`); hosts are under `.example`.
The lists are fixed and each grid takes their beginning, so a name means the same in every grid that has it; the seed varies
what things can do, never what they are called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.draws import Draws, For
from simulator.kernels import inlined

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PROTOCOLS = ("davs", "gsiftp", "srm")
MSS = 1460.0  # bytes of a TCP segment
STREAMS = 8.0  # TCP streams of one transfer
WINDOW = 4e6  # bytes that one stream may have in flight
FIBRE = 1.4  # length of the fibre over the great circle
LIGHT_KM_S = 200_000.0
EQUIPMENT_S = 0.003  # of a round trip, beside the fibre
INSIDE_RTT_S = 0.0005
INSIDE_CAPACITY = 2e10

_GBIT = 125e6
_MB = 1e6
_MEAN_SPACES = 2.5  # storage elements a site
_SERVERS = ("fts3-cern.example", "fts3-us.example", "fts3-uk.example", "fts3-pilot.example")
_SPACES = ("DATADISK", "SCRATCHDISK", "DATATAPE", "LOCALGROUPDISK", "MCTAPE", "PHYS-TOP")
_LETTERS = {"D": "DATADISK", "S": "SCRATCHDISK", "T": "DATATAPE", "L": "LOCALGROUPDISK"}
_SHARE = {"DATADISK": 1.0, "SCRATCHDISK": 0.5, "DATATAPE": 1.0, "LOCALGROUPDISK": 0.25, "MCTAPE": 0.2, "PHYS-TOP": 0.2}

# How storage differs from one to the other, for good: sigma of the logarithm, the median for the rest.
DOOR_S, DOOR_SIGMA = 3.4, 1.0
TAPE_DOOR_S = 5.0
STREAM, STREAM_SIGMA = 42 * _MB, 0.8
STREAM_GROWTH = 0.35  # small sites have older disk servers, with slower network cards
BANDWIDTH_SIGMA, LARGE_BANDWIDTH_SIGMA = 0.7, 0.25  # of a storage's bandwidth against its uplink; large sites plan
LARGE_GBIT = 40
READ_SHARE, WRITE_SHARE = 0.6, 0.45  # of the uplink
LOSS, LOSS_PAIR_SIGMA, LOSS_SITE_SIGMA = 2e-6, 0.6, 0.7
LINK_LIMIT, LINK_LIMIT_SIGMA = 14.0, 0.4  # transfers at once between two large sites, and how FTS's optimizer varies it
INSIDE_LIMIT = 11.5  # times as many inside a site
STORAGE_LIMIT, SLOTS = 200, 500  # at a large site; on a server
LEAST_LIMIT, LEAST_STORAGE_LIMIT, LEAST_SLOTS = 4, 12, 60

# name, latitude, longitude, uplink in Gbit/s, spaces by letter, FTS server
_SITES = (
    ("CERN-PROD", 46.2, 6.1, 100, "DSTL", 0),
    ("BNL-OSG2", 40.9, -72.9, 100, "DSTL", 1),
    ("FZK-LCG2", 49.1, 8.4, 80, "DSTL", 3),
    ("RAL-LCG2", 51.57, -1.31, 60, "DST", 2),
    ("IN2P3-CC", 45.8, 4.9, 60, "DSTL", 0),
    ("TRIUMF-LCG2", 49.2, -123.2, 40, "DST", 1),
    ("NIKHEF-ELPROD", 52.36, 4.95, 40, "DS", 3),
    ("DESY-HH", 53.6, 9.9, 40, "DSL", 3),
    ("MWT2", 41.8, -87.6, 60, "DSL", 1),
    ("AGLT2", 42.3, -83.7, 40, "DSL", 1),
    ("TOKYO-LCG2", 35.7, 139.8, 20, "DSL", 0),
    ("UKI-LT2-QMUL", 51.52, -0.04, 20, "DSL", 2),
    ("INFN-T1", 44.5, 11.3, 60, "DSTL", 0),
    ("NDGF-T1", 55.7, 12.6, 40, "DST", 3),
    ("PIC", 41.5, 2.1, 30, "DST", 3),
    ("SARA-MATRIX", 52.36, 4.96, 40, "DST", 3),
    ("SWT2_CPB", 32.7, -97.1, 30, "DSL", 1),
    ("SLACXRD", 37.4, -122.2, 20, "DSL", 1),
    ("NET2", 42.3, -71.1, 20, "DSL", 1),
    ("LRZ-LMU", 48.3, 11.7, 20, "DSL", 3),
    ("UKI-NORTHGRID-MAN-HEP", 53.5, -2.2, 20, "DSL", 2),
    ("UKI-SCOTGRID-GLASGOW", 55.9, -4.3, 10, "DS", 2),
    ("INFN-NAPOLI-ATLAS", 40.8, 14.2, 10, "DSL", 0),
    ("INFN-ROMA1", 41.9, 12.5, 10, "DSL", 0),
    ("GRIF-LPNHE", 48.8, 2.4, 10, "DSL", 0),
    ("WUPPERTALPROD", 51.2, 7.1, 10, "DSL", 3),
    ("DESY-ZN", 52.3, 13.6, 20, "DSL", 3),
    ("IFIC-LCG2", 39.5, -0.4, 10, "DSL", 3),
    ("PRAGUELCG2", 50.1, 14.4, 20, "DSL", 3),
    ("CSCS-LCG2", 46.0, 8.9, 20, "DS", 3),
    ("UNI-FREIBURG", 48.0, 7.8, 20, "DSL", 3),
    ("MPPMU", 48.26, 11.67, 10, "DSL", 3),
    ("GOEGRID", 51.5, 9.9, 10, "DS", 3),
    ("INFN-MILANO-ATLASC", 45.5, 9.2, 10, "DSL", 0),
    ("INFN-FRASCATI", 41.8, 12.7, 5, "DS", 0),
    ("IN2P3-LAPP", 45.9, 6.2, 10, "DSL", 0),
    ("IN2P3-LPC", 45.8, 3.1, 10, "DS", 0),
    ("IN2P3-CPPM", 43.2, 5.4, 10, "DSL", 0),
    ("GRIF-IRFU", 48.7, 2.15, 10, "DS", 0),
    ("GRIF-LAL", 48.7, 2.2, 10, "DS", 0),
    ("UKI-LT2-RHUL", 51.4, -0.6, 5, "DS", 2),
    ("UKI-NORTHGRID-LANCS-HEP", 54.0, -2.8, 10, "DSL", 2),
    ("UKI-NORTHGRID-LIV-HEP", 53.4, -3.0, 5, "DS", 2),
    ("UKI-NORTHGRID-SHEF-HEP", 53.4, -1.5, 2, "D", 2),
    ("UKI-SOUTHGRID-BHAM-HEP", 52.5, -1.9, 2, "D", 2),
    ("UKI-SOUTHGRID-OX-HEP", 51.8, -1.3, 10, "DS", 2),
    ("UKI-SOUTHGRID-RALPP", 51.57, -1.32, 10, "DSL", 2),
    ("UKI-SCOTGRID-ECDF", 55.9, -3.2, 5, "DS", 2),
    ("SFU-LCG2", 49.3, -122.9, 10, "DS", 1),
    ("CA-SCINET-T2", 43.7, -79.4, 10, "DS", 1),
    ("AUSTRALIA-ATLAS", -37.8, 145.0, 5, "DSL", 0),
    ("BEIJING-LCG2", 39.9, 116.2, 5, "DS", 0),
    ("TAIWAN-LCG2", 25.0, 121.6, 10, "DS", 0),
    ("SIGNET", 46.0, 14.5, 10, "DS", 3),
    ("CYFRONET-LCG2", 50.1, 19.9, 5, "D", 3),
    ("JINR-LCG2", 56.7, 37.2, 10, "D", 0),
    ("RO-07-NIPNE", 44.3, 26.1, 5, "D", 0),
    ("IL-TAU-HEP", 32.1, 34.8, 2, "D", 0),
    ("GR-01-AUTH", 40.6, 23.0, 1, "D", 0),
    ("TR-10-ULAKBIM", 39.9, 32.8, 2, "D", 0),
    ("UAM-LCG2", 40.5, -3.7, 5, "DS", 3),
    ("NCG-INGRID-PT", 38.8, -9.1, 5, "DS", 3),
    ("OU_OCHEP_SWT2", 35.2, -97.4, 5, "DSL", 1),
    ("ZA-WITS-CORE", -26.2, 28.0, 1, "DS", 0),
)
MOST_SITES = len(_SITES)
MOST_SPACES = len(_SPACES)  # storage elements of one site


@dataclass(frozen=True, kw_only=True)
class Topology:
    """S sites, R storage elements and F FTS servers, each known by its place. The arrays are not to be written to."""

    sites: tuple[str, ...]
    rses: tuple[str, ...]
    fts: tuple[str, ...]
    hosts: tuple[str, ...]  # of the storage elements' doors

    latitude: FloatArray  # [S], degrees
    longitude: FloatArray  # [S]
    site_weight: FloatArray  # [S]; how much moves there, relative to the others
    uplink_in: FloatArray  # [S]
    uplink_out: FloatArray  # [S]
    site_fts: IntArray  # [S]; the server that moves files to the site
    probed: BoolArray  # [S]; it has perfSONAR

    rse_site: IntArray  # [R]
    tape: BoolArray  # [R]
    space: tuple[str, ...]  # [R]; the kind of space, the last part of the name
    weight: FloatArray  # [R]; its share of the data, relative to the others
    read: FloatArray  # [R]; of all its disk servers
    write: FloatArray  # [R]
    stream: FloatArray  # [R]; most that one file gets
    overhead_s: FloatArray  # [R]; what the door takes to open and close a file
    connections: IntArray  # [R]; above this many at once the door turns transfers away
    outbound: IntArray  # [R]; transfers that FTS runs from it at once
    inbound: IntArray  # [R]; and to it
    protocol: IntArray  # [R]; of PROTOCOLS
    drives: IntArray  # [R]; of the tape robot, 0 for disks
    mount_s: FloatArray  # [R]; until a drive reads the first byte
    drive_rate: FloatArray  # [R]

    rtt_s: FloatArray  # [S, S]; the diagonal is the network inside a site
    loss: FloatArray  # [S, S]; share of packets
    capacity: FloatArray  # [S, S]

    distance: IntArray  # [R, R]; Rucio's ranking number: 1 is nearest, 0 not connected
    link_limit: IntArray  # [R, R]; transfers that FTS runs on the link at once

    slots: IntArray  # [F]; transfers that the server runs at once

    def site(self, name: str) -> int:
        """Its place; raise KeyError if there is no such site."""
        return _place(self.sites, name)

    def rse(self, name: str) -> int:
        """Its place; raise KeyError if there is no such storage element."""
        return _place(self.rses, name)

    def server(self, name: str) -> int:
        """Its place; raise KeyError if there is no such FTS server."""
        return _place(self.fts, name)


@inlined
def tcp_limit(rtt_s: float, loss: float) -> float:
    """Most that one transfer's streams carry: by window and, where packets are lost, by Mathis' formula."""
    window = WINDOW / rtt_s
    if loss <= 0.0:
        return STREAMS * window
    return STREAMS * min(window, math.sqrt(1.5) * MSS / (rtt_s * math.sqrt(loss)))


def build(*, sites: int, rses: int | None, capacity: float, seed: int) -> Topology:
    """The first `sites` sites with `rses` storage elements (None: some 2.5 a site); `capacity` multiplies bandwidths.

    Raise ValueError for a number of sites or storage elements that the lists do not have.
    """
    if not 2 <= sites <= MOST_SITES:
        raise ValueError(f"there can be 2 to {MOST_SITES} sites, not {sites!r}")
    count = round(_MEAN_SPACES * sites) if rses is None else rses
    if not sites <= count <= MOST_SPACES * sites:
        raise ValueError(f"{sites} sites have {sites} to {MOST_SPACES * sites} storage elements, not {count!r}")
    draws = Draws(seed)
    chosen = _chosen(sites, count)
    names = [name for name, *_ in _SITES[:sites]]
    servers = sorted({row[5] for row in _SITES[:sites]})
    latitude, longitude, gbit = (np.array([row[i] for row in _SITES[:sites]], dtype=np.float64) for i in (1, 2, 3))
    network = _network(draws, latitude, longitude, gbit * capacity * _GBIT)
    storage = _storage(draws, chosen, gbit, capacity)
    rse_site = np.array([site for site, _ in chosen])
    return Topology(
        sites=tuple(names),
        rses=tuple(f"{names[site]}_{_SPACES[space]}" for site, space in chosen),
        fts=tuple(_SERVERS[server] for server in servers),
        hosts=tuple(f"se{space + 1}.{names[site].lower().replace('_', '-')}.example" for site, space in chosen),
        latitude=latitude,
        longitude=longitude,
        site_weight=_site_weight(draws, gbit),
        site_fts=np.array([servers.index(row[5]) for row in _SITES[:sites]]),
        probed=(draws.uniforms(For.TOPOLOGY, 1, np.arange(sites)) > 0.2) | (gbit >= 40),
        rse_site=rse_site,
        space=tuple(_SPACES[space] for _, space in chosen),
        **network,
        **storage,
        distance=_distance(network["rtt_s"], rse_site, storage["tape"]),
        link_limit=_link_limit(draws, gbit[rse_site] * capacity, rse_site, storage["overhead_s"]),
        slots=np.full(len(servers), max(LEAST_SLOTS, round(SLOTS * capacity))),
    )


def _place(names: tuple[str, ...], name: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise KeyError(name) from None


def _chosen(sites: int, count: int) -> list[tuple[int, int]]:
    """Site and space of `count` storage elements, by site: every site's disk first, then what the table gives it."""
    given = [[_SPACES.index(_LETTERS[letter]) for letter in row[4]] for row in _SITES[:sites]]
    wanted = [
        (space != 0, space not in given[site], given[site].index(space) if space in given[site] else space, site, space)
        for site in range(sites)
        for space in range(MOST_SPACES)
    ]
    return sorted((site, space) for *_, site, space in sorted(wanted)[:count])


def _site_weight(draws: Draws, gbit: FloatArray) -> FloatArray:
    """Large sites move more, and some more than their size says."""
    return np.sqrt(gbit / 10) * draws.lognormals(1.0, 0.5, For.TOPOLOGY, 2, np.arange(len(gbit)))


def _network(draws: Draws, latitude: FloatArray, longitude: FloatArray, uplink: FloatArray) -> dict[str, Any]:
    sites = np.arange(len(uplink))
    here, there = sites[:, None], sites[None, :]
    inside = here == there
    a, b = np.radians(latitude)[:, None], np.radians(latitude)[None, :]
    turn = np.radians(longitude[None, :] - longitude[:, None])
    cosine = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(turn)
    fibre_km = FIBRE * 6371 * np.arccos(np.clip(cosine, -1.0, 1.0))
    of_site = draws.lognormals(1.0, LOSS_SITE_SIGMA, For.TOPOLOGY, 3, sites)
    loss = draws.lognormals(LOSS, LOSS_PAIR_SIGMA, For.TOPOLOGY, 4, here, there) * of_site[:, None] * of_site[None, :]
    return {
        "uplink_in": uplink,
        "uplink_out": uplink.copy(),
        "rtt_s": np.where(inside, INSIDE_RTT_S, EQUIPMENT_S + 2 * fibre_km / LIGHT_KM_S),
        "loss": np.where(inside, 0.0, loss),
        "capacity": np.where(inside, INSIDE_CAPACITY, 0.6 * np.minimum(uplink[:, None], uplink[None, :])),
    }


def _storage(draws: Draws, chosen: list[tuple[int, int]], gbit: FloatArray, capacity: float) -> dict[str, Any]:
    site, space = (np.array(column) for column in zip(*chosen, strict=True))
    share = np.array([_SHARE[_SPACES[one]] for one in space])
    tape = np.isin(space, [_SPACES.index("DATATAPE"), _SPACES.index("MCTAPE")])
    size = gbit[site] * share
    uplink = gbit[site] * np.sqrt(share) * _GBIT * capacity
    limit = np.maximum(LEAST_STORAGE_LIMIT, np.rint(STORAGE_LIMIT * np.sqrt(gbit[site] / 40 * capacity))).astype(
        np.int64
    )

    large = gbit[site] >= LARGE_GBIT
    bandwidth_sigma = np.where(large, LARGE_BANDWIDTH_SIGMA, BANDWIDTH_SIGMA)

    def vary(purpose: int, sigma: float | FloatArray) -> FloatArray:
        return draws.lognormals(1.0, sigma, For.TOPOLOGY, purpose, site, space)

    site_door = draws.lognormals(1.0, 0.5 * DOOR_SIGMA, For.TOPOLOGY, 10, site)
    return {
        "tape": tape,
        "weight": np.sqrt(size) * vary(11, 0.4),
        "read": READ_SHARE * uplink * vary(12, bandwidth_sigma),
        "write": WRITE_SHARE * uplink * vary(13, bandwidth_sigma),
        "stream": STREAM
        * (gbit[site] / LARGE_GBIT) ** STREAM_GROWTH
        * vary(14, STREAM_SIGMA * np.where(large, 0.25, 1.0)),
        "overhead_s": np.where(tape, TAPE_DOOR_S, DOOR_S) * site_door * vary(15, 0.87 * DOOR_SIGMA),
        "connections": 3 * limit,
        "outbound": limit,
        "inbound": limit.copy(),
        "protocol": (draws.words(For.TOPOLOGY, 16, site) % np.uint64(len(PROTOCOLS))).astype(np.int64),
        "drives": np.where(tape, np.maximum(2, np.rint(12 * gbit[site] / 100 * np.sqrt(capacity))), 0).astype(np.int64),
        "mount_s": np.where(tape, 90.0, 0.0) * vary(17, 0.3),
        "drive_rate": np.where(tape, 250 * _MB, 0.0),
    }


def _distance(rtt_s: FloatArray, rse_site: IntArray, tape: BoolArray) -> IntArray:
    """As operators set it: by round trip. From tape to tape nothing goes, and nothing to itself."""
    apart = np.where(rse_site[:, None] == rse_site[None, :], 1, 2 + np.rint(rtt_s / 0.02)[rse_site][:, rse_site])
    apart[tape[:, None] & tape[None, :]] = 0
    np.fill_diagonal(apart, 0)
    return apart.astype(np.int64)


def _link_limit(draws: Draws, gbit: FloatArray, rse_site: IntArray, door_s: FloatArray) -> IntArray:
    """What FTS's optimizer has settled at: by the smaller of the two sites, and more where doors are slow.

    It adds transfers as long as throughput grows, and a transfer that waits at a door takes no bandwidth from the others.
    """
    rse = np.arange(len(gbit))
    patient = np.sqrt((door_s[:, None] + door_s[None, :]) / (2 * DOOR_S))
    usual = LINK_LIMIT * np.sqrt(np.minimum(gbit[:, None], gbit[None, :]) / 40)
    varied = usual * draws.lognormals(1.0, LINK_LIMIT_SIGMA, For.TOPOLOGY, 20, rse[:, None], rse[None, :])
    limit = np.where(rse_site[:, None] == rse_site[None, :], INSIDE_LIMIT * usual, patient * varied)
    return np.maximum(LEAST_LIMIT, np.rint(limit)).astype(np.int64)
