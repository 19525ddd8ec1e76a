from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulator
from models.domain import GridError, IncidentKind
from models.events import FINISHED, decode
from models.grid import Grid
from models.measurements import QUANTITIES, decode_readings
from simulator.draws import Draws
from simulator.expressions import matching
from simulator.faults import Fault, FaultKind
from simulator.grid import ACTS, READS, SimulatedGrid
from simulator.state import STATE, Request
from simulator.topology import Path as NetworkPath
from simulator.topology import small_grid, tcp_limit
from simulator.world import Setup, World, run, simulated_events

START = datetime(2026, 3, 2, tzinfo=UTC)
CERN, FZK, BNL = "CERN-PROD_DATADISK", "FZK-LCG2_DATADISK", "BNL-OSG2_DATADISK"
LOSSY = "network:CERN-PROD>BNL-OSG2"


def make(*faults: Fault, seed: int = 1, load: float = 3000.0, outbreak: float | None = None) -> World:
    first = None if outbreak is None else timedelta(seconds=outbreak)
    return World(Setup(seed=seed, start=START, transfers_per_hour=load, faults=faults, first_outbreak=first))


def ill(kind: FaultKind, culprit: str, strength: float, *, start: float = 0.0, hours: float = 12.0) -> Fault:
    return Fault(number=1, kind=kind, culprit=culprit, start=start, end=start + hours * 3600, strength=strength)


