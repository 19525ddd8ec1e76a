"""Who was hurt, and by what, by the definitions: on transfers made by hand, and against a plain reckoning over whole worlds."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from simulator.draws import Draws
from simulator.faults import Fault, FaultKind
from simulator.records import RECORD, What, parse_request_id
from simulator.scenario import parse
from simulator.topology import build
from simulator.truth import COLUMNS, LATE_S, LATE_SHARE, Comparison
from simulator.world import World, run, twin

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = 3600.0
GRID = build(sites=6, rses=22, capacity=1.0, seed=1)
CERN, BNL, FZK, RAL, TAPE = (
    GRID.rse(name)
    for name in (
        "CERN-PROD_DATADISK",
        "BNL-OSG2_DATADISK",
        "FZK-LCG2_DATADISK",
        "RAL-LCG2_DATADISK",
        "FZK-LCG2_DATATAPE",
    )
)
FAR = 1e9


def ended(*rows):
    """Ends of requests: (file, tries, what, created, ended) and what else is not as usual."""
    records = np.zeros(len(rows), dtype=RECORD)
    records["source"], records["destination"], records["fault"] = CERN, BNL, -1
    for record, (file, tries, what, created, at, *others) in zip(records, rows, strict=True):
        record["file"], record["tries"], record["what"] = file, tries, what
        record["created"], record["ended"], record["at"] = created, at, at
        for name, value in (others[0] if others else {}).items():
            record[name] = value
    return records


def done(file, created, at, *, tries=0, **others):
    return (file, tries, What.DONE, created, at, others)


def failed(file, created, at, *, tries=0, **others):
    return (file, tries, What.FAILED, created, at, others)


def fault(kind=FaultKind.READ_SLOW, culprit="rse:CERN-PROD_DATADISK", start=0.0, end=FAR, number=0):
    return Fault(number=number, kind=kind, culprit=culprit, start=start, end=end, strength=0.1)


def compared(here, well, *, until=2 * HOUR, faults=(), steps=1):
    """What is found when the records come in so many calls."""
    comparison = Comparison(GRID, Draws(1))
    here, well = ended(*here), ended(*well)
    frames, since = [], 0.0
    for step in range(1, steps + 1):
        now = until * step / steps
        parts = (part[(part["ended"] >= since) & (part["ended"] < now)] for part in (here, well))
        frames.append(comparison.feed(*parts, until=now, faults=list(faults)))
        since = now
    frames.append(comparison.finish(until, list(faults)))
    found = pd.concat(frames, ignore_index=True)
    assert list(found.columns) == list(COLUMNS)
    return found.sort_values(["file", "tries", "failed"], ignore_index=True)


# --- who is hurt -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("took", "later", "hurt"),
    [
        (100.0, 61.0, True),
        (100.0, 60.0, False),  # not more than 60 s
        (30.0, 59.0, False),  # nearly thrice as long, and yet less than a minute
        (1000.0, 499.0, False),  # minutes late, and less than half of what it took
        (1000.0, 501.0, True),
        (100.0, 0.0, False),
        (1000.0, -900.0, False),  # earlier than in the twin
    ],
)
def test_late_is_more_than_a_minute_and_more_than_half(took, later, hurt):
    found = compared([done(1, 10.0, 10.0 + took + later)], [done(1, 10.0, 10.0 + took)])
    assert len(found) == hurt
    if hurt:
        row = found.iloc[0]
        assert (row["late_s"], row["failed"], row["created"], row["ended"]) == (later, False, 10.0, 10.0 + took + later)
        assert (row["source"], row["destination"]) == ("CERN-PROD_DATADISK", "BNL-OSG2_DATADISK")
        assert parse_request_id(Draws(1), row["request_id"]) == (1, 0)


def test_what_it_took_counts_from_the_first_request():
    """In the twin it failed once and took 600 s in all: 200 s are not half of that, though of the second request's 100 s."""
    well = [failed(1, 0.0, 400.0), done(1, 500.0, 600.0, tries=1)]
    assert compared([failed(1, 0.0, 400.0), done(1, 500.0, 800.0, tries=1)], well).empty
    assert len(compared([failed(1, 0.0, 400.0), done(1, 500.0, 901.0, tries=1)], well)) == 1


