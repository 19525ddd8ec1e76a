"""The closed loop: operators, what calls are worth, what is measured, and a small run from end to end."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evaluation.arena import STEP, Arena
from agent.evaluation.loop import NONE, POLICIES, START, evaluate, policies_of
from agent.evaluation.measures import MEASURES, judge, summary
from agent.evaluation.oracle import Oracle, Twin
from agent.evaluation.report import report, table
from agent.evaluation.scratch import ScratchLedger
from agent.evaluation.trial import Alarm, Hurt, Struck, Trial
from agent.evaluation.worth import HARMS, TELLS, worth
from agent.grid.dry_run import Act
from models.domain import ConfigError, LedgerError, Rating
from simulator.draws import Draws
from simulator.faults import Fault, FaultKind
from simulator.operators import Crew
from simulator.scenario import parse
from simulator.schema import Operators
from simulator.topology import build
from simulator.world import World
from tests.command import GRIDMEDIC, gridmedic, refused

HOUR = 3600.0
SITE, RSE, OTHER = "CERN-PROD", "CERN-PROD_DATADISK", "BNL-OSG2_DATADISK"
SMALL = parse(
    {
        "grid": {"sites": 6},
        "load": {"transfers_per_day": 12_000},
        "faults": [
            {"kind": "disk-corrupt", "culprit": f"rse:{RSE}", "start": "3h", "duration": "3h", "strength": 0.7},
            {"kind": "storage-full", "culprit": f"rse:{OTHER}", "start": "4h", "duration": "2h", "strength": 1.0},
        ],
    },
    "small",
)
DAYS = 0.4


def crew(skill=1.0, delay_min=10.0, disagreement=0.0, seed=1):
    return Crew(Operators(skill=skill, delay_min=delay_min, disagreement=disagreement), Draws(seed))


def test_operators_who_know_choose_what_helps_and_say_so():
    reply = crew().reply(0, [0.0, 1.0, -1.0])
    assert reply.choice == 1
    assert reply.ratings == (Rating.NOT_APPLICABLE, Rating.GOOD, Rating.WRONG)


def test_of_equals_the_first_is_taken_and_of_harm_nothing():
    assert crew().reply(0, [1.0, 1.0]).choice == 0
    assert crew().reply(0, [-1.0, -1.0]).choice is None


def test_without_skill_anything_is_chosen():
    choices = Counter(crew(skill=0.0).reply(question, [-1.0, 1.0]).choice for question in range(400))
    assert choices[0] > 100
    assert choices[1] > 100


def test_a_colleague_who_disagrees_says_the_opposite():
    assert crew(disagreement=1.0).reply(0, [1.0, -1.0]).ratings == (Rating.WRONG, Rating.GOOD)


def test_delays_have_the_median_that_was_asked_for():
    delays = [crew(delay_min=10.0).delay(question) for question in range(1000)]
    assert 540 < np.median(delays) < 660
    assert max(delays) <= 20 * 600
    assert crew(delay_min=0.0).delay(1) == 0.0


@given(st.integers(0, 2**40), st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_question_gets_one_answer_whatever_was_asked_before(question, values, skill, disagreement):
    one, other = (crew(skill=skill, disagreement=disagreement) for _ in range(2))
    other.reply(question + 1, values)
    assert one.reply(question, values) == other.reply(question, values)
    assert len(one.reply(question, values).ratings) == len(values)


def test_a_question_without_options_is_none():
    with pytest.raises(ValueError, match="without options"):
        crew().reply(0, [])


@pytest.fixture(scope="module")
def topology():
    return build(sites=8, rses=None, capacity=1.0, seed=1)


def act(method, *arguments):
    return Act(method=method, arguments=arguments, key="k")


def fault(kind, culprit):
    return Fault(number=0, kind=FaultKind(kind), culprit=culprit, start=0.0, end=HOUR, strength=0.5)


@pytest.mark.parametrize(
    ("kind", "culprit", "done", "value"),
    [
        ("read-slow", f"rse:{RSE}", [act("set_distance", RSE, OTHER, 100)], 1.0),
        ("read-slow", f"rse:{RSE}", [act("set_distance", OTHER, RSE, 100)], HARMS),
        ("read-slow", f"rse:{RSE}", [act("set_availability", RSE, "read", False)], 1.0),
        ("read-slow", f"rse:{RSE}", [act("set_availability", RSE, "write", False)], HARMS),
        ("read-slow", f"rse:{RSE}", [act("set_availability", RSE, "read", True)], HARMS),
        ("storage-full", f"rse:{RSE}", [act("set_availability", RSE, "write", False)], 1.0),
        ("storage-full", f"rse:{RSE}", [act("set_availability", OTHER, "write", False)], HARMS),
        ("overloaded", f"rse:{RSE}", [act("set_storage_limit", RSE, "source", 2)], 1.0),
        ("overloaded", f"rse:{RSE}", [act("set_link_limit", OTHER, RSE, 1)], 1.0),
        ("overloaded", f"rse:{RSE}", [act("set_link_limit", OTHER, RSE, None)], HARMS),
        ("link-lossy", "network:CERN-PROD>BNL-OSG2", [act("set_distance", RSE, OTHER, 100)], 1.0),
        ("link-lossy", "network:CERN-PROD>BNL-OSG2", [act("set_distance", OTHER, RSE, 100)], HARMS),
        ("site-dark", "site:CERN-PROD", [act("ban", RSE, 60)], 1.0),
        ("site-lossy", "site:CERN-PROD", [act("set_distance", OTHER, RSE, 100)], 1.0),
        ("black-hole", f"rse:{RSE}", [act("open_ticket", f"rse:{RSE}")], TELLS),
        ("black-hole", f"rse:{RSE}", [act("open_ticket", f"rse:{OTHER}")], HARMS),
        ("fts-stalled", "fts:fts.example", [act("update_rule", "r", 5, None)], HARMS),
        ("read-slow", f"rse:{RSE}", [act("test_network", "CERN-PROD", "BNL-OSG2")], 0.0),
        ("read-slow", f"rse:{RSE}", [], 0.0),
    ],
)
def test_what_a_call_is_worth(topology, kind, culprit, done, value):
    assert worth(done, [fault(kind, culprit)], topology) == value


def test_an_action_helps_if_at_least_half_of_it_does(topology):
    helps, harms = act("set_distance", RSE, OTHER, 100), act("set_distance", OTHER, RSE, 100)
    running = [fault("read-slow", f"rse:{RSE}")]
    assert worth([helps, harms], running, topology) == 1.0
    assert worth([helps, harms, harms], running, topology) == HARMS
    assert worth([helps], [], topology) == HARMS


def hurt(*rows):
    """Rows of file, fault, created and ended."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Hurt(
        file=table[:, 0].astype(np.int64), fault=table[:, 1].astype(np.int64), created=table[:, 2], ended=table[:, 3]
    )


