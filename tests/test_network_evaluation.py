from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from agent.cli import commands
from agent.evaluation import network
from agent.evaluation.network import DAY_S, Fault, Recorded, evaluate, struck, week
from agent.evaluation.network_rules import FarThroughput, HourlyDelay, MeanLoss
from detectors.findings import Trouble
from models.domain import SourceError

T0 = 1_451_865_600.0  # Monday 2016-01-04
HOUR = 3600.0


def table(*, days=24, sites=("ALPHA", "BETA", "GAMMA", "DELTA"), seed=0, every=40 * 60.0, tests=12 * HOUR):
    """A small file as the reference one: one row a test, columns of quantities."""
    draw, rows = np.random.default_rng(seed), []
    for source in sites:
        for destination in sites:
            if source == destination:
                continue
            level = 30.0 + 10.0 * len(source + destination)
            for at in np.arange(0, days * DAY_S, every) + draw.uniform(0, every):
                rows += [(source, destination, at, level + draw.normal(), 0.1, 0.0, np.nan)]
            for at in np.arange(0, days * DAY_S, tests) + draw.uniform(0, tests):
                rows += [(source, destination, at, np.nan, np.nan, np.nan, 4e8 * np.exp(0.15 * draw.normal()))]
    names = ["src", "dst", "time_utc", "delay_mean_ms", "delay_sd_ms", "packet_loss_frac", "throughput_bps"]
    frame = pd.DataFrame(rows, columns=names)
    frame["time_utc"] = pd.to_datetime(T0 + frame["time_utc"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%S")
    return frame.sort_values("time_utc", kind="stable")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    path = tmp_path_factory.mktemp("readings") / "quiet.csv"
    table().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def found(quiet):
    return evaluate([quiet], seeds=1)


def test_nothing_is_found_in_quiet_series_and_every_fault_is(found):
    assert found["alarms"] == []
    assert found["alarms_per_pair_week"] == dict.fromkeys(map(str, Trouble), 0.0)
    for kind, one in found["injected"].items():
        assert one["qualified"] == 12, kind
        assert one["recall"] >= 0.9, kind
        assert one["named"] == 1.0, kind
        assert one["minutes_to_detect"] > 0, kind


def test_the_rules_of_today_stand_beside_it_in_the_same_form(found):
    rules = found["rules"]
    assert set(rules["injected"]) == set(map(str, Trouble))
    assert set(rules["alarms_per_pair_week"]) == {"loss", "throughput", "delay"}
    assert rules["injected"]["loss"]["recall"] == 0.0  # two hours of 2 % are no mean of 2 % over 24
    assert rules["injected"]["loss"]["minutes_to_detect"] is None
    assert rules["injected"]["firewall"]["recall"] == 1.0
    assert rules["injected"]["firewall"]["named"] == 0.0
    assert rules["injected"]["throughput"]["recall"] > 0.8


def test_weeks_that_hold_few_readings_do_not_count(quiet, tmp_path):
    assert Recorded([quiet]).weeks()["throughput"]
    few = table(days=7, sites=("ALPHA", "BETA"), every=DAY_S / 2.5, tests=2 * DAY_S)
    few.to_csv(tmp_path / "few.csv", index=False)
    weeks = Recorded([tmp_path / "few.csv"]).weeks()
    assert weeks["packet_loss"] == weeks["delay_mean"] == set()  # 18 readings
    assert {pair for pair, _ in weeks["throughput"]} == {("ALPHA", "BETA"), ("BETA", "ALPHA")}  # and 3


def test_weeks_begin_on_mondays():
    assert np.diff(week(np.array([T0 - 1.0, T0, T0 + 7 * DAY_S - 1.0, T0 + 7 * DAY_S]))).tolist() == [1, 0, 1]


def test_faults_lie_only_where_enough_is_measured_and_only_the_seed_moves_them(quiet):
    recorded = Recorded([quiet])
    faults = list(network._place(recorded, 2))
    assert faults == list(network._place(recorded, 2))
    assert len({fault.start for fault in faults}) == len(faults)
    for fault in faults:
        at = recorded.series(network.QUANTITY[fault.trouble], fault.pair)[0]
        assert np.count_nonzero((at >= fault.start) & (at < fault.end)) >= 3
        if fault.trouble is Trouble.THROUGHPUT:
            assert np.count_nonzero(at < fault.start) >= 10
        assert (fault.site in fault.pair) is (fault.trouble is Trouble.CLOCK)


def columns():
    rows = [
        ("A", "B", "packet_loss", 0.5),
        ("A", "B", "delay_mean", 40.0),
        ("A", "B", "delay_sd", 1.0),
        ("A", "B", "throughput", 100.0),
        ("B", "A", "delay_mean", 40.0),
        ("B", "C", "delay_mean", 40.0),
    ]
    names = ("source_site", "destination_site", "quantity", "value")
    return {
        name: np.array(values, dtype=float if name == "value" else object)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Trouble.LOSS, [0.51, 40, 1, 100, 40, 40]),
        (Trouble.DELAY, [0.5, 55, 1, 100, 40, 40]),
        (Trouble.THROUGHPUT, [0.5, 40, 1, 30, 40, 40]),
        (Trouble.CLOCK, [0.5, -160, 1, 100, 240, 40]),
        (Trouble.FIREWALL, [1.0, 100, 40, 40]),
    ],
)
def test_a_fault_changes_what_it_should_and_nothing_else(trouble, expected):
    clock = trouble is Trouble.CLOCK
    fault = Fault(trouble=trouble, pair=("A", "B"), start=0.0, site="A" if clock else "", ahead=200.0 if clock else 0.0)
    before = columns()
    assert struck(before, fault)["value"] == pytest.approx(expected)
    assert before["value"].tolist() == columns()["value"].tolist()


