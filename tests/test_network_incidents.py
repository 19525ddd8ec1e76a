"""Incidents of the network: what perfSONAR and transfers show together, and what perfSONAR alone shows, clocks among it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from agent.desk import words
from detectors.clocks import Clocks
from detectors.covers import Cover, Covers
from detectors.incidents import IncidentBook
from detectors.weather import Sky, Weather
from models.domain import Entity, IncidentKind
from models.measurements import READING_COLUMNS, lately

START = 1_500_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SITES = tuple(f"S{n}" for n in range(6))
ILL_AT = 8 * HOUR


def measured(hours, *, every=10 * MINUTE, loss=lambda path, at: 0.0, delay=lambda path, at: 0.0, bits=None):
    """Readings of all paths among the sites: no loss and 20 ms, and what the functions of path and time add. Times from START."""
    rows = []
    for place, path in enumerate((a, b) for a in SITES for b in SITES if a != b):
        for at in np.arange(7.0 * place, hours * HOUR, every):
            name = ">".join(path)
            rows.append((*path, "packet_loss", loss(name, at), at))
            rows += [(*path, "delay_mean", 20.0 + delay(name, at), at), (*path, "delay_sd", 0.2, at)]
            if bits is not None and at % (6 * HOUR) < every:
                rows.append((*path, "throughput", bits(name, at), at))
    found = pd.DataFrame(rows, columns=["source_site", "destination_site", "quantity", "value", "at"])
    found = found.assign(source_host="", destination_host="", at=found["at"] + START)
    return found.sort_values("at", kind="stable", ignore_index=True)[list(READING_COLUMNS)]


def transfers(hours, *, slow=lambda path, at: False, busy="S0>S1", seed=0):
    """Rows of a grid with 20 transfers an hour on each link, 200 on the busy one, of which those that `slow` picks take ten minutes."""
    draw = np.random.default_rng(seed)
    paths = [f"{a}>{b}" for a in SITES for b in SITES if a != b]
    counts = [int(hours * (200 if path == busy else 20)) for path in paths]
    path = np.repeat(np.array(paths, dtype=object), counts)
    started = np.concatenate([draw.uniform(0.0, hours * HOUR, count) for count in counts])
    late = np.array([slow(one, at) for one, at in zip(path, started, strict=True)], dtype=bool)
    ends = np.array([one.split(">") for one in path], dtype=object)
    rows = pd.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(len(path))],
            "source": ends[:, 0] + "_DISK",
            "destination": ends[:, 1] + "_DISK",
            "fts": "f0",
            "activity": "a",
            "rule_id": "",
            "reason": "",
            "bytes": 1e8,
            "submitted_at": START + started - 20.0,
            "started_at": START + started,
            "ended_at": START + started + np.where(late, 600.0, 40.0),
            "due_at": np.inf,
            "failed": False,
            "slow": late,
            "slow_s": 300.0,
            "q50": 3.5,
            "path_loss": np.nan,
            "path_delay_ms": np.nan,
            "path_throughput_bps": np.nan,
        }
    )
    return rows.sort_values("ended_at", ignore_index=True)


def lived(rows, readings, *, hours):
    """Every incident as it stands at last, in the order in which they were opened, and the book."""
    weather = Weather()
    book, found = IncidentBook(weather), {}
    for end in np.arange(START + MINUTE, START + hours * HOUR + 1.0, MINUTE):
        weather.absorb(readings[(readings["at"] >= end - MINUTE) & (readings["at"] < end)])
        ended = rows[(rows["ended_at"] >= end - MINUTE) & (rows["ended_at"] < end)].reset_index(drop=True)
        for incident in book.advance(ended, until=end):
            found[incident.id] = incident
    return list(found.values()), book


def during(paths, start, end, value):
    return lambda path, at: value if path in paths and start <= at < end else 0.0


def of_site(site):
    return {path for path in (f"{a}>{b}" for a in SITES for b in SITES if a != b) if site in path.split(">")}


def some_of(paths, start, end, *, share=0.5, seed=3):
    draw = np.random.default_rng(seed)
    return lambda path, at: path in paths and start <= at < end and bool(draw.random() < share)


def seconds(moment):
    return moment.timestamp() - START


def test_a_path_that_loses_packets_wakes_nobody_while_its_transfers_are_well():
    lossy = measured(10, loss=during({"S0>S1"}, ILL_AT, 10 * HOUR, 0.03))
    found, _ = lived(transfers(10), lossy, hours=10)
    assert found == []


def test_transfers_that_go_badly_on_a_lossy_path_are_one_incident_with_what_perfsonar_says():
    path, end = {"S0>S1"}, ILL_AT + 1.5 * HOUR
    lossy = measured(12, loss=during(path, ILL_AT, end, 0.03))
    found, book = lived(transfers(12, slow=some_of(path, ILL_AT, end)), lossy, hours=12)
    (incident,) = found
    assert (incident.kind, str(incident.culprit)) == (IncidentKind.DEGRADED_NETWORK, "network:S0>S1")
    assert 0 < seconds(incident.opened_at) - ILL_AT < 25 * MINUTE
    assert 0 < seconds(incident.closed_at) - end < HOUR
    assert book.open == []


def test_the_evidence_names_what_was_found_and_a_desk_shows_it():
    path = {"S0>S1"}
    lossy = measured(10, loss=during(path, ILL_AT, 12 * HOUR, 0.03))
    (incident,), _ = lived(transfers(10, slow=some_of(path, ILL_AT, 12 * HOUR)), lossy, hours=10)
    (finding,) = incident.evidence.findings
    assert finding.startswith("loss at S0 → S1: 3.0 % of the packets are lost, usually 0.0 %, since 2017-07-14 10:")
    assert ("perfSONAR", finding) in words.of_incident(incident).facts


def test_a_firewall_is_called_all_packets():
    path = {"S0>S1"}
    walled = measured(10, loss=during(path, ILL_AT, 12 * HOUR, 1.0))
    (incident,), _ = lived(transfers(10, slow=some_of(path, ILL_AT, 12 * HOUR)), walled, hours=10)
    assert incident.kind is IncidentKind.DEGRADED_NETWORK
    assert "100 %" in incident.evidence.findings[0]


def test_a_site_most_of_whose_paths_are_ill_is_one_incident():
    site, end = of_site("S0"), ILL_AT + HOUR
    lossy = measured(11, loss=during(site, ILL_AT, end, 0.03))
    found, _ = lived(transfers(11, slow=some_of(site, ILL_AT, end)), lossy, hours=11)
    kept = [one for one in found if "the same cause" not in one.evidence.summary]
    assert [(one.kind, str(one.culprit)) for one in kept] == [(IncidentKind.DEGRADED_NETWORK, "site:S0")]


def test_a_path_that_falls_ill_after_its_site_was_well_again_is_another_incident():
    site, end, path = of_site("S0"), ILL_AT + HOUR, {"S1>S0"}
    later = end + 30 * MINUTE

    def loss(name, at):
        return during(site, ILL_AT, end, 0.03)(name, at) or during(path, later, later + HOUR, 0.05)(name, at)

    first, second = some_of(site, ILL_AT, end), some_of(path, later, later + HOUR)
    rows = transfers(12, slow=lambda name, at: first(name, at) or second(name, at), busy="S1>S0")
    found, _ = lived(rows, measured(12, loss=loss), hours=12)
    kept = [one for one in found if "the same cause" not in one.evidence.summary]
    assert [str(one.culprit) for one in kept] == ["site:S0", "network:S1>S0"]
    assert seconds(kept[0].closed_at) < later + 10 * MINUTE


def test_one_burst_makes_no_few_transfers_an_incident():
    path = {"S0>S2"}
    burst = measured(10, loss=during(path, ILL_AT, ILL_AT + 10 * MINUTE, 0.05))
    few = transfers(10, slow=some_of(path, ILL_AT, ILL_AT + 20 * MINUTE, share=0.6))
    found, _ = lived(few, burst, hours=10)
    assert found == []


def test_a_path_whose_throughput_has_collapsed_is_ill():
    draw = np.random.default_rng(1)

    def bits(path, at):
        return 4e9 * np.exp(0.1 * draw.normal()) * (0.2 if path == "S0>S1" and at >= 4 * DAY else 1.0)

    weather = Weather()
    weather.absorb(measured(6 * 24, every=3 * HOUR, bits=bits))
    at = START + 6 * DAY
    assert weather.of("S0>S1", at).sure
    assert weather.of("S1>S0", at).sky is not Sky.ILL
    (finding,) = weather.found(at)
    assert (finding.trouble, str(finding.culprit)) == ("throughput", "network:S0>S1")


def clock_of(site, start, end, ms=200.0):
    """Its clock goes ahead: what it receives seems late, what it sends early."""

    def off(path, at):
        source, _, destination = path.partition(">")
        return (ms * (destination == site) - ms * (source == site)) if start <= at < end else 0.0

    return off


def reviewed(readings, *, hours, covers=Covers(), clocks=None, since=0.0):  # noqa: B008 - it holds nothing
    weather, clocks, told = Weather(), clocks or Clocks(), []
    for end in np.arange(START + 10 * MINUTE, START + hours * HOUR + 1.0, 10 * MINUTE):
        weather.absorb(readings[(readings["at"] >= end - 10 * MINUTE) & (readings["at"] < end)])
        if end > START + since:
            told += clocks.review(weather.found(end), end, covers)
    return told, clocks


def test_a_clock_that_jumps_is_named_as_such_and_closed_when_it_is_set():
    readings = measured(16, delay=clock_of("S2", 6 * HOUR, 12 * HOUR))
    told, clocks = reviewed(readings, hours=16)
    assert {(one.kind, str(one.culprit), one.id) for one in told} == {
        (IncidentKind.CLOCK_OFF, "site:S2", told[0].id),
    }
    assert 0 < seconds(told[0].opened_at) - 6 * HOUR < HOUR
    assert told[0].severity < 0.33
    assert "jumped by 200 ms" in told[0].evidence.summary
    assert "that alone slows no transfer" in told[0].evidence.summary
    assert told[-1].closed
    assert clocks.open == []


def test_a_restart_finds_the_same_clock():
    readings = measured(10, delay=clock_of("S2", 6 * HOUR, 12 * HOUR))
    told, clocks = reviewed(readings, hours=8)
    again = Clocks()
    again.reset(clocks.open)
    more, again = reviewed(readings, hours=10, clocks=again, since=8 * HOUR)
    assert [one.id for one in again.open] == [told[0].id]
    assert {one.id for one in more} <= {told[0].id}


@pytest.mark.parametrize("off", [0.0, -60.0])
def test_clocks_that_are_as_ever_are_no_incident(off):
    told, _ = reviewed(measured(10, delay=clock_of("S2", 0.0, 12 * HOUR, off)), hours=10)
    assert told == []


def test_a_clock_in_a_downtime_opens_nothing():
    cover = Cover(entity=Entity.parse("site:S2"), start=START, end=START + DAY, why="")
    readings = measured(10, delay=clock_of("S2", 6 * HOUR, 12 * HOUR))
    assert reviewed(readings, hours=10, covers=Covers([cover]))[0] == []


def test_a_clock_makes_no_transfer_of_its_site_an_incident_of_the_network():
    readings = measured(10, delay=clock_of("S2", 6 * HOUR, 12 * HOUR))
    found, _ = lived(transfers(10), readings, hours=10)
    assert found == []


def test_delays_by_a_clock_that_jumped_make_no_path_ill():
    weather = Weather()
    weather.absorb(measured(8, delay=clock_of("S2", 6 * HOUR, 12 * HOUR)))
    at = START + 8 * HOUR
    assert weather.of("S0>S2", at).sky is Sky.WELL  # by its losses
    assert not weather.sick("S2", at)


def test_tests_of_throughput_are_kept_for_longer():
    readings = measured(4 * 24, every=HOUR, bits=lambda path, at: 4e9)
    kept = readings[lately(readings, 1000)]
    assert len(kept[kept["quantity"] != "throughput"]) <= 1000
    assert np.count_nonzero(kept["quantity"] == "throughput") == 250
    assert kept["quantity"].tail(1000).tolist() == readings["quantity"].tail(1000).tolist()
