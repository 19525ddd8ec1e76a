from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import covers as module
from detectors.covers import AFTER_S, Cover, Covers, within
from detectors.localisation import Roles
from models.domain import Entity

HOUR = 3600.0


def test_doctests():
    assert doctest.testmod(module).failed == 0


def cover(entity, start=HOUR, end=2 * HOUR, why="maintenance"):
    return Cover(entity=Entity.parse(entity), start=start, end=end, why=why)


def roles(*links, fts="fts1", activity="Staging"):
    """Transfers of these links, written A>B, by one server and of one activity."""
    ends = np.array([link.split(">") for link in links], dtype=object)
    servers, activities = (np.full(len(links), name, dtype=object) for name in (fts, activity))
    return Roles.of_names(ends[:, 0], ends[:, 1], servers, activities)


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("rse:A_DISK", "rse:A_DISK", True),
        ("rse:A_DISK", "rse:A_TAPE", False),
        ("rse:A_DISK", "site:A", True),
        ("rse:AB_DISK", "site:A", False),
        ("site:A", "rse:A_DISK", False),
        ("link:A_DISK>B_DISK", "site:A", True),
        ("link:A_DISK>B_DISK", "site:B", True),
        ("link:A_DISK>B_DISK", "rse:B_DISK", True),
        ("link:A_DISK>B_DISK", "rse:B_TAPE", False),
        ("link:A_DISK>B_DISK", "network:A>B", True),
        ("link:A_DISK>B_DISK", "network:B>A", False),
        ("rse:A_DISK", "link:A_DISK>B_DISK", False),
        ("network:A>B", "site:B", True),
        ("network:A>B", "rse:B_DISK", False),
        ("network:A>B", "network:A>B", True),
        ("fts:one", "fts:one", True),
        ("fts:one", "fts:two", False),
        ("activity:Staging", "activity:Staging", True),
        ("site:A", "site:A", True),
    ],
)
def test_who_lies_within_whom(inner, outer, expected):
    assert within(Entity.parse(inner), Entity.parse(outer)) is expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [(HOUR - 1, False), (HOUR, True), (2 * HOUR, True), (2 * HOUR + AFTER_S - 1, True), (2 * HOUR + AFTER_S, False)],
)
def test_a_cover_lasts_beyond_its_end(at, expected):
    covers = Covers([cover("site:B", why="new switches")])
    found = covers.of(Entity.parse("rse:B_DISK"), at)
    assert (found is not None) is expected
    assert found is None or found.why == "new switches"
    assert covers.of(Entity.parse("rse:C_DISK"), at) is None


def test_what_stands_is_over_at_its_end():
    covers = Covers([cover("site:A"), cover("rse:B_DISK", start=0.0)])
    assert [str(one.entity) for one in covers.standing(HOUR)] == ["site:A", "rse:B_DISK"]
    assert [str(one.entity) for one in covers.standing(HOUR - 1)] == ["rse:B_DISK"]
    assert covers.standing(2 * HOUR) == []
    assert covers.of(Entity.parse("site:A"), 2 * HOUR, after=0.0) is None


def test_transfers_that_touch_what_is_covered():
    covers = Covers([cover("site:A"), cover("link:B_DISK>C_DISK"), cover("fts:other")])
    moved = roles("A_DISK>B_DISK", "B_DISK>A_TAPE", "B_DISK>C_DISK", "C_DISK>B_DISK", "AB_DISK>C_DISK")
    inside, before, after = np.full(5, 1.5 * HOUR), np.full(5, HOUR - 1.0), np.full(5, 2 * HOUR + AFTER_S)
    assert covers.touched(moved, inside).tolist() == [True, True, True, False, False]
    assert not covers.touched(moved, before).any()
    assert not covers.touched(moved, after).any()


def test_a_network_is_the_links_between_its_sites():
    covers = Covers([cover("network:A>B")])
    moved = roles("A_DISK>B_DISK", "B_DISK>A_DISK", "A_DISK>C_DISK")
    assert covers.touched(moved, np.full(3, HOUR)).tolist() == [True, False, False]


def test_a_transfer_that_ran_through_a_downtime_is_covered_whenever_it_ended():
    covers = Covers([cover("rse:A_DISK")])
    moved = roles("A_DISK>B_DISK", "A_DISK>B_DISK", "A_DISK>B_DISK")
    ended = np.array([9 * HOUR, 9 * HOUR, 1.5 * HOUR])
    began = np.array([1.5 * HOUR, 8 * HOUR, math.nan])
    assert covers.touched(moved, ended, began).tolist() == [True, False, True]
    assert covers.touched(moved, ended).tolist() == [False, False, True]


def test_nothing_announced_and_nothing_moved():
    assert not Covers().touched(roles("A_DISK>B_DISK"), np.array([0.0])).any()
    assert Covers().of(Entity.parse("site:A"), 0.0) is None
    nothing = np.empty(0, dtype=object)
    assert Covers([cover("site:A")]).touched(Roles.of_names(nothing, nothing, nothing, nothing), np.empty(0)).shape == (
        0,
    )


@pytest.mark.parametrize(("start", "end"), [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_a_cover_must_end_after_it_begins(start, end):
    with pytest.raises(ValueError, match=r"cover of site:A .* must end after it begins"):
        cover("site:A", start=start, end=end)


LINKS = [f"{a}_{x}>{b}_{y}" for a in "AB" for b in "BC" for x in ("DISK", "TAPE") for y in ("DISK",)]
ENTITIES = ["site:A", "site:B", "rse:A_DISK", "rse:B_DISK", "link:A_DISK>B_DISK", "network:A>B", "network:B>C"]


@given(
    announced=st.lists(
        st.tuples(st.sampled_from(ENTITIES), st.floats(0, 1e5), st.floats(1, 1e5)), min_size=1, max_size=4
    ),
    moved=st.lists(st.tuples(st.sampled_from(LINKS), st.floats(0, 3e5)), min_size=1, max_size=20),
)
def test_of_many_transfers_as_of_each_link(announced, moved):
    """Both answers are one: a transfer is covered where its link is, at its time."""
    covers = Covers(cover(entity, start, start + length) for entity, start, length in announced)
    links, ended = [link for link, _ in moved], np.array([at for _, at in moved])
    one_by_one = [covers.of(Entity.parse(f"link:{link}"), at) is not None for link, at in moved]
    assert covers.touched(roles(*links), ended).tolist() == one_by_one