def test_an_attempt_that_failed_in_the_twin_too_hurts_nobody():
    both = [failed(1, 0.0, 50.0), done(1, 100.0, 150.0, tries=1)]
    assert compared(both, both).empty


def test_an_attempt_that_failed_here_alone_is_hurt_and_so_is_the_end_if_it_is_late():
    found = compared([failed(1, 0.0, 20.0, fault=7), done(1, 100.0, 170.0, tries=1)], [done(1, 0.0, 50.0)])
    assert found["tries"].tolist() == [0, 1]
    assert found["failed"].tolist() == [True, False]
    assert found["fault"].tolist() == [7, 7]
    assert math.isnan(found["late_s"][0])
    assert found["late_s"][1] == 120.0


def test_a_second_failure_is_compared_with_the_second_attempt_of_the_twin():
    here = [failed(1, 0.0, 20.0), failed(1, 100.0, 120.0, tries=1, fault=7), done(1, 150.0, 160.0, tries=2)]
    well = [failed(1, 0.0, 20.0), done(1, 100.0, 150.0, tries=1)]
    assert compared(here, well)["tries"].tolist() == [1]


def test_a_failure_waits_for_what_the_twin_makes_of_it():
    """Here it failed at once; whether the same attempt fails in the twin is known an hour later."""
    comparison = Comparison(GRID, Draws(1))
    early, late = ended(failed(1, 10.0, 20.0)), ended(failed(1, 10.0, 4000.0))
    assert comparison.feed(early, ended(), until=HOUR, faults=[]).empty
    assert comparison.feed(ended(), late, until=2 * HOUR, faults=[]).empty
    assert comparison.finish(2 * HOUR, []).empty


def test_what_is_under_way_at_the_end_is_hurt_once_it_is_late():
    well = [done(1, 0.0, 100.0), done(2, 7000.0, 7150.0), done(3, 0.0, 6000.0)]
    found = compared([failed(1, 0.0, 50.0, fault=4)], well, until=7200.0)
    assert found["file"].tolist() == [1, 1]
    overdue = found.iloc[1]
    assert math.isnan(overdue["ended"])
    assert (overdue["tries"], overdue["late_s"], overdue["fault"], overdue["failed"]) == (1, 7100.0, 4, False)


def test_a_failure_of_which_the_twin_knows_nothing_yet_is_hurt_if_a_fault_made_it():
    assert compared([failed(1, 0.0, 20.0, fault=4), failed(2, 0.0, 20.0)], [])["file"].tolist() == [1]


def test_what_ended_here_first_waits_for_the_twin():
    assert compared([done(1, 0.0, 100.0)], [done(1, 0.0, 5000.0)], steps=4).empty
    assert compared([done(1, 0.0, 100.0)], []).empty


# --- by what -----------------------------------------------------------------------------------------------------------

LATE = [done(1, 1000.0, 1500.0)], [done(1, 1000.0, 1050.0)]


@pytest.mark.parametrize(
    ("kind", "culprit", "blamed"),
    [
        (FaultKind.READ_SLOW, "rse:CERN-PROD_DATADISK", True),
        (FaultKind.READ_SLOW, "rse:BNL-OSG2_DATADISK", True),  # its doors are slow
        (FaultKind.READ_SLOW, "rse:FZK-LCG2_DATADISK", False),
        (FaultKind.STORAGE_FULL, "rse:CERN-PROD_DATADISK", False),  # it is the source
        (FaultKind.STORAGE_FULL, "rse:BNL-OSG2_DATADISK", True),
        (FaultKind.DISK_CORRUPT, "rse:CERN-PROD_DATADISK", True),
        (FaultKind.DISK_CORRUPT, "rse:BNL-OSG2_DATADISK", False),
        (FaultKind.SITE_DARK, "site:CERN-PROD", True),
        (FaultKind.SITE_LOSSY, "site:BNL-OSG2", True),
        (FaultKind.SITE_LOSSY, "site:FZK-LCG2", False),
        (FaultKind.LINK_LOSSY, "network:CERN-PROD>BNL-OSG2", True),
        (FaultKind.LINK_LOSSY, "network:BNL-OSG2>CERN-PROD", False),
        (FaultKind.FTS_STALLED, f"fts:{GRID.fts[GRID.site_fts[GRID.site('BNL-OSG2')]]}", True),
        (FaultKind.FTS_STALLED, f"fts:{GRID.fts[GRID.site_fts[GRID.site('RAL-LCG2')]]}", False),
    ],
)
def test_a_fault_on_the_way_is_blamed(kind, culprit, blamed):
    found = compared(*LATE, faults=[fault(kind, culprit, number=3)])
    assert found["fault"].tolist() == [3 if blamed else -1]


