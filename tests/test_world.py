"""The world moves by its seed, its scenario and the acts made in it, however its time is cut into calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

import simulator
from models.domain import IncidentKind
from models.grid import Grid
from remedies.catalog import Catalog
from simulator import engine, outbreaks
from simulator.records import What
from simulator.scenario import load, parse
from simulator.state import N, Phase
from simulator.world import World, run, twin

START = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.fixture
def scenario():
    return load("default")


def lived(world, *, hours, step_s):
    """All events of so many hours, in order, cut into steps."""
    parts, end = [], world.now + timedelta(hours=hours)
    while world.now < end:
        parts.append(world.advance(min(end, world.now + timedelta(seconds=step_s))))
    return np.concatenate([part.events for part in parts]), np.concatenate([part.measurements for part in parts])


def same(one, other):
    """Field by field: what lies between the fields is nobody's."""
    return len(one) == len(other) and all(
        np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one.dtype.names
    )


def test_the_same_seed_gives_the_same_run_however_time_is_cut(scenario):
    whole = lived(World(scenario, seed=3, start=START), hours=8, step_s=8 * 3600)
    for step_s in (61.37, 600, 5000.5):
        events, measurements = lived(World(scenario, seed=3, start=START), hours=8, step_s=step_s)
        assert same(events, whole[0])
        assert same(measurements, whole[1])


def test_another_seed_gives_another_run(scenario):
    one, other = (lived(World(scenario, seed=seed, start=START), hours=1, step_s=3600)[0] for seed in (1, 2))
    assert not same(one, other)


def test_a_world_goes_on_from_a_snapshot_and_from_a_fork(scenario):
    world = World(scenario, seed=3, start=START)
    world.advance(START + timedelta(hours=5, seconds=17.5))
    restored = World(scenario, seed=3, start=START, snapshot=world.save())
    fork = world.fork()
    expected = lived(world, hours=4, step_s=600)
    for other in (restored, fork):
        assert same(lived(other, hours=4, step_s=977.0)[0], expected[0])


def test_nothing_is_compiled_again_for_a_world_from_a_snapshot(scenario):
    world = World(scenario, seed=3, start=START)
    world.advance(START + timedelta(minutes=5))
    compiled = len(engine.live.signatures)
    restored = World(scenario, seed=3, start=START, snapshot=world.save())
    restored.advance(START + timedelta(minutes=10))
    assert len(engine.live.signatures) == compiled


def test_a_fork_plans_no_outbreak_again(scenario, monkeypatch):
    world = World(scenario, seed=3, start=START)
    world.advance(START + timedelta(hours=5))
    with monkeypatch.context() as patched:
        patched.setattr(outbreaks, "outbreak", None)
        fork = world.fork()
        assert fork.faults == world.faults
    assert twin(world).fork().faults == []
    for mine, theirs in zip(world.faults, fork.faults, strict=True):
        assert mine is not theirs


def test_only_a_ticket_ends_what_does_not_recover():
    fault = {
        "kind": "read-slow",
        "culprit": "rse:CERN-PROD_DATADISK",
        "start": "1h",
        "strength": 0.03,
        "recovers": False,
    }
    world = World(parse({"grid": {"sites": 5}, "faults": [fault]}, "mine"), seed=1, start=START)
    world.advance(START + timedelta(hours=1))
    assert world.truth() == []  # it begins now
    world.advance(START + timedelta(hours=30))
    (told,) = world.truth()
    assert (told["recovers"], told["end"]) == (False, None)
    assert len(world.active_faults()) == 1
    fork = world.fork()
    done = fork.mend_sooner("rse:CERN-PROD_DATADISK", 1)
    for other in (fork, World(world.scenario, seed=1, start=START, snapshot=fork.save())):
        other.advance(START + timedelta(seconds=done + 60))
        (told,) = other.truth()
        assert (told["recovers"], told["end"]) == (False, (START + timedelta(seconds=done)).isoformat())
        assert not other.active_faults()
    world.advance(START + timedelta(hours=40))
    assert len(world.active_faults()) == 1


