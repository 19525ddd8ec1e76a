from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models import history
from models.history import History, Timeline, retained


def slots(timeline: Timeline, code: int, at: int, count: int = 10) -> list[int]:
    found, there = timeline.last(timeline.before(np.array([code]), np.array([at])), count)
    return found[there].tolist()


def insert(timeline: Timeline, rows: list[tuple[int, int, int, int]]) -> None:
    timeline.insert(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)))


def test_only_what_ended_strictly_before_is_seen() -> None:
    timeline = Timeline()
    insert(timeline, [(3, 50, 100, 0), (3, 60, 200, 1), (4, 60, 150, 2)])
    assert slots(timeline, 3, 100) == []
    assert slots(timeline, 3, 101) == [0]
    assert slots(timeline, 3, 201) == [1, 0]
    assert slots(timeline, 4, 201) == [2]
    assert slots(timeline, 9, 201) == []


def test_last_returns_no_more_than_asked_for_the_newest_first() -> None:
    timeline = Timeline()
    insert(timeline, [(0, i, 10 * i, i) for i in range(20)])
    assert slots(timeline, 0, 1000, count=3) == [19, 18, 17]


def test_a_late_completion_is_not_seen_by_those_that_were_looked_at_before() -> None:
    timeline = Timeline()
    insert(
        timeline, [(0, 500, 600, 0), (0, 50, 100, 1)]
    )  # the second ended before the first started, and came after it
    assert slots(timeline, 0, 500) == []
    assert slots(timeline, 0, 501) == [1]


@pytest.mark.parametrize("in_order", [False, True])
def test_cuts_do_not_matter(in_order: bool) -> None:
    draw = np.random.default_rng(5)
    count = 400
    started = draw.integers(0, 5000, count)
    rows = np.stack([draw.integers(0, 7, count), started, started + draw.integers(0, 900, count), np.arange(count)])
    whole, cut = Timeline(in_order=in_order), Timeline(in_order=in_order)
    whole.insert(*rows)
    for part in np.split(rows, np.sort(draw.integers(0, count, 25)), axis=1):
        cut.insert(*part)
    codes, at = draw.integers(0, 8, 200), draw.integers(0, 6000, 200)
    for left, right in zip(whole.last(whole.before(codes, at), 5), cut.last(cut.before(codes, at), 5), strict=True):
        np.testing.assert_array_equal(left, right)


def test_nothing_is_seen_of_what_came_later_or_ended_later() -> None:
    draw = np.random.default_rng(6)
    count = 500
    started = draw.integers(0, 3000, count)
    ended = started + draw.integers(0, 400, count)  # in no order at all
    codes = draw.integers(0, 5, count)
    timeline = Timeline()
    timeline.insert(codes, started, ended, np.arange(count))
    found, there = timeline.last(timeline.before(codes, started), count)
    for i in range(count):
        seen = found[i][there[i]]
        assert (seen < i).all()
        assert (ended[seen] < started[i]).all()
        assert (codes[seen] == codes[i]).all()


def test_in_order_streams_see_everything_that_they_may() -> None:
    draw = np.random.default_rng(7)
    count = 500
    ended = np.sort(draw.integers(0, 9000, count))
    started = np.maximum(ended - draw.integers(0, 400, count), 0)
    codes = draw.integers(0, 5, count)
    timeline = Timeline()
    timeline.insert(codes, started, ended, np.arange(count))
    _, there = timeline.last(timeline.before(codes, started), count)
    allowed = [((ended < started[i]) & (codes == codes[i]) & (np.arange(count) < i)).sum() for i in range(count)]
    np.testing.assert_array_equal(there.sum(axis=1), allowed)


def frame(**columns: object) -> pd.DataFrame:
    rows = pd.DataFrame(columns)
    return rows.astype({"source": "str", "destination": "str"})


def test_names_that_are_only_looked_up_leave_no_trace() -> None:
    memory = History()
    one = frame(source=["A"], destination=["B"], bytes=[10.0], started_at=[1.0], ended_at=[2.0])
    memory.absorb(memory.code(one, learn=True))
    new = frame(
        source=["X", "A"], destination=["Y", "B"], bytes=[np.nan] * 2, started_at=[5.0] * 2, ended_at=[np.nan] * 2
    )
    coded = memory.code(new, learn=False)
    assert memory.links == 1
    assert coded.link.tolist() == [1, 0]
    assert slots(memory.timelines["link"], 1, 10_000) == []
    assert slots(memory.timelines["source"], int(coded.source[0]), 10_000) == []


def test_retained_keeps_the_newest_and_each_links_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "RETAINED", 10)
    monkeypatch.setattr(history, "RETAINED_PER_LINK", 3)
    rows = frame(source=["rare"] * 5 + ["busy"] * 95, destination=["D"] * 100)
    keep = retained(rows)
    assert np.flatnonzero(keep).tolist() == [2, 3, 4, *range(90, 100)]


def test_retained_keeps_all_of_little() -> None:
    assert retained(frame(source=["A"], destination=["B"])).all()
    assert len(retained(frame(source=[], destination=[]))) == 0
