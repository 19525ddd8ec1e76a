from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from agent.grid import open_grid
from agent.grid.dry_run import DryRun
from agent.sources import EVENTS, READINGS
from agent.sources.cric import decode
from agent.sources.simulated import SimulatedClock, SimulatedDowntimes, SimulatedSource
from models.domain import ConfigError, GridError, GridUnreachable, SourceError
from models.measurements import SiteMap
from simulator.disk import Log, holder
from simulator.keeper import Keeper, Setup
from simulator.scenario import parse
from simulator.server import serve

START = datetime(2026, 3, 2, tzinfo=UTC)
CERN, FZK = "CERN-PROD_DATADISK", "FZK-LCG2_DATADISK"
SCENARIO = {
    "grid": {"sites": 12},
    "load": {"transfers_per_day": 72_000},
    "perfsonar": {"every_s": 120},
    "outbreaks": {"first": 300, "every": 3600, "kinds": ["read-slow"]},
    "disturbances": [{"kind": "downtime", "where": "rse:FZK-LCG2_DATADISK", "start": "5d", "duration": "2h"}],
}

_SERVE = """
import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from simulator.scenario import parse
from simulator.server import serve
serve(
    directory=Path(sys.argv[1]), start=datetime.fromisoformat(sys.argv[2]), port=0, speed=float(sys.argv[3]),
    scenario=parse(json.loads(sys.argv[4]), "test"), history=timedelta(minutes=30),
    ready=lambda url: print("READY", url, flush=True),
)
"""


class Process:
    """The grid as a process of its own."""

    def __init__(self, directory: Path, *, start: datetime = START, speed: float = 600.0) -> None:
        arguments = [sys.executable, "-c", _SERVE, directory, start.isoformat(), str(speed), json.dumps(SCENARIO)]
        self.child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        self.url = self._address()

    def _address(self) -> str:
        for line in self.child.stdout:
            if line.startswith("READY"):
                return line.split()[1]
        raise AssertionError(f"the grid process ended with {self.child.wait()} before it answered")

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        self.child.stdout.close()

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(timeout=20)
        self.child.stdout.close()
        return code


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    process = Process(tmp_path_factory.mktemp("grid"))
    yield process
    process.kill()


