"""Each built-in as an operator would have it: when it makes sense, what exactly it does, and what it leaves alone."""

from __future__ import annotations

import pytest

from models.domain import GridError, IncidentKind, RemedyError, Share
from remedies.builtin.boost_rule import BoostRule
from remedies.builtin.exclude_storage import ExcludeStorage
from remedies.builtin.open_ticket import OpenTicket
from remedies.builtin.switch_source import SwitchSource, SwitchSourceParameters
from remedies.builtin.throttle_link import ThrottleLink
from remedies.builtin.wait import Wait
from remedies.catalog import BUILTIN
from remedies.contract import BASELINE, Applied, Run
from remedies.testing import FakeGrid, grid_for, incident

SLOW, FAILING, STALLED = (
    IncidentKind.SLOW_TRANSFERS,
    IncidentKind.FAILING_TRANSFERS,
    IncidentKind.STALLED_TRANSFERS,
)
OUT = {"A_DISK>B_DISK": 9, "A_DISK>C_DISK": 7, "A_DISK>D_DISK": 5, "A_DISK>E_DISK": 1}
IN = {"B_DISK>A_DISK": 9, "C_DISK>A_DISK": 7}
HOSTILE = "<script>alert(1)</script>\n# heading\x1b[2J\u202e[a](http://x) " + "x" * 10_000


@pytest.mark.parametrize("kind", list(IncidentKind))
def test_every_kind_of_incident_can_be_waited_for(kind):
    plan = Wait().plan(incident(kind, "site:A"))
    assert Wait.name == BASELINE
    assert kind in Wait.addresses
    assert plan.targets == ("site:A",)


def test_every_kind_but_a_silent_feed_has_more_than_waiting():
    for kind in set(IncidentKind) - {IncidentKind.SILENT_FEED}:
        assert sum(kind in remedy.addresses for remedy in BUILTIN) >= 2


@pytest.mark.parametrize(
    ("culprit", "links", "chosen"),
    [
        ("link:A_DISK>B_DISK", {}, ["A_DISK>B_DISK"]),
        ("rse:A_DISK", OUT, ["A_DISK>B_DISK", "A_DISK>C_DISK", "A_DISK>D_DISK"]),
        ("rse:A_DISK", IN, None),
        ("rse:A_DISK", {**OUT, "B_DISK>A_DISK": 60}, None),
        ("rse:A_DISK", {**OUT, "B_DISK>A_DISK": 3}, ["A_DISK>B_DISK", "A_DISK>C_DISK", "A_DISK>D_DISK"]),
        ("site:A", {"A_TAPE>B_DISK": 3, "AB_DISK>A_DISK": 1}, ["A_TAPE>B_DISK"]),
        ("network:A>B", {"A_DISK>B_DISK": 3}, ["A_DISK>B_DISK"]),
        ("fts:fts.example.org", OUT, None),
        ("activity:Production Input", OUT, None),
        ("rse:A_DISK", {}, None),
        ("link:A/../DISK>B_DISK", {}, None),
        ("link:A DISK>B_DISK", {}, None),
    ],
)
def test_the_source_is_switched_where_the_trouble_is_on_its_way_out(culprit, links, chosen):
    plan = SwitchSource().plan(incident(SLOW, culprit, links=links))
    assert (plan and list(plan.params.links)) == chosen
    assert plan is None or plan.targets == tuple(f"link:{link}" for link in chosen)


def test_links_stand_in_the_order_of_their_harm_whatever_order_they_came_in():
    plan = SwitchSource().plan(incident(SLOW, "rse:A_DISK", links=dict(reversed(OUT.items()))))
    assert plan.params.links == ("A_DISK>B_DISK", "A_DISK>C_DISK", "A_DISK>D_DISK")


