"""The processes of `gridmedic` by a configuration of their own: what the tests of crashes start, kill and look into."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
import yaml

from agent.desk.answers import Operators, give
from models.domain import ActionStatus, Answer, AnswerKind, AnswerRefused, DecisionStatus, Rating
from models.events import FAILED, FINISHED
from simulator.keeper import Keeper, Setup
from simulator.server import _application, _bound, _Server
from storage.ledger import Ledger
from tests.worlds import SICK_DISK, scenario_of

GRIDMEDIC = Path(sys.executable).with_name("gridmedic")
EVENTS, READINGS = "events-0-simulated", "measurements-0-simulated"  # sources, as the daemon names them
START = datetime(2025, 3, 3, tzinfo=UTC)
SEED = 3
SPEED = 240  # an hour of the grid in a quarter of a minute
# When the daemon is killed: while an action is RUNNING, just after an act is in the grid's journal, just after an answer was
# given, at some moment of a life, while it starts, and while it stops.
MOMENTS = {"running": 8, "acted": 7, "answered": 3, "living": 5, "starting": 4, "stopping": 3}
PATIENCE_S = 10.0  # for an action to come; then the moment is as good as any
EAGER = {
    "enabled": True,
    "safety_cap": "disruptive",
    "blast_radius_cap": "grid",
    "min_trust": 0,
    "min_confidence": 0,
    "max_actions_per_hour": 100_000,
    "ineffective_before": 100_000,
}
ENDS = (*FINISHED, *FAILED)


def wait_for(condition, *, seconds):
    """What `condition` returns once it is true, or at the deadline."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.004)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Station:
    """A directory with a configuration, and the processes of `gridmedic` that run by it."""

    def __init__(self, directory, *, url, **settings):
        self.state, self.url = directory / "state", url
        self._config = directory / "config.yaml"
        self._log = directory / "log"
        self._started = []
        simulated = [{"kind": "simulated", "url": url}]
        self._settings = {
            "state": "state",
            "ledger": "sqlite:///state/ledger.db",
            "grid": {"url": url},
            "events": simulated,
            "measurements": simulated,
            "poll": {"every_s": 0.1},
            "desk": {"console": {"enabled": False}},
            "log": {"format": "json"},
            "forecast": {"retrain": {"enabled": False}},  # hours pass in seconds here
        }
        self.configure(**settings)
        self.ledger = Ledger.open(f"sqlite:///{self.state}/ledger.db")

    def configure(self, **settings):
        self._settings |= settings
        self._config.write_text(yaml.safe_dump(self._settings))

    def start(self, command, *arguments):
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [GRIDMEDIC, command, "--config", self._config, *arguments], stdout=log, stderr=log, cwd=self.state
            )
        self._started.append(process)
        return process

    def close(self):
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.ledger.close()

    def run_once(self):
        assert self.start("run", "--once").wait(timeout=120) == 0, self._log.read_text()[-3000:]

    def said(self):
        """What the processes logged, by the machine word of each line."""
        return Counter(re.findall(r'"event": "([a-z-]+)"', self._log.read_text()))

    def journal(self):
        whole = (self.state / "grid" / "journal.jsonl").read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def effects(self):
        return [entry for entry in self.journal() if entry["effect"]]

    def ask_grid(self, path):
        """What the grid answers; None if it does not."""
        try:
            return httpx.get(self.url + path, trust_env=False, timeout=5).json()
        except httpx.TransportError:
            return None

    def read(self):
        return self.ledger.begin(write=False)

    def actions(self, *statuses):
        with self.read() as tx:
            return tx.actions(statuses=statuses or None)

    def rows(self, stream):
        with self.read() as tx:
            return tx.rows(stream)

    def select(self, statement):
        """Rows of the ledger's own tables: what becomes of an answer is read by nobody but people."""
        with closing(sqlite3.connect(self.state / "ledger.db")) as connection:
            return connection.execute(statement).fetchall()


class Talk(threading.Thread):
    """Operators who approve, reject and rate whatever is proposed, all the time; some of their clicks come twice."""

    def __init__(self, ledger):
        super().__init__(daemon=True)
        self.given, self.refused, self.error = [], 0, None
        self._ledger, self._chance, self._over = ledger, random.Random(SEED), threading.Event()

    def run(self):
        try:
            while not self._over.wait(self._chance.uniform(0.1, 0.5)):
                self._speak()
        except Exception as error:  # noqa: BLE001 - the test shows it
            self.error = error

    def hush(self):
        self._over.set()
        if self.is_alive():
            self.join()

    def stop(self):
        self.hush()
        if self.error is not None:
            raise self.error

    def _speak(self):
        with self._ledger.begin(write=False) as tx:
            proposals = tx.proposals(12)
        if not proposals:
            return
        waiting = [proposal for proposal in proposals if proposal.decision.status is DecisionStatus.OPEN]
        decision = self._chance.choice(waiting or proposals).decision
        kind = self._chance.choices(list(AnswerKind), weights=(6, 1, 3) if waiting else (1, 1, 8))[0]
        rating = self._chance.choice(list(Rating)) if kind is AnswerKind.RATE else None
        option = None if kind is AnswerKind.REJECT else self._chance.randrange(len(decision.options))
        by = self._chance.choice(["ada", "bob"])
        answer = Answer(
            key=f"click {len(self.given)}",
            by=by,
            via="cli",
            kind=kind,
            decision_id=decision.id,
            option=option,
            rating=rating,
        )
        try:
            give(self._ledger, answer, operators=Operators.local(by))
        except AnswerRefused:
            self.refused += 1
            return
        self.given.append(answer)
        if self._chance.random() < 0.2:
            assert give(self._ledger, answer, operators=Operators.local(by)) == "This was noted already."


