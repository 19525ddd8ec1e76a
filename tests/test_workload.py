"""What arrives: as much as the load says, heavy-tailed and bursty, the same whatever happens on the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import ks_2samp

from simulator.activities import ACTIVITIES
from simulator.draws import Draws
from simulator.faults import Disturbance, DisturbanceKind
from simulator.sequence import DIMENSIONS, evenly
from simulator.topology import Topology, build
from simulator.workload import MOST_FILES, PERIOD_ROOM, Period, Workload


@dataclass
class Load:
    transfers_per_day: float = 20_000.0
    deletions_per_day: float | None = None
    rhythm: float = 0.0


def disturbance(kind: str, where: str, start: float, end: float, strength: float) -> Disturbance:
    return Disturbance(kind=DisturbanceKind(kind), where=where, start=start, end=end, strength=strength)


def grid(sites: int = 20) -> Topology:
    return build(sites=sites, rses=None, capacity=0.1, seed=3)


def workload(*disturbances: Disturbance, sites: int = 20, seed: int = 3, **load: float) -> Workload:
    return Workload(grid(sites), Draws(seed), Load(**load), disturbances)  # type: ignore[arg-type] # only its fields count


def days(work: Workload, first: int, stop: int) -> list[Period]:
    return [work.period(hour) for hour in range(24 * first, 24 * stop)]


def activity(name: str) -> int:
    return next(place for place, each in enumerate(ACTIVITIES) if each.name == name)


def files_of(period: Period, name: str) -> np.ndarray:
    of_file = np.repeat(period.rules["activity"], period.rules["files"])
    return period.bytes[of_file == activity(name)]


def equal(one: Period, other: Period) -> bool:
    names = ("rules", "destinations", "sources", "bytes", "deletions")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("load", [2_000.0, 20_000.0, 300_000.0])
def test_the_mean_load_is_what_was_asked_for(seed: int, load: float) -> None:
    periods = days(workload(seed=seed, transfers_per_day=load), 2, 7)
    assert sum(len(period.bytes) for period in periods) / 5 == pytest.approx(load, rel=0.03)
    assert sum(len(period.deletions) for period in periods) / 5 == pytest.approx(0.3 * load, rel=0.01)


def test_deletions_can_be_asked_for() -> None:
    assert sum(len(p.deletions) for p in days(workload(deletions_per_day=500.0), 0, 2)) == 1000


def test_activities_have_their_shares() -> None:
    periods = days(workload(transfers_per_day=100_000.0), 0, 3)
    files = np.concatenate([np.repeat(period.rules["activity"], period.rules["files"]) for period in periods])
    share = np.bincount(files, minlength=len(ACTIVITIES)) / len(files)
    assert share == pytest.approx(np.array([each.share for each in ACTIVITIES]), abs=0.02)


def test_rhythm_moves_load_from_night_to_day_and_keeps_the_mean() -> None:
    periods = days(workload(rhythm=0.8, transfers_per_day=100_000.0), 0, 4)
    hourly = np.array([len(period.bytes) for period in periods]).reshape(4, 24).mean(axis=0)
    assert hourly.sum() == pytest.approx(100_000, rel=0.03)
    assert hourly[12:18].mean() > 3 * hourly[:6].mean()


def test_a_period_is_well_formed() -> None:
    for hour in (0, 5, 1000):
        period = workload().period(hour)
        rules = period.rules
        assert (np.diff(rules["at"]) >= 0).all()
        assert (hour * 3600 <= rules["at"]).all()
        assert (rules["at"] < hour * 3600 + 3600).all()
        assert len(np.unique(rules["number"])) == len(rules)
        assert (rules["number"] // PERIOD_ROOM == hour).all()
        assert (rules["files"] >= 1).all()
        assert rules["files"].max() <= MOST_FILES
        assert np.array_equal(rules["first"], np.cumsum(rules["files"]) - rules["files"])
        assert rules["files"].sum() == len(period.bytes)
        assert (period.bytes >= 1).all()
        assert (rules["priority"] >= 1).all()
        assert (rules["priority"] <= 5).all()
        assert (np.diff(period.deletions["at"]) >= 0).all()
        assert not grid().tape[period.deletions["rse"]].any()


@pytest.mark.parametrize("sites", [2, 3, 20, 64])
def test_every_rule_has_a_destination_and_a_source_elsewhere(sites: int) -> None:
    topology = grid(sites)
    for hour in range(12):
        period = workload(sites=sites).period(hour)
        assert (period.destinations[:, 0] >= 0).all()
        assert (period.sources[:, 0] >= 0).all()
        assert period.destinations.max() < len(topology.rses)
        both = np.concatenate([period.destinations, period.sources], axis=1)
        for row in both:
            places = row[row >= 0]
            assert len(set(places.tolist())) == len(places)
        connected = topology.distance[period.sources[:, 0], period.destinations[:, 0]]
        assert (connected > 0).all()
        for one in (period.destinations, period.sources):
            assert (np.diff((one < 0).astype(int), axis=1) >= 0).all()  # the padding stands last


def test_tape_is_read_for_staging_alone() -> None:
    topology = grid()
    period = workload(transfers_per_day=300_000.0).period(3)
    staging = period.rules["activity"] == activity("Staging")
    assert np.array_equal(staging, period.rules["stagein"] == 1)
    assert np.array_equal(staging, topology.tape[period.sources[:, 0]])
    to_tape = period.rules["activity"] == activity("T0 Tape")
    assert topology.tape[period.destinations[to_tape, 0]].all()
    assert (topology.rse_site[period.sources[to_tape, 0]] == 0).all()


def test_periods_are_a_function_of_seed_and_number() -> None:
    assert equal(workload().period(7), workload().period(7))
    assert not equal(workload().period(7), workload(seed=4).period(7))
    work = workload()
    later = work.period(9)
    work.period(2)
    assert equal(work.period(9), later)


def test_rules_come_in_bursts_with_heavy_tails() -> None:
    periods = days(workload(transfers_per_day=200_000.0), 0, 1)
    files = np.concatenate([period.rules["files"] for period in periods])
    assert files.max() > 30 * np.median(files)
    minutes = np.concatenate([np.bincount((p.rules["at"] % 3600 // 60).astype(int), minlength=60) for p in periods])
    assert minutes.var() > 1.5 * minutes.mean()  # a Poisson process would have them equal
    sizes = np.concatenate([period.bytes for period in periods])
    assert np.quantile(sizes, 0.95) > 30 * np.median(sizes)


def test_few_links_carry_much_and_many_carry_little() -> None:
    topology = build(sites=60, rses=150, capacity=1.0, seed=3)
    period = Workload(topology, Draws(3), Load(transfers_per_day=1.2e6)).period(5)  # type: ignore[arg-type]
    links = np.repeat(
        period.sources[:, 0].astype(int) * 1000 + period.destinations[:, 0], period.rules["files"].astype(int)
    )
    seen = np.random.default_rng(1).choice(links, 1200, replace=False)
    counts = np.sort(np.unique(seen, return_counts=True)[1])[::-1]
    assert 0.25 < counts[:10].sum() / 1200 < 0.5
    assert (counts == 1).mean() > 0.4


def test_one_day_is_much_like_any_other() -> None:
    work = workload()
    second, thirtieth = (np.concatenate([p.bytes for p in days(work, day, day + 1)]) for day in (1, 29))
    assert ks_2samp(second, thirtieth).statistic < 0.02


def test_large_files_are_larger_while_they_last_and_nothing_else_changes() -> None:
    name = "User Subscriptions"
    change = disturbance("large-files", f"activity:{name}", 3600.0, 7200.0, 20.0)
    calm, disturbed = workload(), workload(change)
    assert equal(calm.period(0), disturbed.period(0))
    before, now = calm.period(1), disturbed.period(1)
    assert np.array_equal(before.rules, now.rules)
    assert np.array_equal(files_of(before, "Data Brokering"), files_of(now, "Data Brokering"))
    assert np.median(files_of(now, name)) == pytest.approx(20 * np.median(files_of(before, name)), rel=0.1)


def test_a_busy_day_adds_rules_and_leaves_the_others() -> None:
    calm, busy = workload(), workload(disturbance("busy-day", "", 3600.0, 5400.0, 4.0))
    assert equal(calm.period(0), busy.period(0))
    hours = [busy.period(1).bytes, calm.period(1).bytes]
    assert len(hours[0]) / len(hours[1]) == pytest.approx(2.5, abs=0.5)
    before, now = calm.period(1), busy.period(1)
    kept = np.isin(now.rules["number"], before.rules["number"])
    for field in ("number", "at", "activity", "files"):
        assert np.array_equal(now.rules[field][kept], before.rules[field])
    assert np.array_equal(now.destinations[kept], before.destinations)
    assert now.rules["at"][~kept].max() < 5400
    assert np.array_equal(now.bytes[np.repeat(kept, now.rules["files"])], before.bytes)


def test_a_site_alone_can_be_busy_or_get_large_files() -> None:
    topology = grid()
    there = np.flatnonzero(topology.rse_site == topology.site("MWT2"))
    calm = workload().period(1)
    busy = workload(disturbance("busy-day", "site:MWT2", 3600.0, 7200.0, 9.0)).period(1)
    extra = ~np.isin(busy.rules["number"], calm.rules["number"])
    assert extra.sum() >= 3
    assert np.isin(busy.destinations[extra, 0], there).all()
    large = workload(disturbance("large-files", "site:MWT2", 3600.0, 7200.0, 1e4)).period(1)
    changed = np.repeat(np.isin(calm.destinations[:, 0], there), calm.rules["files"])
    assert (large.bytes[changed] > calm.bytes[changed]).all()
    assert np.array_equal(large.bytes[~changed], calm.bytes[~changed])


def test_the_sequence_fills_its_range_evenly_and_by_seed() -> None:
    seeds = Draws(1).words(1, np.arange(DIMENSIONS))[None, :]
    points = evenly(np.arange(5000, 5000 + 4096), np.repeat(seeds, 4096, axis=0))
    assert (points > 0).all()
    assert (points < 1).all()
    for dimension in range(DIMENSIONS):
        assert np.abs(np.histogram(points[:, dimension], 64, (0, 1))[0] - 64).max() <= 4
    squares = np.histogram2d(points[:, 0], points[:, 1], 16, [(0, 1), (0, 1)])[0]
    assert np.abs(squares - 16).max() <= 6
    tail = points[points[:, 0] > 0.97, 1]
    assert np.abs(np.histogram(tail, 8, (0, 1))[0] - len(tail) / 8).max() < 8
    other = evenly(np.arange(5000, 5000 + 4096), np.repeat(seeds + np.uint64(1 << 40), 4096, axis=0))
    assert not np.allclose(points, other)