def test_a_source_that_stands_farther_already_is_left_there():
    an_incident = incident(SLOW, "rse:A_DISK")
    grid = grid_for(an_incident)
    grid.set_distance("A_DISK", "B_DISK", 500, key="an operator")
    plan = SwitchSource().plan(an_incident)
    run = Run(grid=grid, key="k")
    SwitchSource().apply(plan.params, run)
    assert grid.distance("A_DISK", "B_DISK") == 500
    SwitchSource().undo(plan.params, Run(grid=grid, key="k/undo", memory=run.memory))
    assert [grid.distance("A_DISK", f"{name}_DISK") for name in "BCD"] == [500, 1, 1]


def test_a_link_that_is_not_connected_is_refused_before_any_act():
    grid = FakeGrid()
    params = SwitchSourceParameters(links=("A>B",))
    with pytest.raises(GridError, match="A>B has no distance: the two are not connected"):
        SwitchSource().apply(params, Run(grid=grid, key="k"))
    assert grid.journal == []
    assert SwitchSource().applied(params, Run(grid=grid, key="k")) is Applied.NO


@pytest.mark.parametrize(
    ("limit", "share", "allowed"), [(20, 0.5, 10), (5, 0.5, 2), (2, 0.1, 1), (None, 0.5, 4), (None, 0.9, 7)]
)
def test_a_link_is_throttled_to_a_share_of_its_limit_or_of_what_runs(limit, share, allowed):
    an_incident = incident(SLOW, "link:A_DISK>B_DISK")
    grid = grid_for(an_incident)
    grid.set_link_limit("A_DISK", "B_DISK", limit, key="before")
    params = ThrottleLink().plan(an_incident).params.model_copy(update={"share": share})
    run = Run(grid=grid, key="k")
    assert ThrottleLink().applied(params, run) is Applied.NO
    ThrottleLink().apply(params, run)
    assert grid.link_limit("A_DISK", "B_DISK") == allowed
    ThrottleLink().undo(params, Run(grid=grid, key="k/undo", memory=run.memory))
    assert grid.link_limit("A_DISK", "B_DISK") == limit


def test_an_idle_link_is_not_throttled():
    params = ThrottleLink().plan(incident(SLOW, "link:A_DISK>B_DISK")).params
    grid = FakeGrid()
    with pytest.raises(RemedyError, match="no two transfers run at once on A_DISK>B_DISK"):
        ThrottleLink().apply(params, Run(grid=grid, key="k"))
    assert grid.journal == []


def test_few_rules_are_boosted_and_those_that_are_gone_do_not_matter():
    rules = tuple(f"rule-{n}" for n in range(9))
    an_incident = incident(STALLED, "rse:A_DISK", rules=(*rules, "../../x", "rule-0"))
    plan = BoostRule().plan(an_incident)
    assert plan.params.rules == rules[:5]
    assert plan.targets == tuple(f"rule:{rule}" for rule in rules[:5])
    grid = grid_for(incident(STALLED, "rse:A_DISK", rules=rules[:3]))
    run = Run(grid=grid, key="k")
    BoostRule().apply(plan.params, run)
    assert [grid.rule(rule).priority for rule in rules[:3]] == [5, 5, 5]
    assert BoostRule().applied(plan.params, run) is Applied.YES
    with pytest.raises(GridError, match="none is there any more"):
        BoostRule().apply(plan.params, Run(grid=FakeGrid(), key="k"))


def test_no_rules_no_boost():
    assert BoostRule().plan(incident(STALLED, "rse:A_DISK", rules=())) is None


@pytest.mark.parametrize(
    ("kind", "source", "destination", "operations"),
    [
        (FAILING, (30, 40), (0, 0), ("read",)),
        (FAILING, (0, 40), (30, 40), ("write",)),
        (FAILING, (30, 40), (25, 40), ("read", "write")),
        (FAILING, (30, 40), (1, 40), ("read",)),
        (STALLED, (0, 0), (0, 0), None),
        (IncidentKind.FAILING_DELETIONS, (0, 0), (0, 0), ("delete",)),
    ],
)
def test_storage_is_excluded_from_what_fails_there(kind, source, destination, operations):
    shares = [Share(anomalous=bad, total=total) for bad, total in (source, destination)]
    an_incident = incident(kind, "rse:A_DISK", as_source=shares[0], as_destination=shares[1])
    plan = ExcludeStorage().plan(an_incident)
    assert (plan and plan.params.operations) == operations
    if plan is not None:
        grid = grid_for(an_incident)
        ExcludeStorage().apply(plan.params, Run(grid=grid, key="k"))
        rse = grid.rse("A_DISK")
        off = [name for name in ("read", "write", "delete") if not getattr(rse, name)]
        assert tuple(off) == operations


