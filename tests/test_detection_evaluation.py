"""`gridmedic evaluate detection`: how incidents are judged, the rules that look beside the agent, and a small run of it all."""

from __future__ import annotations

import json
import math
from datetime import timedelta

import numpy as np
import pytest

from agent.evaluation.alarms import anomalous_of
from agent.evaluation.detection import RULES, Task, evaluate, in_time, rules_of, run, tasks_of
from agent.evaluation.detection_report import report, table
from agent.evaluation.kinds import RIGHT
from agent.evaluation.loop import START
from agent.evaluation.opint_rule import OpintRule, floor_of
from agent.evaluation.seed_rule import SeedRule
from agent.evaluation.sigma_rule import SigmaRule
from agent.evaluation.standstill import Standstill
from agent.evaluation.trial import Alarm, Hurt, Struck
from agent.evaluation.verdicts import MEASURES, judge, summary
from agent.evaluation.witness import struck
from models.domain import ConfigError, Entity, Evidence, Incident, IncidentKind
from simulator.faults import FaultKind
from simulator.records import request_ids
from simulator.scenario import load, parse
from simulator.world import World
from tests.command import gridmedic, refused

HOUR = 3600.0
END = 2 * HOUR
RSE, OTHER = "CERN-PROD_DATADISK", "BNL-OSG2_DATADISK"
SMALL = parse(
    {
        "grid": {"sites": 6},
        "load": {"transfers_per_day": 30_000},
        "faults": [
            {"kind": "storage-full", "culprit": f"rse:{OTHER}", "start": "2h", "duration": "90m", "strength": 1.0},
            {"kind": "read-slow", "culprit": f"rse:{RSE}", "start": "150m", "duration": "90m", "strength": 0.01},
        ],
    },
    "small",
)
DAYS = 5 / 24


def fault(number=0, kind="read-slow", culprits=("rse:A",), start=HOUR, end=END):
    return Struck(number=number, kind=kind, culprits=frozenset(culprits), start=start, end=end)


def alarm(opened, *, culprit="rse:A", kind="slow-transfers", anomalous=10, **by_fault):
    hurt = {int(name[1:]): count for name, count in by_fault.items()}
    return Alarm(opened=opened, culprit=culprit, kind=kind, anomalous=anomalous, hurt=hurt)


def hurt(**by_fault):
    """So many transfers of each fault, requested a minute after the other from five minutes after the hour on."""
    rows = [(int(name[1:]), place) for name, count in by_fault.items() for place in range(count)]
    created = np.array([HOUR + 300 + 60 * place for _, place in rows])
    return Hurt(
        file=np.arange(len(rows)), fault=np.array([number for number, _ in rows]), created=created, ended=created + 60
    )


def verdict(*alarms, faults=None, hurts=None, days=1.0, flagged_share=None, seed=1, stalls=None):
    return judge(
        alarms,
        faults=(fault(),) if faults is None else faults,
        hurt=hurt(f0=20) if hurts is None else hurts,
        rule="agent",
        scenario="small",
        seed=seed,
        days=days,
        flagged_share=flagged_share,
        stalls=stalls,
    )


def means(*verdicts):
    return {name: measure["mean"] for name, measure in summary(verdicts).items()}


