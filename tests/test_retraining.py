"""Retraining in service: when it is due, what it promotes, and that whatever goes wrong leaves the champion in service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from structlog.testing import capture_logs

from agent.archive import COLUMNS, Archive, finished
from agent.challenge import VERDICT, Verdict, _alone, challenge, retrain, split, window
from agent.config import load
from agent.retraining import LOG, Ending, Retraining, TrainingProcess, night_after
from models.domain import ConfigError, ModelError
from models.drift import Alarm
from models.events import FINISHED
from models.forecaster import Forecaster
from models.measurements import Paths
from models.registry import default_model
from models.versions import Versions, What
from simulator.world import World, run
from storage.ledger import Ledger
from tests.forecasters import bent
from tests.worlds import START, SickWorld, scenario_of

ROOT = Path(__file__).parent.parent
MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
GOOD = Ending(verdict=Verdict(what=What.KEPT_OUT, version=None, why="gain -1.0%"))


def later(hours):
    return MONDAY + timedelta(hours=hours)


class StubTraining:
    """Stands for a training's process: ends when the test says so."""

    def __init__(self, at):
        self.at, self.ending, self.killed = at, None, False

    def ended(self):
        return self.ending

    def kill(self):
        self.killed = True


class Service:
    """A daemon's retraining over a real ledger, with stubs for the trainings and the drift alarm."""

    def __init__(self, directory):
        self.ledger = Ledger.open(f"sqlite:///{directory}/ledger.db")
        self.known = Versions(directory / "models")
        self.started, self.alarm = [], None
        self.restart()

    def restart(self, *, at="03:00", start=None):
        self.retraining = Retraining(
            ledger=self.ledger, known=self.known, drift=lambda: self.alarm, start=start or self.start, at=at
        )

    def start(self, now):
        self.started.append(StubTraining(now))
        return self.started[-1]

    def live(self, hours, until, *, ends=GOOD):
        """Tend every 10 minutes; each training takes half an hour, unless it never ends (None)."""
        said = []
        now = later(hours)
        while now < later(until):
            with capture_logs() as lines:
                self.retraining.tend(now)
            said += [line["event"] for line in lines]
            for training in self.started:
                if ends is not None and now - training.at >= timedelta(minutes=30):
                    training.ending = ends
            now += timedelta(minutes=10)
        return said

    def nights(self):
        return [training.at for training in self.started]


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path)
    yield service
    service.ledger.close()


def test_the_next_night():
    night = datetime(2026, 3, 3, 3, tzinfo=UTC)
    assert night_after(MONDAY, "03:00") == night
    assert night_after(night - timedelta(seconds=1), "03:00") == night
    assert night_after(night, "03:00") == night + timedelta(days=1)
    assert night_after(MONDAY.astimezone(), "12:30") == MONDAY + timedelta(minutes=30)


def test_once_a_night_and_not_before_the_first(service):
    said = service.live(0, 24 * 3)
    assert service.nights() == [later(15), later(39), later(63)]
    assert said == ["retraining-started", "challenger-kept-out"] * 3


def test_a_restart_neither_repeats_a_night_nor_forgets_one(service):
    service.live(0, 20)
    for hours in range(20, 39):
        service.restart()
        service.live(hours, hours + 1)
    assert service.nights() == [later(15)]
    service.restart()
    service.live(39 + 50, 39 + 60)  # away for two nights: one training makes up for both
    assert service.nights() == [later(15), later(89)]
    service.restart()
    service.live(39 + 60, 39 + 70)
    assert len(service.nights()) == 2


def test_a_training_that_ended_with_the_daemon_is_taken_up_but_not_for_ever(service):
    service.live(0, 15.5, ends=None)
    assert service.nights() == [later(15)]
    service.retraining.close()
    assert service.started[0].killed
    service.restart()
    assert "retraining-started" in service.live(16, 16.3, ends=None)
    service.restart()  # killed again, with whatever it was that killed it
    assert service.live(17, 17.3) == ["challenger-failed"]
    assert service.live(18, 38) == []
    assert service.live(38, 40) == ["retraining-started", "challenger-kept-out"]
    assert service.nights() == [later(15), later(16), later(39)]
    assert [event.what for event in service.known.history()] == [What.FAILED]


