"""What each fault does to transfers, and what calls can do about it: the same physics for what helps and for what harms."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pandas as pd
import pytest

from simulator.faults import NATURES, FaultKind, Target
from simulator.grid import SimulatedGrid
from simulator.records import MOST_FILES, What
from simulator.scenario import parse
from simulator.truth import Comparison
from simulator.world import World, twin

START = datetime(2026, 3, 2, tzinfo=UTC)
SEED = 5
BEGINS, CALL, SINCE, UNTIL, ENDS = (
    2.0,
    2.05,
    2.2,
    7.0,
    8.0,
)  # hours: fault, call, those created in between count, horizon
STRENGTH = {
    FaultKind.OVERLOADED: 2.0,
    FaultKind.LINK_LOSSY: 0.04,
    FaultKind.LINK_FLAPPING: 0.08,
    FaultKind.ROUTE_LONGER: 8.0,
}
CULPRITS = {
    Target.RSE: "rse:FZK-LCG2_DATADISK",
    Target.SITE: "site:FZK-LCG2",
    Target.NETWORK: "network:FZK-LCG2>IN2P3-CC",
}
BY_SOURCE = {FaultKind.READ_SLOW, FaultKind.DISK_CORRUPT, FaultKind.FILES_MISSING}
FAR = {FaultKind.SITE_LOSSY: "site:TRIUMF-LCG2"}  # losses are felt over long round trips
ONLY_WAITING = {FaultKind.FTS_STALLED: "fts:fts3-us.example", FaultKind.TAPE_SLOW: "rse:CERN-PROD_DATATAPE"}
AVOIDABLE = [kind for kind in FaultKind if kind not in ONLY_WAITING]


def few_sites(kind):
    """Between a few sites there is enough traffic on each path, and from each tape."""
    return NATURES[kind].target is Target.NETWORK or kind is FaultKind.TAPE_SLOW


@cache
def scenario(kind):
    """A grid with room to spare, and one fault that lasts to the end."""
    nature = NATURES[kind]
    culprit = (ONLY_WAITING | FAR).get(kind) or CULPRITS[nature.target]
    strength = STRENGTH.get(kind, (nature.mildest + nature.gravest) / 2)
    fault = {
        "kind": kind,
        "culprit": culprit,
        "start": BEGINS * 3600,
        "duration": 6 * 3600,
        "strength": float(strength),
    }
    settings = {
        "grid": {"sites": 8 if few_sites(kind) else 12, "capacity": 3.0},
        "load": {"transfers_per_day": 120_000 if few_sites(kind) else 60_000},
        "perfsonar": {"every_s": 3600.0},
        "faults": [fault],
    }
    return parse({"name": "one-fault"} | settings, "one-fault")


@dataclass
class Lived:
    """A world to its end: its transfers' ends, and what was hurt of those created in the middle of the fault."""

    world: World
    ended: np.ndarray
    hurt: pd.DataFrame


def well(kind):
    return _well(few_sites(kind))


@cache
def _well(few):
    """The twin is the same for all kinds on the same grid."""
    world = twin(World(scenario(FaultKind.TAPE_SLOW if few else FaultKind.READ_SLOW), seed=SEED, start=START))
    return world.advance(START + timedelta(hours=ENDS)).ended


def lived(kind, act=None):
    world = World(scenario(kind), seed=SEED, start=START)
    parts = [world.advance(START + timedelta(hours=CALL)).ended]
    if act is not None:
        act(SimulatedGrid(world), world.topology)
    parts.append(world.advance(START + timedelta(hours=ENDS)).ended)
    ended, end_s = np.concatenate(parts), ENDS * 3600.0
    comparison = Comparison(world.topology, world.draws)
    found = [
        comparison.feed(ended, well(kind), until=end_s, faults=world.faults),
        comparison.finish(end_s, world.faults),
    ]
    hurt = pd.concat(found, ignore_index=True)
    return Lived(world, ended, hurt)


@cache
def waiting(kind):
    return lived(kind)


def middle(kind):
    """The transfers of the twin that were asked for while the fault lasts, by file."""
    rows = pd.DataFrame(well(kind))
    first = rows.groupby("file")["created"].min()
    done = rows[rows["what"] == What.DONE].set_index("file")
    return done[(first[done.index] > SINCE * 3600) & (first[done.index] < UNTIL * 3600)]


def files_hurt(run, files):
    return len(set(run.hurt["file"]) & set(files))


def sites_of(topology, rses):
    return np.array(topology.sites)[topology.rse_site[rses]]


