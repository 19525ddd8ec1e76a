"""`gridmedic demo`, which `make run` calls: real processes, from nothing to an outcome, over a killed daemon to the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from agent.service import monday_morning
from agent.sources.simulated import SimulatedClock
from models.domain import Outcome, SourceError
from simulator.disk import holder
from storage.ledger import Ledger
from tests.console_browser import Browser

COMMAND = Path(sys.executable).with_name("gridmedic")
SETTLING = {"Take the files from other sources", "Run fewer transfers at once on the link"}  # judged within 20 minutes
OUTCOMES = ("it helped", "it did not help enough", "it got worse afterwards", "nobody can tell whether it helped")


def free_ports(count):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Demo:
    """A directory with a configuration of its own, and the processes started in it."""

    def __init__(self, directory):
        grid, console = free_ports(2)
        self.directory, self.grid = directory, directory / "var" / "grid"
        self.grid_url = f"http://127.0.0.1:{grid}"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{console}", trust_env=False, follow_redirects=True)
        self.browser = Browser(self.http)
        self.daemon, self.begun = None, 0
        source = [{"kind": "simulated", "url": self.grid_url}]
        settings = {
            "grid": {"url": self.grid_url},
            "events": source,
            "measurements": source,
            "poll": {"every_s": 1},
            "desk": {"console": {"port": console, "operator": "ada"}},
        }
        (directory / "config.yaml").write_text(json.dumps(settings))

    def start(self):
        """Start `gridmedic demo` as `make run` does, where the configuration lies."""
        with (self.directory / "demo.log").open("ab") as out:
            self.begun = out.tell()
            self.daemon = subprocess.Popen([COMMAND, "demo"], cwd=self.directory, stdout=out, stderr=out)

    @property
    def said(self):
        return (self.directory / "demo.log").read_text()

    def look(self):
        """The console's page; None while it does not answer."""
        try:
            return self.browser.look()
        except httpx.TransportError:
            return None

    def grid_answers(self):
        try:
            SimulatedClock(self.grid_url)()
        except SourceError:
            return False
        return True

    def until(self, found, *, within_s):
        """What `found` returns as soon as it is something."""
        deadline = time.monotonic() + within_s
        while not (value := found()):
            assert self.daemon.poll() is None, f"the daemon ended: {self.said[-3000:]}"
            assert time.monotonic() < deadline, f"it did not come to pass: {self.said[-3000:]}"
            time.sleep(0.2)
        return value

    def approve(self):
        """Approve a remedy that is judged soon, as soon as one is offered; the id of its decision."""
        page = self.look()
        rated = page.forms if page else []
        soon = [form for form in rated if form["label"] and form["label"].removeprefix("Rate ") in SETTLING]
        for press in filter(None, (page.form(**form["fields"] | {"kind": "approve"}) for form in soon)):
            # A better proposal may take the place of the one that is pressed: then it is refused, and made again.
            if "Noted: ada approves" in self.browser.press(press).text:
                return press["fields"]["decision"]
        return None

    def outcome(self, decision):
        """The outcome of a decision's action, once it stands on the page, too."""
        action, page = self.action(decision), self.look()
        told = page is not None and any(said in page.text.lower() for said in OUTCOMES)
        return action.outcome if action and action.outcome and told else None

    def has_passed(self):
        """Whether the daemon that was started last has made a pass."""
        return "[info     ] pass " in self.said[self.begun :]

    def ask(self, question):
        """What the ledger answers, asked from a process of its own."""
        ledger = Ledger.open(f"sqlite:///{self.directory}/var/ledger.db")
        with closing(ledger), ledger.begin(write=False) as tx:
            return question(tx)

    def action(self, decision):
        return self.ask(lambda tx: tx.action(decision))

    def effects(self):
        """Every effect that the grid had, and how often."""
        lines = (self.grid / "journal.jsonl").read_text().splitlines()
        acts = [entry for entry in map(json.loads, lines) if entry["effect"]]
        return Counter((act["key"], act["method"], json.dumps(act["args"], sort_keys=True)) for act in acts)

    def end(self):
        """Leave nothing behind, whatever happened."""
        self.http.close()
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        pid = holder(self.grid)
        if pid is not None:
            subprocess.run(["kill", "-9", str(pid)], check=False)


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path)
    yield demo
    demo.end()


@pytest.mark.parametrize(
    ("now", "monday"),
    [("2026-03-02T08:00Z", 2), ("2026-03-04T02:58Z", 2), ("2026-03-09T09:59+02:00", 2), ("2026-03-09T23:00Z", 9)],
)
def test_a_simulated_grid_begins_on_a_monday_morning(now, monday):
    assert monday_morning(datetime.fromisoformat(now)) == datetime(2026, 3, monday, 8, tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_nothing_to_an_outcome_over_a_killed_daemon_to_the_end(demo):
    demo.start()
    decision = demo.until(demo.approve, within_s=300)  # the grid may have to be compiled, too
    page = demo.look()
    assert "in the last 30 minutes; elsewhere" in page.text
    assert "expected to help" in page.text

    outcome = demo.until(lambda: demo.outcome(decision), within_s=240)
    assert outcome in set(Outcome)
    assert decision in {key for key, _, _ in demo.effects()}
    assert "was done at" in demo.look().text

    decisions = demo.ask(lambda tx: {proposal.decision.id for proposal in tx.proposals(100)})
    effects = demo.effects()
    demo.daemon.kill()
    demo.daemon.wait()
    assert demo.grid_answers()

    demo.start()
    demo.until(demo.has_passed, within_s=60)
    assert demo.look() is not None
    assert f"Using the simulated grid that runs at {demo.grid_url}" in demo.said
    assert demo.ask(lambda tx: tx.decisions(decisions)).keys() == decisions
    assert demo.action(decision).outcome is outcome
    assert set(demo.effects().values()) <= {1}
    assert effects <= demo.effects()

    second = subprocess.run(
        [COMMAND, "demo"], cwd=demo.directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 2
    assert "another gridmedic runs on" in second.stderr
    assert demo.grid_answers()
    assert demo.look() is not None

    demo.daemon.send_signal(signal.SIGTERM)
    assert demo.daemon.wait(60) == 0
    assert not demo.grid_answers()
    assert holder(demo.grid) is None


@pytest.mark.slow
def test_stopped_before_the_grid_answers_it_leaves_nothing_behind(demo):
    demo.start()
    demo.until(lambda: "Starting the simulated grid" in demo.said, within_s=20)
    demo.daemon.send_signal(signal.SIGTERM)
    assert demo.daemon.wait(60) == 130
    assert holder(demo.grid) is None
    assert not demo.grid_answers()
    assert "Traceback" not in demo.said