class TestJudging:
    def test_what_hurts_fewer_than_twenty_transfers_is_not_sought(self):
        assert verdict(hurts=hurt(f0=19)).sought == ()
        assert len(verdict(hurts=hurt(f0=20)).sought) == 1

    def test_requests_of_one_transfer_count_once(self):
        twice = hurt(f0=20)
        half = Hurt(file=twice.file // 2, fault=twice.fault, created=twice.created, ended=twice.ended)
        assert verdict(hurts=half).sought == ()

    @pytest.mark.parametrize(
        ("opened", "own", "matches"),
        [
            (HOUR - 1, 10, False),  # before the fault
            (HOUR, 10, True),
            (END + 1800, 10, True),  # 30 minutes after its end
            (END + 1801, 10, False),
            (HOUR + 600, 5, True),  # half of its transfers
            (HOUR + 600, 4, False),
        ],
    )
    def test_when_an_incident_is_of_a_fault(self, opened, own, matches):
        found = verdict(alarm(opened, f0=own))
        assert (found.sought[0].alarm is not None) is matches
        assert found.raised[0].matches is matches

    def test_an_incident_without_transfers_is_of_none(self):
        assert verdict(alarm(HOUR + 600, anomalous=0)).sought[0].alarm is None

    def test_a_second_incident_for_one_fault_is_false(self):
        found = verdict(alarm(HOUR + 1200, f0=10), alarm(HOUR + 600, culprit="rse:B", f0=10), days=0.5)
        assert [one.matches for one in found.raised] == [False, True]  # the first to open counts
        assert means(found) | {"right_kind": 1.0} == {
            "recall": 1.0,
            "precision": 0.5,
            "right_culprit": 0.0,
            "right_kind": 1.0,
            "minutes_to_detect": 5.0,
            "stalls_found_in_time": None,
            "false_incidents_per_day": 2.0,
            "flagged_share": None,
        }

    def test_an_incident_is_of_one_fault_only(self):
        faults, hurts = (fault(), fault(1, culprits=("rse:B",))), hurt(f0=20, f1=20)
        found = verdict(alarm(HOUR + 600, f0=5, f1=5), faults=faults, hurts=hurts)
        assert [one.alarm is not None for one in found.sought] == [True, False]

    def test_what_matches_a_small_fault_is_not_false_and_counts_for_no_recall(self):
        found = verdict(alarm(HOUR + 600, anomalous=5, f0=5), hurts=hurt(f0=5))
        assert means(found) == dict.fromkeys(MEASURES) | {"precision": 1.0, "false_incidents_per_day": 0.0}

    def test_a_miss_blames_and_names_wrongly_and_comes_never(self):
        found = means(verdict())
        assert (found["recall"], found["right_culprit"], found["right_kind"]) == (0.0, 0.0, 0.0)
        assert found["minutes_to_detect"] is None
        assert found["precision"] is None

    def test_the_median_is_null_only_where_half_are_missed(self):
        faults = tuple(fault(number, start=HOUR) for number in range(3))
        two = [alarm(HOUR + 900, f0=10), alarm(HOUR + 1500, f1=10)]
        found = means(verdict(*two, faults=faults, hurts=hurt(f0=20, f1=20, f2=20)))
        assert found["minutes_to_detect"] == 20.0
        one = summary([verdict(two[0], faults=faults, hurts=hurt(f0=20, f1=20, f2=20))])
        assert one["minutes_to_detect"] == {"mean": None, "low": None, "high": None, "n": 3}

    def test_time_counts_from_what_was_hurt_first_but_not_from_before_the_fault(self):
        late = verdict(alarm(HOUR + 900, f0=10))
        assert late.sought[0].minutes_to_detect == 10.0
        running = verdict(alarm(HOUR + 900, f0=10), faults=(fault(start=HOUR + 600),))
        assert running.sought[0].minutes_to_detect == 5.0

    def test_every_kind_of_fault_has_right_kinds_of_incidents(self):
        assert set(RIGHT) == set(FaultKind)
        assert all(RIGHT.values())

    def test_the_name_is_judged_by_the_table(self):
        right = verdict(alarm(HOUR + 600, kind="stalled-transfers", f0=10))
        wrong = verdict(alarm(HOUR + 600, kind="failing-transfers", f0=10))
        assert (means(right)["right_kind"], means(wrong)["right_kind"]) == (1.0, 0.0)

    def test_by_kind_incidents_go_with_the_fault_behind_them(self):
        faults, hurts = (fault(), fault(1, "site-dark", ("site:S",))), hurt(f0=20, f1=20)
        found = verdict(
            alarm(HOUR + 600, f0=10), alarm(HOUR + 900, f0=10), alarm(HOUR, anomalous=9), faults=faults, hurts=hurts
        )
        slow, dark = means(found.of("read-slow")), means(found.of("site-dark"))
        assert (slow["recall"], slow["precision"], slow["false_incidents_per_day"]) == (1.0, 0.5, 1.0)
        assert (dark["recall"], dark["precision"], dark["false_incidents_per_day"]) == (0.0, None, 0.0)

    def test_stalls_count_each_by_itself_where_their_fault_is_sought(self):
        faults, hurts = (fault(), fault(1, "fts-stalled"), fault(2)), hurt(f0=20, f1=20, f2=5)
        found = verdict(faults=faults, hurts=hurts, stalls={0: [True], 1: [True, False, True], 2: [False] * 5})
        assert summary([found])["stalls_found_in_time"]["n"] == 4
        assert means(found)["stalls_found_in_time"] == 0.75
        assert means(found.of("fts-stalled"))["stalls_found_in_time"] == pytest.approx(2 / 3)

    def test_who_does_not_look_at_what_is_under_way_finds_no_stalls_and_misses_none(self):
        assert summary([verdict(alarm(HOUR + 600, f0=10))])["stalls_found_in_time"]["n"] == 0

    def test_the_interval_is_over_worlds(self):
        runs = [verdict(alarm(HOUR + 600, f0=10), seed=1), verdict(seed=2), verdict(seed=3)]
        recall = summary(runs)["recall"]
        assert recall == {"mean": pytest.approx(1 / 3), "low": 0.0, "high": 1.0, "n": 3}


def test_a_stall_is_found_in_time_if_it_is_known_before_its_timeout():
    began = START.timestamp()
    since = {"early": began + 599.0, "late": began + 600.0, "well": began}
    timeouts = {"early": 600.0, "late": 600.0, "never": 600.0, "nobody's": 600.0}
    hurt_by = {"early": 3, "late": 3, "never": 4, "well": 4}
    assert in_time(since, timeouts, hurt_by) == {3: [True, False], 4: [False]}


def test_what_stands_still_has_not_ended_when_its_timeout_is_over():
    scenario = parse(
        {
            "grid": {"sites": 4},
            "load": {"transfers_per_day": 20_000},
            "faults": [
                {"kind": "fts-stalled", "culprit": "fts:any", "start": "30m", "duration": "2h", "strength": 0.0}
            ],
        },
        "stalled",
    )
    world = World(scenario, seed=1, start=START)
    still, ended = Standstill(world), {}
    for hour in (1, 2, 3, 4):
        if hour == 3:
            midway = still.timeouts()
        records = world.advance(START + timedelta(hours=hour)).ended
        still.see(records)
        took = dict(zip(request_ids(world.draws, records["file"], records["tries"]).to_pylist(), records, strict=True))
        ended |= took
    assert len(midway) > 100
    assert set(midway) <= set(still.timeouts())  # what was under way stays what it was, however it ends
    for request, timeout in still.timeouts().items():
        if request in ended:
            record = ended[request]
            assert timeout == pytest.approx(record["submitted"] + 600 + 2 * record["bytes"] / 2**20)
            assert timeout < record["ended"]
    quick = [request for request, record in ended.items() if record["ended"] - record["submitted"] < 600]
    assert not set(quick) & set(still.timeouts())


def test_a_site_with_one_storage_element_equals_it():
    scenario = parse(
        {
            "grid": {"sites": 4, "rses": 5},
            "faults": [
                {"kind": "site-dark", "culprit": "site:BNL-OSG2", "start": 0, "duration": 60},
                {"kind": "site-dark", "culprit": "site:CERN-PROD", "start": 0, "duration": 60},
                {"kind": "read-slow", "culprit": f"rse:{OTHER}", "start": 0, "duration": 60},
            ],
        },
        "few",
    )
    world = World(scenario, seed=1, start=START)
    world.advance(START + timedelta(seconds=10))
    assert [sorted(one.culprits) for one in struck(world)] == [
        [f"rse:{OTHER}", "site:BNL-OSG2"],
        ["site:CERN-PROD"],
        [f"rse:{OTHER}", "site:BNL-OSG2"],
    ]


def rows(*transfers, at=0.0):
    """Ended transfers of source, destination, seconds that they took (None: failed) and median of the forecast."""
    columns = list(zip(*transfers, strict=True))
    count, ended = len(transfers), START.timestamp() + at
    failed = np.array([took is None for took in columns[2]])
    return {
        "request_id": np.array([f"{at:.0f}-{place}" for place in range(count)], dtype=object),
        "source": np.array(columns[0], dtype=object),
        "destination": np.array(columns[1], dtype=object),
        "started_at": np.array([ended - (took or 0.0) for took in columns[2]]),
        "ended_at": np.full(count, ended),
        "failed": failed,
        "q50": np.where(failed, np.nan, np.log1p(np.array(columns[3], dtype=np.float64))),
    }


def look(rule, at, *transfers):
    rule.look(rows(*transfers, at=at), START + timedelta(seconds=at))


def told(rule):
    return [
        (str(case.incident.culprit), case.opened.timestamp() - START.timestamp(), case.flagged) for case in rule.cases
    ]


class TestRules:
    def test_600_seconds_either_way(self):
        rule = SeedRule()
        look(
            rule, 300, ("A", "B", 700.0, 99.0), ("A", "C", 699.0, 99.0), ("C", "B", 10.0, 611.0), ("D", "B", None, 0.0)
        )
        look(rule, 600, ("A", "B", 900.0, 99.0))
        assert told(rule) == [("link:A>B", 300, ["300-0", "600-0"]), ("link:C>B", 300, ["300-2"])]
        assert rule.flagged == ["300-0", "300-2", "600-0"]
        assert {case.incident.kind for case in rule.cases} == {IncidentKind.SLOW_TRANSFERS}

    def test_an_hour_without_a_flag_ends_it(self):
        rule = SeedRule()
        for at in (300, 3600, 7200):
            look(rule, at, ("A", "B", 900.0, 99.0))
        assert [opened for _, opened, _ in told(rule)] == [300, 7200]

    def test_three_sigma_of_a_link_and_of_none_that_is_young(self):
        rule = SigmaRule()
        usual = [("A", "B", 20.0 + place, 0.0) for place in range(10)]
        look(
            rule, 300, *usual[:9], ("A", "B", 4000.0, 0.0), ("C", "B", 20.0, 0.0)
        )  # judged by what was before: nothing
        assert rule.flagged == []
        rule = SigmaRule()
        look(rule, 300, *usual)
        look(rule, 600, ("A", "B", 40.0, 0.0), ("A", "B", 30.0, 0.0), ("C", "B", 4000.0, 0.0), ("A", "B", None, 0.0))
        assert told(rule) == [("link:A>B", 600, ["600-0"])]

    def test_moments_do_not_depend_on_how_the_stream_is_cut(self):
        took = np.random.default_rng(1).lognormal(3.0, 1.0, 40)
        at_once, one_by_one = SigmaRule(), SigmaRule()
        look(at_once, 300, *[("A", "B", seconds, 0.0) for seconds in took])
        for seconds in took:
            look(one_by_one, 300, ("A", "B", seconds, 0.0))
        logs = np.log1p(took)
        expected = [[40, logs.mean(), 40 * logs.var()]]
        assert at_once._moments == pytest.approx(np.array(expected))
        assert one_by_one._moments == pytest.approx(np.array(expected))

    def test_a_site_and_direction_of_which_fewer_than_a_fifth_go_well(self):
        rule = OpintRule(floor=20)
        bad, good = ("S_DISK", "B_DISK", None, 0.0), ("S_DISK", "B_DISK", 10.0, 0.0)
        back = ("B_DISK", "S_DISK", 10.0, 0.0)
        look(rule, 300, *[bad] * 16, *[good] * 3, *[back] * 30)
        assert told(rule) == []  # 19 transfers say nothing
        look(rule, 600, good)
        assert told(rule) == []  # 4 of 20 is a fifth
        look(rule, 900, bad)
        assert {culprit for culprit, _, _ in told(rule)} == {"site:S", "site:B"}  # one sends badly, one receives badly
        assert [(opened, len(flagged)) for _, opened, flagged in told(rule)] == [(900, 17), (900, 17)]
        look(rule, 1200, bad)
        assert [len(flagged) for *_, flagged in told(rule)] == [18, 18]
        assert len(set(rule.flagged)) == 18

    def test_an_hour_is_forgotten(self):
        rule = OpintRule(floor=10)
        look(rule, 300, *[("S_DISK", "B_DISK", None, 0.0)] * 9)
        look(rule, 300 + HOUR + 1, *[("S_DISK", "B_DISK", None, 0.0)] * 9)
        assert told(rule) == []

    def test_the_floor_is_that_of_atlas_by_the_load_of_a_site(self):
        assert floor_of(load("atlas")) == 200
        assert floor_of(load("gauntlet")) == 100


def test_the_transfers_of_an_incident_are_its_culprits_that_went_badly_in_its_way():
    import pandas as pd  # noqa: PLC0415

    bad = pd.DataFrame(
        {
            "request_id": ["slow", "timed out", "waited", "failed", "before", "elsewhere"],
            "source": ["S_A", "S_A", "S_A", "S_A", "S_A", "T_A"],
            "destination": "B_A",
            "fts": "f",
            "ended_at": START.timestamp() + np.array([0.0, 60.0, 9000.0, 60.0, -1801.0, 0.0]),
            "due_at": START.timestamp() + np.array([np.nan, np.nan, 60.0, np.nan, np.nan, np.nan]),
            "failed": [False, True, False, True, True, True],
            "slow": [True, False, False, False, False, False],
            "reason": ["", "transfer-timeout", "", "source-missing", "transfer-timeout", "transfer-timeout"],
        }
    )
    evidence = Evidence(summary="", window_s=0, anomalous=0, total=0, background=0)
    incident = Incident(
        id="i",
        kind=IncidentKind.DEGRADED_NETWORK,
        culprit=Entity.parse("network:S>B"),
        opened_at=START,
        updated_at=START,
        confidence=1,
        severity=0,
        evidence=evidence,
    )
    assert anomalous_of([incident], bad) == [["slow", "timed out", "waited"]]


def test_rules_are_named_and_all_that_there_are_not_are_told():
    assert rules_of("opint, agent") == ("opint", "agent")
    with pytest.raises(ConfigError, match=r"--rules: there is no rule 'luck'; choose out of agent, fixed_600s"):
        rules_of("luck,agent")


def test_worlds_are_those_of_the_scenario_s_seed_and_after():
    both = [load("calm"), load("atlas")]
    tasks = tasks_of(both, days=None, seeds=2, rules=RULES)
    assert [(task.scenario.name, task.seed, task.days) for task in tasks] == [
        ("calm", 1, 7),
        ("calm", 2, 7),
        ("atlas", 1, 1),
        ("atlas", 2, 1),
    ]
    with pytest.raises(ConfigError, match=r"more than one scenario is called 'calm'"):
        tasks_of([both[0], both[0]], days=None, seeds=1, rules=RULES)


@pytest.fixture(scope="module")
def verdicts():
    return run(Task(scenario=SMALL, seed=1, rules=RULES, days=DAYS))


def test_every_rule_reads_the_stream(verdicts):
    assert [one.rule for one in verdicts] == list(RULES)
    for one in verdicts:
        assert [sought.fault.kind for sought in one.sought] == ["storage-full", "read-slow"]
        assert 0 <= one.flagged_share < 0.1
    agent = verdicts[0]
    assert all(sought.alarm is not None for sought in agent.sought)
    assert agent.sought[0].right_culprit
    assert agent.sought[0].right_kind
    assert all(sought.minutes_to_detect < 40 for sought in agent.sought)
    assert not any(sought.stalls for one in verdicts[1:] for sought in one.sought)
    slow = agent.sought[1].stalls
    assert len(slow) > 20
    assert sum(slow) >= 0.5 * len(slow)


def test_the_report_is_finite_and_complete(verdicts):
    found = report(verdicts)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["rules"]) == list(RULES)
    assert list(found["by_kind"]) == ["read-slow", "storage-full"]
    for rules in (found["rules"], *found["by_kind"].values(), found["scenarios"]["small"]["rules"]):
        for measures in rules.values():
            assert list(measures) == list(MEASURES)
            assert all(set(measure) == {"mean", "low", "high", "n"} for measure in measures.values())
    assert found["eligible"] == found["scenarios"]["small"]["eligible"] == 2
    assert found["rules"]["agent"]["recall"]["mean"] == 1.0
    assert found["by_kind"]["read-slow"]["agent"]["flagged_share"]["mean"] is None
    blamed = found["faults"][0]["rules"]
    assert blamed["agent"]["culprit"] == f"rse:{OTHER}"
    assert blamed["sigma3"] is None or "link:" in blamed["sigma3"]["culprit"]
    assert "false_incidents_per_day" in table(found)


