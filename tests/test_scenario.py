"""Scenarios are checked as a whole, and what they leave open is drawn by the seed."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.domain import ConfigError
from simulator.activities import ACTIVITIES
from simulator.faults import NATURES, DisturbanceKind, FaultKind, Target
from simulator.outbreaks import LASTS
from simulator.scenario import GridSize, Load, Operators, Outbreaks, Probing, Scenario, load, names, parse
from simulator.schema import DisturbanceEntry, FaultEntry, seconds
from simulator.topology import MOST_SITES

DAY = 86_400.0
PAGE = Path(__file__).parents[1] / "docs" / "scenarios.md"
FAULT = {"kind": "read-slow", "culprit": "rse:CERN-PROD_DATADISK", "start": "1h", "duration": "2h"}


def problems(content):
    """The lines of the complaint about a scenario, by key path."""
    with pytest.raises(ConfigError) as raised:
        parse(content, "mine.yaml")
    first, *lines = str(raised.value).splitlines()
    assert first == f"mine.yaml has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return dict(line.strip().split(": ", 1) for line in lines)


def planned(scenario, *, seed=1, days=2.0):
    return scenario.plan(scenario.topology(seed), seed).until(days * DAY)


@pytest.mark.parametrize("name", names())
def test_the_library_is_sound_and_says_what_it_shows(name):
    scenario = load(name)
    assert scenario.name == name
    assert scenario.description.endswith(".")
    topology = scenario.topology(1)
    for fault in planned(scenario, days=0.5):
        assert fault.end > fault.start
        assert {Target.RSE: topology.rse, Target.SITE: topology.site, Target.FTS: topology.server}.get(
            NATURES[fault.kind].target, lambda path: [topology.site(end) for end in path.split(">")]
        )(fault.where) is not None


def test_the_library_has_a_dozen_and_those_that_are_promised():
    assert len(names()) >= 12
    assert {"gauntlet", "calm", "demo", "default", "atlas", "training"} <= set(names())


def test_calm_has_nothing():
    calm = load("calm")
    assert not planned(calm, days=30)
    assert not calm.disturbances_of(calm.topology(1), 1)


def test_the_gauntlet_has_everything_several_times_and_mostly_one_at_a_time():
    gauntlet = load("gauntlet")
    faults = planned(gauntlet)
    assert {fault.kind for fault in faults} == set(FaultKind)
    assert all(sum(fault.kind is kind for fault in faults) >= 3 for kind in FaultKind)
    busy = [sum(fault.active(at) for fault in faults) for at in range(4 * 3600, int(2 * DAY), 300)]
    assert sum(count <= 1 for count in busy) > 0.5 * len(busy)
    assert max(busy) >= 2
    disturbances = gauntlet.disturbances_of(gauntlet.topology(1), 1)
    assert {one.kind for one in disturbances if one.start < 2 * DAY} == set(DisturbanceKind)


def test_the_default_has_about_three_faults_a_day():
    assert len(planned(load("default"), days=14)) == pytest.approx(42, abs=5)


def test_the_demo_begins_with_a_strong_slow_disk_when_asked_to():
    demo = load("demo")
    assert demo.outbreaks is not None
    for seed, minutes in ((1, 5), (2, 90)):
        asked = demo.model_copy(update={"outbreaks": demo.outbreaks.model_copy(update={"first": 60.0 * minutes})})
        first, *others = planned(asked, seed=seed)
        assert first.kind is FaultKind.READ_SLOW
        assert first.start == 60 * minutes
        assert first.strength < 0.03
        gaps = [after.start - before.start for before, after in itertools.pairwise([first, *others])]
        assert all(3600 <= gap <= 2 * 3600 for gap in gaps)


# --- what is wrong with a scenario -------------------------------------------------------------------------------------


def test_all_problems_come_at_once_by_key_path():
    found = problems(
        {
            "colour": "red",
            "grid": {"sites": 20, "capacity": -1.0, "rses": 500},
            "load": {"transfers_per_day": 0, "rythm": 0.5},
            "faults": [
                FAULT | {"kind": "read-slwo"},
                FAULT | {"culprit": "rse:CERN_DATADISK"},
                {
                    "kind": "link-lossy",
                    "culprit": "network:CERN-PROD>NOWHERE",
                    "start": "3h",
                    "end": "2h",
                    "strength": 2,
                },
                FAULT,
                FAULT | {"start": "2h"},
            ],
            "disturbances": [{"kind": "downtime", "start": 0, "duration": 60, "where": "site:ATLANTIS"}],
            "operators": {"skill": 1.5},
            "outbreaks": {"shortest": "2h", "longest": "1h"},
        }
    )
    assert set(found) == {
        "colour",
        "grid.capacity",
        "grid.rses",
        "load.transfers_per_day",
        "load.rythm",
        "faults.0.kind",
        "faults.1.culprit",
        "faults.2.culprit",
        "faults.2.end",
        "faults.2.strength",
        "faults.4",
        "disturbances.0.where",
        "operators.skill",
        "outbreaks.longest",
    }
    assert found["faults.0.kind"] == "there is no such fault; did you mean 'read-slow'? (it is 'read-slwo')"
    assert found["load.rythm"] == "there is no such key; did you mean 'rhythm'?"
    assert found["faults.4"] == "read-slow of rse:CERN-PROD_DATADISK overlaps faults.3"
    assert "there is no site 'NOWHERE' in this grid" in found["faults.2.culprit"]


def one_fault(**changes):
    return {"faults": [{key: value for key, value in (FAULT | changes).items() if value is not None}]}


@pytest.mark.parametrize(
    ("content", "path", "said"),
    [
        (one_fault(kind="frobnicate"), "faults.0.kind", "there is no such fault (it is 'frobnicate')"),
        (one_fault(kind=["read-slow"]), "faults.0.kind", "there is no such fault"),
        (one_fault(kind=None), "faults.0.kind", "it is missing"),
        (one_fault(culprit="rse:CERN-PROD_DATADSK"), "faults.0.culprit", "did you mean 'CERN-PROD_DATADISK'?"),
        (one_fault(culprit="rse:any-dsk"), "faults.0.culprit", "did you mean 'any-disk'?"),
        (
            one_fault(culprit="CERN-PROD"),
            "faults.0.culprit",
            "a culprit is rse:NAME, network:SITE>SITE, site:NAME or fts:HOST",
        ),
        (one_fault(culprit="site:CERN-PROD"), "faults.0.culprit", "read-slow strikes a storage element, rse:NAME"),
        (
            one_fault(kind="tape-slow"),
            "faults.0.culprit",
            "tape-slow strikes a tape robot, which 'CERN-PROD_DATADISK' has not",
        ),
        (one_fault(kind="tape-slow", culprit="rse:any-disk"), "faults.0.culprit", "which 'any-disk' has not"),
        (one_fault(kind="fts-stalled", culprit="fts:fts3"), "faults.0.culprit", "there is no FTS server 'fts3'"),
        (one_fault(kind="link-lossy", culprit="network:PIC>PIC"), "faults.0.culprit", "from one site to another"),
        (one_fault(kind="link-lossy", culprit="network:PIC"), "faults.0.culprit", "from one site to another"),
        (one_fault(duration=None), "faults.0.duration", "say how long it lasts, or with `end` when it ends"),
        (one_fault(end="9h"), "faults.0.end", "the duration is given too"),
        (
            one_fault(duration=None, end="1h"),
            "faults.0.end",
            "it ends at 3600 s, which is not after its start at 3600 s",
        ),
        (one_fault(start=-5), "faults.0.start", "give seconds as a number of 0 or more, or a time as 90s"),
        (one_fault(start="soon"), "faults.0.start", "(it is 'soon')"),
        (one_fault(duration=0), "faults.0.duration", "greater than 0"),
        (one_fault(strength=-0.5), "faults.0.strength", "from 0.001 to 1 (it is -0.5)"),
        (one_fault(strength="strong"), "faults.0.strength", "number"),
        (one_fault(strenght=0.1), "faults.0.strenght", "did you mean 'strength'?"),
        ({"faults": FAULT}, "faults", "list"),
        ({"faults": ["read-slow"]}, "faults.0", "dictionary"),
        ({"grid": {"sites": 65}}, "grid.sites", "less than or equal to 64 (it is 65)"),
        ({"grid": {"sites": "20"}}, "grid.sites", "integer"),
        ({"grid": {"sites": 4, "rses": 3}}, "grid.rses", "4 sites have 4 to 24 storage elements (it is 3)"),
        ({"grid": {"capacity": float("nan")}}, "grid.capacity", "finite"),
        ({"load": {"transfers_per_day": -1}}, "load.transfers_per_day", "greater than 0"),
        ({"operators": {"delay": 3}}, "operators.delay", "did you mean 'delay_min'?"),
        ({"perfsonar": {"missing": 2}}, "perfsonar.missing", "less than or equal to 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"name": ""}, "name", "at least 1 character"),
        ({"outbreak": {}}, "outbreak", "did you mean 'outbreaks'?"),
        ({"outbreaks": {"kinds": []}}, "outbreaks.kinds", "at least 1 item"),
        ({"outbreaks": {"kinds": ["site-drak"]}}, "outbreaks.kinds.0", "did you mean 'site-dark'?"),
        (
            {"outbreaks": {"kinds": ["site-dark"], "first_kind": "read-slow"}},
            "outbreaks.first_kind",
            "is not among the kinds",
        ),
        (
            {"disturbances": [{"kind": "downtime", "start": 0, "duration": "1h"}]},
            "disturbances.0.where",
            "name what is down: rse:NAME or site:NAME",
        ),
        (
            {"disturbances": [{"kind": "downtime", "start": 0, "duration": "1h", "where": "activity:Staging"}]},
            "disturbances.0.where",
            "a downtime is of rse:NAME or site:NAME",
        ),
        (
            {"disturbances": [{"kind": "busy-day", "start": 0, "duration": "1h", "where": "activity:Stageing"}]},
            "disturbances.0.where",
            "did you mean 'Staging'?",
        ),
        (
            {"disturbances": [{"kind": "busy-day", "start": 0, "duration": "1h", "where": "CERN"}]},
            "disturbances.0.where",
            "it is empty, site:NAME, rse:NAME or activity:NAME",
        ),
        (
            {"disturbances": [{"kind": "buzy-day", "start": 0, "duration": "1h"}]},
            "disturbances.0.kind",
            "did you mean 'busy-day'?",
        ),
        (
            {"disturbances": [{"kind": "busy-day", "start": 0, "duration": "2h", "every": "1h"}]},
            "disturbances.0.every",
            "it lasts 7200 s and comes again after 3600 s",
        ),
    ],
)
def test_each_problem_says_where_what_and_what_to_do(content, path, said):
    found = problems(content)
    assert set(found) == {path}
    assert said in found[path]


def test_names_are_looked_for_in_the_grid_that_is_meant():
    fault = FAULT | {"culprit": "rse:UAM-LCG2_DATADISK"}
    assert set(problems({"grid": {"sites": 20}, "faults": [fault]})) == {"faults.0.culprit"}
    assert parse({"grid": {"sites": MOST_SITES}, "faults": [fault]}, "mine").faults
    assert set(problems({"grid": {"sites": -3}, "faults": [fault]})) == {"grid.sites"}


def test_tape_is_only_where_there_is_some():
    small = {"grid": {"sites": 4, "rses": 4}}
    tape = FAULT | {"kind": "tape-slow", "culprit": "rse:any-tape"}
    assert "no tape" in problems(small | {"faults": [tape]})["faults.0.culprit"]
    assert "this grid has none" in problems(small | {"outbreaks": {"kinds": ["tape-slow"]}})["outbreaks.kinds"]
    others = parse(small | {"outbreaks": {"every": "1h", "shortest": "10m", "longest": "20m"}}, "small")
    assert FaultKind.TAPE_SLOW not in {fault.kind for fault in planned(others)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "holds a list where a scenario's keys are expected"),
        ("", "holds nothing where"),
        ("a: b: c", "is not YAML"),
        ("x: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_scenario(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_a_scenario_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'gauntlet'"):
        load("gauntlt")
    with pytest.raises(ConfigError, match="name a YAML file, or one of atlas, black-hole"):
        load("zebra")
    with pytest.raises(ConfigError, match="does not exist; name a YAML file"):
        load(tmp_path / "zebra.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


words = st.sampled_from([*FaultKind, "rse:any", "site:CERN-PROD", "rse:", "network:PIC>", "1h", "-2h", ":any", ">", ""])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words
keys = st.sampled_from(
    [*Scenario.model_fields, *FaultEntry.model_fields, *Outbreaks.model_fields, *GridSize.model_fields]
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(content=st.dictionaries(keys, trees, max_size=5))
def test_whatever_stands_there_is_a_scenario_or_a_complaint(content):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(content, "mine"), Scenario)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(90, 90.0), (1.5, 1.5), ("90s", 90.0), ("20m", 1200.0), ("2h30m", 9000.0), ("1d 12h", 129600.0), ("0.5h", 1800.0)],
)
def test_times(given, expected):
    assert seconds(given) == expected


@pytest.mark.parametrize(
    "given", [True, None, "", "1x", "h", "1.2.3h", "-1h", -1, float("inf"), float("nan"), "1m2h", [1]]
)
def test_no_times(given):
    with pytest.raises(ValueError, match="give seconds"):
        seconds(given)


# --- what is made of it ------------------------------------------------------------------------------------------------


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "night-shift.yaml"
    path.write_text(yaml.safe_dump({"grid": {"sites": 5}, "faults": [FAULT | {"strength": 0.5}]}))
    scenario = load(path)
    assert scenario.name == "night-shift"
    (fault,) = planned(scenario)
    assert (fault.kind, fault.start, fault.end, fault.strength) == (FaultKind.READ_SLOW, 3600.0, 10800.0, 0.5)
    assert len(scenario.topology(3).sites) == 5


def test_the_example_of_the_docs_is_sound():
    example = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    scenario = parse(yaml.safe_load(example), "docs")
    tape, link = planned(scenario)
    assert (tape.culprit, tape.end - tape.start) == ("rse:RAL-LCG2_DATATAPE", 8 * 3600)
    assert link.culprit.startswith("network:")


@pytest.mark.parametrize(("load", "capacity"), [(200_000, 0.5), (1_000, 0.1)])
def test_capacity_follows_the_load_unless_it_is_given(load, capacity):
    content = {"grid": {"sites": 20}, "load": {"transfers_per_day": load}}
    assert parse(content, "mine").capacity == capacity
    assert parse(content | {"grid": {"sites": 20, "capacity": 3.0}}, "mine").capacity == 3.0


@pytest.mark.parametrize("kind", list(FaultKind))
def test_any_culprit_is_drawn_by_the_seed_and_can_have_the_fault(kind):
    target = NATURES[kind].target
    content = {
        "load": {"transfers_per_day": 50_000},
        "faults": [{"kind": kind, "culprit": f"{target}:any", "start": "1h", "duration": "3h"}],
    }
    scenario = parse(content, "mine")
    culprits = set()
    for seed in range(1, 7):
        (fault,) = planned(scenario, seed=seed)
        (again,) = planned(scenario, seed=seed)
        assert again == fault
        low, high = sorted((NATURES[kind].mildest, NATURES[kind].gravest))
        assert low <= fault.strength <= high
        assert parse(content | {"faults": [content["faults"][0] | {"culprit": fault.culprit}]}, "named")
        culprits.add(fault.culprit)
    assert len(culprits) > 1


def test_faults_at_once_are_drawn_at_different_places():
    fault = {"kind": "read-slow", "culprit": "rse:any-disk", "start": "1h", "duration": "3h"}
    faults = planned(parse({"faults": [fault] * 6}, "mine"))
    assert len({fault.culprit for fault in faults}) == 6


def test_outbreaks_are_the_same_however_they_are_asked_for():
    scenario = load("several-at-once")
    topology = scenario.topology(4)
    whole = scenario.plan(topology, 4).until(4 * DAY)
    plan = scenario.plan(topology, 4)
    for hour in range(4 * 24 + 1):
        part = plan.until(hour * 3600.0)
    assert part == whole
    assert [fault.number for fault in whole] == list(range(len(whole)))
    assert planned(scenario, seed=5) != planned(scenario, seed=4)


def test_a_fault_that_ends_early_changes_none_of_those_to_come():
    scenario = load("default")
    topology = scenario.topology(1)
    plan, other = scenario.plan(topology, 1), scenario.plan(topology, 1)
    for fault in plan.until(3 * DAY):
        fault.end = fault.start + 1.0
    assert plan.until(6 * DAY)[-5:] == other.until(6 * DAY)[-5:]


def test_outbreaks_take_every_kind_in_turn_and_keep_apart():
    scenario = parse({"outbreaks": {"first": "1h", "every": "2h", "shortest": "1h", "longest": "2h"}}, "mine")
    faults = planned(scenario, days=5)
    for block in zip(*[iter(faults)] * 15, strict=False):
        assert {fault.kind for fault in block} == set(FaultKind)
    for before, after in itertools.pairwise(faults):
        assert before.culprit != after.culprit
        assert 0 < after.start - before.start <= 1.34 * 2 * 3600
    for fault in faults:
        assert 3600 <= (fault.end - fault.start) / LASTS.get(fault.kind, 1.0) <= 7200


def test_named_faults_come_first_and_outbreaks_are_numbered_after_them():
    faults = planned(parse({"faults": [FAULT], "outbreaks": {}}, "mine"))
    assert faults[0].culprit == FAULT["culprit"]
    assert [fault.number for fault in faults] == list(range(len(faults)))
    assert len(faults) > 3


def test_faults_are_where_they_are_felt():
    """The places that are drawn are busy ones: what is hurt there is seen in `tests/test_truth.py`."""
    scenario = load("storage-trouble")
    topology = scenario.topology(1)
    weight = dict(zip(topology.rses, topology.weight * topology.site_weight[topology.rse_site], strict=True))
    drawn = [weight[fault.where] for fault in planned(scenario, days=3)]
    assert sum(drawn) / len(drawn) > sum(weight.values()) / len(weight)


def test_disturbances_come_again_elsewhere():
    entry = {"kind": "downtime", "where": "site:any", "start": "6h", "duration": "2h", "every": "1d"}
    scenario = parse({"disturbances": [entry]}, "mine")
    topology = scenario.topology(2)
    found = scenario.disturbances_of(topology, 2)
    assert [one.start for one in found[:3]] == [6 * 3600, 30 * 3600, 54 * 3600]
    assert all(one.end - one.start == 2 * 3600 for one in found)
    assert len(found) == 366
    assert len({one.where for one in found}) > 5
    assert all(topology.site(one.where.removeprefix("site:")) >= 0 for one in found)
    assert scenario.disturbances_of(topology, 2) == found


def test_disturbances_have_a_usual_strength():
    for kind, usual in (("large-files", 6.0), ("busy-day", 2.0)):
        entry = {"kind": kind, "start": 0, "duration": 60}
        scenario = parse({"disturbances": [entry, entry | {"start": 100, "strength": 3.5}]}, "mine")
        assert [one.strength for one in scenario.disturbances_of(scenario.topology(1), 1)] == [usual, 3.5]


# --- the page that explains it -----------------------------------------------------------------------------------------


def test_every_scenario_key_and_kind_is_documented():
    page = PAGE.read_text()
    sections = {"grid": GridSize, "load": Load, "perfsonar": Probing, "operators": Operators}
    keys = {f"`{section}.{key}`" for section, model in sections.items() for key in model.model_fields}
    keys |= {f"`{key}`" for model in (Outbreaks, FaultEntry, DisturbanceEntry) for key in model.model_fields}
    keys |= {f"`{key}`" for key in Scenario.model_fields.keys() - sections.keys()}
    keys |= {f"`{word}`" for word in (*names(), *FaultKind, *DisturbanceKind)}
    assert sorted(key for key in keys if key not in page) == []


@pytest.mark.parametrize("kind", list(FaultKind))
def test_the_page_has_each_fault_with_its_usual_range(kind):
    nature = NATURES[kind]
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{kind}` |"))
    assert f"| {nature.mildest:g} to {nature.gravest:g} |" in row
    assert f"`{nature.target}:" in row


def test_activities_have_the_names_that_scenarios_use():
    assert {"Staging", "Data Consolidation", "User Subscriptions"} <= {each.name for each in ACTIVITIES}