def test_the_mean_loss_of_a_day():
    at = np.arange(0, 3 * DAY_S, HOUR)
    loss = np.where((at >= DAY_S) & (at < DAY_S + 6 * HOUR), 0.1, 0.0)
    found = MeanLoss().alarms(at, loss, since=-math.inf)
    assert found == [DAY_S + 4 * HOUR]  # the fifth of 24


def test_a_test_far_from_those_of_three_weeks():
    at = np.arange(20) * DAY_S
    value = 100.0 + np.arange(20) % 2
    value[15] = 40.0
    assert FarThroughput().alarms(at, value, since=-math.inf) == [15 * DAY_S]
    assert FarThroughput().alarms(at, value, since=16 * DAY_S) == []


def test_an_hour_far_from_those_of_a_month():
    at = np.arange(0, 5 * DAY_S, HOUR / 2)
    delay = 50.0 + 0.1 * (np.arange(len(at)) % 6)
    delay[200:204] += 30.0
    assert HourlyDelay().alarms(at, delay, since=3 * DAY_S) == [at[200] + HOUR]


def test_the_command_writes_a_report_and_plots(tmp_path):
    sick = table(days=16, sites=("ALPHA", "BETA"))
    own = (sick["src"] == "ALPHA") & (sick["time_utc"] > "2016-01-15T00:00:00")
    sick.loc[own & (sick["time_utc"] < "2016-01-16T00:00:00"), "packet_loss_frac"] += 0.1
    sick.loc[own, "delay_mean_ms"] += 30.0
    sick.to_csv(tmp_path / "sick.csv.gz", index=False)
    report, plots = tmp_path / "out.json", tmp_path / "plots"
    said = CliRunner().invoke(
        commands,
        ["evaluate", "network", str(tmp_path), "--seeds", "1", "--report", str(report), "--plots", str(plots)],
        catch_exceptions=False,
    )
    assert said.exit_code == 0, said.output
    found = json.loads(report.read_text())
    assert {alarm["kind"] for alarm in found["alarms"]} == {"loss", "delay"}
    assert {alarm["culprit"] for alarm in found["alarms"]} == {"network:ALPHA>BETA"}
    assert found["alarms_per_pair_week"]["loss"] > 0
    assert sorted(path.name for path in plots.iterdir()) == ["alarm-1.png", "alarm-2.png"]
    assert all(path.stat().st_size < 60_000 for path in plots.iterdir())
    assert "all kinds" in said.output


def test_files_without_what_is_judged_are_refused(tmp_path):
    (tmp_path / "hops.csv").write_text("src,dst,time_utc,n_hops\nA,B,2016-01-01T00:00:00,4\n")
    with pytest.raises(SourceError, match="holds no reading of loss, delay or throughput"):
        evaluate([tmp_path / "hops.csv"], seeds=1)


@pytest.mark.realdata
def test_real_series_raise_few_alarms(real_data):
    """The goal is half an alarm a pair and week, for all kinds together."""
    recorded = Recorded([real_data / "perfsonar_2016_site_pairs.csv.gz"])
    turns, _, counts = network._play(recorded, [])
    opened = [finding for finding in turns if finding.turn is network.Turn.OPENED]
    weeks = recorded.weeks()
    rates = [
        network._rate([network._alarm(one) for one in opened if one.trouble is trouble], trouble, weeks)
        for trouble in Trouble
    ]
    assert 0.0 < sum(rates) <= 0.5
    assert counts["read"] == len(recorded.times)