def test_while_one_runs_no_other_begins(service):
    service.live(0, 24 * 3, ends=None)
    assert service.nights() == [later(15)]


def test_whatever_goes_wrong_is_said_once_and_the_next_night_tries_again(service):
    said = service.live(0, 48, ends=Ending(trouble="its process died of SIGKILL"))
    assert said == ["retraining-started", "challenger-failed"] * 2
    assert [(event.what, event.why) for event in service.known.history()] == [
        (What.FAILED, "its process died of SIGKILL")
    ] * 2
    assert service.known.in_service() is None


def test_a_process_that_cannot_be_started_is_a_failure_like_any_other(service):
    def start(_):
        raise OSError(11, "Resource temporarily unavailable")

    service.restart(start=start)
    assert service.live(0, 48) == ["challenger-failed"] * 2


def test_a_clock_that_was_put_back_waits_for_its_own_next_night(service):
    service.live(0, 20)
    service.restart()
    service.live(-200, -176)
    assert len(service.nights()) == 2


@pytest.mark.parametrize("kept", ["nonsense", {"night": "soon"}, {}, 3])
def test_a_setting_that_cannot_be_read_is_begun_anew(service, kept):
    with service.ledger.begin(write=True) as tx:
        tx.set_setting("retraining", kept)
    service.live(0, 20)
    assert service.nights() == [later(15)]


def alarm(at):
    return Alarm(what="error too large", at=at, transfers=2000, coverage90=0.7, pinball=0.3, pinball_held_out=0.1)


def test_a_drift_brings_the_next_training_forward_once_and_not_within_six_hours(service):
    service.alarm = alarm(1.0)
    assert service.live(0, 3) == ["forecast-drifts", "retraining-started", "challenger-kept-out"]
    assert service.live(3, 12) == []  # it stands, and was answered
    service.alarm = alarm(2.0)
    assert service.live(12, 13) == ["forecast-drifts", "retraining-started", "challenger-kept-out"]
    service.alarm = alarm(3.0)
    assert service.live(13, 14.9) == ["forecast-drifts"]
    assert service.live(14.9, 16) == ["retraining-started", "challenger-kept-out"]  # the night answers it
    service.restart()
    assert service.live(16, 38) == ["forecast-drifts"]  # a restart knows that it was answered
    assert service.nights()[:2] == [later(0), later(12)]
    assert len(service.nights()) == 3


def test_where_nothing_is_retrained_drifts_are_still_said(service):
    service.retraining = Retraining(
        ledger=service.ledger, known=service.known, drift=lambda: alarm(1.0), start=None, at="03:00"
    )
    assert service.live(0, 48) == ["forecast-drifts"]


# The challenge


@pytest.fixture(scope="module")
def transfers():
    """Finished transfers of half a day, with what perfSONAR had measured, as the ledger keeps them."""

    world, parts, paths = World(scenario_of(transfers_per_hour=700.0), seed=4, start=START), [], Paths()
    for emitted in run(world, hours=12):
        events = world.documents.frame(emitted.events)
        parts.append(events[events["type"].isin(FINISHED)])
        paths.absorb(world.probes.frame(emitted.measurements))

    rows = paths.attach(pd.concat(parts, ignore_index=True))
    return rows[list(COLUMNS)].sort_values("ended_at", kind="stable", ignore_index=True)


def stub_trainer(**bend):
    """Stands for training: its challenger is the shipped forecaster, bent."""

    def train(transfers, out, *, start, seed):
        bent(out, **bend)

    return train


def test_held_out_is_the_newest_day_or_the_last_fifth(transfers):
    learned, held_out = split(transfers)
    ends = transfers["ended_at"]
    assert len(learned) + len(held_out) == len(transfers)
    assert held_out["ended_at"].min() >= ends.max() - (ends.max() - ends.min()) / 5 > learned["ended_at"].max()
    days = transfers.assign(ended_at=ends.min() + 20 * (ends - ends.min()))  # ten days of them
    learned, held_out = split(days)
    assert 0.99 < (days["ended_at"].max() - held_out["ended_at"].min()) / 86_400 <= 1.0


