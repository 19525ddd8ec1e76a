"""For the tests of whoever writes a remedy: incidents to plan for, a grid to act on, and the conformance kit.

assert check(MyRemedy, incidents()) == []
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from models.domain import (
    Entity,
    EntityKind,
    Evidence,
    Example,
    GridUnreachable,
    Incident,
    IncidentKind,
    Link,
    Outcome,
    Safety,
    Share,
)
from models.grid import RSE, Grid, Request, Rule
from remedies.child import Door
from remedies.contract import Applied, Plan, Remedy, Run, check_plan
from remedies.fakes import Call, FakeGrid, open_fake

__all__ = ["Call", "FakeGrid", "check", "grid_for", "incident", "incidents", "open_fake"]

KEY = "decision-1"


def incident(kind: IncidentKind, culprit: str, **evidence: Any) -> Incident:  # noqa: ANN401 - fields of Evidence
    """An open incident with evidence that fits its culprit; `evidence` replaces parts of that."""
    at = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
    entity = Entity.parse(culprit)
    reason = "transfer-timeout" if kind is IncidentKind.FAILING_TRANSFERS else ""
    links = _links(entity)
    shown: dict[str, Any] = {
        "summary": f"30 of 40 transfers of {culprit} went wrong",
        "window_s": 1800.0,
        "anomalous": 30,
        "total": 40,
        "background": 0.01,
        "as_source": Share(anomalous=30, total=40) if entity.kind is EntityKind.RSE else Share(anomalous=0, total=0),
        "links": {str(link): 10 - i for i, link in enumerate(links)},
        "activities": {"Production Input": 30},
        "reasons": {reason: 30} if reason else {},
        "rules": ("rule-1", "rule-2"),
        "examples": tuple(Example(request_id="r1", link=str(link), ended_at=at, reason=reason) for link in links[:1]),
    }
    return Incident(
        id=f"{kind}-{culprit}",
        kind=kind,
        culprit=entity,
        opened_at=at,
        updated_at=at + timedelta(minutes=5),
        anomalous=30,
        confidence=0.9,
        severity=0.5,
        evidence=Evidence(**{**shown, **evidence}),
    )


def incidents() -> list[Incident]:
    """One of each kind for each culprit that it may have."""
    of_transfers = ["link:A_DISK>B_DISK", "rse:A_DISK", "site:A", "fts:fts.example.org", "activity:Production Input"]
    culprits = {
        IncidentKind.FAILING_DELETIONS: ["rse:A_DISK", "site:A"],
        IncidentKind.DEGRADED_NETWORK: ["network:A>B"],
        IncidentKind.CLOCK_OFF: ["site:A"],
        IncidentKind.SILENT_FEED: ["feed:events"],
    }
    return [incident(kind, culprit) for kind in IncidentKind for culprit in culprits.get(kind, of_transfers)]


def grid_for(an_incident: Incident, *, dry: bool = False, path: Path | None = None) -> FakeGrid:
    """A grid that has every link, storage element and rule that the incident names, with transfers on the links."""
    links = [Entity(EntityKind.LINK, name).link for name in an_incident.evidence.links]
    culprit = an_incident.culprit
    ends = {end for link in links for end in (link.source, link.destination)}
    if culprit.kind is EntityKind.RSE:
        ends.add(culprit.name)
    return FakeGrid(
        rses=[
            RSE(name=e, site=e.partition("_")[0], kind="DISK", read=True, write=True, delete=True) for e in sorted(ends)
        ],
        distances=dict.fromkeys(links, 1),
        limits=dict.fromkeys(links[1:], 20),
        rules=[_rule(rule_id) for rule_id in an_incident.evidence.rules],
        requests=[_request(f"q{i}", link) for link in links for i in range(8)],
        dry=dry,
        path=path,
    )


def check(remedy: type[Remedy[Any]], of: Iterable[Incident]) -> list[str]:
    """Hold a remedy against the contract; return what is wrong, one sentence each.

    Checked: `plan` is pure and can be shown; the same key acts once, also on a grid that carries no keys; `applied` and `verify`
    change nothing and are right before and after; `undo` restores; a dry run goes through; an interruption before, between and
    after the acts can be made good.
    """
    planned = [(i, plan) for i in of if i.kind in remedy.addresses for plan in [_pure_plan(remedy, i)] if plan]
    problems = [plan for _, plan in planned if isinstance(plan, str)]
    cases = [_Case(remedy, i, plan) for i, plan in planned if isinstance(plan, Plan)]
    if not planned:
        problems.append(f"{remedy.name}: no incident given leads to a plan; give incidents that it addresses")
    for case in cases:
        problems += [f"{remedy.name} on {case.incident.id}: {problem}" for problem in case.problems()]
    return problems


def _pure_plan(remedy: type[Remedy[Any]], an_incident: Incident) -> Plan[Any] | str | None:
    """The plan; or what is wrong with it."""
    shown = copy.deepcopy(an_incident)
    try:
        first, second = remedy().plan(shown), remedy().plan(shown)
        if shown != an_incident:
            return f"{remedy.name}: plan changed the incident {an_incident.id}; only read it"
        if first != second:
            return f"{remedy.name}: plan is not pure: {an_incident.id} gave {first!r}, then {second!r}"
        return None if first is None else check_plan(remedy, first)
    except Exception as error:  # noqa: BLE001 - that is the finding
        return f"{remedy.name}: plan raised {error!r} for {an_incident.id}; return None where there is nothing to do"


class _Interrupted:
    """A grid that does not answer: from the act on that is the n-th, before or after that has its effect."""

    def __init__(self, grid: FakeGrid, n: int, *, after: bool) -> None:
        self._grid, self._n, self._after = grid, n, after

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the grid has
        call = getattr(self._grid, name)

        def act(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
            if "key" not in kwargs:
                return call(*args, **kwargs)
            self._n -= 1
            answer = call(*args, **kwargs) if self._n > 0 or (self._n == 0 and self._after) else None
            if self._n <= 0:
                raise GridUnreachable(f"{name} was cut off")
            return answer

        return act


class _Case:
    """One remedy, one incident, and its plan: each check starts from a new grid."""

    def __init__(self, remedy: type[Remedy[Any]], an_incident: Incident, plan: Plan[Any]) -> None:
        self.incident = an_incident
        self._remedy, self._params = remedy, plan.params
        self._memory: dict[str, Any] = {}

    def problems(self) -> Iterator[str]:
        for part in (self._once, self._undone, self._dry, self._interrupted):
            self._memory = {}
            try:
                yield from part()
            except Exception as error:  # noqa: BLE001 - that is the finding
                yield f"raised {error!r}"

    def _new_grid(self, *, dry: bool = False) -> FakeGrid:
        return grid_for(self.incident, dry=dry)

    def _do(self, what: str, grid: object, key: str = KEY) -> Any:  # noqa: ANN401 - what the method returns
        """Call one method as the runner would: with a new instance, the memory so far, and the grid behind its door."""
        door = Door(cast("Grid", grid), key=key, may_act=what in {"apply", "undo"}, say=lambda _: None)
        run = Run(grid=cast("Grid", door), key=key, memory=self._memory, keep=self._memory.setdefault)
        return getattr(self._remedy(), what)(self._params, run)

    def _once(self) -> Iterator[str]:
        grid = self._new_grid()
        before = grid.state()
        said = self._do("applied", grid)
        self._do("apply", grid)
        after, effects = grid.state(), len(grid.effects)
        if effects and said is Applied.YES:
            yield "applied said yes before apply had done anything"
        if effects and after == before:
            yield "apply acted, and nothing changed"
        if self._do("applied", grid) is Applied.NO:
            yield "applied said no after apply had done it"
        verdict = self._do("verify", grid)
        if not isinstance(said, Applied) or not (verdict is None or isinstance(verdict, Outcome)):
            yield f"applied returned {said!r} and verify {verdict!r}; return an Applied, and an Outcome or None"
        self._do("apply", grid)
        if grid.state() != after or len(grid.effects) != effects:
            yield "apply with the same key had its effect twice"
        unmarked = _without_keys(grid)
        self._do("apply", unmarked)
        if unmarked.state() != after:
            yield "apply had its effect twice on a grid that carries no keys; look before you act"

    def _undone(self) -> Iterator[str]:
        if self._remedy.undo is Remedy.undo:
            return
        grid = self._new_grid()
        before = grid.state()
        self._do("apply", grid)
        self._do("undo", grid, key=f"{KEY}/undo")
        if grid.state() != before:
            yield "undo did not restore what was there before"
        if grid.effects and self._remedy.safety is not Safety.READ_ONLY and self._do("applied", grid) is Applied.YES:
            yield "applied said yes after undo"
        self._do("undo", grid, key=f"{KEY}/undo")
        if grid.state() != before:
            yield "undo, done twice, did not restore what was there before"

    def _dry(self) -> Iterator[str]:
        grid = self._new_grid(dry=True)
        self._do("apply", grid)
        if self._do("applied", grid) is Applied.YES and grid.journal:
            yield "applied said yes after a dry run, which changes nothing"

    def _interrupted(self) -> Iterator[str]:
        whole = self._new_grid()
        self._do("apply", whole)
        acts = len(whole.effects)
        for n in range(1, acts + 1):
            for after in (False, True):
                yield from self._interrupted_at(n, whole.state(), after=after, last=n == acts)

    def _interrupted_at(self, n: int, goal: Mapping[str, Any], *, after: bool, last: bool) -> Iterator[str]:
        self._memory = {}
        grid = self._new_grid()
        where = f"cut off {'after' if after else 'before'} act {n}"
        try:
            self._do("apply", _Interrupted(grid, n, after=after))
        except GridUnreachable:
            pass
        else:
            yield f"{where}, apply did not let GridUnreachable through"
        said = self._do("applied", grid)
        complete = after and last
        if complete and said is Applied.NO:
            yield f"{where}, which was the last, applied said no"
        if not complete and said is Applied.YES:
            yield f"{where}, applied said yes"
        if said is not Applied.UNKNOWN:
            self._do("apply", grid)
            if grid.state() != goal:
                yield f"{where}, another apply did not complete it"
        if self._remedy.undo is not Remedy.undo:
            self._do("undo", grid, key=f"{KEY}/undo")
            if grid.state() != self._new_grid().state():
                yield f"{where}, undo did not restore what was there before"


def _without_keys(grid: FakeGrid) -> FakeGrid:
    """The same grid as a backend that does not know which acts it has had."""
    fresh = copy.deepcopy(grid)
    fresh.journal = []
    return fresh


def _links(culprit: Entity) -> list[Link]:
    match culprit.kind:
        case EntityKind.LINK:
            return [culprit.link]
        case EntityKind.RSE:
            return [Link(culprit.name, f"{name}_DISK") for name in "BCDE"]
        case EntityKind.SITE:
            return [Link(f"{culprit.name}_DISK", f"{name}_DISK") for name in "BCDE"]
        case EntityKind.NETWORK:
            return [
                Link(f"{culprit.link.source}_{of}", f"{culprit.link.destination}_{of}") for of in ("DISK", "SCRATCH")
            ]
        case EntityKind.FEED:
            return []
        case _:
            return [Link("A_DISK", "B_DISK"), Link("C_DISK", "B_DISK")]


def _rule(rule_id: str) -> Rule:
    return Rule(
        id=rule_id,
        scope="mc",
        name=f"dataset.{rule_id}",
        rse_expression="B_DISK",
        state="REPLICATING",
        priority=3,
        source_replica_expression=None,
    )


def _request(request_id: str, link: Link) -> Request:
    return Request(
        id=f"{link}-{request_id}",
        rule_id="rule-1",
        name=f"mc:{link}-{request_id}",
        source=link.source,
        destination=link.destination,
        activity="Production Input",
        state="SUBMITTED",
        bytes=10**9,
        sources=(link.source,),
    )