@pytest.fixture
def start():
    """Starts processes, and leaves none behind."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: _started(stack, Process(*args, **kwargs))


def _started(stack, process):
    stack.callback(lambda: process.child.poll() is None and process.kill())
    return process


@pytest.fixture
def grid(process):
    return open_grid({"kind": "simulated", "url": process.url})


def journal(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


def lines(directory: Path) -> list[bytes]:
    return [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


class TestCalls:
    def test_reads(self, grid):
        assert len(grid.rses()) == 30
        assert grid.rse(CERN).site == "CERN-PROD"
        assert grid.link_limit(CERN, FZK) is None
        assert grid.distance("CERN-PROD_DATATAPE", "FZK-LCG2_DATATAPE") is None
        requests = grid.requests(limit=3)
        assert len(requests) == 3
        assert grid.rule(requests[0].rule_id).id == requests[0].rule_id

    def test_acts_have_their_effect_once_for_each_key(self, grid, process):
        grid.set_distance(CERN, FZK, 33, key="d1")
        grid.set_distance(CERN, FZK, 2, key="d1-undo")
        grid.set_distance(CERN, FZK, 33, key="d1")
        assert grid.distance(CERN, FZK) == 2
        ticket = grid.open_ticket(f"rse:{CERN}", "slow <b>", "body", key="d2")
        assert grid.open_ticket(f"rse:{CERN}", "slow <b>", "body", key="d2") == ticket
        assert grid.tickets(mark="d2")[0].id == ticket.id
        grid.set_availability(CERN, "write", False, key="d3")
        assert not grid.rse(CERN).write
        grid.update_rule(grid.requests(limit=1)[0].rule_id, priority=5, key="d4")
        clock = SimulatedClock(process.url)
        before = clock()
        grid.ban(FZK, minutes=90, key="d5")
        assert before <= grid.banned(FZK) - timedelta(minutes=90) <= clock()
        grid.unban(FZK, key="d6")
        assert grid.banned(FZK) is None
        found = grid.test_network("CERN-PROD", "FZK-LCG2", key="d7")
        assert 1 < found.rtt_ms < 50
        assert found.throughput_bps > 1e8

    def test_refusals(self, grid, process):
        with pytest.raises(GridError, match="no RSE 'X'") as refused:
            grid.rse("X")
        assert not isinstance(refused.value, GridUnreachable)
        with pytest.raises(GridError, match="valid integer"):
            grid.set_distance(CERN, FZK, "far", key="k")
        ticket = json.dumps({"culprit": f"rse:{CERN}", "title": "\ud800", "body": "", "key": "broken"})
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{process.url}/call/open_ticket", content=ticket, headers=headers)
        assert answer.status_code == 409
        assert "cannot be written down" in answer.json()["error"]
        assert grid.tickets(mark="broken") == []
        for path, body, code in (
            ("call/delete_everything", "{}", 409),
            ("call/rse", "[]", 422),
            ("call/rse", "{", 422),
        ):
            answer = httpx.post(f"{process.url}/{path}", content=body, headers=headers)
            assert answer.status_code == code
        assert httpx.post(f"{process.url}/call/rses", content="{}").status_code == 422
        assert httpx.get(f"{process.url}/events?after=x").status_code == 422

    def test_another_host_name_is_refused(self, process):
        assert httpx.get(f"{process.url}/clock", headers={"host": "evil.example"}).status_code == 400

    def test_nobody_answers(self):
        grid = open_grid({"kind": "simulated", "url": "http://127.0.0.1:9"})
        with pytest.raises(GridUnreachable, match="gridmedic grid"):
            grid.rses()
        with pytest.raises(SourceError, match="gridmedic grid"):
            SimulatedClock("http://127.0.0.1:9")()

    def test_dry_run_reads_and_records_and_does_nothing(self, process, grid):
        dry = open_grid({"kind": "simulated", "url": process.url, "dry_run": True})
        assert isinstance(dry, DryRun)
        before = dry.distance(FZK, CERN)
        dry.set_distance(FZK, CERN, 77, key="d9")
        dry.set_distance(FZK, CERN, 77, key="d9")
        dry.set_link_limit(FZK, CERN, 1, key="d9")
        assert dry.open_ticket("rse:X", "t", "b", key="d9").mark == "d9"
        assert [act.method for act in dry.acts] == ["set_distance", "set_link_limit", "open_ticket"]
        assert grid.distance(FZK, CERN) == before
        assert grid.link_limit(FZK, CERN) is None
        assert not grid.tickets(mark="d9")

    def test_an_unknown_kind_of_grid(self):
        with pytest.raises(ConfigError, match="'moon'"):
            open_grid({"kind": "moon"})


class TestSources:
    @pytest.mark.parametrize("decoder", [EVENTS, READINGS])
    def test_pages_bring_every_document_once(self, process, decoder):
        source = SimulatedSource(name="grid", url=process.url, decoder=decoder)
        now = SimulatedClock(process.url)()
        cursor, read = None, 0
        for _ in range(6):
            page = source.poll(cursor, limit=100, now=now + timedelta(hours=1))
            assert page.read == 100
            assert not page.refusals
            assert not page.caught_up
            read += page.read
            cursor = json.loads(json.dumps(page.cursor))
            assert cursor["seq"] == read
        again = source.poll(cursor, limit=50, now=now + timedelta(hours=1))
        assert again.rows.equals(source.poll(cursor, limit=50, now=now + timedelta(hours=1)).rows)
        while not page.caught_up:
            page = source.poll(page.cursor, limit=20_000, now=now + timedelta(days=1))

    def test_another_run_is_read_from_its_start(self, process):
        source = SimulatedSource(name="grid", url=process.url, decoder=EVENTS)
        page = source.poll({"run": "another", "seq": 10**9}, limit=10, now=START)
        assert page.cursor["seq"] == 10

    def test_the_clock_runs_at_its_speed_and_stands_still_without_the_grid(self, tmp_path, start):
        process = start(tmp_path / "grid")
        clock = SimulatedClock(process.url)
        first = clock()
        assert first >= START
        time.sleep(1.5)
        passed = (clock() - first).total_seconds()
        assert 300 <= passed <= 2400
        process.kill()
        last = clock()
        time.sleep(0.1)
        assert clock() == last


class TestDowntimes:
    def test_what_is_announced_is_read_as_crics(self, process):
        announced = decode(SimulatedDowntimes(process.url).read(), where="grid", sites=SiteMap())
        begin = START.timestamp() + 5 * 86_400  # a scenario's times count from when the grid began to be served
        assert [(str(one.entity), one.start, one.end) for one in announced.covers] == [
            (f"rse:{FZK}", begin, begin + 7200)
        ]
        assert (announced.read, announced.refusals) == (1, ())

    def test_nobody_answers(self):
        with pytest.raises(SourceError, match="gridmedic grid"):
            SimulatedDowntimes("http://127.0.0.1:1").read()


class TestKilled:
    def test_killed_and_started_again_it_goes_on_where_it_stood(self, tmp_path, start):
        directory = tmp_path / "grid"
        process = start(directory)
        seen: dict[int, object] = {}
        read_at = START
        for turn in range(3):
            grid = open_grid({"kind": "simulated", "url": process.url})
            grid.set_distance(CERN, FZK, 20 + turn, key=f"d{turn}")
            grid.open_ticket(f"rse:{CERN}", "slow", "", key="ticket")
            time.sleep(0.3 + 0.4 * turn)
            read_at = SimulatedClock(process.url)()
            page = httpx.get(f"{process.url}/events", params={"limit": 20_000}).json()
            process.kill()
            for number, document in enumerate(page["documents"], start=page["first"]):
                assert seen.setdefault(number, document) == document
            process = start(directory, start=START + timedelta(days=turn))
            assert SimulatedClock(process.url)() >= read_at
        grid = open_grid({"kind": "simulated", "url": process.url})
        assert grid.distance(CERN, FZK) == 22
        grid.set_distance(CERN, FZK, 20, key="d0")
        assert grid.distance(CERN, FZK) == 22
        page = httpx.get(f"{process.url}/events", params={"limit": 20_000}).json()
        assert all(page["documents"][number - 1] == document for number, document in seen.items())
        assert process.stop() == 0
        effects = [(entry["method"], entry["key"]) for entry in journal(directory) if entry["effect"]]
        assert effects == [
            ("set_distance", "d0"),
            ("open_ticket", "ticket"),
            ("set_distance", "d1"),
            ("set_distance", "d2"),
        ]
        assert {entry["method"] for entry in journal(directory)} == {"set_distance", "open_ticket", "distance"}
        assert json.loads((directory / "truth.json").read_text())[0]["kind"] == "read-slow"

    def test_a_copy_taken_at_any_moment_lives_on_the_same(self, tmp_path):
        setup = Setup(scenario=parse(SCENARIO, "test"), seed=3, start=START)
        chance = random.Random(1)
        kept = Keeper(tmp_path / "whole", setup, until=START + timedelta(minutes=10))
        copies = []
        steps = [timedelta(seconds=chance.uniform(5, 90)) for _ in range(60)]
        for i, step in enumerate(steps):
            kept.advance(kept.now + step)
            if i % 7 == 0:
                assert kept.call(
                    "set_distance", {"source": CERN, "destination": FZK, "distance": i + 2, "key": f"d{i}"}
                ).effect
            if i % 10 == 5:
                copy = tmp_path / f"copy{i}"
                shutil.copytree(tmp_path / "whole", copy)
                newest = max((copy / "events").glob("*.jsonl"))
                os.truncate(newest, newest.stat().st_size - chance.randrange(3000))  # what was being written
                with (copy / "journal.jsonl").open("a") as file:
                    file.write('{"at": "2026-0')
                copies.append((i, copy))
        kept.close()
        for i, copy in copies:
            again = Keeper(copy, setup, until=START)
            for j, step in enumerate(steps[i + 1 :], start=i + 1):
                again.advance(again.now + step)
                if j % 7 == 0:
                    arguments = {"source": CERN, "destination": FZK, "distance": j + 2, "key": f"d{j}"}
                    assert again.call("set_distance", arguments).effect
            again.close()
            for stream in ("events", "measurements"):
                assert lines(copy / stream) == lines(tmp_path / "whole" / stream)
            assert journal(copy) == journal(tmp_path / "whole")

    def test_the_directory_belongs_to_one_process_and_one_run(self, tmp_path):
        setup = Setup(scenario=parse(SCENARIO, "test"), seed=3, start=START)
        kept = Keeper(tmp_path, setup, until=START + timedelta(minutes=1))
        with pytest.raises(ConfigError, match="another grid process uses"):
            Keeper(tmp_path, setup, until=START)
        assert holder(tmp_path) == os.getpid()
        kept.close()
        assert holder(tmp_path) is None
        assert holder(tmp_path / "nowhere") is None
        with pytest.raises(ConfigError, match=r"holds a run of other settings \(scenario test, seed 3"):
            Keeper(tmp_path, replace(setup, seed=4), until=START)
        whole = (tmp_path / "state.npz").read_bytes()
        for broken in (b"", b"[]", whole[:-50], whole[: len(whole) // 2]):
            (tmp_path / "state.npz").write_bytes(broken)
            with pytest.raises(ConfigError, match="delete this file"):
                Keeper(tmp_path, setup, until=START)
        (tmp_path / "state.npz").unlink()
        again = Keeper(tmp_path, setup, until=START)
        assert again.now == START + timedelta(minutes=1)
        again.close()

    def test_a_log_keeps_the_newest_and_their_numbers(self, tmp_path, monkeypatch):
        monkeypatch.setattr("simulator.disk._SEGMENT", 10)
        monkeypatch.setattr("simulator.disk._KEPT", 3)
        log = Log(tmp_path)
        for start in range(1, 100, 7):
            log.append([b"%d" % number for number in range(start, start + 7)])
        log.close()
        log = Log(tmp_path)
        assert log.last == 105
        assert log.read(0, 1000) == (81, [b"%d" % number for number in range(81, 106)])
        assert log.read(88, 4) == (89, [b"89", b"90", b"91", b"92"])
        assert log.read(105, 4) == (106, [])
        assert log.read(200, 4)[1] == []
        log.append([b"106"])
        assert log.read(105, 4) == (106, [b"106"])
        log.close()


class TestAddress:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"host": "0.0.0.0"}, "not a loopback address"),
            ({"host": "192.0.2.1"}, "not a loopback address"),
            ({"host": "grid.example"}, "not an IP address"),
            ({"speed": 0.0}, "speed"),
        ],
    )
    def test_what_is_refused_before_anything_begins(self, tmp_path, options, said):
        with pytest.raises(ConfigError, match=said):
            serve(
                directory=tmp_path / "grid",
                scenario=parse(SCENARIO, "test"),
                start=START,
                **{"port": 0, **options},
            )
        assert not (tmp_path / "grid").exists()

    def test_a_port_that_is_taken(self, process, tmp_path):
        with pytest.raises(ConfigError, match="choose another"):
            serve(
                directory=tmp_path / "grid",
                scenario=parse(SCENARIO, "test"),
                start=START,
                port=int(process.url.rpartition(":")[2]),
            )
