"""What the experiment moves files for, how much of it, in which sizes and between which kinds of storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

_MB = 1e6

# A kind of data: its share of the rules, median bytes of a file, sigma from dataset to dataset and from file to file.
# RAW files vary least: data acquisition closes a file when it is full.
Kind: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One purpose. `sizes` are the kinds of data that it moves."""

    name: str
    share: float  # of the transfers
    priority: int  # 1 to 5
    scope: str
    datatype: str
    sizes: tuple[Kind, ...]
    files: float  # median of files in a rule
    files_sigma: float
    bulk: float = 0.0  # how far large data come as many files and by popular routes: a correlation, 0 to 1
    source: str = "DATADISK"  # kind of space
    target: tuple[str, ...] = ("DATADISK",)
    popular: float = 0.0  # share of the rules that take one of its popular routes
    routes: int = 0  # how many of these it has
    steep: float = 1.0  # how fast they lose popularity: the exponent of Zipf's law
    brokered: bool = False  # a broker chooses among the candidates
    export: bool = False  # out of the first site alone
    within: bool = False  # popular routes stay within a site
    stagein: bool = False  # from tape to disk


ACTIVITIES: tuple[Activity, ...] = (
    Activity(name="Data Consolidation", share=0.41, priority=3, scope="mc16_13TeV", datatype="AOD",
             sizes=((0.17, 0.5 * _MB, 0.1, 0.05), (0.14, 2.8 * _MB, 0.6, 0.2), (0.19, 9.7 * _MB, 0.1, 0.05),
                    (0.08, 15 * _MB, 0.2, 0.05), (0.22, 21.3 * _MB, 0.1, 0.05), (0.185, 125 * _MB, 0.45, 0.2),
                    (0.015, 1500 * _MB, 0.5, 0.2)),
             files=32, files_sigma=0.6, bulk=0.4, popular=0.6, routes=40, steep=1.0),
    Activity(name="User Subscriptions", share=0.27, priority=3, scope="user.u001", datatype="hist-output",
             sizes=((0.18, 10_000.0, 2.0, 0.2), (0.71, 1.8 * _MB, 0.35, 0.2),
                    (0.075, 150 * _MB, 0.3, 0.2), (0.035, 800 * _MB, 1.2, 0.3)),
             files=2, files_sigma=1.3, source="SCRATCHDISK", target=("SCRATCHDISK", "LOCALGROUPDISK")),
    Activity(name="Data Brokering", share=0.185, priority=3, scope="data17_13TeV", datatype="DAOD_EXOT2",
             sizes=((0.53, 92 * _MB, 0.1, 0.08), (0.47, 840 * _MB, 0.15, 0.05)),
             files=250, files_sigma=0.5, popular=0.95, routes=8, steep=1.5, brokered=True),
    Activity(name="T0 Tape", share=0.1, priority=5, scope="data17_13TeV", datatype="RAW",
             sizes=((0.6, 2600 * _MB, 0.02, 0.01), (0.15, 1300 * _MB, 0.3, 0.1),
                    (0.25, 150 * _MB, 1.2, 0.1)),
             files=60, files_sigma=0.4, target=("DATATAPE",), popular=1.0, routes=1, export=True, within=True),
    Activity(name="T0 Export", share=0.01, priority=5, scope="data17_13TeV", datatype="RAW",
             sizes=((0.7, 1300 * _MB, 0.1, 0.05), (0.3, 2600 * _MB, 0.02, 0.01)),
             files=6, files_sigma=1.0, target=("DATADISK", "DATATAPE"), export=True),
    Activity(name="Data Rebalancing", share=0.01, priority=2, scope="mc16_13TeV", datatype="EVNT",
             sizes=((0.6, 5 * _MB, 0.5, 0.1), (0.4, 800 * _MB, 0.3, 0.1)), files=6, files_sigma=1.2),
    Activity(name="Production Input", share=0.006, priority=4, scope="mc16_13TeV", datatype="EVNT",
             sizes=((1.0, 120 * _MB, 1.4, 0.2),), files=3, files_sigma=1.0, brokered=True),
    Activity(name="Production Output", share=0.006, priority=3, scope="mc16_13TeV", datatype="HITS",
             sizes=((1.0, 60 * _MB, 1.4, 0.2),), files=3, files_sigma=1.0),
    Activity(name="Staging", share=0.004, priority=4, scope="data16_13TeV", datatype="RAW",
             sizes=((1.0, 1500 * _MB, 0.6, 0.1),), files=4, files_sigma=1.0, source="DATATAPE",
             popular=1.0, routes=10, steep=0.5, within=True, stagein=True),
    Activity(name="Functional Test", share=0.004, priority=3, scope="tests", datatype="test",
             sizes=((1.0, 10 * _MB, 0.1, 0.05),), files=1, files_sigma=0.1),
)  # fmt: skip
