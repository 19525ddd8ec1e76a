"""Killed at any moment and started again, the daemon does nothing twice, loses nothing, and knows what it would have known."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agent.feeds import FEEDS
from agent.intake import ENDED_COLUMNS, ended_transfers
from agent.settlement import SEEN_UNTIL
from agent.watch import QUANTILE_COLUMNS
from detectors.failures import error_classes
from models.domain import ActionStatus, DecisionStatus, FeedbackSource, Permission
from models.events import SUBMITTED, decode, event_keys
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS, Paths, decode_readings
from models.registry import default_model
from ranking.bandit import Bandit
from ranking.reward import CHOSEN, REJECTED, Lesson
from remedies.catalog import Catalog
from simulator.grid import ACTS
from simulator.world import World, run
from tests.stations import EAGER, ENDS, EVENTS, READINGS, SEED, START, Ordeal, Station, StillGrid, free_port
from tests.worlds import SICK_DISK, scenario_of

AFTER_ALL = datetime(2100, 1, 1, tzinfo=UTC)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ordeal(tmp_path_factory):
    ordeal = Ordeal(tmp_path_factory.mktemp("ordeal"))
    try:
        ordeal.go_through()
        yield ordeal
    finally:
        ordeal.close()


@pytest.fixture(scope="module")
def ended(ordeal):
    """The transfers that ended, of the documents that were read, in the grid's own order and each once."""
    with ordeal.read() as tx:
        read = tx.cursor(EVENTS)["seq"], tx.cursor(READINGS)["seq"]
    events, refused = decode(ordeal.documents("events", read[0]), now=AFTER_ALL)
    readings, refused_readings = decode_readings(ordeal.documents("measurements", read[1]), now=AFTER_ALL)
    assert refused == refused_readings == []
    assert len(ordeal.rows("readings")) == len(readings)
    once = events.iloc[np.sort(np.unique(event_keys(events), return_index=True)[1])].reset_index(drop=True)
    paths = Paths()
    paths.absorb(readings)
    queued = once[once["rule_id"] != ""]
    kept = ordeal.rows("requests")
    assert (kept["rule_id"] != "").sum() == len(queued)
    assert kept["due_at"].notna().sum() == once["type"].isin(SUBMITTED).sum()
    rules = dict(zip(queued["request_id"], queued["rule_id"], strict=True))
    ended = ended_transfers(once, lambda ids: np.array([rules.get(i, "") for i in ids], dtype=object), error_classes)
    return paths.attach(ended)


def test_it_was_killed_in_the_middle_of_things_and_stopped_in_peace(ordeal):
    assert ordeal.status == 0
    assert ordeal.hit["running"] >= 8
    assert ordeal.hit["acted"] >= 2
    assert ordeal.said()["action-was-in-flight"] >= 5
    assert ordeal.said()["pass-broke"] == 0


def test_no_effect_came_twice_and_none_without_its_action(ordeal):
    actions = {action.id: action for action in ordeal.actions()}
    acts = [entry for entry in ordeal.journal() if entry["method"] in ACTS]
    assert {entry["key"] for entry in acts} <= set(actions)
    effects = [entry for entry in acts if entry["effect"]]
    assert len(effects) >= 5
    twice = Counter(json.dumps([entry["method"], entry["args"]], sort_keys=True) for entry in effects)
    assert max(twice.values()) == 1
    assert {actions[entry["key"]].status for entry in effects} == {ActionStatus.APPLIED}


def wanted(action):
    """The acts by which an action had its effect, from what was remembered before them."""
    params, memory = action.candidate.params, action.memory
    match action.candidate.remedy:
        case "switch_source":
            near = [name for name, distance in memory.get("distances", {}).items() if distance < params["distance"]]
            return {("set_distance", *name.split(">"), params["distance"]) for name in near}
        case "throttle_link":
            changed = {n: limit["set"] for n, limit in memory["limits"].items() if limit["set"] != limit["before"]}
            return {("set_link_limit", *name.split(">"), limit) for name, limit in changed.items()}
        case "boost_rule":
            low = [rule for rule, priority in memory.get("priorities", {}).items() if priority < params["priority"]]
            return {("update_rule", rule, params["priority"]) for rule in low}
        case "exclude_storage":
            on = [operation for operation, available in memory.get("available", {}).items() if available]
            return {("set_availability", params["rse"], operation, False) for operation in on}
        case "open_ticket":
            return {("open_ticket", params["culprit"], params["title"], params["body"])}
    return set()