def test_scenarios_are_judged_together_and_each(verdicts):
    other = [
        judge([], faults=(fault(),), hurt=hurt(f0=20), rule=rule, scenario="other", seed=7, days=1.0, flagged_share=0.0)
        for rule in RULES
    ]
    found = report([*verdicts, *other])
    assert found["eligible"] == 3
    assert found["rules"]["agent"]["recall"]["n"] == 3
    assert found["scenarios"]["other"]["rules"]["agent"]["recall"]["mean"] == 0.0
    assert found["scenarios"]["small"]["rules"]["agent"]["recall"]["mean"] == 1.0


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing_and_all_time_is_told(verdicts):
    passed = []
    tasks = [Task(scenario=SMALL, seed=seed, rules=RULES, days=DAYS) for seed in (1, 2)]
    again = evaluate(tasks, workers=2, done=passed.append)
    assert again[: len(RULES)] == verdicts
    assert [one.seed for one in again] == [1] * 4 + [2] * 4
    assert math.isclose(sum(passed), 2 * DAYS)


def test_the_command(tmp_path):
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(
        "grid: {sites: 4}\nload: {transfers_per_day: 8000}\n"
        "faults: [{kind: site-dark, culprit: 'site:CERN-PROD', start: 20m, duration: 1h}]\n"
    )
    done = gridmedic(
        "evaluate", "detection", scenario, "--days", "0.1", "--seeds", "1", "--rules", "opint,agent", "--workers", "1",
        "--report", "out.json", cwd=tmp_path, patience_s=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "minutes_to_detect" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["rules"]) == ["opint", "agent"]
    assert found["scenarios"]["tiny"]["days"] == 0.1


def test_what_cannot_be_run_is_said_before_anything_is(tmp_path):
    assert "no rule 'luck'" in refused("evaluate", "detection", "--rules", "luck", cwd=tmp_path)
    assert "there is no scenario 'gantlet'" in refused("evaluate", "detection", "calm", "gantlet", cwd=tmp_path)
    assert "is called 'calm'" in refused("evaluate", "detection", "calm", "calm", cwd=tmp_path)
    assert "there is no directory" in refused("evaluate", "detection", "--report", "none/out.json", cwd=tmp_path)
    assert "is not in the range" in refused("evaluate", "detection", "--days", "0", cwd=tmp_path)
    assert "is not in the range" in refused("evaluate", "detection", "--seeds", "0", cwd=tmp_path)