def struck(number=0, culprits=("rse:A",), start=HOUR, end=2 * HOUR):
    return Struck(number=number, kind="read-slow", culprits=frozenset(culprits), start=start, end=end)


def trial(*, faults=None, alarms=None, rows=(), seed=1, policy="agent", **settings):
    faults = (struck(),) if faults is None else faults
    return Trial(policy=policy, seed=seed, days=1.0, faults=faults, hurt=hurt(*rows), alarms=alarms, **settings)


def alarm(opened, culprit="rse:A", anomalous=10, **by_fault):
    return Alarm(
        opened=opened,
        culprit=culprit,
        kind="slow-transfers",
        anomalous=anomalous,
        hurt={int(name[1:]): n for name, n in by_fault.items()},
    )


MANY = [(file, 0, HOUR + 60 * file, 2 * HOUR) for file in range(20)]


def test_a_fault_is_eligible_by_what_it_hurts_where_nobody_acts():
    few = judge(trial(alarms=[]), trial(rows=MANY[:19]))
    assert few.detected == []
    many = judge(trial(alarms=[]), trial(rows=MANY))
    assert many.detected == [False]
    assert many.minutes_to_detect == [math.inf]


def test_a_transfer_that_is_hurt_twice_is_one():
    twice = [(file, 0, HOUR, 2 * HOUR) for file in range(10)] * 2
    assert judge(trial(), trial(rows=twice)).minutes_to_recover == []
    assert judge(trial(rows=twice), trial(rows=MANY)).transfers_hurt == 10


