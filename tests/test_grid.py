"""The simulated grid's calls, and that every grid keeps what `models.grid.Grid` says."""

from __future__ import annotations

import copy
import inspect
from datetime import timedelta

import numpy as np
import pytest

from agent.grid.dry_run import DryRun
from agent.grid.simulated import SimulatedGrid as RemoteGrid
from models.domain import GridError, Link
from models.grid import RSE, Grid, NetworkTest, Request, Rule
from remedies.child import LOOKING
from remedies.fakes import FakeGrid
from simulator.expressions import matching
from simulator.grid import ACTS, READS, SimulatedGrid
from simulator.records import parse_request_id, rule_ids
from simulator.state import Phase
from simulator.world import World
from tests.worlds import START, scenario_of

CERN, FZK, BNL, RAL = "CERN-PROD_DATADISK", "FZK-LCG2_DATADISK", "BNL-OSG2_DATADISK", "RAL-LCG2_DATADISK"
TAPE = "CERN-PROD_DATATAPE"


@pytest.fixture(scope="module")
def lived():
    """A world two hours old, with transfers in all phases."""
    world = World(scenario_of(transfers_per_hour=6000.0), seed=1, start=START)
    world.advance(START + timedelta(hours=2))
    return world


@pytest.fixture
def world(lived):
    return lived.fork()


@pytest.fixture
def grid(world):
    return SimulatedGrid(world)


def fake():
    """A grid in memory with what these tests need."""
    names = [(CERN, "CERN-PROD"), (FZK, "FZK-LCG2"), (BNL, "BNL-OSG2"), (TAPE, "CERN-PROD")]
    rule = Rule(
        id="r",
        scope="mc",
        name="d",
        rse_expression=FZK,
        state="REPLICATING",
        priority=3,
        source_replica_expression=None,
    )
    requests = [
        Request(
            id=f"q{number}",
            rule_id="r",
            name=f"mc:f{number}",
            source=source,
            destination=FZK,
            activity="Production Input",
            state="SUBMITTED" if source else "QUEUED",
            bytes=10**9,
            sources=(CERN, BNL),
        )
        for number, source in enumerate([CERN, None, BNL])
    ]
    return FakeGrid(
        rses=[
            RSE(name=name, site=site, kind="TAPE" if name == TAPE else "DISK", read=True, write=True, delete=True)
            for name, site in names
        ],
        distances={Link(CERN, FZK): 2, Link(FZK, CERN): 2, Link(BNL, FZK): 5},
        rules=[rule],
        requests=requests,
        network={Link("CERN-PROD", "BNL-OSG2"): NetworkTest(loss=1.0, rtt_ms=None, throughput_bps=None)},
    )


@pytest.fixture(params=["fake", "simulated"])
def any_grid(request):
    return fake() if request.param == "fake" else SimulatedGrid(request.getfixturevalue("world"))