class Ordeal(Station):
    """A grid that goes on, and a daemon that is killed and started again beside it."""

    def __init__(self, directory):
        super().__init__(directory, url=f"http://127.0.0.1:{free_port()}")
        self.talk = Talk(self.ledger)
        self._seen_running = set()
        self.hit = Counter()  # what the daemon was doing when it was killed
        self._chance = random.Random(SEED)
        self._documents = directory / "documents"

    def go_through(self):
        self.grid = self.start("grid", "--speed", str(SPEED), "--seed", str(SEED))
        assert wait_for(lambda: self.ask_grid("/clock"), seconds=240), "the grid does not answer"
        moments = [moment for moment, times in MOMENTS.items() for _ in range(times)]
        self._chance.shuffle(moments)
        self._revive()
        wait_for(self._caught_up, seconds=60)
        self.talk.start()
        for moment in moments:
            getattr(self, f"_{moment}")()
            self._kill()
            self._revive()
        self.talk.stop()
        wait_for(self._caught_up, seconds=30)
        assert wait_for(self._is_quiet, seconds=60), "it never came to rest"
        self.daemon.send_signal(signal.SIGTERM)
        self.status = self.daemon.wait(timeout=120)
        self._keep_documents()
        self.grid.send_signal(signal.SIGTERM)
        assert self.grid.wait(timeout=30) == 0

    def close(self):
        self.talk.hush()
        super().close()

    def documents(self, stream, number):
        """The first so many documents of one of the grid's streams, in its own order."""
        lines = [
            line for path in sorted(self._documents.glob(f"{stream}-*")) for line in path.read_bytes().splitlines()
        ]
        return [json.loads(line) for line in lines[:number]]

    def _revive(self):
        """Start the daemon again; now it acts by itself, and now it asks, so that operators have something to choose."""
        eager = self._chance.random() < 0.6
        disabled = ["open_ticket"] if self._chance.random() < 0.8 else []  # after a ticket nothing is decided for hours
        self.configure(autonomy=EAGER | {"enabled": eager}, remedies={"disabled": disabled})
        self.daemon = self.start("run")

    def _running(self):
        wait_for(lambda: self._in_flight() - self._seen_running, seconds=PATIENCE_S)
        time.sleep(self._chance.uniform(0, 0.4))

    def _acted(self):
        journal = self.state / "grid" / "journal.jsonl"
        before = journal.stat().st_size

        def acted():
            with journal.open("rb") as file:
                file.seek(before)
                return b'"effect":true' in file.read()

        wait_for(acted, seconds=PATIENCE_S)

    def _answered(self):
        self._living()
        before = len(self.talk.given)
        wait_for(lambda: len(self.talk.given) > before, seconds=PATIENCE_S)
        time.sleep(self._chance.uniform(0, 0.3))

    def _living(self):
        time.sleep(self._chance.uniform(1.5, 4))

    def _starting(self):
        time.sleep(self._chance.uniform(0, 3))

    def _stopping(self):
        self._living()
        self.daemon.send_signal(signal.SIGTERM)
        time.sleep(self._chance.uniform(0, 1.5))

    def _kill(self):
        self.daemon.kill()
        self.daemon.wait()
        running = self._in_flight() - self._seen_running
        self.hit["running"] += bool(running)
        self.hit["acted"] += any(entry["key"] == action for entry in self.effects() for action, _ in running)
        self._seen_running |= running
        self.hit["unsettled"] += bool(self._unsettled())
        self._keep_documents()

    def _keep_documents(self):
        """The grid forgets its oldest documents; a second name of a file outlives the first."""
        self._documents.mkdir(exist_ok=True)
        for stream in ("events", "measurements"):
            for segment in (self.state / "grid" / stream).glob("*.jsonl"):
                kept = self._documents / f"{stream}-{segment.name}"
                if not kept.exists():
                    os.link(segment, kept)

    def _in_flight(self):
        """Actions that are being carried out, each with the number of the attempt."""
        return {(action.id, action.attempts) for action in self.actions(ActionStatus.RUNNING)}

    def _unsettled(self):
        with self.read() as tx:
            return tx.unsettled_answers()

    def _caught_up(self):
        with self.read() as tx:
            cursor = tx.cursor(EVENTS)
        page = self.ask_grid(f"/events?after={cursor['seq']}&limit=1") if cursor else None
        return page is not None and page["end"] - cursor["seq"] < 3000

    def _is_quiet(self):
        return not self._unsettled() and not self.actions(ActionStatus.RUNNING, ActionStatus.DUE)


class StillGrid:
    """The process of a simulated grid whose time passes only when it is told to."""

    def __init__(self, directory, stack):
        scenario = scenario_of(("read-slow", f"rse:{SICK_DISK}", 0.03, 1.0, 4.0), transfers_per_hour=1500.0)
        setup = Setup(scenario=scenario, seed=SEED, start=START)
        self._keeper, self._lock = Keeper(directory, setup, until=START + timedelta(hours=1.5)), threading.Lock()
        stack.callback(self._keeper.close)
        listener = stack.enter_context(_bound("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        application = _application(self._keeper, self._lock, speed=0.0)
        server = _Server(uvicorn.Config(application, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(lambda: setattr(server, "should_exit", True))

    def advance(self, **delta):
        with self._lock:
            self._keeper.advance(self._keeper.now + timedelta(**delta))

    def ended(self):
        """Requests whose end can be read in the grid's documents, in their order."""
        with self._lock:
            documents = json.loads(self._keeper.read("events", after=0, limit=1_000_000))["documents"]
        ends = (document["payload"]["request-id"] for document in documents if document["event_type"] in ENDS)
        return list(dict.fromkeys(ends))
