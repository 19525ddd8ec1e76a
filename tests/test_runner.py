"""Nothing that a remedy does may harm the daemon, and what came of it is told honestly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.domain import Action, ActionStatus, Candidate, GridError, IncidentKind, Outcome, RemedyCard
from remedies import executors
from remedies.builtin.switch_source import SwitchSource
from remedies.builtin.wait import Wait
from remedies.catalog import BUILTIN
from remedies.child import load
from remedies.contract import Applied, lower
from remedies.executors import ChildProcess, GridSpec, InProcess
from remedies.runner import MAX_PLAN_FAILURES, Runner
from remedies.testing import FakeGrid, grid_for, incident

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
INCIDENT = incident(IncidentKind.SLOW_TRANSFERS, "link:A_DISK>B_DISK")
MODULE = "unruly_remedies"

# One remedy that moves a distance from 1 to 100, and does what its parameters say before and after that.
UNRULY = '''
from __future__ import annotations
import ctypes, os, signal, subprocess, sys, time
from datetime import timedelta
from pathlib import Path
from pydantic import Field
from models.domain import BlastRadius, GridError, GridUnreachable, IncidentKind, Safety
from remedies.contract import Applied, Parameters, Plan, Remedy

def exit_(run): os._exit(7)
def segfault(run): ctypes.string_at(0)
def hang(run): time.sleep(600)
def hang_stubbornly(run):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True:
        try: time.sleep(600)
        except BaseException: pass
def hang_in_c(run): ctypes.PyDLL(None).sleep(600)
def flood(run):
    for _ in range(2_000): print("x" * 100_000)
    for _ in range(2_000): os.write(2, b"y" * 100_000)
def change(run):
    os.environ["PATH"] = "/nowhere"; os.chdir("/"); sys.path.clear(); os.umask(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
def fork(run):
    if os.fork() == 0: time.sleep(600)
def spawn(run):
    child = subprocess.Popen(["sleep", "600"], stdout=sys.__stdout__)
    run.log("spawned", pid=child.pid)
    Path(os.environ["SPAWNED"]).write_text(str(child.pid))
def close(run): os.closerange(0, 4096)
def say_much(run):
    for _ in range(100): run.log("x" * 100_000)
def log_much(run):
    for _ in range(1_000): run.log("again", number=1)
def remember_much(run): run.remember("much", "x" * 1_000_000)
def remember_what_is_no_json(run): run.remember("what", object())
def eat_memory(run): bytearray(3 * 1024**3)
def raise_(run): raise RuntimeError("no\\nluck")
def exit_politely(run): sys.exit(5)
def interrupt(run): raise KeyboardInterrupt
def refuse(run): raise GridError("refused")
def unreachable(run): raise GridUnreachable("no answer")
def wrong_key(run): run.grid.set_distance("A_DISK", "B_DISK", 7, key="another")
def recurse(run): recurse(run)
def nothing(run): pass

class UnrulyParameters(Parameters):
    before: str = Field(default="nothing", description="What happens before the effect.")
    after: str = Field(default="nothing", description="What happens after the effect.")
    looking: str = Field(default="nothing", description="What happens when it is asked whether it is in place.")
    undoing: str = Field(default="nothing", description="What happens after an undo.")
    planning: str = Field(default="nothing", description="What happens in plan.")

class Unruly(Remedy[UnrulyParameters]):
    name = "unruly"
    title = "Do what must not be done"
    addresses = frozenset(IncidentKind)
    safety = Safety.REVERSIBLE
    blast_radius = BlastRadius.LINK
    cooldown = timedelta(0)
    settle_time = timedelta(minutes=1)
    prior = 0.5
    Params = UnrulyParameters

    def plan(self, incident):
        globals()[incident.evidence.summary](None)
        return Plan(params=UnrulyParameters(), targets=("link:A_DISK>B_DISK",), summary="Do it")

    def apply(self, params, run):
        globals()[params.before](run)
        run.remember("distance", run.grid.distance("A_DISK", "B_DISK"))
        run.grid.set_distance("A_DISK", "B_DISK", 100, key=run.key)
        globals()[params.after](run)

    def applied(self, params, run):
        if params.looking == "act": run.grid.set_distance("A_DISK", "B_DISK", 50, key=run.key)
        if params.looking == "wrong": return True
        globals()[params.looking](run)
        return Applied.YES if run.grid.distance("A_DISK", "B_DISK") == 100 else Applied.NO

    def verify(self, params, run):
        globals()[params.looking](run)
        return "x" if params.looking == "nothing" else None

    def undo(self, params, run):
        run.grid.set_distance("A_DISK", "B_DISK", run.memory["distance"], key=run.key)
        globals()[params.undoing](run)

class HalfWay(Unruly):
    """Moves two distances, and is refused between them."""
    name = "half_way"

    def apply(self, params, run):
        run.remember("distance", run.grid.distance("A_DISK", "B_DISK"))
        run.grid.set_distance("A_DISK", "B_DISK", 100, key=run.key)
        run.grid.set_distance("A_DISK", "NOWHERE", 100, key=run.key)

    def applied(self, params, run):
        return Applied.NO
'''

CARD = RemedyCard(
    name="unruly",
    title="Do what must not be done",
    spec=f"{MODULE}:Unruly",
    builtin=False,
    addresses=frozenset(IncidentKind),
    safety=SwitchSource.safety,
    blast_radius=SwitchSource.blast_radius,
    cooldown=SwitchSource.cooldown,
    settle_time=SwitchSource.settle_time,
    prior=0.5,
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the child can import from, and the daemon cannot."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(UNRULY)
    monkeypatch.setattr(executors, "_START", f"import sys; sys.path.append({str(folder)!r}); {executors._START}")
    return folder


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    grid_for(INCIDENT, path=tmp_path / "grid.json")
    return tmp_path / "grid.json"


@pytest.fixture
def runner(outside: Path, grid_file: Path) -> Runner:
    spec = GridSpec(factory="remedies.testing:open_fake", settings={"path": str(grid_file)})
    return Runner(ChildProcess(grid=spec, deadline_s=3.0))


def action(remedy: str = "unruly", memory: Mapping[str, Any] | None = None, **params: Any) -> Action:
    candidate = Candidate(remedy=remedy, params=params, targets=("link:A_DISK>B_DISK",), summary="Do it")
    return Action(
        id="d1", incident_id="i1", candidate=candidate, status=ActionStatus.RUNNING, due_at=NOW, memory=memory or {}
    )


def distance(grid_file: Path) -> int | None:
    return FakeGrid.at(grid_file).distance("A_DISK", "B_DISK")


def forget(memory: Mapping[str, Any]) -> None:
    """A ledger that nobody asks."""


def test_a_good_action_is_applied_and_remembered(runner, grid_file):
    kept: list[tuple[Mapping[str, Any], int | None]] = []
    result = runner.carry_out(action(), CARD, keep=lambda memory: kept.append((memory, distance(grid_file))))
    assert (result.status, result.memory, result.retry) == (ActionStatus.APPLIED, {"distance": 1}, False)
    assert kept == [({"distance": 1}, 1)], "what stood before is kept before the effect"
    assert distance(grid_file) == 100
    assert [call.key for call in FakeGrid.at(grid_file).journal] == ["d1"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("exit_", "ended with status 7 and without a result"),
        ("segfault", "died of SIGSEGV and without a result: Fatal Python error: Segmentation fault"),
        ("hang_stubbornly", "did not end within 3 s and was killed"),
        ("close", "without a result"),
        ("say_much", "said more than 1048576 bytes and was killed"),
        ("remember_much", "keep no more than 65536"),
        ("remember_what_is_no_json", "the value is not JSON"),
        ("eat_memory", "MemoryError"),
        ("raise_", "RuntimeError: no luck"),
        ("exit_politely", "SystemExit: 5"),
        ("interrupt", "KeyboardInterrupt"),
        ("refuse", "refused"),
        ("unreachable", "no answer"),
        ("wrong_key", "give it key=run.key"),
        ("recurse", "RecursionError"),
    ],
)
def test_what_fails_before_the_effect_leaves_the_grid_as_it_was(runner, grid_file, what, message):
    began = time.monotonic()
    result = runner.carry_out(action(before=what), CARD, keep=forget)
    assert time.monotonic() - began < 8
    assert (result.status, result.retry, result.memory) == (ActionStatus.FAILED, True, {})
    assert message in result.message
    assert FakeGrid.at(grid_file).journal == []


@pytest.mark.parametrize("what", ["exit_", "segfault", "hang", "close", "say_much", "raise_", "refuse", "unreachable"])
def test_what_fails_after_the_effect_is_found_in_place(runner, grid_file, what):
    result = runner.carry_out(action(after=what), CARD, keep=forget)
    assert (result.status, result.memory) == (ActionStatus.APPLIED, {"distance": 1})
    assert result.message.startswith("in place, although it failed: ")
    assert distance(grid_file) == 100


@pytest.mark.parametrize("what", ["flood", "change", "fork", "log_much"])
def test_mischief_harms_nobody(runner, grid_file, what, monkeypatch):
    before = (dict(os.environ), Path.cwd(), list(sys.path), signal.getsignal(signal.SIGINT))
    result = runner.carry_out(action(before=what, after=what), CARD, keep=forget)
    assert result.status is ActionStatus.APPLIED
    assert distance(grid_file) == 100
    assert (dict(os.environ), Path.cwd(), list(sys.path), signal.getsignal(signal.SIGINT)) == before
    assert MODULE not in sys.modules


def test_what_it_started_is_killed_with_it(runner, tmp_path, monkeypatch):
    monkeypatch.setenv("SPAWNED", str(tmp_path / "pid"))
    assert runner.carry_out(action(after="spawn"), CARD, keep=forget).status is ActionStatus.APPLIED
    wait_until(lambda: not alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize("looking", ["raise_", "hang", "act", "wrong", "unreachable"])
def test_where_looking_fails_nobody_can_tell(runner, grid_file, looking):
    result = runner.carry_out(action(after="exit_", looking=looking), CARD, keep=forget)
    assert (result.status, result.memory) == (ActionStatus.UNCLEAR, {"distance": 1})
    assert "nobody can tell whether it is in place: ended with status 7" in result.message
    assert distance(grid_file) == 100, "looking must not act"


def test_what_was_done_by_half_is_put_back(runner, grid_file):
    card = load_card("HalfWay", "half_way")
    result = runner.carry_out(action("half_way"), card, keep=forget)
    assert (result.status, result.memory, result.retry) == (ActionStatus.FAILED, {}, False)
    assert result.message == "failed, and what it had changed was put back: 'A_DISK' and 'NOWHERE' are not connected"
    assert distance(grid_file) == 1
    assert [call.key for call in FakeGrid.at(grid_file).journal] == ["d1", "d1/undo"]


def test_what_cannot_be_put_back_is_unclear(runner, grid_file):
    result = runner.carry_out(action("half_way", undoing="exit_"), load_card("HalfWay", "half_way"), keep=forget)
    assert (result.status, result.memory) == (ActionStatus.UNCLEAR, {"distance": 1})
    assert "undo failed" in result.message


def test_nothing_is_done_where_the_ledger_does_not_keep(runner, grid_file):
    def fail(memory: Mapping[str, Any]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runner.carry_out(action(), CARD, keep=fail)
    assert FakeGrid.at(grid_file).journal == []


def test_an_action_in_flight_at_a_restart_is_looked_at_first(runner, grid_file):
    done = runner.resume(action(), CARD, keep=forget)
    assert done.status is ActionStatus.APPLIED
    again = runner.resume(action(memory={"distance": 1}), CARD, keep=forget)
    assert (again.status, again.memory) == (ActionStatus.APPLIED, {"distance": 1})
    assert len(FakeGrid.at(grid_file).journal) == 1
    unclear = runner.resume(action(looking="raise_", memory={"distance": 1}), CARD, keep=forget)
    assert (unclear.status, unclear.memory) == (ActionStatus.UNCLEAR, {"distance": 1})


def test_a_repeated_attempt_does_not_take_its_own_effect_for_what_was_before(runner, grid_file):
    FakeGrid.at(grid_file).set_distance("A_DISK", "B_DISK", 100, key="d0")
    kept: list[Mapping[str, Any]] = []
    result = runner.carry_out(action(memory={"distance": 3}), CARD, keep=kept.append)
    assert result.memory == {"distance": 3}
    assert kept == []


def test_undo_restores_under_a_key_of_its_own(runner, grid_file):
    applied = runner.carry_out(action(), CARD, keep=forget)
    undone = runner.undo(action(memory=applied.memory), CARD)
    assert undone.status is ActionStatus.UNDONE
    assert distance(grid_file) == 1
    nothing = runner.undo(action(), CARD)
    assert (nothing.status, nothing.retry) == (ActionStatus.APPLIED, True)
    assert nothing.message == "undo failed: KeyError: 'distance'"
    assert runner.undo(action(memory={"distance": 1}, undoing="exit_"), CARD).status is ActionStatus.UNCLEAR


def test_verify_says_an_outcome_or_nothing(runner):
    assert runner.verify(action(looking="raise_"), CARD) is None
    assert runner.verify(action(), CARD) is None, "it says x, which is no outcome"


def test_verify_can_only_lower():
    assert lower(Outcome.FIXED, Outcome.UNCHANGED) is Outcome.UNCHANGED
    assert lower(Outcome.FIXED, None) is Outcome.FIXED
    for core in Outcome:
        assert lower(lower(core, Outcome.FIXED), None) is core


def test_wrong_parameters_are_refused_before_anything_is_done(runner, grid_file):
    result = runner.carry_out(action(befor="x"), CARD, keep=forget)
    assert (result.status, result.retry) == (ActionStatus.FAILED, True)
    assert "befor" in result.message
    assert FakeGrid.at(grid_file).journal == []


def test_card_and_action_must_belong_together(runner):
    with pytest.raises(ValueError, match="action 'd1' is of 'unruly', the card is of 'wait'"):
        runner.carry_out(action(), Wait.card(builtin=True), keep=forget)


def test_outside_plans_are_made_in_a_child(runner, monkeypatch):
    monkeypatch.setattr(executors, "PURE_DEADLINE_S", 1.5)
    assert runner.plan(CARD, plan_for("nothing")) == Candidate(
        remedy="unruly",
        params=dict.fromkeys(("before", "after", "looking", "undoing", "planning"), "nothing"),
        targets=("link:A_DISK>B_DISK",),
        summary="Do it",
    )
    assert MODULE not in sys.modules


def test_a_plan_that_fails_is_left_out_and_at_last_not_asked_for(runner, monkeypatch):
    monkeypatch.setattr(executors, "PURE_DEADLINE_S", 1.5)
    for what in ("hang", "segfault", "raise_")[:MAX_PLAN_FAILURES]:
        assert runner.plan(CARD, plan_for(what)) is None
    assert runner.plan(CARD, plan_for("nothing")) is None, "it has cost enough time"


def test_a_built_in_that_fails_to_plan_is_asked_again(runner, monkeypatch):
    card = SwitchSource.card(builtin=True)
    with monkeypatch.context() as patch:
        patch.setattr(SwitchSource, "plan", lambda self, incident: 1 / 0)
        for _ in range(MAX_PLAN_FAILURES + 1):
            assert runner.plan(card, INCIDENT) is None
    assert runner.plan(card, INCIDENT) is not None


@pytest.mark.parametrize("remedy", BUILTIN, ids=lambda remedy: remedy.name)
@pytest.mark.parametrize("where", ["in a child", "in process"])
def test_built_ins_run(remedy, where, grid_file):
    kind = IncidentKind.FAILING_TRANSFERS if remedy.name == "exclude_storage" else IncidentKind.SLOW_TRANSFERS
    an_incident = incident(kind, "rse:A_DISK")
    grid = grid_for(an_incident, path=grid_file)
    spec = GridSpec(factory="remedies.testing:open_fake", settings={"path": str(grid_file)})
    runner = Runner(InProcess(grid=grid) if where == "in process" else ChildProcess(grid=spec, deadline_s=20))
    card = remedy.card(builtin=True)
    candidate = runner.plan(card, an_incident)
    assert candidate is not None
    taken = Action(id="d9", incident_id="i", candidate=candidate, status=ActionStatus.RUNNING, due_at=NOW)
    kept: list[Mapping[str, Any]] = []
    result = runner.carry_out(taken, card, keep=kept.append)
    assert result.status is ActionStatus.APPLIED, result.message
    after = FakeGrid.at(grid_file)
    assert {call.key for call in after.journal} == (set() if remedy is Wait else {"d9"})
    assert runner.look(Action(**{**fields(taken), "memory": result.memory}), card) is Applied.YES
    assert runner.verify(Action(**{**fields(taken), "memory": result.memory}), card) is None


def test_a_grid_that_cannot_be_opened_is_a_failure_before_the_effect(outside):
    runner = Runner(ChildProcess(grid=GridSpec(factory="remedies.testing:no_such"), deadline_s=5))
    result = runner.carry_out(action(), CARD, keep=forget)
    assert (result.status, result.retry) == (ActionStatus.FAILED, True)
    assert "no_such" in result.message


@pytest.mark.parametrize("how", ["hang", "hang_in_c"])
def test_the_child_dies_with_its_parent(outside, grid_file, tmp_path, how):
    """The parent is killed -9 while the remedy runs; a hang that holds the interpreter ends at the deadline at last."""
    script = f"""
        import sys
        sys.path.insert(0, {executors._ROOT!r})
        from remedies import executors
        executors._START = {executors._START!r}
        from remedies.child import Job
        spec = executors.GridSpec(factory="remedies.testing:open_fake", settings={{"path": {str(grid_file)!r}}})
        job = Job(what="apply", spec="{MODULE}:Unruly", key="d1", params={{"after": "{how}"}})
        executors.ChildProcess(grid=spec, deadline_s=4).execute(job, keep=lambda memory: None)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    wait_until(lambda: distance(grid_file) == 100)
    (child,) = children(parent.pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(child), seconds=1.5 if how == "hang" else 8)