def on_the_way(kind, topology):
    """Files whose way in the twin led over the culprit, and that have another."""
    rows, name = middle(kind), scenario(kind).faults[0].culprit.partition(":")[2]
    source, destination = rows["source"].to_numpy(int), rows["destination"].to_numpy(int)
    target = NATURES[kind].target
    if target is Target.RSE:
        culprit = topology.rse(name)
        at_source, at_destination = source == culprit, destination == culprit
    elif target is Target.SITE:
        at_source, at_destination = (sites_of(topology, end) == name for end in (source, destination))
    else:
        here, there = name.split(">")
        at_source = (sites_of(topology, source) == here) & (sites_of(topology, destination) == there)
        at_destination = np.zeros(len(rows), dtype=bool)
    if kind in BY_SOURCE:
        at_destination[:] = False
    if kind in {FaultKind.STORAGE_FULL, FaultKind.BLACK_HOLE}:
        at_source[:] = False
    world = waiting(kind).world
    elsewhere = []
    for file, from_it, to_it in zip(rows.index, at_source, at_destination, strict=True):
        sources, destinations = choices(world, int(file) // MOST_FILES)
        bad = bad_rses(kind, topology)
        elsewhere.append((not from_it or bool(set(sources) - bad)) and (not to_it or bool(set(destinations) - bad)))
    return rows.index[(at_source | at_destination) & np.array(elsewhere)]


def bad_rses(kind, topology):
    name = scenario(kind).faults[0].culprit.partition(":")[2]
    if NATURES[kind].target is Target.RSE:
        return {topology.rse(name)}
    site = name.split(">")[0]
    return set(np.flatnonzero(topology.rse_site == topology.site(site)).tolist())


@cache
def period(workload, number):
    arrived = workload.period(number)
    return arrived, {int(rule): place for place, rule in enumerate(arrived.rules["number"])}


def choices(world, rule):
    arrived, places = period(world.workload, rule >> 20)
    place = places[rule]
    return [one for one in arrived.sources[place] if one >= 0], [one for one in arrived.destinations[place] if one >= 0]


def avoid(kind):
    """The call that moves load away from the culprit."""
    name = scenario(kind).faults[0].culprit.partition(":")[2]

    def act(grid, topology):
        if NATURES[kind].target is Target.NETWORK:
            here, there = name.split(">")
            pairs = [
                (a, b)
                for a, at in zip(topology.rses, topology.rse_site, strict=True)
                for b, to in zip(topology.rses, topology.rse_site, strict=True)
                if topology.sites[at] == here and topology.sites[to] == there
            ]
        else:
            bad = [topology.rses[rse] for rse in bad_rses(kind, topology)]
            pairs = [(a, b) for a in bad for b in topology.rses]
            if kind not in BY_SOURCE:
                for rse in bad:
                    grid.set_availability(rse, "write", False, key="avoid")
        if kind in {FaultKind.STORAGE_FULL, FaultKind.BLACK_HOLE}:
            return
        for a, b in pairs:
            if grid.distance(a, b):
                grid.set_distance(a, b, 1000, key="avoid")

    return act


def blame_others(grid, topology):
    """A wrong call: healthy storage is taken out of use."""
    for site in topology.sites[2:5]:
        if site != "FZK-LCG2":
            grid.set_availability(f"{site}_DATADISK", "read", False, key="wrong")


@pytest.mark.parametrize("kind", AVOIDABLE)
def test_the_right_call_brings_transfers_past_the_fault(kind):
    topology = waiting(kind).world.topology
    avoidable = on_the_way(kind, topology)
    alone, saved, every = waiting(kind), lived(kind, avoid(kind)), middle(kind).index
    assert files_hurt(alone, avoidable) >= 20
    assert files_hurt(saved, avoidable) <= 0.2 * files_hurt(alone, avoidable)
    assert files_hurt(saved, every) < files_hurt(alone, every)


@pytest.mark.parametrize("kind", list(FaultKind))
def test_a_wrong_call_hurts_more_than_waiting(kind):
    files = middle(kind).index
    assert files_hurt(lived(kind, blame_others), files) > files_hurt(waiting(kind), files)


@pytest.mark.parametrize("kind", list(ONLY_WAITING))
def test_what_cannot_be_avoided_is_only_helped_by_a_ticket(kind):
    files, culprit = middle(kind).index, scenario(kind).faults[0].culprit
    alone = files_hurt(waiting(kind), files)
    assert alone >= 20
    for act in (
        lambda grid, topology: grid.set_availability(topology.rses[0], "write", False, key="call"),
        lambda grid, topology: grid.set_storage_limit(topology.rses[0], "destination", 5, key="call"),
        lambda grid, topology: grid.ban(topology.rses[0], minutes=60, key="call"),
        blame_others,
    ):
        assert files_hurt(lived(kind, act), files) >= 0.95 * alone
    told = lived(kind, lambda grid, _: grid.open_ticket(culprit, "broken", "please mend it", key="call"))
    assert files_hurt(told, files) < 0.7 * alone


def test_a_ticket_with_the_wrong_culprit_mends_nothing():
    kind = FaultKind.READ_SLOW
    told = lived(
        kind, lambda grid, _: grid.open_ticket("rse:BNL-OSG2_DATADISK", "broken", "please mend it", key="call")
    )
    assert files_hurt(told, middle(kind).index) == files_hurt(waiting(kind), middle(kind).index)


@pytest.mark.parametrize("kind", list(FaultKind))
def test_what_is_hurt_is_hurt_by_the_fault(kind):
    hurt = waiting(kind).hurt
    own = hurt[hurt["file"].isin(middle(kind).index)]
    assert len(own) >= 20
    assert (own["fault"] == 0).mean() > 0.9