@pytest.mark.parametrize(
    ("found", "matches"),
    [
        (alarm(HOUR + 600, f0=5), True),
        (alarm(HOUR + 600, f0=4), False),  # less than half of its transfers were hurt by the fault
        (alarm(HOUR - 1, f0=10), False),  # before it started
        (alarm(2 * HOUR + 1800, f0=10), True),
        (alarm(2 * HOUR + 1801, f0=10), False),
    ],
)
def test_which_incident_matches_a_fault(found, matches):
    run = judge(trial(alarms=[found], rows=MANY), trial(rows=MANY))
    assert run.detected == [matches]
    assert run.false_incidents == (0 if matches else 1)


def test_a_second_incident_for_one_fault_is_false_and_the_first_one_counts():
    run = judge(
        trial(alarms=[alarm(HOUR + 1200, f0=10), alarm(HOUR + 600, "rse:B", f0=10)], rows=MANY), trial(rows=MANY)
    )
    assert run.detected == [True]
    assert run.false_incidents == 1
    assert run.minutes_to_detect == [10.0]
    assert run.right_culprit == [False]


def test_detection_is_counted_from_the_first_transfer_that_was_hurt():
    later = [(file, 0, HOUR + 300, 2 * HOUR) for file in range(20)]
    assert judge(trial(alarms=[alarm(HOUR + 600, f0=10)], rows=later), trial(rows=MANY)).minutes_to_detect == [5.0]


def test_recovery_is_when_the_last_quarter_of_an_hour_that_is_no_stray_ends():
    rows = [(file, 0, HOUR, HOUR + 950) for file in range(3)] + [(10, 0, HOUR, 3 * HOUR), (11, 0, HOUR, 3 * HOUR)]
    assert judge(trial(rows=rows), trial(rows=MANY)).minutes_to_recover == [30.0]
    assert judge(trial(), trial(rows=MANY)).minutes_to_recover == [0.0]