def test_descriptors_do_not_pile_up(runner):
    runner.carry_out(action(before="fork"), CARD, keep=forget)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        runner.carry_out(action(before="exit_"), CARD, keep=forget)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_refusal_by_the_grid_before_the_first_effect_may_be_retried():
    an_incident = incident(IncidentKind.SLOW_TRANSFERS, "link:A_DISK>B_DISK")

    class Refusing(FakeGrid):
        def set_distance(self, *args: Any, **kwargs: Any) -> None:
            raise GridError("not allowed")

    runner = Runner(InProcess(grid=Refusing(distances={an_incident.culprit.link: 1})))
    card = SwitchSource.card(builtin=True)
    candidate = runner.plan(card, an_incident)
    assert candidate is not None
    due = Action(id="d", incident_id="i", candidate=candidate, status=ActionStatus.RUNNING, due_at=NOW)
    result = runner.carry_out(due, card, keep=forget)
    assert (result.status, result.retry) == (ActionStatus.FAILED, True)
    assert result.message == "before it did anything: not allowed"


def test_loading_something_else_than_a_remedy_is_refused():
    with pytest.raises(Exception, match="name a subclass"):
        load("remedies.contract:Run")


def plan_for(what: str):
    return incident(IncidentKind.SLOW_TRANSFERS, "link:A_DISK>B_DISK", summary=what)


def load_card(cls: str, name: str) -> RemedyCard:
    return RemedyCard(**{**fields(CARD), "spec": f"{MODULE}:{cls}", "name": name})


def fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__dataclass_fields__}


def alive(pid: int) -> bool:
    """Running: a zombie that nobody has reaped is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(true: Callable[[], bool], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
