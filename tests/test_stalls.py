"""Transfers that should have ended by now, and incidents of them: before they end, and not for a queue that moves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from detectors.incidents import IncidentBook
from detectors.stalls import BLOCK, UNDER_WAY_COLUMNS, Patience, UnderWay
from detectors.weather import Sky, Weather
from models.domain import IncidentKind, IncidentStatus

START = 1_500_000_000.0
RSES = tuple(f"S{n}_DISK" for n in range(6))


def transfers(seed, hours, *, per_hour=600, servers=("f0", "f1")):
    """Rows of a made-up grid that is well: a minute or so from submission to end."""
    rng = np.random.default_rng(seed)
    n = int(hours * per_hour)
    source, step = rng.integers(0, 6, n), rng.integers(1, 6, n)
    destination = (source + step) % 6
    submitted = START + np.sort(rng.uniform(0, hours * 3600, n))
    names = np.array(RSES, dtype=object)
    return pd.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(n)],
            "source": names[source],
            "destination": names[destination],
            "fts": np.array(servers, dtype=object)[destination % len(servers)],
            "activity": "a",
            "rule_id": "",
            "reason": "",
            "bytes": 1e8,
            "submitted_at": submitted,
            "started_at": submitted + 20.0,
            "ended_at": submitted + 20.0 + rng.lognormal(3.5, 0.5, n),
            "failed": False,
            "slow": False,
            "slow_s": 300.0,
            "q50": 3.5,
            "calibrates": True,
            "path_loss": np.nan,
            "path_delay_ms": np.nan,
            "path_throughput_bps": np.nan,
        }
    )


def lived(rows, *, until_h, step_s=60.0, stopped=lambda _: np.zeros(1, dtype=bool)):
    """The incidents of a stream in which what `stopped` picks never ends, as they stand at last, and the book."""
    rows = rows.assign(ended_at=np.where(stopped(rows), np.inf, rows["ended_at"]))
    patience, under_way, book, found, opened = Patience(), UnderWay(), IncidentBook(), {}, {}
    for end in np.arange(START + step_s, START + until_h * 3600 + 1, step_s):
        new = rows[(rows["submitted_at"] >= end - step_s) & (rows["submitted_at"] < end)]
        under_way.add(new.assign(due_at=patience.due(new)))
        ended = rows[(rows["ended_at"] >= end - step_s) & (rows["ended_at"] < end)].reset_index(drop=True)
        ended = ended.assign(due_at=under_way.end(ended["request_id"].to_numpy(dtype=object)))
        overdue = under_way.overdue((book.until or end) - 1800.0, end)
        for incident in book.advance(ended, until=end, overdue=overdue):
            found[incident.id] = incident
            opened.setdefault(incident.id, end)
        patience.absorb(ended.assign(calibrates=~book.blamed(ended)))
    return found, opened, book


def test_a_server_that_stands_still_is_found_before_anything_ends():
    rows = transfers(1, 4)

    def stopped(rows):
        return (rows["fts"] == "f1") & (rows["submitted_at"] >= START + 3 * 3600)

    found, opened, _ = lived(rows, until_h=4, stopped=stopped)
    standing = [one for one in found.values() if one.status is IncidentStatus.OPEN]
    assert [(one.kind, str(one.culprit)) for one in standing] == [(IncidentKind.STALLED_TRANSFERS, "fts:f1")]
    assert opened[standing[0].id] <= START + 3 * 3600 + 600.0  # FTS itself would give up after 600 s and more
    (example, *_) = standing[0].evidence.examples
    assert example.ended_at is None
    assert example.duration_s is None


def test_a_server_whose_name_looks_like_a_link_stops_nothing():
    rows = transfers(1, 4, servers=("f0", "a>b"))
    missing = (rows["source"] == RSES[0]) & (rows["submitted_at"] >= START + 2.5 * 3600)
    rows["failed"], rows["reason"] = missing, np.where(missing, "source-missing", "")

    def stopped(rows):
        return (rows["fts"] == "a>b") & (rows["submitted_at"] >= START + 3 * 3600)

    found, _, _ = lived(rows, until_h=4, stopped=stopped)
    assert {str(one.culprit) for one in found.values() if not one.closed} == {f"rse:{RSES[0]}", "fts:a>b"}


def test_a_server_without_a_name_is_not_to_blame():
    rows = transfers(1, 4, servers=("f0", ""))

    def stopped(rows):
        return (rows["fts"] == "") & (rows["submitted_at"] >= START + 3 * 3600)

    found, _, _ = lived(rows, until_h=4, stopped=stopped)
    assert found
    assert all(one.culprit.name for one in found.values())


def test_a_grid_that_is_well_has_none():
    found, _, _ = lived(transfers(2, 6), until_h=6)
    assert found == {}


def test_a_burst_that_moves_is_a_queue_and_no_incident():
    rows = transfers(3, 4)
    burst = transfers(4, 0.05, per_hour=2400).assign(source=RSES[0], destination=RSES[1], fts="f1")
    begin = START + 3 * 3600
    # A hundred at once, of which the link takes six a minute.
    served = begin + 60.0 + 10.0 * np.arange(len(burst))
    burst = burst.assign(
        request_id=[f"b{k}" for k in range(len(burst))], submitted_at=begin, started_at=served - 30.0, ended_at=served
    )
    found, _, _ = lived(pd.concat([rows, burst], ignore_index=True), until_h=4)
    assert [one for one in found.values() if one.kind is IncidentKind.STALLED_TRANSFERS] == []


def test_patience_does_not_depend_on_how_the_rows_are_cut():
    rows = transfers(5, 2)
    whole, parts = Patience(), Patience()
    whole.absorb(rows)
    for start in range(0, len(rows), 37):
        parts.absorb(rows.iloc[start : start + 37])
    assert len(rows) > 2 * BLOCK
    assert np.array_equal(whole.due(rows), parts.due(rows))


def test_a_link_with_long_queues_is_given_long():
    rows = transfers(6, 6)
    long = (rows["source"] == RSES[0]) & (rows["destination"] == RSES[3])
    rows = rows.assign(ended_at=np.where(long, rows["ended_at"] + 5000.0, rows["ended_at"]))
    patience = Patience()
    patience.absorb(rows)
    left = patience.due(rows) - rows["submitted_at"]
    assert left[long].min() > 3600.0
    assert left[~long].median() < 600.0


def test_what_ends_is_no_longer_under_way_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr("detectors.stalls.MOST_UNDER_WAY", 3)
    under_way = UnderWay()
    rows = transfers(7, 0.01)[:5].assign(due_at=START + np.arange(5.0))
    under_way.add(rows)
    assert len(under_way) == 3
    ended = under_way.end(np.array(["r4", "r0", "nobody"], dtype=object))
    assert ended[0] == START + 4.0
    assert np.isnan(ended[1:]).all()
    left = under_way.overdue(START, START + 3.0)
    assert list(left.columns) == list(UNDER_WAY_COLUMNS)
    assert left["request_id"].tolist() == ["r2"]


def test_a_submission_that_is_heard_of_after_the_end_starts_nothing():
    under_way = UnderWay()
    assert np.isnan(under_way.end(np.array(["r0"], dtype=object))).all()
    under_way.add(transfers(8, 0.01)[:2].assign(due_at=START))
    assert under_way.overdue(START, START + 1.0)["request_id"].tolist() == ["r1"]


def test_what_was_never_seen_under_way_is_overdue_when_it_ends_and_not_before():
    patience = Patience()
    patience.absorb(transfers(9, 2))
    ended = transfers(10, 0.1)[:3].assign(ended_at=lambda rows: rows["submitted_at"] + [60.0, 90_000.0, 90_000.0])
    ended.loc[2, "submitted_at"] = np.nan
    due = patience.due_unseen(ended)
    assert due[0] > ended["ended_at"][0]
    assert due[1] == ended["ended_at"][1] - 1.0
    assert np.isnan(due[2])


@pytest.fixture
def weather():
    """A day of readings every ten minutes between three sites, without loss, 20 ms apart."""
    found = Weather()
    at = START + 600.0 * np.arange(144)
    for source, destination in (("A", "B"), ("B", "A"), ("A", "C"), ("C", "A"), ("A", "D"), ("D", "A")):
        found.absorb(readings(source, destination, "packet_loss", at, 0.0))
        found.absorb(readings(source, destination, "delay_mean", at, 20.0))
    return found


NOW = START + 86_400.0


def readings(source, destination, quantity, at, value):
    at = np.atleast_1d(np.asarray(at, dtype=float))
    columns = {"source_site": source, "destination_site": destination, "source_host": "", "destination_host": ""}
    return pd.DataFrame(columns | {"quantity": quantity, "value": value, "at": at})


def test_a_path_is_ill_by_loss_or_by_delay_and_else_well_or_unknown(weather):
    assert weather.of("A>B", NOW).sky is Sky.WELL
    assert weather.of("B>C", NOW).sky is Sky.UNKNOWN
    assert weather.of("A>B", NOW + 7200.0).sky is Sky.UNKNOWN  # nothing was measured for hours
    weather.absorb(readings("A", "B", "packet_loss", NOW, 0.006))
    assert weather.of("A>B", NOW).sky is Sky.ILL
    assert not weather.of("A>B", NOW).sure  # one burst
    weather.absorb(readings("A", "B", "packet_loss", NOW + 600.0, 0.005))
    assert weather.of("A>B", NOW + 600.0).sure
    weather.absorb(readings("A", "C", "delay_mean", NOW, 60.0))
    assert weather.of("a>c", NOW).sky is Sky.ILL
    assert weather.of("a>c", NOW).doubt < weather.of("A>B", NOW + 600.0).doubt


def test_a_burst_is_over_with_the_next_reading_and_a_path_that_flaps_is_not(weather):
    weather.absorb(readings("A", "B", "packet_loss", [NOW, NOW + 600.0], [0.03, 0.0]))
    assert weather.of("A>B", NOW + 600.0).sky is Sky.WELL
    assert weather.of("A>B", NOW + 600.0).doubt == 0.0
    weather.absorb(readings("A", "B", "packet_loss", [NOW + 1200.0, NOW + 1800.0], [0.03, 0.0]))
    assert weather.of("A>B", NOW + 1800.0).sure


def test_who_is_always_kept_out_by_a_firewall_is_not_measured(weather):
    weather.absorb(readings("B", "C", "packet_loss", START + 600.0 * np.arange(144), 1.0))
    assert weather.of("B>C", NOW).sky is Sky.UNKNOWN
    weather.absorb(readings("A", "B", "packet_loss", NOW, 1.0))
    assert weather.of("A>B", NOW).sky is Sky.ILL  # for the first time


def test_queues_are_no_longer_route(weather):
    weather.absorb(readings("A", "B", "delay_mean", NOW, 60.0))
    weather.absorb(readings("A", "B", "delay_sd", NOW, 20.0))
    assert weather.of("A>B", NOW).sky is Sky.WELL


def test_a_site_is_ill_when_most_of_its_paths_are(weather):
    for path in (("A", "B"), ("C", "A"), ("A", "D"), ("D", "A")):
        weather.absorb(readings(*path, "packet_loss", NOW, 0.02))
    weather.absorb(readings("B", "A", "packet_loss", NOW, 0.0))
    assert weather.peers("A", NOW) == (4, 6)
    assert weather.peers("D", NOW) == (2, 2)


def test_readings_that_are_late_or_come_twice_change_nothing(weather):
    weather.absorb(readings("A", "B", "packet_loss", [NOW - 7200.0, NOW - 600.0, NOW - 600.0], 0.5))
    assert weather.of("A>B", NOW).sky is Sky.WELL