@pytest.mark.parametrize("culprit", ["link:A_DISK>B_DISK", "site:A", "fts:f", "rse:A/../B"])
def test_only_one_storage_element_is_excluded(culprit):
    assert ExcludeStorage().plan(incident(FAILING, culprit, as_source=Share(anomalous=9, total=9))) is None


def test_storage_that_was_off_before_stays_off_after_an_undo():
    an_incident = incident(FAILING, "rse:A_DISK", as_destination=Share(anomalous=30, total=40))
    grid = grid_for(an_incident)
    grid.set_availability("A_DISK", "write", False, key="a downtime")
    plan, run = ExcludeStorage().plan(an_incident), Run(grid=grid, key="k")
    ExcludeStorage().apply(plan.params, run)
    ExcludeStorage().undo(plan.params, Run(grid=grid, key="k/undo", memory=run.memory))
    assert (grid.rse("A_DISK").read, grid.rse("A_DISK").write) == (True, False)


def test_a_ticket_says_what_support_needs():
    params = OpenTicket().plan(incident(FAILING, "rse:A_DISK")).params
    assert params.title == "Failing transfers: rse:A_DISK"
    for part in ("since 2025-03-01 12:00 UTC", "30 of 40 transfers", "A_DISK>B_DISK", "transfer-timeout", "request r1"):
        assert part in params.body


def test_hostile_text_stays_text():
    example = incident(FAILING, "rse:A_DISK").evidence.examples[0]
    an_incident = incident(
        FAILING,
        f"rse:{HOSTILE}",
        summary=HOSTILE,
        reasons={HOSTILE: 3},
        activities={HOSTILE: 2},
        links={HOSTILE: 1, "A>B": 1},
        rules=(HOSTILE,),
        examples=(type(example)(request_id=HOSTILE, link=HOSTILE, ended_at=example.ended_at, reason=HOSTILE),),
    )
    plan = OpenTicket().plan(an_incident)
    assert plan.summary.isprintable()
    assert plan.params.title.isprintable()
    assert "<" not in plan.params.title
    assert len(plan.params.body) < 20_000
    for line in plan.params.body.splitlines():
        assert line.isprintable()
        assert "<script" not in line
        assert "heading" not in line or line.startswith("    "), "indented lines are no markup"
    for remedy in (SwitchSource, ThrottleLink, BoostRule, ExcludeStorage):
        other = remedy().plan(an_incident)
        assert other is None or all(name.isprintable() for name in other.targets)
    assert Wait().plan(an_incident) is not None


def test_one_ticket_for_one_decision():
    plan, grid = OpenTicket().plan(incident(FAILING, "rse:A_DISK")), FakeGrid()
    for _ in range(2):
        OpenTicket().apply(plan.params, Run(grid=grid, key="k"))
    assert len(grid.journal) == 1
    OpenTicket().apply(plan.params, Run(grid=grid, key="another"))
    assert [ticket["mark"] for ticket in grid.state()["tickets"]] == ["k", "another"]


@pytest.mark.parametrize("remedy", [SwitchSource, ThrottleLink, BoostRule, ExcludeStorage])
def test_without_memory_an_undo_is_refused(remedy):
    kind = FAILING if remedy is ExcludeStorage else SLOW
    an_incident = incident(kind, "rse:A_DISK")
    with pytest.raises(RemedyError, match=r"not remembered; set (them|it) by hand"):
        remedy().undo(remedy().plan(an_incident).params, Run(grid=grid_for(an_incident), key="k"))
