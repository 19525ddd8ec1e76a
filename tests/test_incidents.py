"""The life of incidents: when they open, what they are put down to as more is seen, and when they are over."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from detectors.incidents import ABANDONED_S, IncidentBook
from detectors.kinship import akin, lies_within, same_place, shared_end
from detectors.localisation import Roles
from detectors.window import FAILING, LATE, Ends
from models.domain import Entity, IncidentKind, IncidentStatus

START = 1_500_000_000.0
SITES = ("A", "B", "C", "D", "E")
RSES = tuple(f"{site}_{space}" for site in SITES for space in ("DISK", "SCRATCH"))


def transfers(hours, *, per_hour=1200, seed=1):
    """Rows of a made-up grid that is well, in the order in which they end."""
    rng = np.random.default_rng(seed)
    n = int(hours * per_hour)
    source = rng.integers(0, len(RSES), n)
    destination = (source + rng.integers(1, len(RSES), n)) % len(RSES)
    ended, names = START + np.sort(rng.uniform(0, hours * 3600, n)), np.array(RSES, dtype=object)
    return pd.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(n)],
            "source": names[source],
            "destination": names[destination],
            "fts": "f",
            "activity": "a",
            "rule_id": "",
            "reason": "",
            "bytes": 1e8,
            "submitted_at": ended - 60.0,
            "started_at": ended - 40.0,
            "ended_at": ended,
            "due_at": ended + 200.0,
            "failed": False,
            "slow": False,
            "slow_s": 30.0,
            "q50": 3.5,
            "calibrates": True,
            "path_loss": np.nan,
            "path_delay_ms": np.nan,
            "path_throughput_bps": np.nan,
        }
    )


def slow(rows, which):
    """The same with some that ran five times as long as would be slow."""
    started = np.where(which, rows["ended_at"] - 150.0, rows["started_at"])
    return rows.assign(slow=rows["slow"] | which, started_at=started)


def lived(rows, *, step_s=60.0):
    """Every state of every incident, in order, and the book."""
    book, seen = IncidentBook(), []
    for end in np.arange(START + step_s, rows["ended_at"].max() + 120.0, step_s):
        page = rows[(rows["ended_at"] >= end - step_s) & (rows["ended_at"] < end)].reset_index(drop=True)
        seen += book.advance(page, until=end)
    return seen, book


def since(rows, hours, until=99.0):
    return (rows["ended_at"] >= START + hours * 3600) & (rows["ended_at"] < START + until * 3600)


def test_what_befell_some_at_once_opens_nothing():
    rows = transfers(3)
    seen, _ = lived(slow(rows, (rows["source"] == "A_DISK") & since(rows, 2, 2 + 1 / 60)))
    assert seen == []


def test_two_links_that_are_slow_one_after_the_other_are_the_end_that_they_share():
    rows = transfers(3.2)
    rows["destination"] = np.where(
        (rows["source"] == "B_DISK") & (rows["destination"] == "A_SCRATCH"), "A_DISK", rows["destination"]
    )
    into = (rows["destination"] == "A_DISK") & rows["source"].isin(["B_DISK", "C_DISK"])
    begin = np.where(rows["source"] == "B_DISK", START + 2.5 * 3600, START + 2.6 * 3600)
    sick = (into & (rows["ended_at"] >= begin)) | ((rows["destination"] == "A_DISK") & since(rows, 2.7))
    seen, book = lived(slow(rows, sick))
    assert [str(one.culprit) for one in book.open] == ["rse:A_DISK"]
    assert len({one.id for one in seen}) == 1


def test_an_old_incident_is_not_put_down_to_a_new_culprit():
    rows = transfers(5)
    tape = (rows["source"] == "A_DISK") & since(rows, 2)
    server = since(rows, 3.5) & rows["source"].isin([rse for rse in RSES if rse.startswith(("A", "B", "C"))])
    seen, _ = lived(slow(rows, tape | server))
    first = [str(one.culprit) for one in seen if one.id == seen[0].id]
    assert set(first) == {"rse:A_DISK"}
    assert len({one.id for one in seen}) > 1


def test_what_fails_at_the_other_end_is_not_held_against_a_culprit():
    rows = transfers(3)
    missing = (rows["source"] == "A_DISK") & since(rows, 2)
    full = (rows["destination"] == "B_DISK") & since(rows, 2) & ~missing
    rows = rows.assign(
        failed=missing | full, reason=np.select([missing, full], ["source-missing", "destination-full"], "")
    )
    seen, book = lived(rows)
    told = {str(one.culprit): one.evidence for one in seen}
    assert set(told) == {"rse:A_DISK", "rse:B_DISK"}
    assert set(told["rse:A_DISK"].reasons) == {"source-missing"}
    roles, blame = Roles.of(rows), Ends.of(rows).blame(FAILING)
    for incident in book.open:
        assert set(rows["reason"][roles.badly(incident, blame)]) == set(incident.evidence.reasons)
    assert np.array_equal(Ends.of(rows).blame(LATE).source, Ends.of(rows).blame(LATE).destination)


def test_a_site_is_well_again_though_one_path_is_not():
    rows = transfers(5, per_hour=2400)
    site = rows["source"].str.startswith("A_") | rows["destination"].str.startswith("A_")
    path = rows["source"].str.startswith("B_") & rows["destination"].str.startswith("A_")
    seen, book = lived(slow(rows, (site & since(rows, 2, 3)) | (path & since(rows, 2))))
    first = next(one for one in reversed(seen) if one.id == seen[0].id)
    assert (str(first.culprit), first.status) == ("site:A", IncidentStatus.CLOSED)
    assert first.closed_at.timestamp() < START + 3.75 * 3600
    assert all(str(one.culprit) != "site:A" for one in book.open)


def test_an_end_is_not_well_because_a_few_go_well_elsewhere():
    rows = transfers(4)
    few = (rows["source"] == "A_DISK") & (rows.index % 4 != 0)
    rows["destination"] = np.where(few, "B_DISK", rows["destination"])
    sick = (rows["source"] == "A_DISK") & since(rows, 2)
    well = sick & (rows["destination"] != "B_DISK") & since(rows, 2.5)
    seen, book = lived(slow(rows, sick & ~well))
    assert [one.id for one in book.open] == [seen[0].id]


def test_who_is_heard_of_no_more_is_forgotten_and_found_again_under_the_same_id():
    rows = transfers(5)
    own = rows["source"] == "A_DISK"
    back = START + 2.5 * 3600 + ABANDONED_S + 900.0
    rows = rows[~own | (rows["ended_at"] < START + 2.5 * 3600) | (rows["ended_at"] >= back)].reset_index(drop=True)
    seen, _ = lived(slow(rows, (rows["source"] == "A_DISK") & since(rows, 2)))
    assert len({one.id for one in seen}) == 1
    assert {one.status for one in seen} == {IncidentStatus.OPEN, IncidentStatus.CLOSED}
    assert seen[-1].kind is IncidentKind.SLOW_TRANSFERS
    assert not seen[-1].closed


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("link:A_X>B_X", "link:B_X>A_Y", "rse:B_X"),
        ("link:A_X>B_X", "link:B_X>A_X", None),
        ("link:A_X>B_X", "network:C>B", "site:B"),
        ("network:A>B", "network:B>C", "site:B"),
        ("link:A_X>B_X", "link:C_X>B_Y", "site:B"),
        ("link:A_X>B_X", "link:C_X>D_X", None),
        ("rse:A_X", "link:A_X>B_X", None),
    ],
)
def test_two_links_share_an_end(one, other, shared):
    pair = Entity.parse(one), Entity.parse(other)
    assert shared_end(*pair) == shared_end(*reversed(pair)) == (Entity.parse(shared) if shared else None)


def test_what_lies_within_what():
    link, path, rse, site = map(Entity.parse, ("link:A_X>B_X", "network:A>B", "rse:A_X", "site:A"))
    assert all(lies_within(link, outer) for outer in (link, path, rse, site))
    assert lies_within(rse, site)
    assert lies_within(path, site)
    assert not lies_within(site, rse)
    assert akin(site, rse)
    assert not akin(path, rse)
    assert same_place(site, rse)
    assert same_place(path, link)
    assert not same_place(site, path)
