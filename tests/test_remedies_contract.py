"""What an author may declare, how a definition that is wrong is refused, and what the conformance kit finds."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, Field

from models.domain import BlastRadius, GridError, IncidentKind, Outcome, RemedyError, Safety
from remedies.catalog import BUILTIN
from remedies.contract import Applied, Parameters, Plan, Remedy, Run, check_plan
from remedies.testing import FakeGrid, check, grid_for, incident, incidents

SLOW = incident(IncidentKind.SLOW_TRANSFERS, "link:A_DISK>B_DISK")


class LimitParameters(Parameters):
    limit: int = Field(default=5, ge=1, description="Most concurrent transfers.")


class Good(Remedy[LimitParameters]):
    """Sets a limit on the link to blame: right in every way, so that each test breaks one thing of it."""

    name = "good"
    title = "Limit the link"
    addresses = frozenset({IncidentKind.SLOW_TRANSFERS})
    safety = Safety.REVERSIBLE
    blast_radius = BlastRadius.LINK
    cooldown = timedelta(minutes=5)
    settle_time = timedelta(minutes=5)
    prior = 0.5
    Params = LimitParameters

    def plan(self, incident):
        if str(incident.culprit) != "link:A_DISK>B_DISK":
            return None
        return Plan(params=LimitParameters(), targets=(str(incident.culprit),), summary="Limit it to 5")

    def apply(self, params, run):
        run.remember("limit", run.grid.link_limit("A_DISK", "B_DISK"))
        if self.applied(params, run) is not Applied.YES:
            run.grid.set_link_limit("A_DISK", "B_DISK", params.limit, key=run.key)

    def applied(self, params, run):
        return Applied.YES if run.grid.link_limit("A_DISK", "B_DISK") == params.limit else Applied.NO

    def undo(self, params, run):
        if self.applied(params, run) is Applied.YES:
            run.grid.set_link_limit("A_DISK", "B_DISK", run.memory["limit"], key=run.key)


class NotDescribed(Parameters):
    limit: int = 5


class Inner(Parameters):
    share: float = 0.5


class NotDescribedWithin(Parameters):
    inner: Inner = Field(description="Described, but not what is in it.")


class NotOurs(BaseModel):
    limit: int = Field(default=5, description="Most concurrent transfers.")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("name", "Switch Source", "name is 'Switch Source'; use up to 40 lower-case letters"),
        ("name", None, "name is None"),
        ("title", " ", "title is ' '; say in one line what it does"),
        ("title", "two\nlines", "say in one line"),
        ("addresses", frozenset(), "give a frozenset of at least one IncidentKind"),
        ("addresses", {IncidentKind.CLOCK_OFF}, "give a frozenset"),
        ("addresses", frozenset({"slow"}), "give a frozenset"),
        ("safety", "reversible", "safety is 'reversible'; use a member of Safety"),
        ("blast_radius", 1, "use a member of BlastRadius"),
        ("cooldown", 60, "cooldown is 60; use a timedelta from 0:00:00 to 7 days"),
        ("cooldown", timedelta(days=8), "use a timedelta"),
        ("settle_time", timedelta(0), "use a timedelta from 0:00:01 to 7 days"),
        ("prior", 1.0, "prior is 1.0; use a number between 0 and 1"),
        ("prior", True, "use a number between"),
        ("prior", float("nan"), "use a number between"),
        ("Params", None, "Params is None; use a subclass of remedies.contract.Parameters"),
        ("Params", NotOurs, "use a subclass of"),
        ("Params", NotDescribed, "NotDescribed.limit has no description; write Field(description=…)"),
        ("Params", NotDescribedWithin, "share has no description"),
        ("undo", Remedy.undo, "it is declared reversible and has no undo; write undo, or declare it disruptive"),
    ],
)
def test_a_definition_that_is_wrong_is_refused(attribute, value, message):
    with pytest.raises(RemedyError, match=re.escape(message)) as caught:
        type("Wrong", (Good,), {attribute: value})
    assert re.match(r"remedy \w+:Wrong: ", str(caught.value))


def test_every_problem_of_a_definition_is_named_at_once():
    with pytest.raises(RemedyError) as caught:
        type("Wrong", (Good,), {"prior": 2, "safety": 3, "cooldown": 4})
    assert all(word in str(caught.value) for word in ("prior is 2", "safety is 3", "cooldown is 4"))


def test_a_method_that_is_missing_is_named():
    with pytest.raises(RemedyError, match="plan is missing; write it; apply is missing; write it; applied is missing"):
        type("Empty", (Remedy,), {name: getattr(Good, name) for name in (*Remedy.__annotations__, "undo")})


def test_a_coroutine_is_refused():
    async def apply(self, params, run): ...

    with pytest.raises(RemedyError, match="apply is a coroutine, which nobody would await; write a plain function"):
        type("Wrong", (Good,), {"apply": apply})


def test_a_card_says_what_was_declared():
    card = Good.card(builtin=False)
    assert (card.name, card.prior, card.safety, card.builtin) == ("good", 0.5, Safety.REVERSIBLE, False)
    assert card.spec == f"{__name__}:Good"
    assert card.params_schema["properties"]["limit"]["description"] == "Most concurrent transfers."


@pytest.mark.parametrize("remedy", BUILTIN, ids=lambda remedy: remedy.name)
def test_each_built_in_conforms(remedy):
    assert check(remedy, incidents()) == []


def test_a_good_remedy_conforms():
    assert check(Good, incidents()) == []


def test_the_documented_example_conforms(documented):
    assert check(documented.PauseLink, incidents()) == []


@pytest.fixture
def documented():
    """The first Python block of docs/remedies.md, as a module."""
    text = (Path(__file__).parent.parent / "docs" / "remedies.md").read_text(encoding="utf-8")
    module = ModuleType("documented")
    source = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    exec(compile(source, "docs/remedies.md", "exec", dont_inherit=True), module.__dict__)
    return module


class Impure(Good):
    calls = 0

    def plan(self, incident):
        Impure.calls += 1
        return Plan(params=LimitParameters(limit=Impure.calls), targets=("rse:A",), summary="x")


class Meddling(Good):
    def plan(self, incident):
        incident.evidence.links.clear()
        return super().plan(incident)


class Raising(Good):
    def plan(self, incident):
        return {}["no"]


class Idle(Good):
    def plan(self, incident):
        return None


class Mute(Good):
    def plan(self, incident):
        return Plan(params=LimitParameters(), targets=("rse:A",), summary="")


class Forgetful(Good):
    """Does not look what was there before."""

    def undo(self, params, run):
        run.grid.set_link_limit("A_DISK", "B_DISK", 3, key=run.key)


class Halving(Good):
    """Sets what depends on what it finds, and so does it twice."""

    def apply(self, params, run):
        now = run.grid.link_limit("A_DISK", "B_DISK") or 16
        run.remember("limit", None)
        run.grid.set_link_limit("A_DISK", "B_DISK", now // 2, key=run.key)

    def applied(self, params, run):
        return Applied.YES if run.grid.link_limit("A_DISK", "B_DISK") else Applied.NO


class Claiming(Good):
    def applied(self, params, run):
        return Applied.YES

    def apply(self, params, run):
        run.remember("limit", None)
        run.grid.set_link_limit("A_DISK", "B_DISK", 5, key=run.key)


class Denying(Good):
    def applied(self, params, run):
        return Applied.NO


class Truthy(Good):
    def applied(self, params, run):
        return run.grid.link_limit("A_DISK", "B_DISK") == params.limit


class ActingWhenLooking(Good):
    def verify(self, params, run):
        run.grid.set_link_limit("A_DISK", "B_DISK", 9, key=run.key)
        return Outcome.FIXED


class Keyless(Good):
    def apply(self, params, run):
        run.grid.set_link_limit("A_DISK", "B_DISK", 5, key="mine")


class Swallowing(Good):
    def apply(self, params, run):
        try:
            super().apply(params, run)
        except GridError:
            run.log("never-mind")


@pytest.mark.parametrize(
    ("remedy", "problem"),
    [
        (Impure, "plan is not pure"),
        (Meddling, "plan changed the incident"),
        (Raising, "plan raised KeyError('no')"),
        (Idle, "no incident given leads to a plan"),
        (Mute, "has summary ''"),
        (Forgetful, "undo did not restore what was there before"),
        (Halving, "apply with the same key had its effect twice"),
        (Claiming, "applied said yes before apply had done anything"),
        (Denying, "applied said no after apply had done it"),
        (Truthy, "return an Applied, and an Outcome or None"),
        (ActingWhenLooking, "was called where only looking is allowed"),
        (Keyless, "give it key=run.key"),
        (Swallowing, "apply did not let GridUnreachable through"),
    ],
)
def test_the_kit_finds_what_is_wrong(remedy, problem):
    problems = check(remedy, incidents())
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("a plan", "returned 'a plan'; return a Plan or None"),
        (Plan(params=Inner(), targets=("rse:A",), summary="x"), "they must be LimitParameters"),
        (Plan(params=LimitParameters(), targets=["rse:A"], summary="x"), "give a tuple that names each once"),
        (Plan(params=LimitParameters(), targets=("rse:A", "rse:A"), summary="x"), "names each once"),
        (Plan(params=LimitParameters(), targets=("A",), summary="x"), "write an entity (kind:name) or rule:ID"),
        (Plan(params=LimitParameters(), targets=(7,), summary="x"), "has target 7"),
        (Plan(params=LimitParameters(), targets=("rule:",), summary="x"), "has target 'rule:'"),
        (Plan(params=LimitParameters(), targets=("rse:A",), summary="x" * 301), "say in one line"),
        (Plan(params=LimitParameters(), targets=("rse:A",), summary="a\x1b[2Jb"), "leave out line breaks and control"),
    ],
)
def test_a_plan_that_cannot_be_shown_is_refused(plan, message):
    with pytest.raises(RemedyError, match=re.escape(message)):
        check_plan(Good, plan)


def test_an_empty_plan_is_for_the_policy_to_refuse():
    assert check_plan(Good, Plan(params=LimitParameters(), targets=(), summary="Touch nothing")).targets == ()


def test_what_is_remembered_first_stands():
    kept = []
    run = Run(grid=FakeGrid(), key="k", memory={"old": 1}, keep=lambda name, value: kept.append((name, value)))
    assert run.remember("old", 2) == 1
    assert run.remember("new", (3,)) == [3], "as it comes back from the ledger"
    assert run.memory == {"old": 1, "new": [3]}
    assert kept == [("new", [3])]


def test_what_others_have_changed_since_is_left_alone():
    for remedy in BUILTIN:
        if remedy.undo is Remedy.undo or remedy.name == "exclude_storage":
            continue
        an_incident = incident(IncidentKind.SLOW_TRANSFERS, "link:A_DISK>B_DISK")
        grid = grid_for(an_incident)
        plan = remedy().plan(an_incident)
        run = Run(grid=grid, key="k")
        remedy().apply(plan.params, run)
        grid.set_distance("A_DISK", "B_DISK", 42, key="an operator")
        grid.set_link_limit("A_DISK", "B_DISK", 42, key="an operator")
        for rule in an_incident.evidence.rules:
            grid.update_rule(rule, priority=4, key="an operator")
        changed = grid.state()
        remedy().undo(plan.params, Run(grid=grid, key="k/undo", memory=run.memory))
        assert grid.state() == changed, remedy.name
        assert remedy().verify(plan.params, run) is Outcome.UNKNOWN, "what is not in place cannot have helped"