class TestAnyGrid:
    """What holds for the grid in memory and for the simulated one alike."""

    def test_every_limit_is_set_and_taken_back(self, any_grid):
        assert any_grid.link_limit(CERN, FZK) is None
        any_grid.set_link_limit(CERN, FZK, 3, key="a")
        assert any_grid.link_limit(CERN, FZK) == 3
        any_grid.set_link_limit(CERN, FZK, None, key="b")
        assert any_grid.link_limit(CERN, FZK) is None
        any_grid.set_storage_limit(CERN, "source", 7, key="c")
        any_grid.set_storage_limit(CERN, "destination", 9, key="d")
        assert [any_grid.storage_limit(CERN, way) for way in ("source", "destination")] == [7, 9]
        any_grid.set_storage_limit(CERN, "source", None, key="e")
        assert [any_grid.storage_limit(CERN, way) for way in ("source", "destination")] == [None, 9]
        with pytest.raises(GridError, match="direction 'inbound'"):
            any_grid.set_storage_limit(CERN, "inbound", 7, key="f")

    def test_a_ban_has_an_end_and_is_lifted(self, any_grid):
        assert any_grid.banned(CERN) is None
        any_grid.ban(CERN, minutes=30, key="a")
        first = any_grid.banned(CERN)
        any_grid.ban(CERN, minutes=90, key="b")
        assert any_grid.banned(CERN) - first == timedelta(hours=1)
        assert any_grid.banned(FZK) is None
        any_grid.unban(CERN, key="c")
        assert any_grid.banned(CERN) is None
        any_grid.unban(CERN, key="c")

    def test_the_same_act_with_the_same_key_has_its_effect_once(self, any_grid):
        any_grid.set_distance(CERN, FZK, 40, key="a")
        any_grid.set_distance(CERN, FZK, 2, key="b")
        any_grid.set_distance(CERN, FZK, 40, key="a")
        assert any_grid.distance(CERN, FZK) == 2
        any_grid.set_distance(CERN, FZK, 40, key="c")
        assert any_grid.distance(CERN, FZK) == 40

    def test_requests_are_asked_for_anew(self, any_grid):
        rule = next(r.rule_id for r in any_grid.requests() if r.state == "SUBMITTED")
        before = {r.name for r in any_grid.requests() if r.rule_id == rule and r.state == "SUBMITTED"}
        any_grid.requeue(rule, key="a")
        left = [r for r in any_grid.requests() if r.name in before]
        assert all(r.source is None and r.state == "QUEUED" for r in left)

    def test_paths_between_sites_are_tested(self, any_grid):
        found = any_grid.test_network("CERN-PROD", "FZK-LCG2", key="a")
        assert found.loss < 0.001
        assert found.rtt_ms > 1
        assert found.throughput_bps > 1e8
        with pytest.raises(GridError, match="no site 'MOON'"):
            any_grid.test_network("MOON", "FZK-LCG2", key="b")

    def test_files_are_declared_unavailable_only_where_they_are(self, any_grid):
        request = next(r for r in any_grid.requests() if CERN in r.sources)
        any_grid.declare_unavailable(CERN, [request.name, "mc:none"], minutes=60, key="a")
        with pytest.raises(GridError, match="on its way from a replica at"):
            any_grid.declare_unavailable(CERN, ["mc:none"], minutes=60, key="b")

    def test_a_ticket_is_found_by_its_mark(self, any_grid):
        ticket = any_grid.open_ticket(f"rse:{CERN}", "slow", "body", key="a")
        assert any_grid.open_ticket(f"rse:{CERN}", "another title", "body", key="a").id == ticket.id
        assert [found.id for found in any_grid.tickets(mark="a")] == [ticket.id]
        assert any_grid.tickets(mark="b") == []


@pytest.mark.parametrize("implementer", [SimulatedGrid, RemoteGrid, DryRun, FakeGrid])
def test_it_has_every_method_of_the_protocol(implementer):
    methods = {name for name, _ in inspect.getmembers(Grid, inspect.isfunction) if not name.startswith("_")}
    assert methods == {*READS, *ACTS}
    assert set(READS) == LOOKING
    for name in methods:
        assert inspect.signature(getattr(implementer, name)) == inspect.signature(getattr(Grid, name))


def test_a_dry_run_measures_nothing():
    dry = DryRun(fake())
    assert dry.test_network("CERN-PROD", "FZK-LCG2", key="a") == NetworkTest(
        loss=None, rtt_ms=None, throughput_bps=None
    )
    dry.ban(CERN, minutes=5, key="a")
    dry.declare_unavailable(CERN, ["mc:f0"], minutes=5, key="a")
    dry.requeue("r", key="a")
    assert [act.method for act in dry.acts] == ["test_network", "ban", "declare_unavailable", "requeue"]
    assert dry.banned(CERN) is None


