"""Scenarios are checked as a whole, and what they leave open is drawn by the seed."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.domain import ConfigError
from simulator import outbreaks as outbreaks_module
from simulator.activities import ACTIVITIES
from simulator.faults import NATURES, DisturbanceKind, FaultKind, Target
from simulator.outbreaks import LASTS
from simulator.places import WEIGHED_S
from simulator.scenario import GridSize, Load, Operators, Outbreaks, Probing, Scenario, load, names, parse
from simulator.schema import DisturbanceEntry, FaultEntry, seconds
from simulator.topology import MOST_SITES, MOST_SPACES, build
from simulator.world import World

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
                FAULT | {"recovers": False},
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
        "faults.4.duration",
        "disturbances.0.where",
        "operators.skill",
        "outbreaks.longest",
    }
    assert found["faults.0.kind"] == "there is no such fault; did you mean 'read-slow'? (it is 'read-slwo')"
    assert found["load.rythm"] == "there is no such key; did you mean 'rhythm'?"
    assert found["faults.4.duration"].startswith("it does not recover, so only a ticket ends it")
    assert found["faults.2.culprit"].endswith(
        "there is no site 'NOWHERE' in this grid; docs/scenarios.md lists those there are"
    )


def one_fault(**changes):
    return {"faults": [{key: value for key, value in (FAULT | changes).items() if value is not None}]}


@pytest.mark.parametrize(
    ("content", "path", "said"),
    [
        (one_fault(kind="frobnicate"), "faults.0.kind", "there is no such fault; docs/scenarios.md lists those"),
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
            "it ends at 3600 s, which is not a second after its start at 3600 s",
        ),
        (one_fault(duration=None, end=3600.5), "faults.0.end", "not a second after its start"),
        (one_fault(end="9h", duration=None, recovers=False), "faults.0.end", "only a ticket ends it"),
        (one_fault(recovers="no"), "faults.0.recovers", "boolean"),
        (one_fault(start=-5), "faults.0.start", "give seconds as a number of 0 or more, or a time as 90s"),
        (one_fault(start="soon"), "faults.0.start", "(it is 'soon')"),
        (one_fault(duration=0), "faults.0.duration", "greater than or equal to 1"),
        (one_fault(start=10**400), "faults.0.start", "give seconds as a number of 0 or more"),
        (one_fault(strength=math.nan), "faults.0.strength", "finite"),
        ({"faults": [FAULT | {"duration": None}]}, "faults.0.duration", "say how long it lasts"),
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
        ({"seed": 1 << 64}, "seed", "less than 18446744073709551616"),
        ({"outbreaks": {"every": 0.1}}, "outbreaks.every", "greater than or equal to 60 (it is 0.1)"),
        ({"outbreaks": {"shortest": "1s"}}, "outbreaks.shortest", "greater than or equal to 60"),
        ({"outbreaks": {"longest": "30m"}}, "outbreaks.longest", "1800 s is less than the shortest, 3600 s"),
        ({"outbreaks": {"shortest": "5h"}}, "outbreaks.shortest", "18000 s is more than the longest, 14400 s"),
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
        (
            {"disturbances": [{"kind": "busy-day", "start": 0, "duration": 1, "every": 1}]},
            "disturbances.0.every",
            "greater than or equal to 3600",
        ),
        (
            {"disturbances": [{"kind": "busy-day", "start": 0, "duration": "1h", "strength": 0.5}]},
            "disturbances.0.strength",
            "it is the factor of what is asked for, from 1 to 100 (it is 0.5)",
        ),
        (
            {"disturbances": [{"kind": "downtime", "where": "site:PIC", "start": 0, "duration": "1h", "strength": 1}]},
            "disturbances.0.strength",
            "a downtime has none",
        ),
        (
            {"disturbances": [{"kind": "downtime", "where": "site:ATLANTIS", "start": 0, "duration": "1h"}]},
            "disturbances.0.where",
            "docs/scenarios.md lists those there are",
        ),
        (
            {"disturbances": [{"kind": "busy-day", "where": "activity:Zzz", "start": 0, "duration": "1h"}]},
            "disturbances.0.where",
            "docs/scenarios.md lists those there are",
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
    for name in ("any", "CERN-PROD_DATADISK"):
        assert problems(small | {"faults": [tape | {"culprit": f"rse:{name}"}]}) == {
            "faults.0.culprit": "tape-slow strikes a tape robot, and this grid has none"
        }
    assert set(problems(small | {"outbreaks": {"kinds": ["tape-slow"] * 2}})) == {
        "outbreaks.kinds.0",
        "outbreaks.kinds.1",
    }
    assert set(problems(small | {"outbreaks": {"kinds": ["site-dark", "tape-slow"]}})) == {"outbreaks.kinds.1"}
    assert "this grid has none" in problems(small | {"outbreaks": {"first_kind": "tape-slow"}})["outbreaks.first_kind"]
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


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("name: 2026-99-99", "name", "it is taken for a date and cannot be read as one; correct it, or quote it"),
        ("days: !!int abc", "days", "a whole number and cannot be read as one"),
        ("days: !!bool perhaps", "days", "yes or no"),
        ("days: !!timestamp soon", "days", "a date"),
        ("days: !!float ''", "days", "a number"),
        ("seed: 0b_", "seed", "(it is '0b_')"),
        (f"seed: {'9' * 5000}", "seed", f"(it is '{'9' * 40}…')"),
        (f"seed: 0x{'f' * 5000}", "seed", "a whole number"),
        ("operators: {2026-99-99: 1}", "operators.2026-99-99", "a date"),
        (f"faults: [{{kind: read-slow, culprit: 'rse:any', start: 1{'0' * 400}, duration: 1h}}]", "faults.0.start",
         "give seconds"),
        ("days: 1\ndays: 2", "days", "it is given twice; leave one of them out"),
        ("days: 1\n'days': 2", "days", "it is given twice"),
        ("faults:\n- {kind: read-slow, culprit: 'rse:any', start: 0, start: 1, duration: 1h}", "faults.0.start",
         "it is given twice"),
        ("grid: &grid {sites: 2, sites: 3}\n<<: {grid: *grid}", "grid.sites", "it is given twice"),
        ("faults: &f [*f]", "faults.0", "dictionary"),
        (f"name: {{x: {'y' * 100}}}", "name", "string"),
        (f"days: {'y' * 100}", "days", f"(it is '{'y' * 79}…)"),
    ],
)  # fmt: skip
def test_what_yaml_makes_of_it_is_a_problem_with_a_key_path(tmp_path, text, path, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    first, line = str(raised.value).splitlines()
    assert first == f"{file} has 1 problem:"
    assert line.startswith(f"  {path}: ")
    assert said in line


def test_what_yaml_makes_of_it_is_said_beside_all_else(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\nseed: 2\ncolour: red\nname: 2026-02-30\ndays: -1")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "mine.yaml")
    _, *lines = str(raised.value).splitlines()
    assert [line.split(": ")[0].strip() for line in lines] == ["seed", "name", "days", "colour"]


def test_what_is_merged_is_not_given_twice(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "faults:\n- &one {kind: read-slow, culprit: 'rse:any', start: 0, duration: 1h}\n- {<<: *one, start: 2h}"
    )
    assert [entry.start for entry in load(tmp_path / "mine.yaml").faults] == [0.0, 7200.0]


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


def test_the_same_fault_twice_at_once_is_two_faults():
    faults = planned(parse({"faults": [FAULT | {"strength": 0.5}, FAULT | {"start": "2h", "strength": 0.1}]}, "mine"))
    assert [(fault.number, fault.start, fault.strength) for fault in faults] == [(0, 3600.0, 0.5), (1, 7200.0, 0.1)]


def test_a_fault_that_does_not_recover_has_no_end():
    scenario = parse(one_fault(duration=None, recovers=False), "mine")
    (fault,) = planned(scenario)
    assert (fault.end, fault.recovers) == (math.inf, False)
    (later,) = planned(scenario.later(60.0))
    assert (later.start, later.end) == (3660.0, math.inf)
    assert planned(parse(one_fault(recovers=True), "mine"))[0].recovers
    assert parse(scenario.model_dump(mode="json", exclude_none=True), "again") == scenario


def test_a_place_is_drawn_by_the_first_hours_of_a_fault():
    fault = {"kind": "read-slow", "culprit": "rse:any", "start": "1h", "strength": 0.03}
    lasting = [{"duration": WEIGHED_S}, {"duration": "365d"}, {"end": "7d"}, {"recovers": False}]
    drawn = [planned(parse({"faults": [fault | each]}, "mine"))[0].culprit for each in lasting]
    assert len(set(drawn)) == 1
    years = parse({"outbreaks": {"longest": "3650d"}}, "mine")
    began = time.process_time()
    assert len(planned(years, days=10)) > 20
    assert time.process_time() - began < 2.0


def test_outbreaks_get_on_however_often_they_come():
    scenario = parse({"outbreaks": {"every": "1m", "shortest": "1m", "longest": "1m", "at_once": 1.0}}, "mine")
    faults = planned(scenario, days=0.5)
    assert 1000 < len(faults) < 2000


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


def test_a_copy_of_a_plan_draws_nothing_again_and_has_faults_of_its_own(monkeypatch):
    scenario = parse({"faults": [FAULT], "outbreaks": {}}, "mine")
    plan = scenario.plan(scenario.topology(1), 1)
    whole = [replace(fault) for fault in plan.until(3 * DAY)]
    copy = plan.copy()
    with monkeypatch.context() as patched:
        patched.setattr(outbreaks_module, "outbreak", None)
        for fault in copy.until(3 * DAY):
            fault.end = fault.start
    assert plan.until(3 * DAY) == whole
    assert plan.until(DAY) == [fault for fault in whole if fault.start < DAY]
    assert copy.until(5 * DAY)[-3:] == plan.until(5 * DAY)[-3:]


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


def test_a_world_is_made_however_often_something_comes_again():
    entry = {"kind": "downtime", "where": "rse:any", "start": 0, "duration": 1, "every": "1h"}
    scenario = parse({"days": 3660, "disturbances": [entry]}, "mine")
    world = World(scenario, seed=1, start=datetime(2026, 3, 2, tzinfo=UTC))
    assert len(world.disturbances) == 366 * 24


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
    assert f"| {nature.mildest:g} to {nature.gravest:g} | {nature.low:g} to {nature.high:g} |" in row
    assert f"`{nature.target}:" in row


def rows_after(heading):
    """The cells of the first table after a line, without its head."""
    lines = PAGE.read_text().split(f"\n{heading}\n")[1].splitlines()
    table = itertools.takewhile(
        lambda line: line.startswith("|"), itertools.dropwhile(lambda line: line[:1] != "|", lines)
    )
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in list(table)[2:]]


def rses_of(sites, count):
    """The storage elements of a grid, as the page tells to make them."""
    rows = [(name, kinds.split()) for _, name, kinds, _ in rows_after("## Names")[:sites]]
    made = [(name, kinds[turn]) for turn in range(4) for name, kinds in rows if turn < len(kinds)]
    rest = ("SCRATCHDISK", "DATATAPE", "LOCALGROUPDISK", "MCTAPE", "PHYS-TOP")
    made += [(name, kind) for kind in rest for name, kinds in rows if kind not in kinds]
    return {f"{name}_{kind}" for name, kind in made[:count]}


@pytest.mark.parametrize(
    ("sites", "rses"), [(2, 2), (4, 18), (20, 50), (20, 75), (60, 150), (MOST_SITES, MOST_SITES * 6)]
)
def test_the_page_names_what_a_grid_of_any_size_has(sites, rses):
    grid = build(sites=sites, rses=rses, capacity=1.0, seed=3)
    rows = rows_after("## Names")
    assert [name for _, name, *_ in rows[:sites]] == list(grid.sites)
    assert [row[3] for row in rows[:sites]] == [grid.fts[server] for server in grid.site_fts]
    assert {row[3] for row in rows[:sites]} == set(grid.fts)
    assert rses_of(sites, rses) == set(grid.rses)
    tape = {kind for kind, is_tape in zip(grid.space, grid.tape, strict=True) if is_tape}
    assert tape <= {"DATATAPE", "MCTAPE"}
    assert len(rows) == MOST_SITES
    assert [int(row[0]) for row in rows] == list(range(1, MOST_SITES + 1))
    assert MOST_SPACES == 6


def test_the_page_has_every_activity_with_the_storage_that_it_uses():
    told = [
        [name, source, *targets.split()] for name, source, targets in rows_after("Activities, for `activity:NAME`:")
    ]
    assert told == [[each.name, each.source, *each.target] for each in ACTIVITIES]


def test_activities_have_the_names_that_scenarios_use():
    assert {"Staging", "Data Consolidation", "User Subscriptions"} <= {each.name for each in ACTIVITIES}