def test_time_does_not_go_back(scenario):
    world = World(scenario, seed=1, start=START)
    world.advance(START + timedelta(minutes=10))
    with pytest.raises(ValueError, match="cannot go back"):
        world.advance(START)


def test_every_request_ends_once_or_is_still_under_way(scenario):
    world = World(scenario, seed=2, start=START)
    ended = np.concatenate([part.ended for part in run(world, hours=30)])
    keys = set(zip(ended["file"].tolist(), ended["tries"].tolist(), strict=True))
    assert len(keys) == len(ended)
    assert (ended["ended"] >= ended["started"]).all()
    assert (ended["started"] >= ended["submitted"]).all()
    assert (ended["submitted"] >= ended["created"]).all()
    transfers = world.state.transfers
    live = transfers[transfers["phase"] > 0]
    done = ended[ended["what"] == What.DONE]
    assert not set(done["file"].tolist()) & set(live["number"].tolist())


def test_what_is_counted_as_running_runs(scenario):
    world = World(scenario, seed=2, start=START)
    for part in run(world, hours=26):
        del part
        rows = world.state.transfers
        at_work = rows[np.isin(rows["phase"], [Phase.OPENING, Phase.FLOWING, Phase.FAILING])]
        assert world.state.link_running.sum() == world.state.server_running.sum() == len(at_work)
        assert np.array_equal(
            world.state.running[:, 0], np.bincount(at_work["source"], minlength=len(world.topology.rses))
        )
        assert world.state.numbers[N.FLOWS] == (rows["phase"] == Phase.FLOWING).sum()
        waiting = sum(1 for link in world.state.heads if (link >= 0).any())
        assert world.state.numbers[N.LINES] == waiting


def test_the_twin_has_the_same_transfers_without_the_faults(scenario):
    world = World(scenario, seed=4, start=START)
    ended = np.concatenate([part.ended for part in run(world, hours=30)])
    well = np.concatenate([part.ended for part in run(twin(world), hours=30)])
    assert (well["fault"] == -1).all()
    both = np.intersect1d(ended["file"], well["file"])
    assert len(both) > 0.95 * len(np.unique(well["file"]))
    assert world.truth()
    assert not twin(world).truth()


def test_the_simulator_names_no_incident_kind_and_no_remedy():
    calls = {"wait", *vars(Grid)}  # a word of every day, and calls that a remedy is named after
    remedies = [name for name in Catalog.load([]).cards if name not in calls]
    for path in Path(simulator.__file__).parent.rglob("*.[py]*"):
        text = path.read_text(errors="replace") if path.suffix in {".py", ".yaml"} else ""
        assert not [word for word in (*IncidentKind, *remedies) if str(word) in text], path


def test_what_is_over_is_forgotten():
    world = World(load("calm"), seed=1, start=START)
    rows = []
    for _ in run(world, hours=30):
        state = world.state
        rows.append((len(state.transfers), len(state.rules), len(state.heap), int(state.rules["used"].sum())))
    assert rows[-1][:3] == rows[12][:3]
    assert rows[-1][3] < 2 * rows[12][3]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grid_that_is_well_is_stationary():
    calm = load("calm")
    busy = calm.model_copy(update={"load": calm.load.model_copy(update={"transfers_per_day": 100_000.0})})
    world, days = World(busy, seed=1, start=START), {}
    for day in range(1, 31):
        ended = world.advance(START + timedelta(days=day)).ended
        if day in {2, 30}:
            days[day] = ended[ended["what"] == What.DONE]
    for quantity in (
        lambda rows: rows["ended"] - rows["started"],
        lambda rows: rows["started"] - rows["submitted"],
        lambda rows: rows["bytes"],
        lambda rows: rows["bytes"] / np.maximum(rows["ended"] - rows["started"], 1.0),
    ):
        assert ks_2samp(quantity(days[2]), quantity(days[30])).statistic <= 0.02