def test_a_grid_in_memory_is_kept_in_its_file(tmp_path):
    grid = fake()
    grid._path = tmp_path / "grid.json"
    grid.ban(CERN, minutes=5, key="a")
    grid.set_storage_limit(CERN, "source", 4, key="b")
    grid.declare_unavailable(CERN, ["mc:f0"], minutes=5, key="c")
    grid.test_network("CERN-PROD", "FZK-LCG2", key="d")
    again = FakeGrid.at(tmp_path / "grid.json")
    assert again.state() == grid.state()
    assert again.journal == grid.journal
    assert again.test_network("CERN-PROD", "BNL-OSG2", key="e").loss == 1.0


class TestReads:
    def test_they_change_nothing(self, world, grid):
        before = world.save()
        some = grid.requests(limit=5)
        assert len(some) == 5
        assert len(grid.rses()) == 30
        grid.rule(some[0].rule_id)
        grid.tickets(mark="x")
        grid.banned(CERN)
        assert grid.distance(TAPE, "FZK-LCG2_DATATAPE") is None
        assert {request.destination for request in grid.requests(destination=FZK)} <= {FZK}
        assert {request.source for request in grid.requests(source=CERN)} == {CERN}
        assert world.save() == before

    def test_requests_say_what_documents_say(self, lived):
        world = World(lived.scenario, seed=lived.seed, start=lived.start)
        events = world.documents.frame(world.advance(START + timedelta(minutes=40)).events)
        queued = events[events["type"] == "transfer-queued"].drop_duplicates("request_id").set_index("request_id")
        requests = [request for request in SimulatedGrid(world).requests() if request.id in queued.index]
        assert len(requests) > 100
        for request in requests:
            told = queued.loc[request.id]
            assert (told["rule_id"], told["destination"]) == (request.rule_id, request.destination)
            assert f"{told['scope']}:{told['name']}" == request.name
            assert (told["activity"], told["bytes"]) == (request.activity, request.bytes)
        assert {request.state for request in requests} >= {"QUEUED", "SUBMITTED"}

    def test_the_oldest_come_first(self, world, grid):
        rows = world.state.transfers
        created = {int(row["number"]): row["created"] for row in rows[rows["phase"] > 0]}
        ages = [created[parse_request_id(world.draws, request.id)[0]] for request in grid.requests(limit=10**6)]
        assert ages == sorted(ages)
        assert len(ages) == ((rows["phase"] > 0) & (rows["phase"] != Phase.RESTING)).sum()
        assert len(grid.requests(limit=3)) == 3
        assert grid.requests(limit=-1) == []

    def test_rules(self, world, grid):
        request = grid.requests(limit=1)[0]
        rule = grid.rule(request.rule_id)
        assert rule.rse_expression == request.destination
        assert rule.state == "REPLICATING"
        assert rule.source_replica_expression is None
        done = next(row for row in world.state.rules if row["used"] and not row["pending"])
        assert grid.rule(_rule_id(world, done)).state == "OK"

    def test_a_downtime_that_was_announced_is_seen(self):
        downtime = {"kind": "downtime", "where": f"rse:{CERN}", "start": 600, "end": 1200}
        world = World(scenario_of(disturbances=[downtime]), seed=1, start=START)
        seen = []
        for minute in (5, 15, 25):
            world.advance(START + timedelta(minutes=minute))
            rse = SimulatedGrid(world).rse(CERN)
            seen.append((rse.read, rse.write, rse.delete))
        assert seen == [(True,) * 3, (False,) * 3, (True,) * 3]