def test_every_action_has_its_acts_in_the_journal(ordeal):
    done, gone = {}, set()
    for entry in ordeal.journal():
        arguments = {name: value for name, value in entry["args"].items() if name != "key"}
        if entry["effect"]:
            values = [value for value in arguments.values() if value is not None or entry["method"] == "set_link_limit"]
            done.setdefault(entry["key"], set()).add((entry["method"], *values))
        elif "error" in entry and entry["method"] == "rule":
            gone.add(arguments["rule_id"])
    for action in ordeal.actions():
        found = done.get(action.id, set())
        if action.status in {ActionStatus.FAILED, ActionStatus.DUE}:
            assert not found  # it failed before its effect, and may be tried again
            continue
        assert action.status is ActionStatus.APPLIED, action
        assert found == {act for act in wanted(action) if act in found or act[1] not in gone}, action
        assert found or action.memory or action.candidate.remedy == "wait" or "found in place" in action.message, action


def test_every_choice_has_its_action_and_every_answer_counts_once(ordeal):
    actions = {action.id: action for action in ordeal.actions()}
    with ordeal.read() as tx:
        decisions = tx.decisions(row[0] for row in ordeal.select("select id from decisions"))
        feedback = tx.feedback()
    taken = {decision.id for decision in decisions.values() if decision.status is DecisionStatus.TAKEN}
    assert set(actions) == taken
    answers = ordeal.select("select key, decision_id, option, rating, by, note, settled_at from answers")
    assert {answer[0] for answer in answers} == {answer.key for answer in ordeal.talk.given}
    assert all(answer[-1] for answer in answers)
    expected = Counter()
    for _, decision_id, option, rating, by, note, _ in answers:
        recommended = decisions[decision_id].recommended
        if note == "recorded":
            expected[decision_id, option, FeedbackSource.RATING, rating, by] += 1
        if note == "approved":
            expected[decision_id, option, FeedbackSource.CHOICE, CHOSEN, by] += 1
        if note == "rejected" or (note == "approved" and option != recommended):
            expected[decision_id, recommended, FeedbackSource.CHOICE, REJECTED, by] += 1
    for action in actions.values():
        if action.outcome is not None:
            chosen = decisions[action.id].chosen
            expected[action.id, chosen, FeedbackSource.OUTCOME, str(action.outcome), "core"] += 1
    assert expected == Counter((row.decision_id, row.option, row.source, row.value, row.by) for row in feedback)


def test_every_document_counts_once(ordeal, ended):
    with ordeal.read() as tx:
        counts, seq = tx.counts(), tx.cursor(EVENTS)["seq"]
    assert counts[EVENTS, "read"] == seq
    observed = ordeal.rows("observed")
    assert not observed["request_id"].duplicated().any()
    same = [name for name in ENDED_COLUMNS if name != "rule_id"]  # which is known only if its document came in time
    pd.testing.assert_frame_equal(observed[same], ended[same])
    assert observed["rule_id"].isin(["", *ended["rule_id"]]).all()


def test_forecasts_are_those_of_an_uninterrupted_run(ordeal, ended):
    observed = ordeal.rows("observed")
    done = ~observed["failed"].to_numpy()
    logged = observed.loc[done, list(QUANTILE_COLUMNS)].to_numpy()
    # A reading that came after the document of a transfer that it would have spoken for is one that no run could use.
    paths = observed[list(PATH_COLUMNS)].to_numpy()
    timely = (np.isclose(paths, ended[list(PATH_COLUMNS)], equal_nan=True)).all(axis=1)
    assert timely.mean() > 0.99
    found = Forecaster.load(default_model()).score(ended)[done]
    assert np.abs(found - logged)[timely[done]].max() < 1e-4
    found = Forecaster.load(default_model()).score(ended.assign(**observed[list(PATH_COLUMNS)]))[done]
    assert np.abs(found - logged).max() < 1e-4


def test_probabilities_are_those_of_an_uninterrupted_run(ordeal):
    with ordeal.read() as tx:
        feedback = tx.feedback()
        decisions = tx.decisions(row[0] for row in ordeal.select("select id from decisions"))
    lessons = [Lesson.of(row, decisions[row.decision_id]) for row in feedback]
    by_hash = {}
    for decision in decisions.values():
        by_hash.setdefault(decision.model_hash, []).append(decision)
    apart, ranked = 0.0, 0
    with Bandit(Catalog.load([]).cards) as bandit:
        for lesson in [None, *lessons]:
            bandit.learn([lesson] if lesson else [])
            for decision in by_hash.pop(bandit.hash, []):
                slate = [option for option in decision.options if option.permission is not Permission.SKIP]
                ranking = bandit.rank(decision.context, [option.candidate.remedy for option in slate])
                logged = [option.probability for option in slate]
                apart = max(apart, np.abs(np.subtract(ranking.probabilities, logged)).max())
                assert decision.recommended == bandit.draw(ranking, decision.id) == 0
                ranked += 1
    assert not by_hash, "a decision was made by a bandit that never was"
    assert ranked == len(decisions) >= 5  # as many as the machine's speed allows; the loop above must not be empty
    assert apart < 1e-4


