"""A week of service with a training every night: no restart, memory flat, and where it is at the end is where a restart would be."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from agent.archive import Archive
from agent.challenge import directory
from agent.config import load
from agent.retraining import Retraining, TrainingProcess
from models.events import Page
from models.versions import Versions
from tests.forecasters import bent
from tests.worlds import START, SickWorld, WorldSource, scenario_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEP = timedelta(minutes=30)


class ForgetfulSource(WorldSource):
    """Keeps nothing that was read, so that memory is the agent's alone. One agent reads it."""

    def __init__(self, name):
        super().__init__(name)
        self.gone = 0

    def poll(self, cursor, *, limit, now):
        seq = (cursor or {}).get("seq", 0)
        page = super().poll({"seq": seq - self.gone}, limit=10**9, now=now)
        self._frames, self.gone = [page.rows.iloc[:0]], seq + len(page.rows)
        return Page(rows=page.rows, cursor={"seq": self.gone}, caught_up=True, read=len(page.rows))


class QuietWeek(SickWorld):
    def __init__(self):
        super().__init__()
        scenario = scenario_of(("read-slow", "rse:FZK-LCG2_DATADISK", 0.05, 50.0, 54.0), transfers_per_hour=150.0)
        self.world = type(self.world)(scenario, seed=6, start=START)
        self.events, self.readings = ForgetfulSource("events"), ForgetfulSource("measurements")


def resident_mb():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def judged(agent, rows):
    """What an agent forecasts for transfers that start now, and its thresholds for others."""
    done = rows[~rows["failed"]].tail(1000)
    return agent._watch._forecaster.predict(done.assign(ended_at=np.nan)), agent._watch._threshold.judge(done)


def test_a_week_with_a_training_every_night(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.loop.RETAINED", 6000)
    monkeypatch.setattr("models.history.RETAINED", 6000)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"forecast": {"retrain": {"window_days": 1.5, "keep_versions": 2}}}))
    config, world = load(path), QuietWeek()
    known = Versions(config.state_dir / "models")
    known.promote(known.add(bent(tmp_path / "bad", shift=0.5), at=START), why="a bad one to begin with", at=START)
    archive = Archive(config.state_dir / "transfers", days=1.5)
    with ExitStack() as stack:
        agent = world.agent(stack, config.ledger_url, versions=known, archive=archive)
        running = []

        def start(now):
            running.append(TrainingProcess(path, directory(config), at=now, deadline_h=0.2))
            return running[-1]

        retraining = Retraining(ledger=agent.ledger, known=known, drift=lambda: agent.drift, start=start, at="03:00")
        stack.callback(retraining.close)
        memory, said = [], Counter()
        while world.now < START + timedelta(days=7):
            world.advance(minutes=STEP.seconds // 60)
            with capture_logs() as lines:
                agent.run_once(world.now)
                while retraining.tend(world.now) or (retraining._training and running[-1]._process.poll() is None):
                    time.sleep(0.1)
            said.update(line["event"] for line in lines)
            if (world.now - START) % timedelta(days=1) == timedelta(hours=12):
                memory.append(resident_mb())
        with agent.ledger.begin(write=False) as tx:
            rows = tx.rows("observed")
            models = rows["model"].nunique()
        assert said["retraining-started"] >= 7
        assert said["challenger-promoted"] >= 1
        assert said["challenger-failed"] == 0
        assert said["model-swapped"] == said["challenger-promoted"]
        assert said["ledger-compacted"] >= 3
        assert models >= 1
        assert len(known.names()) <= 4
        assert max(memory[3:]) - memory[2] < 30  # MB
        fresh = world.agent(stack, config.ledger_url, versions=known)
        fresh._rebuild()
        (found, verdicts), (expected, others) = judged(agent, rows), judged(fresh, rows)
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() < 1e-4
        np.testing.assert_allclose(verdicts.threshold_s, others.threshold_s, rtol=1e-4)