REFUSED = {
    "there is no RSE 'X'": lambda grid: grid.set_availability("X", "read", False, key="k"),
    "there is no RSE '<b>'": lambda grid: grid.requests(source="<b>"),
    "operation 'burn' is not one of": lambda grid: grid.set_availability(CERN, "burn", False, key="k"),
    "are not connected": lambda grid: grid.set_distance(TAPE, "FZK-LCG2_DATATAPE", 3, key="k"),
    "distance 0 must be above 0": lambda grid: grid.set_distance(CERN, FZK, 0, key="k"),
    "distance 1000000000000000000000 must be": lambda grid: grid.set_distance(CERN, FZK, 10**21, key="k"),
    "distance 2.5 must be a whole number": lambda grid: grid.set_distance(CERN, FZK, 2.5, key="k"),
    "link limit 0.5 must be a whole number": lambda grid: grid.set_link_limit(CERN, FZK, 0.5, key="k"),
    "link limit 0 must be above 0": lambda grid: grid.set_link_limit(CERN, FZK, 0, key="k"),
    "storage limit -1 must be above 0": lambda grid: grid.set_storage_limit(CERN, "source", -1, key="k"),
    "direction 'up' is not one of": lambda grid: grid.storage_limit(CERN, "up"),
    "minutes nan must be above 0": lambda grid: grid.ban(CERN, minutes=float("nan"), key="k"),
    "minutes 20000 must be above 0 and at most 10,080": lambda grid: grid.ban(CERN, minutes=20_000, key="k"),
    "none of these 1 files": lambda grid: grid.declare_unavailable(CERN, ["a:b"], minutes=5, key="k"),
    "no rule 'abc'": lambda grid: grid.rule("abc"),
    "no rule 'ffff": lambda grid: grid.rule("f" * 32),
    "no rule '0000": lambda grid: grid.requeue("0" * 32, key="k"),
    "priority 6 of rule": lambda grid: grid.update_rule(grid.requests(limit=1)[0].rule_id, priority=6, key="k"),
    "names 'NOWHERE'": lambda grid: grid.update_rule(
        grid.requests(limit=1)[0].rule_id, source_replica_expression="NOWHERE", key="k"
    ),
    "no site 'X'": lambda grid: grid.test_network("X", "FZK-LCG2", key="k"),
    "needs a key": lambda grid: grid.unban(CERN, key=""),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_refused_changes_nothing(world, grid, said):
    before = world.save()
    with pytest.raises(GridError, match=said):
        REFUSED[said](grid)
    assert grid.effects == 0
    assert world.save() == before


def test_a_rule_that_has_nothing_left_is_not_asked_for_anew(world, grid):
    done = next(row for row in world.state.rules if row["used"] and not row["pending"])
    with pytest.raises(GridError, match="has no transfer left"):
        grid.requeue(_rule_id(world, done), key="k")


def test_a_site_that_cannot_measure_says_so(world, grid):
    blind = [name for name, probed in zip(world.topology.sites, world.probes.probed, strict=True) if not probed]
    assert blind
    with pytest.raises(GridError, match="has no perfSONAR host"):
        grid.test_network("CERN-PROD", blind[0], key="k")


class TestEffects:
    """By the world's physics; whether that helps is for the tests of faults."""

    def test_a_link_limit_bounds_what_runs_at_once(self, world, grid):
        source, destination = _busiest(world)
        grid.set_link_limit(source, destination, 1, key="a")
        world.advance(world.now + timedelta(minutes=30))
        link = world.topology.rse(source) * len(world.topology.rses) + world.topology.rse(destination)
        for _ in range(20):
            world.advance(world.now + timedelta(minutes=1))
            assert world.state.link_running[link] <= 1

    def test_a_storage_limit_bounds_what_runs_at_once(self, world, grid):
        source, _ = _busiest(world)
        grid.set_storage_limit(source, "source", 1, key="a")
        world.advance(world.now + timedelta(minutes=30))
        for _ in range(20):
            world.advance(world.now + timedelta(minutes=1))
            assert world.state.running[world.topology.rse(source), 0] <= 1

    def test_nothing_starts_from_or_to_what_is_banned_until_the_ban_ends(self, world, grid):
        source, _ = _busiest(world)
        rse, begin = world.topology.rse(source), world.clock
        grid.ban(source, minutes=20, key="a")
        ended = world.advance(world.now + timedelta(hours=1)).ended
        touched = ended[(ended["source"] == rse) | (ended["destination"] == rse)]
        started = touched["started"]
        assert not ((started > begin + 1) & (started < begin + 1200)).any()
        assert ((started >= begin + 1200) & (started < begin + 1260)).any()
        assert grid.banned(source) is None

    def test_a_ban_that_is_lifted_lets_go_at_once(self, world, grid):
        source, _ = _busiest(world)
        rse = world.topology.rse(source)
        grid.ban(source, minutes=600, key="a")
        world.advance(world.now + timedelta(minutes=10))
        grid.unban(source, key="b")
        begin = world.clock
        ended = world.advance(world.now + timedelta(minutes=10)).ended
        assert ((ended["source"] == rse) & (ended["started"] >= begin)).any()

    def test_a_replica_that_is_unavailable_is_not_chosen(self, world, grid):
        rows = [
            request for request in grid.requests(limit=10**6) if request.state == "QUEUED" and len(request.sources) > 1
        ]
        other, same = copy.deepcopy(world), world
        for rse in {request.sources[0] for request in rows}:
            files = [request.name for request in rows if request.sources[0] == rse]
            SimulatedGrid(same).declare_unavailable(rse, files, minutes=600, key="a")
        left_out = {
            parse_request_id(world.draws, request.id)[0]: world.topology.rse(request.sources[0]) for request in rows
        }
        chosen = []
        for one in (other, same):
            ended = one.advance(one.now + timedelta(minutes=30)).ended
            sources = zip(ended["file"].tolist(), ended["source"].tolist(), strict=True)
            chosen.append([left_out[file] == source for file, source in sources if file in left_out])
        assert any(chosen[0])
        assert chosen[1]
        assert not any(chosen[1])

    def test_requests_that_are_asked_for_anew_are_other_requests_for_the_same_files(self, world, grid):
        running = [request for request in grid.requests(limit=10**6) if request.state == "SUBMITTED"]
        rule = running[-1].rule_id
        before = {request.id: request.name for request in running if request.rule_id == rule}
        heap = len(world.state.heap)
        for number in range(50):
            grid.requeue(rule, key=f"k{number}")
        world.advance(world.now + timedelta(seconds=13))
        after = {request.id: request.name for request in grid.requests(limit=10**6) if request.rule_id == rule}
        assert not before.keys() & after.keys()
        assert set(after.values()) >= set(before.values())
        assert grid.effects == 50
        assert len(world.state.heap) >= heap
        assert world.advance(world.now + timedelta(hours=2)).ended.size > 0

    def test_an_expression_leaves_sources_out_and_is_cleared(self, world, grid):
        request = next(r for r in grid.requests(limit=10**6) if r.state == "QUEUED" and len(r.sources) > 1)
        expression = f"*\\{request.sources[0]}"
        grid.update_rule(request.rule_id, source_replica_expression=expression, key="a")
        assert grid.rule(request.rule_id).source_replica_expression == expression
        ended = world.advance(world.now + timedelta(minutes=30)).ended
        file, _ = parse_request_id(world.draws, request.id)
        assert world.topology.rse(request.sources[0]) not in ended["source"][ended["file"] == file]
        assert (ended["file"] == file).any()
        grid.update_rule(request.rule_id, source_replica_expression="", key="b")
        assert grid.rule(request.rule_id).source_replica_expression is None
        assert len(world.state.masks) == 1

    def test_a_priority_reorders_what_waits(self, world, grid):
        request = grid.requests(limit=1)[0]
        grid.update_rule(request.rule_id, priority=5, key="a")
        assert grid.rule(request.rule_id).priority == 5
        place = grid._rule(request.rule_id)
        rows = world.state.transfers
        assert set(rows["priority"][(rows["phase"] > 0) & (rows["rule"] == place)]) == {5}

    def test_what_is_closed_for_reading_is_no_source(self, world, grid):
        source, _ = _busiest(world)
        grid.set_availability(source, "read", False, key="a")
        assert not grid.rse(source).read
        world.advance(world.now + timedelta(minutes=10))
        begin = world.clock
        ended = world.advance(world.now + timedelta(hours=1)).ended
        assert not ((ended["source"] == world.topology.rse(source)) & (ended["submitted"] > begin)).any()

    def test_a_test_loads_its_path_for_half_a_minute_once(self, world, grid):
        path = tuple(world.topology.site(name) for name in ("CERN-PROD", "FZK-LCG2"))
        free = world.around()[0].capacity.copy()
        grid.test_network("CERN-PROD", "FZK-LCG2", key="a")
        assert (world.around()[0].capacity < free).sum() == 1
        assert [test[:2] for test in world.chronicle.tests] == [path]
        world.advance(world.now + timedelta(seconds=40))
        assert np.array_equal(world.around()[0].capacity, free)
        grid.test_network("CERN-PROD", "FZK-LCG2", key="a")
        assert np.array_equal(world.around()[0].capacity, free)
        assert grid.effects == 1

    def test_a_test_sees_what_is_lost(self):
        world = World(scenario_of(("link-lossy", "network:CERN-PROD>FZK-LCG2", 0.03, 0.0, 5.0)), seed=1, start=START)
        world.advance(START + timedelta(minutes=10))
        grid = SimulatedGrid(world)
        there = grid.test_network("CERN-PROD", "FZK-LCG2", key="a")
        back = grid.test_network("FZK-LCG2", "CERN-PROD", key="b")
        assert there.loss == pytest.approx(0.03)
        assert there.throughput_bps < 0.1 * back.throughput_bps

    def test_a_ticket_brings_the_end_forward(self):
        world = World(scenario_of(("read-slow", f"rse:{RAL}", 0.03, 0.0, 100.0)), seed=1, start=START)
        world.advance(START + timedelta(minutes=10))
        grid = SimulatedGrid(world)
        assert grid.open_ticket(f"rse:{RAL}", "slow", "", key="a").state == "open"
        assert grid.open_ticket("rse:" + CERN, "slow", "", key="b").state == "open"
        world.advance(START + timedelta(hours=12))
        assert not world.active_faults()
        assert grid.tickets(mark="a")[0].state == "solved"


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "selected"),
        [
            (f"{CERN}|{FZK}", {CERN, FZK}),
            ("site=FZK-LCG2&type=DISK", {FZK, "FZK-LCG2_SCRATCHDISK"}),
            (f"(site=FZK-LCG2 \\ type=TAPE) \\ {FZK}", {"FZK-LCG2_SCRATCHDISK"}),
        ],
    )
    def test_they_select(self, lived, expression, selected):
        found = matching(expression, lived.topology)
        names = {name for name, chosen in zip(lived.topology.rses, found, strict=True) if chosen}
        assert names - {"FZK-LCG2_LOCALGROUPDISK"} == selected

    def test_everything_but_one(self, lived):
        assert matching(f"*\\{CERN}", lived.topology).sum() == len(lived.topology.rses) - 1

    @pytest.mark.parametrize(
        "expression", ["", "(*", "*)", "NOWHERE", "tier=1", "site=MOON", "type=PAPER", "*\\*", "| *", "* *", "*&"]
    )
    def test_what_cannot_be_read_is_refused(self, lived, expression):
        with pytest.raises(GridError, match="RSE expression"):
            matching(expression, lived.topology)


def _rule_id(world, row):

    return rule_ids(world.draws, row["number"][None])[0].as_py()


def _busiest(world):
    """The link on which most transfers run."""
    source, destination = divmod(int(world.state.link_running.argmax()), len(world.topology.rses))
    return world.topology.rses[source], world.topology.rses[destination]