def holdings(station):
    """What the ledger holds of documents, and what has been done to the grid: nothing of it changes without news."""
    with station.read() as tx:
        rows = {stream: tx.rows(stream) for stream in ("observed", "readings", "requests")}
        return rows, tx.counts(), tx.cursor(EVENTS), tx.cursor(READINGS), tx.incidents(), station.effects()


def applied(station):
    """Actions that had their effect, each with when and at which attempt."""
    return {action.id: (action.finished_at, action.attempts) for action in station.actions(ActionStatus.APPLIED)}


def test_once_and_once_again_on_a_grid_that_stands_still(tmp_path):
    with ExitStack() as stack:
        grid = StillGrid(tmp_path / "state" / "grid", stack)
        station = Station(tmp_path, url=grid.url, autonomy=EAGER, poll={"limit": 2000})
        stack.callback(station.close)
        for _ in range(2):
            station.run_once()
            (rows, *others, effects), done = holdings(station), applied(station)
            assert done
            assert effects
            station.run_once()  # what was seen by now may be judged, and decided on anew; nothing of it is read or done again
            again, *others_again, effects_again = holdings(station)
            for stream, frame in rows.items():
                pd.testing.assert_frame_equal(again[stream], frame)
            assert others_again == others
            assert effects_again[: len(effects)] == effects
            assert applied(station).items() >= done.items()
            grid.advance(minutes=40)
        station.run_once()
        assert station.rows("observed")["request_id"].tolist() == grid.ended()
        acts = [(entry["method"], json.dumps(entry["args"], sort_keys=True)) for entry in station.effects()]
        assert len(set(acts)) == len(acts)
        assert {entry["key"] for entry in station.effects()} <= set(applied(station))


def write_lines(path, lines):
    opened = gzip.open if path.suffix == ".gz" else Path.open
    with opened(path, "wb") as file:
        file.writelines(line + b"\n" for line in lines)


def test_once_and_once_again_on_files(tmp_path):
    scenario = scenario_of(("read-slow", f"rse:{SICK_DISK}", 0.03, 0.0, 2.0), transfers_per_hour=1000.0)
    world = World(scenario, seed=SEED, start=START)
    emitted = list(run(world, hours=2.0))
    first, second = (world.documents.lines(part.events) for part in emitted)
    readings = [world.probes.lines(part.measurements) for part in emitted]
    write_lines(tmp_path / "events-1.jsonl.gz", [b"no JSON", *first])
    write_lines(tmp_path / "readings-1.jsonl", readings[0])
    sources = {
        name: [{"kind": "files", "paths": [f"{pattern}-*.jsonl*"]}]
        for name, pattern in (("events", "events"), ("measurements", "readings"))
    }
    station = Station(tmp_path, url=f"http://127.0.0.1:{free_port()}", poll={"limit": 1500}, **sources)
    try:
        station.run_once()
        before = everything(station)
        station.run_once()
        assert everything(station) == before
        # The end of the first file stands in the second one, too.
        write_lines(tmp_path / "events-2.jsonl", first[-300:] + second)
        write_lines(tmp_path / "readings-2.jsonl", readings[1])
        station.run_once()
        after = everything(station)
        station.run_once()
        assert everything(station) == after != before
        events, _ = decode([json.loads(line) for line in first + second], now=AFTER_ALL)
        ended = events[events["type"].isin(ENDS)].drop_duplicates(["type", "request_id"])
        assert sorted(station.rows("observed")["request_id"]) == sorted(ended["request_id"])
        with station.read() as tx:
            counts = tx.counts()
        name = "events-0-files"
        assert counts[name, "read"] == 1 + len(first) + 300 + len(second)
        assert counts[name, "refused:broken-line"] == 1
    finally:
        station.close()


def everything(station):
    """Every row of every table, the keys of settings that say when aside."""
    tables = [name for (name,) in station.select("select name from sqlite_master where type = 'table'")]
    kept = {name: station.select(f"select * from {name}") for name in tables}
    kept["settings"] = [row for row in kept["settings"] if row[0] not in {SEEN_UNTIL, FEEDS}]
    return kept