def after(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def ended(documents):
    events, refusals = decode(documents, now=after(1000))
    assert not refusals
    events = events[events["type"].isin(["transfer-done", "transfer-failed"])]
    return events.drop_duplicates("request_id").reset_index(drop=True)


@pytest.fixture(scope="module")
def calm():
    """Two hours without a fault, decoded."""
    emitted = make().advance(after(2))
    return emitted, ended(emitted.events)


class TestDeterminism:
    def test_same_seed_and_acts_give_the_same_documents_however_time_is_cut(self):
        def live(cuts):
            world = make(outbreak=600.0)
            grid, found = SimulatedGrid(world), []
            for cut in sorted({*cuts, 1800.0, 2700.0, 3600.0}):
                found += world.advance(START + timedelta(seconds=cut)).events
                if cut == 1800.0:
                    grid.set_distance(CERN, FZK, 40, key="a")
                    grid.set_link_limit(BNL, CERN, 1, key="b")
                if cut == 2700.0:
                    grid.open_ticket(world.active_faults()[0].culprit, "slow", "", key="c")
            world.state.due.sort()
            world.state.posted.sort(key=lambda posted: posted[:2])  # a heap's layout depends on when it was taken from
            return found, STATE.dump_json(world.state)

        whole = live([])
        assert whole == live([17.3 * i for i in range(208)])
        assert len(whole[0]) > 5000

    def test_state_goes_to_json_and_back_in_the_middle_of_a_fault(self):
        world = make(outbreak=600.0)
        world.advance(after(0.5))
        SimulatedGrid(world).set_availability(CERN, "read", False, key="a")
        copy = World(world.setup, STATE.validate_json(STATE.dump_json(world.state)))
        assert world.advance(after(1.5)) == copy.advance(after(1.5))
        assert STATE.dump_json(world.state) == STATE.dump_json(copy.state)

    def test_another_seed_gives_another_run(self):
        assert make(seed=2).advance(after(0.1)).events != make(seed=3).advance(after(0.1)).events

    def test_a_call_leaves_every_other_draw_as_it_was(self):
        plain, touched = make(), make()
        SimulatedGrid(touched).set_distance(CERN, FZK, 40, key="a")

        def wanted(world):
            events = world.advance(after(1)).events
            first = [e["payload"] for e in events if e["event_type"] == "transfer-queued"]
            return {(p["name"], p["bytes"], p["rule-id"]) for p in first if p["retry-count"] is None}

        assert len(wanted(plain) ^ wanted(touched)) < 5  # those whose document is late by another request's luck

    def test_time_does_not_go_back(self):
        world = make()
        world.advance(after(0.1))
        with pytest.raises(ValueError, match="cannot go back"):
            world.advance(START)

    @given(seed=st.integers(0, 2**40), keys=st.lists(st.integers(0, 2**60), min_size=1, max_size=4))
    @settings(max_examples=50, deadline=None)
    def test_draws_are_functions_of_their_names(self, seed, keys):
        first, second = Draws(seed), Draws(seed)
        second.uniform(1, 2, 3)
        assert first.uniform(*keys) == second.uniform(*keys)
        assert 0 < first.uniform(*keys) < 1

    def test_draws_are_uniform_and_do_not_hang_together(self):
        draws = Draws(1)
        found = np.array([[draws.uniform(3, i * 1000 + j, k) for j in (0, 1) for k in (1, 2)] for i in range(5000)])
        assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.05
        assert np.allclose(np.quantile(found, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)

    def test_poisson_has_its_mean(self):
        draws = Draws(1)
        for mean in (0.05, 3.0, 80.0):
            assert np.mean([draws.poisson(mean, i) for i in range(4000)]) == pytest.approx(mean, rel=0.15)


class TestDocuments:
    def test_every_type_is_decoded(self):
        world = make(ill(FaultKind.DOOR_REFUSES, f"rse:{CERN}", 0.9))
        SimulatedGrid(world).set_availability(FZK, "write", False, key="a")
        SimulatedGrid(world).set_availability(BNL, "read", False, key="b")
        emitted = world.advance(after(2))
        events, refusals = decode(emitted.events, now=after(2))
        assert not refusals
        assert set(events["type"]) == {
            *("transfer-queued", "transfer-waiting", "transfer-submitted", "transfer-done", "transfer-failed"),
            *("deletion-planned", "deletion-done", "deletion-failed"),
        }
        done = events[events["type"].isin(FINISHED)]
        assert (done["duration"] >= 0).all()
        assert (done["submitted_at"] <= done["started_at"]).all()
        assert (done["fts"].str.endswith(".example")).all()
        assert (events.loc[events["type"] == "transfer-queued", "rule_id"] != "").all()

    def test_measurements_are_decoded(self, calm):
        readings, refusals = decode_readings(calm[0].measurements, now=after(2))
        assert not refusals
        assert {"packet_loss", "delay_mean", "delay_sd", "throughput"} <= set(readings["quantity"]) <= set(QUANTITIES)
        assert 0.05 < (readings["source_site"] == "").mean() < 0.2

    def test_documents_come_late_out_of_order_and_sometimes_twice(self, calm):
        documents = calm[0].events
        times = [document["created_at"] for document in documents]
        assert times != sorted(times)
        told = Counter(
            (d["event_type"], d["payload"].get("request-id")) for d in documents if "transfer" in d["event_type"]
        )
        assert 0.001 < sum(n == 2 for n in told.values()) / len(told) < 0.02

    def test_nothing_is_told_before_it_happened(self):
        world = make()
        for minute in range(1, 60):
            now = START + timedelta(minutes=minute)
            events, _ = decode(world.advance(now).events, now=now)
            assert events["created_at"].max() <= now.timestamp()
            assert not (events["ended_at"] > now.timestamp()).any()

    def test_a_retry_is_chained_at_most_three_times_and_then_the_rule_is_stuck(self):
        world = make(ill(FaultKind.DISK_FULL, f"rse:{FZK}", 1.0))
        events = ended(world.advance(after(1)).events)
        failed = events[(events["destination"] == FZK) & (events["type"] == "transfer-failed")]
        before = dict(zip(failed["request_id"], failed["previous_request_id"], strict=True))

        def length(request_id):
            return 0 if not before.get(request_id) else 1 + length(before[request_id])

        assert Counter(map(length, before)).keys() == {0, 1, 2, 3}
        stuck = [rule for rule in world.state.rules.values() if rule.state == "STUCK"]
        assert {rule.destination for rule in stuck} >= {FZK}
        assert failed["reason"].str.contains("SRM_NO_FREE_SPACE").mean() > 0.9

    def test_the_world_looks_like_a_grid(self, calm):
        _, events = calm
        done = events[events["type"].isin(FINISHED)]
        delay = done["started_at"] - done["submitted_at"]
        assert 2400 < len(done) / 2 < 4500
        assert (events["type"] == "transfer-failed").mean() < 0.02
        assert 5 < done["duration"].median() < 30
        assert 60 < done["duration"].quantile(0.95) < 600
        assert 10e6 < done["bytes"].median() < 200e6
        assert 5 < delay.median() < 60
        assert 0.4 < done["bytes"].corr(done["duration"], method="spearman") < 0.9

    def test_training_documents_are_the_ended_transfers(self):
        documents = simulated_events(seed=5, hours=0.5)
        assert {document["event_type"] for document in documents} == {"transfer-done", "transfer-failed"}
        assert len(ended(documents)) > 800
        assert [len(part.measurements) > 100 for part in run(Setup(seed=5, start=START), hours=1.5)] == [True, True]


class TestPhysics:
    def test_no_capacity_is_exceeded_and_every_flow_moves(self):
        world = make(load=6000.0)
        for minute in range(1, 40):
            world.advance(START + timedelta(minutes=minute))
            used = Counter()
            for request in world.state.requests.values():
                if request.flow:
                    assert request.rate > 0
                    used[request.source, "read"] += request.rate
                    used[world.state.rules[request.rule_id].destination, "write"] += request.rate
            for (name, way), rate in used.items():
                storage = world.topology.storages[name]
                assert rate <= 1.0001 * (storage.read if way == "read" else storage.write)

    def test_mathis(self):
        path = NetworkPath(source="A", destination="B", rtt_s=0.1, loss=0.0, capacity=1e9)
        assert tcp_limit(path, 0.01) == pytest.approx(4 * math.sqrt(1.5) * 1460 / (0.1 * 0.1))
        assert tcp_limit(path, 0.0) == 4 * 4e6 / 0.1

    def test_distances_follow_geography(self):
        grid = small_grid(1)
        assert len(grid.sites) == 12
        assert len(grid.storages) == 24
        assert grid.distances[f"{CERN}>{FZK}"] < grid.distances[f"{CERN}>{BNL}"]
        assert 0.08 < grid.paths["CERN-PROD", "BNL-OSG2"].rtt_s < 0.12

    @pytest.mark.parametrize(
        ("fault", "mask", "said"),
        [
            (ill(FaultKind.DISK_FULL, f"rse:{FZK}", 0.9), {"destination": FZK}, "No space left on device"),
            (ill(FaultKind.DOOR_REFUSES, f"rse:{FZK}", 0.9), {"destination": FZK}, "could not open connection"),
            (ill(FaultKind.DOOR_REFUSES, f"rse:{FZK}", 0.9), {"source": FZK}, "Connection refused"),
            (ill(FaultKind.DOOR_BUSY, f"rse:{CERN}", 1.0), {"source": CERN}, "421 Service busy"),
        ],
    )
    def test_a_fault_fails_what_it_should(self, fault, mask, said):
        events = ended(make(fault).advance(after(1)).events)
        hit = np.logical_and.reduce([events[column] == value for column, value in mask.items()])
        failed = events["type"] == "transfer-failed"
        assert hit.sum() > 50
        assert (failed & events["reason"].str.contains(said))[hit].mean() > 0.4
        untouched = (events["source"] != fault.where) & (events["destination"] != fault.where)
        assert failed[untouched].mean() < 0.02

    @pytest.mark.parametrize(
        ("fault", "mask"),
        [
            (ill(FaultKind.READ_SLOW, f"rse:{CERN}", 0.03), {"source": CERN}),
            (ill(FaultKind.WRITE_SLOW, f"rse:{CERN}", 0.03), {"destination": CERN}),
            (ill(FaultKind.PACKETS_LOST, LOSSY, 0.02), {"source": CERN, "destination": BNL}),
        ],
    )
    def test_a_fault_slows_what_it_should(self, calm, fault, mask):
        emitted = make(fault).advance(after(2))

        def slowness(events):
            events = events[events["started_at"] < after(1.7).timestamp()]
            hit = np.logical_and.reduce([events[column] == value for column, value in mask.items()])
            large = events[hit & (events["bytes"] > 20e6) & (events["type"] == "transfer-done")]
            return (large["duration"] / large["bytes"]).median()

        assert slowness(ended(emitted.events)) > 2.5 * slowness(calm[1])

    def test_perfsonar_sees_lost_packets(self):
        world = make(ill(FaultKind.PACKETS_LOST, LOSSY, 0.02))
        readings, _ = decode_readings(world.advance(after(2)).measurements, now=after(2))
        loss = readings[readings["quantity"] == "packet_loss"]
        there = (loss["source_site"] == "CERN-PROD") & (loss["destination_site"] == "BNL-OSG2")
        back = (loss["source_site"] == "BNL-OSG2") & (loss["destination_site"] == "CERN-PROD")
        assert loss["value"][there].mean() == pytest.approx(0.02, rel=0.2)
        assert loss["value"][back].mean() < 0.001

    def test_outbreaks_go_on_and_change_their_culprits(self):
        world = make(outbreak=300.0, load=20.0)
        world.advance(after(18))
        faults = world.truth()
        starts = [datetime.fromisoformat(fault["start"]) for fault in faults]
        gaps = [(b - a).total_seconds() / 3600 for a, b in itertools.pairwise(starts)]
        assert starts[0] == START + timedelta(seconds=300)
        assert all(1 <= gap <= 2 for gap in gaps)
        assert {fault["kind"] for fault in faults} == set(FaultKind)
        assert all(len({f["culprit"] for f in faults[i : i + 5]}) == 5 for i in range(len(faults) - 5))


class TestActs:
    def test_a_larger_distance_moves_load_off_a_slow_source_and_helps(self):
        fault = ill(FaultKind.READ_SLOW, f"rse:{CERN}", 0.03)
        waiting, acting = make(fault), make(fault)
        grid = SimulatedGrid(acting)
        for rse in grid.rses():
            if grid.distance(CERN, rse.name) is not None:
                grid.set_distance(CERN, rse.name, 90, key="switch")
        left, moved = (ended(world.advance(after(2)).events) for world in (waiting, acting))
        assert (moved["source"] == CERN).sum() < 0.75 * (left["source"] == CERN).sum()
        assert (moved["duration"] > 120).sum() < 0.85 * (left["duration"] > 120).sum()

    def test_a_link_limit_bounds_what_runs_at_once(self):
        free, bound = make(), make()
        SimulatedGrid(bound).set_link_limit(CERN, FZK, 1, key="a")

        def overlap(world):
            events = ended(world.advance(after(1)).events)
            events = events[(events["source"] == CERN) & (events["destination"] == FZK)].sort_values("started_at")
            running = [((events["started_at"] <= t) & (events["ended_at"] > t + 1)).sum() for t in events["started_at"]]
            return max(running)

        assert overlap(free) > 2
        assert overlap(bound) == 1

    def test_no_reading_takes_a_source_out_at_its_next_choice(self):
        world = make()
        SimulatedGrid(world).set_availability(CERN, "read", False, key="a")
        world.advance(after(1))
        assert not any(request.source == CERN for request in world.state.requests.values())
        assert [r for r in SimulatedGrid(world).requests() if r.state == "WAITING" and r.sources == (CERN,)]
        SimulatedGrid(world).set_availability(CERN, "read", True, key="b")
        events = ended(world.advance(after(1.5)).events)
        assert (events["source"] == CERN).any()

    def test_no_writing_sends_new_rules_elsewhere(self):
        world = make()
        world.advance(after(0.5))
        SimulatedGrid(world).set_availability(FZK, "write", False, key="a")
        known = set(world.state.rules)
        world.advance(after(1.5))
        assert FZK not in {rule.destination for id_, rule in world.state.rules.items() if id_ not in known}

    def test_an_expression_bounds_the_sources_of_a_rule(self):
        world = make()
        grid = SimulatedGrid(world)
        world.advance(after(0.2))
        waiting = [r for r in grid.requests() if r.state == "QUEUED" and len(r.sources) > 1]
        request = waiting[0]
        grid.update_rule(request.rule_id, source_replica_expression=f"*\\{request.sources[0]}", key="a")
        assert grid.rule(request.rule_id).source_replica_expression == f"*\\{request.sources[0]}"
        events = world.advance(after(1.2)).events
        took = [
            e["payload"]["src-rse"]
            for e in events
            if e["event_type"] == "transfer-submitted" and e["payload"]["request-id"] == request.id
        ]
        assert took
        assert took[0] != request.sources[0]
        grid.update_rule(request.rule_id, source_replica_expression="", key="b")
        assert grid.rule(request.rule_id).source_replica_expression is None

    def test_priority_lets_a_queued_rule_pass_and_a_stuck_one_be_looked_at(self):
        world = make(ill(FaultKind.DISK_FULL, f"rse:{FZK}", 1.0, hours=0.5), load=6000.0)
        grid = SimulatedGrid(world)
        for rse in grid.rses():
            grid.set_link_limit(CERN, rse.name, 1, key="narrow")
        world.advance(after(0.6))
        queue = max(world.state.queues.values(), key=len)
        behind = world.state.requests[max(queue)[2]]
        assert behind.rule_id != world.state.requests[min(queue)[2]].rule_id
        grid.update_rule(behind.rule_id, priority=5, key="up")
        assert world.state.requests[min(queue)[2]].priority == 5
        assert {world.state.requests[entry[2]].priority for entry in queue} == {-entry[0] for entry in queue}
        stuck = next(rule for rule in world.state.rules.values() if rule.state == "STUCK")
        grid.update_rule(stuck.id, priority=5, key="boost")
        world.advance(after(0.7))
        assert grid.rule(stuck.id).state == "REPLICATING"

    def test_a_ticket_shortens_the_repair(self):
        fault = ill(FaultKind.READ_SLOW, f"rse:{CERN}", 0.03, hours=48)
        for culprit, mends in ((f"rse:{CERN}", True), (f"rse:{FZK}", False)):
            world = make(fault, load=20.0)
            grid = SimulatedGrid(world)
            world.advance(after(0.1))
            ticket = grid.open_ticket(culprit, "slow", "since noon", key="d1")
            assert ticket.state == "open"
            world.advance(after(4))
            assert (not world.active_faults()) == mends
            assert grid.tickets(mark="d1")[0].state == "solved"
        assert fault.end == 48 * 3600  # what was given is not changed

    @pytest.mark.parametrize(
        ("fault", "told", "found"),
        [
            (f"rse:{CERN}", f"rse:{CERN}", True),
            (f"rse:{CERN}", "site:CERN-PROD", True),
            (f"rse:{CERN}", f"link:{CERN}>{BNL}", True),
            (f"rse:{CERN}", "site:FZK-LCG2", False),
            (f"rse:{CERN}", LOSSY, False),
            (LOSSY, LOSSY, True),
            (LOSSY, f"link:{CERN}>{BNL}", True),
            (LOSSY, f"link:{BNL}>{CERN}", False),
            (LOSSY, f"rse:{CERN}", False),
            (LOSSY, "nonsense", False),
        ],
    )
    def test_support_finds_what_it_is_told_of(self, fault, told, found):
        assert ill(FaultKind.READ_SLOW, fault, 0.1).found_by(told, small_grid(1)) == found

    def test_the_same_act_with_the_same_key_has_its_effect_once(self):
        world = make()
        grid = SimulatedGrid(world)
        usual = grid.distance(CERN, FZK)
        grid.set_distance(CERN, FZK, 40, key="d1")
        grid.set_distance(CERN, FZK, usual, key="undo")
        grid.set_distance(CERN, FZK, 40, key="d1")
        assert grid.distance(CERN, FZK) == usual
        assert grid.effects == 2
        first = grid.open_ticket(f"rse:{CERN}", "slow", "", key="d1")
        assert grid.open_ticket(f"rse:{CERN}", "slow", "", key="d1") == first
        assert grid.open_ticket(f"rse:{CERN}", "slow", "", key="d2").id != first.id
        assert [ticket.mark for ticket in grid.tickets(mark="d1")] == ["d1"]

    def test_what_was_set_can_be_set_back(self):
        grid = SimulatedGrid(make())
        grid.set_link_limit(CERN, FZK, 3, key="a")
        assert grid.link_limit(CERN, FZK) == 3
        grid.set_link_limit(CERN, FZK, None, key="b")
        assert grid.link_limit(CERN, FZK) is None
        grid.set_availability(CERN, "write", False, key="c")
        assert grid.rse(CERN).read
        assert not grid.rse(CERN).write
        grid.set_availability(CERN, "write", True, key="d")
        assert grid.rse(CERN).write

    @pytest.mark.parametrize(
        ("act", "said"),
        [
            (lambda g: g.rse("NOWHERE_DATADISK"), "'NOWHERE_DATADISK'"),
            (lambda g: g.rule("42"), "'42'"),
            (lambda g: g.set_distance(CERN, FZK, 0, key="k"), "at least 1"),
            (lambda g: g.set_distance("CERN-PROD_DATATAPE", FZK, 3, key="k"), "not connected"),
            (lambda g: g.set_link_limit(CERN, FZK, 0, key="k"), "at least 1"),
            (lambda g: g.set_availability(CERN, "sing", False, key="k"), "'sing'"),
            (lambda g: g.set_distance(CERN, FZK, 3, key=""), "needs a key"),
        ],
    )
    def test_what_cannot_be_done_is_refused_and_changes_nothing(self, act, said):
        grid = SimulatedGrid(make())
        with pytest.raises(GridError, match=said):
            act(grid)
        assert grid.effects == 0

    def test_reads_change_nothing(self):
        world = make()
        world.advance(after(0.2))
        before = STATE.dump_json(world.state)
        grid = SimulatedGrid(world)
        some = grid.requests(limit=5)
        assert len(some) == 5
        assert len(grid.rses()) == 24
        grid.rule(some[0].rule_id)
        grid.tickets(mark="x")
        assert {request.destination for request in grid.requests(destination=FZK)} <= {FZK}
        assert {request.source for request in grid.requests(source=CERN)} <= {CERN}
        assert STATE.dump_json(world.state) == before

    def test_it_has_every_method_of_the_protocol(self):
        methods = {name for name, _ in inspect.getmembers(Grid, inspect.isfunction) if not name.startswith("_")}
        assert methods == {*READS, *ACTS}
        for name in methods:
            assert inspect.signature(getattr(SimulatedGrid, name)) == inspect.signature(getattr(Grid, name))


class TestExpressions:
    storages = small_grid(1).storages

    @pytest.mark.parametrize(
        ("expression", "selected"),
        [
            (f"{CERN}|{FZK}", {CERN, FZK}),
            ("site=FZK-LCG2&type=DISK", {FZK, "FZK-LCG2_SCRATCHDISK"}),
            (f"(site=FZK-LCG2 \\ type=TAPE) \\ {FZK}", {"FZK-LCG2_SCRATCHDISK"}),
        ],
    )
    def test_they_select(self, expression, selected):
        assert matching(expression, self.storages) == selected

    def test_everything_but_one(self):
        assert len(matching(f"*\\{CERN}", self.storages)) == 23

    @pytest.mark.parametrize("expression", ["", "(*", "*)", "NOWHERE", "tier=1", "*\\*", "| *", "* *", "*&"])
    def test_what_cannot_be_read_is_refused(self, expression):
        with pytest.raises(GridError, match="RSE expression"):
            matching(expression, self.storages)


def test_the_simulator_names_no_incident_kind_and_knows_only_models():
    for path in Path(simulator.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not [kind for kind in IncidentKind if str(kind) in text], path


def test_requests_and_rules_are_forgotten():
    world = make(load=300.0)
    world.advance(after(10))
    assert len(world.state.requests) < 100
    assert len(world.state.rules) < 400
    assert isinstance(next(iter(world.state.requests.values())), Request)