def challenged(transfers, directory, train):
    known = Versions(directory / "models")
    worse = known.add(bent(directory / "worse", shift=0.5), at=MONDAY)
    known.promote(worse, why="to begin with", at=MONDAY)
    verdict = challenge(transfers, known=known, scratch=directory / "scratch", at=later(1), train=train)
    return known, worse, verdict


def test_a_better_challenger_is_promoted(transfers, tmp_path):
    known, worse, verdict = challenged(transfers, tmp_path, stub_trainer())
    assert verdict.what is What.SUCCEEDED
    assert known.in_service() == verdict.version != worse
    assert known.standing().why == verdict.why
    assert "95 % interval +" in verdict.why
    assert known.rollback(why="", at=later(2)) == worse


@pytest.mark.parametrize("bend", [{"shift": 0.8}, {"shift": 0.5}])
def test_a_worse_one_and_one_that_is_the_same_are_kept_out(transfers, tmp_path, bend):
    known, worse, verdict = challenged(transfers, tmp_path, stub_trainer(**bend))
    assert verdict.what is What.KEPT_OUT
    assert known.in_service() == worse
    assert known.names() == [worse]


def test_one_that_was_compared_with_another_than_is_in_service_by_now_is_kept_out(transfers, tmp_path):
    def train(transfers, out, *, start, seed):
        bent(out)
        Versions(tmp_path / "models").promote(None, why="by hand", at=later(1))

    known, _, verdict = challenged(transfers, tmp_path, train)
    assert verdict.what is What.KEPT_OUT
    assert "came into service meanwhile" in verdict.why
    assert known.in_service() is None


@pytest.mark.parametrize("count", [0, 1, 300])
def test_too_few_transfers_are_no_failure(transfers, tmp_path, count):
    _, _, verdict = challenged(transfers.tail(count).reset_index(drop=True), tmp_path, None)
    assert verdict.what is What.SKIPPED
    assert "too few" in verdict.why


def test_a_training_that_fails_leaves_the_champion(transfers, tmp_path):
    def train(transfers, out, *, start, seed):
        raise ModelError("nothing to learn")

    with pytest.raises(ModelError, match="nothing to learn"):
        challenged(transfers, tmp_path, train)
    known = Versions(tmp_path / "models")
    assert known.standing().why == "to begin with"


def test_a_challenger_that_left_half_a_model_leaves_the_champion(transfers, tmp_path):
    def train(transfers, out, *, start, seed):
        bent(out)
        (out / "weights.npz").write_bytes(b"")

    with pytest.raises(ModelError, match=r"weights\.npz"):
        challenged(transfers, tmp_path, train)
    assert Versions(tmp_path / "models").standing().why == "to begin with"


# The process


def configured(directory, **settings):
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory / "config.yaml"


def observed(directory, transfers):
    ledger = Ledger.open(f"sqlite:///{directory}/var/ledger.db")
    with ledger.begin(write=True) as tx:
        tx.append_rows("observed", transfers.assign(failed=False))
    ledger.close()


def test_the_window_is_read_from_ledger_and_archive(transfers, tmp_path):
    observed(tmp_path, transfers.tail(1000))
    archive = Archive(tmp_path / "transfers", days=14)
    archive.keep(transfers.iloc[: len(transfers) - 1000].assign(failed=False), first=0)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/var/ledger.db")
    assert len(window(ledger, archive, days=14)) == 1000  # the ledger does not know of the file
    with ledger.begin(write=True) as tx:
        tx.set_setting("archived-transfers", len(transfers) - 1000)
    found = window(ledger, archive, days=14)
    ledger.close()
    assert len(found) == len(finished(transfers.assign(failed=False)))
    assert (np.diff(found["ended_at"]) >= 0).all()