def test_who_does_not_look_has_no_recall():
    found = summary([judge(trial(rows=MANY), trial(rows=MANY))])
    assert found["recall"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert found["minutes_to_recover"]["mean"] == 60.0
    assert found["curve"] == []


def test_a_median_beyond_every_bound_is_null_and_the_json_is_finite():
    faults = (struck(0), struck(1, ("rse:B",)), struck(2, ("rse:C",)))
    rows = [(100 * n + file, n, HOUR, 2 * HOUR) for n in range(3) for file in range(20)]
    run = judge(trial(faults=faults, rows=rows, alarms=[alarm(HOUR + 600, f0=10)]), trial(faults=faults, rows=rows))
    found = summary([run])
    assert found["recall"]["mean"] == pytest.approx(1 / 3)
    assert found["minutes_to_detect"] == {"mean": None, "low": None, "high": None, "n": 3}
    json.dumps(found, allow_nan=False)


def test_the_interval_is_over_seeds():
    runs = [judge(trial(rows=MANY[:n], seed=n), trial(rows=MANY)) for n in (4, 8, 12, 16, 20)]
    found = summary(runs)["transfers_hurt"]
    assert found["mean"] == 12.0
    assert found["n"] == 5
    assert 4.0 <= found["low"] < 12.0 < found["high"] <= 20.0


def test_the_curve_is_by_day_over_all_seeds():
    runs = [judge(trial(first_choices=[(0, True), (0, False), (2, True)]), trial(rows=MANY)) for _ in range(2)]
    assert summary(runs)["curve"] == [{"day": 1, "first_choice_right": 0.5}, {"day": 3, "first_choice_right": 1.0}]


def test_a_scratch_ledger_keeps_streams_and_forgets_nothing():
    ledger = ScratchLedger.in_memory()
    rows = pd.DataFrame({"at": [1.0, 2.0, 3.0]})
    with ledger.begin(write=True) as tx:
        tx.append_rows("observed", rows)
        tx.append_rows("observed", rows.iloc[:0])
        tx.append_rows("observed", rows + 2)
        tx.move_cursor("events", {"seq": 3}, 7.0)
        tx.remember_keys("events", np.array([1, 2], dtype=np.uint64), 0.0)
        tx.count("events", {"read": 3})
        tx.set_setting("paused", None)
    with ledger.begin(write=False) as tx:
        assert tx.rows("observed")["at"].tolist() == [1, 2, 3, 3, 4, 5]
        assert tx.rows_since("observed", "at", 3.0)["at"].tolist() == [3, 3, 4, 5]
        assert tx.rows_since("readings", "at", 3.0).empty
        assert tx.row_count("observed") == 6
        assert (tx.cursor("events"), tx.watermark("events"), tx.cursor("other")) == ({"seq": 3}, 7.0, None)
        assert tx.known_keys("events").tolist() == [1, 2]
        assert tx.counts() == {("events", "read"): 3}
        assert tx.incidents() == []
    with pytest.raises(LedgerError), ledger.begin(write=True) as tx:
        tx.incident("none")
    ledger.close()


def test_an_arena_tells_of_each_act_once():
    arena = Arena(SMALL, seed=1, start=START)
    arena.live(START + timedelta(minutes=5))
    arena.grid.set_distance(RSE, OTHER, 50, key="one")
    arena.grid.open_ticket(f"rse:{RSE}", "broken", "", key="two")
    assert arena.acts() == {
        "one": [Act(method="set_distance", arguments=(RSE, OTHER, 50), key="one")],
        "two": [Act(method="open_ticket", arguments=(f"rse:{RSE}",), key="two")],
    }
    assert arena.acts() == {}


def test_the_oracle_treats_each_fault_and_puts_everything_back():
    arena, twin = Arena(SMALL, seed=1, start=START), World(SMALL, seed=1, start=START, faults=False)
    oracle = Oracle(arena, Twin(twin.advance(START + timedelta(hours=9)).ended))
    before = arena.world.state.distance.copy(), arena.world.state.closed.copy()
    changed = False
    while arena.now < START + timedelta(hours=9):
        oracle.live(arena.now + STEP)
        changed |= bool(
            (arena.world.state.distance != before[0]).any() or (arena.world.state.closed != before[1]).any()
        )
    assert changed
    assert len(arena.world.chronicle.tickets) == 2
    assert np.array_equal(arena.world.state.distance, before[0])
    assert np.array_equal(arena.world.state.closed, before[1])


def test_what_a_fault_asks_for_outlasts_another_one_at_the_same_place():
    faults = [
        {"kind": "files-missing", "culprit": f"rse:{RSE}", "start": 3600, "duration": 900, "strength": 1.0},
        {"kind": "site-dark", "culprit": f"site:{SITE}", "start": 3900, "duration": 9000, "strength": 1.0},
    ]
    content = {"grid": {"sites": 4}, "load": {"transfers_per_day": 20_000}, "faults": faults}
    scenario = parse(content, "overlapping")
    twin = World(scenario, seed=1, start=START, faults=False).advance(START + timedelta(hours=5)).ended
    arena = Arena(scenario, seed=1, start=START)
    oracle, place = Oracle(arena, Twin(twin)), arena.world.topology.rse(RSE)
    before = arena.world.state.distance.copy(), arena.world.state.closed.copy()

    def changed():
        state = arena.world.state
        return (state.distance != before[0])[place].any() or (state.closed != before[1])[place].any()

    oracle.live(START + timedelta(seconds=4800))
    assert changed()
    oracle.live(START + timedelta(hours=5))
    assert np.array_equal(arena.world.state.distance, before[0])
    assert np.array_equal(arena.world.state.closed, before[1])


@pytest.fixture(scope="module")
def trials():
    return evaluate(SMALL, days=DAYS, seeds=[1, 2], policies=POLICIES, workers=2, done=lambda _: None)


def test_every_policy_lives_through_every_world(trials):
    assert [(trial.seed, trial.policy) for trial in trials] == [
        (seed, policy) for seed in (1, 2) for policy in POLICIES
    ]
    untreated, *_, oracle = (trial.hurt.transfers for trial in trials[:5])
    assert untreated > 40
    assert oracle < untreated / 2


def test_the_report_is_finite_and_complete(trials):
    found = report("small", trials, POLICIES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["scenario"], found["days"], found["seeds"]) == ("small", DAYS, 2)
    assert list(found["policies"]) == list(POLICIES)
    for measures in found["policies"].values():
        assert set(measures) == {*MEASURES, "curve"}
        for name in MEASURES:
            assert set(measures[name]) == {"mean", "low", "high", "n"}
    agent, none = found["policies"]["agent"], found["policies"]["none"]
    assert agent["recall"]["mean"] >= 0.75
    assert agent["questions_per_day"]["mean"] > 0
    assert found["curve"] == agent["curve"] != []
    assert agent["transfers_hurt"]["mean"] <= none["transfers_hurt"]["mean"]
    assert none["right_actions"]["mean"] == none["wrong_actions"]["mean"] == 0
    assert "transfers_hurt" in table(found)


def test_the_number_of_workers_changes_nothing(trials):
    again = evaluate(SMALL, days=DAYS, seeds=[1], policies=["agent"], workers=1, done=lambda _: None)
    first = [trial for trial in trials if trial.seed == 1 and trial.policy in {NONE, "agent"}]
    for one, other in zip(again, first, strict=True):
        assert np.array_equal(one.hurt.file, other.hurt.file)
        assert np.array_equal(one.hurt.ended, other.hurt.ended)
        assert (one.alarms, one.right_actions, one.wrong_actions) == (
            other.alarms,
            other.right_actions,
            other.wrong_actions,
        )
        assert one.first_choices == other.first_choices


def test_policies_are_named_and_all_that_there_are_not_are_told():
    assert policies_of("agent, none,agent") == ("agent", "none")
    with pytest.raises(ConfigError, match=r"no policy 'luck', 'prayer'; choose out of none, seed"):
        policies_of("luck,none,prayer")
    with pytest.raises(ConfigError, match="none named"):
        policies_of(",")


def test_the_command(tmp_path):
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text("grid: {sites: 4}\nload: {transfers_per_day: 4000}\n")
    done = gridmedic(
        "evaluate", "loop", scenario, "--days", "0.1", "--seeds", "1", "--policies", "none,seed", "--report",
        tmp_path / "out.json", cwd=tmp_path, patience_s=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "minutes_to_recover" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["policies"]["seed"]["recall"]["n"] == 0


def test_no_worker_outlives_the_command(tmp_path):
    command = [GRIDMEDIC, "evaluate", "loop", "--seeds", "2", "--policies", "none", "--report", "out.json"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        workers = eventually(lambda: [child for child in children(running.pid) if "spawn_main" in child[1]])
    finally:
        running.kill()
        running.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid, _ in workers))


def children(parent):
    """Pid and command line of a process's children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((int(process.name), (process / "cmdline").read_text()))
    return found


def eventually(found, *, within_s=60):
    until = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return value


def test_what_cannot_be_run_is_said_before_anything_is(tmp_path):
    assert "no policy 'luck'" in refused("evaluate", "loop", "--policies", "luck", cwd=tmp_path)
    assert "there is no scenario 'defualt'" in refused("evaluate", "loop", "defualt", cwd=tmp_path)
    assert "there is no directory" in refused("evaluate", "loop", "--report", "none/out.json", cwd=tmp_path)
    assert "is not in the range" in refused("evaluate", "loop", "--seeds", "0", cwd=tmp_path)