@pytest.mark.parametrize(
    ("start", "end", "blamed"), [(1499.0, FAR, True), (1501.0, FAR, False), (0, 1000.5, True), (0, 999, False)]
)
def test_a_fault_is_blamed_for_what_lived_in_its_time(start, end, blamed):
    assert compared(*LATE, faults=[fault(start=start, end=end)])["fault"].tolist() == [0 if blamed else -1]


def test_the_fault_that_lasted_longest_in_its_life_is_blamed():
    faults = [
        fault(number=0, start=1400.0),
        fault(FaultKind.WRITE_SLOW, "rse:BNL-OSG2_DATADISK", number=1, start=1100.0),
        fault(FaultKind.LINK_LOSSY, "network:CERN-PROD>BNL-OSG2", number=2, start=1000.0, end=1100.0),
    ]
    assert compared(*LATE, faults=faults)["fault"].tolist() == [1]


def test_whose_draw_it_was_comes_before_who_is_on_the_way():
    here = [failed(1, 1000.0, 1020.0, fault=5), done(1, 1100.0, 1500.0, tries=1)]
    assert compared(here, LATE[1], faults=[fault()])["fault"].tolist() == [5, 5]


def test_who_stood_in_line_behind_the_victims_is_hurt_by_the_same_fault():
    """FZK's transfers to BNL wait behind those that CERN's slow disk keeps at BNL; what goes to RAL does not."""
    slow = [done(file, 100.0, 900.0) for file in range(1, 6)]
    queued = done(9, 200.0, 800.0, source=FZK, destination=BNL)
    apart = done(10, 200.0, 800.0, source=FZK, destination=RAL)
    well = [done(file, 100.0, 150.0) for file in range(1, 6)]
    well += [done(9, 200.0, 250.0, source=FZK, destination=BNL), done(10, 200.0, 250.0, source=FZK, destination=RAL)]
    faults = [fault(end=700.0), fault(culprit="rse:TRIUMF-LCG2_DATADISK", number=1)]
    found = compared([*slow, queued, apart], well, faults=faults).set_index("file")["fault"]
    assert found[9] == 0
    assert found[10] == -1
    later = done(11, 850.0, 1500.0, source=FZK, destination=BNL)
    found = compared([*slow, later], [*well, done(11, 850.0, 900.0, source=FZK, destination=BNL)], faults=faults)
    assert found.set_index("file")["fault"][11] == 0  # the fault is over, and its victims are still under way
    found = compared(
        [*slow, done(12, 950.0, 1500.0, source=FZK)], [*well, done(12, 950.0, 990.0, source=FZK)], faults=faults
    )
    assert found.set_index("file")["fault"][12] == -1


# --- whole worlds ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds():
    """Fourteen hours of faults of many kinds, here and in the twin."""
    scenario = parse(
        {
            "grid": {"sites": 10, "rses": 25},
            "load": {"transfers_per_day": 40_000},
            "perfsonar": {"every_s": 3600.0},
            "outbreaks": {"first": "1h", "every": "50m", "shortest": "30m", "longest": "90m", "at_once": 0.2},
        },
        "truth",
    )
    world = World(scenario, seed=7, start=START)
    here = np.concatenate([part.ended for part in run(world, hours=14)])
    well = np.concatenate([part.ended for part in run(twin(world), hours=14)])
    return world, here, well