def test_it_says_why_where_a_model_is_pinned_or_another_is_at_work(tmp_path):
    with pytest.raises(ConfigError, match=r"forecast\.model"):
        retrain(load(configured(tmp_path, forecast={"model": "mine"})), at=MONDAY)
    config = load(configured(tmp_path))
    with (
        _alone(tmp_path / "var" / "retraining"),
        pytest.raises(ModelError, match="another retraining is at work"),
    ):
        retrain(config, at=MONDAY)


def finish(training, *, within_s=60):
    until = time.monotonic() + within_s
    while (ending := training.ended()) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return ending


def test_its_process_tells_its_verdict(tmp_path):
    """The real process, over a ledger without transfers."""
    path = configured(tmp_path)
    config = load(path)
    training = TrainingProcess(path, tmp_path / "var" / "retraining", at=MONDAY, deadline_h=1.0)
    ending = finish(training)
    assert ending.trouble == ""
    assert ending.verdict.what is What.SKIPPED
    known = Versions(config.state_dir / "models")
    assert [(event.what, event.at) for event in known.history()] == [(What.SKIPPED, MONDAY)]


def test_its_process_fails_with_the_last_line_that_it_said(tmp_path):
    path = configured(tmp_path, forecast={"model": "mine"})
    ending = finish(TrainingProcess(path, tmp_path / "var" / "retraining", at=MONDAY, deadline_h=1.0))
    assert ending.verdict is None
    assert ending.trouble.startswith("its process ended with status 2: Error: forecast.model names 'mine'")


def test_its_process_is_killed_at_the_deadline_and_may_be_killed_by_others(tmp_path):
    path, directory = configured(tmp_path), tmp_path / "var" / "retraining"
    ending = finish(TrainingProcess(path, directory, at=MONDAY, deadline_h=0.01 / 3600))
    assert "did not end within" in ending.trouble
    training = TrainingProcess(path, directory, at=MONDAY, deadline_h=1.0)
    training._process.kill()
    assert "died of SIGKILL" in finish(training).trouble
    training = TrainingProcess(path, directory, at=MONDAY, deadline_h=1.0)
    training.kill()
    assert training._process.poll() is not None


def test_a_verdict_of_another_night_does_not_count(tmp_path):
    directory = tmp_path / "var" / "retraining"
    directory.mkdir(parents=True)
    (directory / VERDICT).write_text(GOOD.verdict.model_dump_json())
    training = TrainingProcess(configured(tmp_path), directory, at=MONDAY, deadline_h=1.0)
    assert not (directory / VERDICT).exists()
    training.kill()
    assert (directory / LOG).exists()


def test_it_ends_with_the_daemon_and_lets_it_run_first():
    program = "import os, sys, time; from agent.challenge import attach; attach(); print(os.nice(0), flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert int(process.stdout.readline()) == 19
        process.stdin.close()
        assert process.wait(20) == 3


@pytest.mark.slow
def test_from_a_watched_world_to_a_forecaster_that_has_learnt_it(tmp_path):
    """Everything real: the agent's own rows, TensorFlow in the process, the promotion, and the swap in the next pass."""

    path = configured(tmp_path)
    known = Versions(tmp_path / "var" / "models")
    known.promote(known.add(bent(tmp_path / "bad", shift=1.0), at=START), why="a bad one", at=START)
    world = SickWorld()
    with ExitStack() as stack:
        agent = world.agent(stack, f"sqlite:///{tmp_path}/var/ledger.db", versions=known)
        world.live(agent, hours=3.0)
        training = TrainingProcess(path, tmp_path / "var" / "retraining", at=world.now, deadline_h=1.0)
        ending = finish(training, within_s=280)
        assert ending.trouble == ""
        assert ending.verdict.what is What.SUCCEEDED, ending.verdict.why
        with capture_logs() as said:
            world.live(agent, hours=0.2)
        assert [line["version"] for line in said if line["event"] == "model-swapped"] == [ending.verdict.version]
        manifest = Forecaster.load(known.directory_of(ending.verdict.version)).manifest
        assert manifest.data.transfers > 5_000
        assert manifest.weights_hash != Forecaster.load(default_model()).manifest.weights_hash