def reckoned(here, well, until):
    """The definitions, transfer by transfer: attempts that were hurt, and ends that were late."""
    twin_failed = {(row["file"], row["tries"]) for row in well if row["what"] == What.FAILED}
    first = {}
    for row in np.concatenate([well, here]):
        first[row["file"]] = min(first.get(row["file"], math.inf), row["created"])
    twin_done = {row["file"]: row["ended"] for row in well if row["what"] == What.DONE}
    here_done = {row["file"]: row["ended"] for row in here if row["what"] == What.DONE}
    attempts = {
        (row["file"], row["tries"])
        for row in here
        if row["what"] == What.FAILED
        and (row["file"], row["tries"]) not in twin_failed
        and (row["file"] in twin_done or row["fault"] >= 0)
    }
    late = {
        file
        for file, at in twin_done.items()
        if (delay := here_done.get(file, until) - at) > LATE_S and delay > LATE_SHARE * (at - first[file])
    }
    return attempts, late


def streamed(world, here, well, cuts):
    comparison = Comparison(world.topology, world.draws)
    frames, since, until = [], 0.0, 14 * HOUR
    for now in [*cuts, until]:
        parts = (part[(part["ended"] >= since) & (part["ended"] < now)] for part in (here, well))
        frames.append(comparison.feed(*parts, until=now, faults=world.faults))
        since = now
    frames.append(comparison.finish(until, world.faults))
    return pd.concat(frames, ignore_index=True).sort_values(["file", "tries", "failed"], ignore_index=True)


def test_it_finds_what_the_definitions_say(worlds):
    world, here, well = worlds
    found = streamed(world, here, well, np.arange(HOUR, 14 * HOUR, HOUR))
    attempts, late = reckoned(here, well, 14 * HOUR)
    assert len(attempts) > 500
    assert len(late) > 500
    assert set(zip(found[found["failed"]]["file"], found[found["failed"]]["tries"], strict=True)) == attempts
    assert set(found[~found["failed"]]["file"]) == late
    assert not found.duplicated(["file", "tries", "failed"]).any()


def test_the_cut_makes_no_difference(worlds):
    world, here, well = worlds
    hourly = streamed(world, here, well, np.arange(HOUR, 14 * HOUR, HOUR))
    for cuts in ([], [1234.5], np.arange(700.0, 14 * HOUR, 700.0), [5 * HOUR, 5.1 * HOUR, 9 * HOUR]):
        pd.testing.assert_frame_equal(streamed(world, here, well, cuts), hourly)


def test_nearly_all_are_blamed_on_somebody_and_every_fault_that_was_felt_is_known(worlds):
    world, here, well = worlds
    found = streamed(world, here, well, [])
    assert (found["fault"] >= 0).mean() > 0.95
    drawn = here[here["fault"] >= 0]
    blamed = found[found["failed"]].set_index(["file", "tries"])["fault"]
    assert all(
        blamed[row["file"], row["tries"]] == row["fault"] for row in drawn if (row["file"], row["tries"]) in blamed
    )
    hurt = found.groupby("fault")["file"].nunique()
    felt = [fault for fault in world.faults if fault.start < 12 * HOUR]
    assert sum(hurt.get(fault.number, 0) >= 20 for fault in felt) >= 0.8 * len(felt)


def test_the_twin_beside_itself_is_not_hurt(worlds):
    world, _, well = worlds
    assert streamed(world, well, well, [7 * HOUR]).empty


def test_what_is_kept_is_what_is_under_way(worlds):
    world, here, well = worlds
    comparison = Comparison(world.topology, world.draws)
    kept = []
    for hour in range(14):
        parts = (part[(part["ended"] >= hour * HOUR) & (part["ended"] < (hour + 1) * HOUR)] for part in (here, well))
        comparison.feed(*parts, until=(hour + 1) * HOUR, faults=world.faults)
        kept.append(comparison.kept)
    assert max(kept) < 0.1 * len(well)
