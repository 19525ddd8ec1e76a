"""perfSONAR's documents: what is measured follows the network, and is as faulty as in life."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from models.measurements import READING_COLUMNS, decode_readings, empty_readings
from simulator.draws import Draws
from simulator.faults import Conditions, Fault, FaultKind
from simulator.perfsonar import MEASUREMENT, Probes
from simulator.readings import Quantity
from simulator.schema import Probing
from simulator.topology import build

START = datetime(2026, 3, 2, 13, 4, 5, 678901, tzinfo=UTC)
NOW = START + timedelta(days=400)
TOPOLOGY = build(sites=40, rses=None, capacity=1.0, seed=3)
EVERYWHERE = Probing(missing=0.0, anonymous=0.0, clock_off=0.0)
HOUR = 3600.0
CERN, BNL = TOPOLOGY.site("CERN-PROD"), TOPOLOGY.site("BNL-OSG2")


def probes(probing=EVERYWHERE, seed=1):
    return Probes(TOPOLOGY, Draws(seed), probing, START)


def conditions(*faults):
    return Conditions.of(TOPOLOGY, faults, 0.0)


def fault(kind, culprit, strength):
    return Fault(number=0, kind=kind, culprit=culprit, start=0.0, end=1e9, strength=strength)


def of(measurements, quantity, source=None, destination=None):
    chosen = measurements["quantity"] == quantity
    if source is not None:
        chosen &= measurements["source"] == source
    if destination is not None:
        chosen &= measurements["destination"] == destination
    return measurements[chosen]


def in_order(measurements):
    return measurements[np.lexsort([measurements[name] for name in ("quantity", "destination", "source", "at")])]


@pytest.fixture(scope="module")
def day():
    """A day on which nothing is wrong, of probes as they are."""
    return probes(Probing()).measure(conditions(), 0.0, 24 * HOUR)


@pytest.fixture(scope="module")
def good_day():
    return probes().measure(conditions(), 0.0, 24 * HOUR)


def test_rows_are_what_is_decoded_from_the_lines(day):
    dark = fault(FaultKind.SITE_DARK, "site:BNL-OSG2", 1.0)
    ill = probes(Probing()).measure(conditions(dark), 0.0, 2 * HOUR)
    measured = np.concatenate([day[::7], ill])
    rows = probes(Probing()).frame(measured)
    assert tuple(rows.columns) == READING_COLUMNS
    found, refusals = decode_readings([json.loads(line) for line in probes(Probing()).lines(measured)], now=NOW)
    assert not refusals
    pd.testing.assert_frame_equal(rows, found)
    assert set(rows["quantity"]) == {
        "packet_loss",
        "delay_mean",
        "delay_sd",
        "throughput",
        "retransmits",
        "hops",
        "rtt",
    }


def test_nothing_measured_is_an_empty_batch():
    nothing = np.zeros(0, dtype=MEASUREMENT)
    pd.testing.assert_frame_equal(probes().frame(nothing), empty_readings())
    assert probes().lines(nothing) == []


def test_documents_have_the_fields_of_perfsonar(day):
    common = {
        "src", "dest", "src_host", "dest_host", "src_site", "dest_site", "src_VO", "dest_VO", "src_production",
        "dest_production", "ipv6", "timestamp",
    }  # fmt: skip
    own = {
        Quantity.LOSS: {"packet_loss"},
        Quantity.DELAY: {"delay_mean", "delay_median", "delay_sd"},
        Quantity.THROUGHPUT: {"throughput"},
        Quantity.RETRANSMITS: {"retransmits"},
        Quantity.TRACE: {
            "hops", "asns", "rtts", "ttls", "n_hops", "max_rtt", "destination_reached", "path_complete", "looping",
            "route-sha1",
        },
    }  # fmt: skip
    for quantity, fields in own.items():
        chosen = of(day, quantity)[:50]
        for line in probes().lines(chosen):
            assert set(json.loads(line)) == common | fields


def test_time_may_be_cut_anywhere(day):
    cuts = [0.0, 1.0, 2.0, 599.0, 3600.0, 3601.0, 40_000.0, 24 * HOUR]
    parts = [probes(Probing()).measure(conditions(), since, until) for since, until in itertools.pairwise(cuts)]
    assert in_order(np.concatenate(parts)).tobytes() == in_order(day).tobytes()
    for part, since, until in zip(parts, cuts[:-1], cuts[1:], strict=True):
        assert (part["at"] >= since - 1e-6).all()
        assert (part["at"] < until + 1e-6).all()
        assert (part["readable"] >= np.floor(part["at"]) + 1).all()


def test_loss_and_delay_are_dense_and_throughput_is_sparse(good_day):
    paths = len(TOPOLOGY.sites) * (len(TOPOLOGY.sites) - 1)
    counts = np.bincount(good_day["quantity"]) / paths
    assert counts[Quantity.LOSS] == pytest.approx(144, rel=0.1)
    assert counts[Quantity.DELAY] == pytest.approx(144, rel=0.1)
    assert counts[Quantity.THROUGHPUT] == pytest.approx(4, rel=0.1)
    assert counts[Quantity.RETRANSMITS] == counts[Quantity.THROUGHPUT]
    assert counts[Quantity.TRACE] == pytest.approx(24, rel=0.1)


def test_some_sites_have_no_probes_some_documents_no_names(day):
    seen = np.unique(day["source"])
    assert len(seen) == 0.8 * len(TOPOLOGY.sites)
    assert CERN in seen
    assert day["anonymous"].mean() == pytest.approx(0.1, abs=0.01)
    rows = probes(Probing()).frame(day[:1000])
    assert ((rows["source_site"] == "") == (rows["destination_site"] == "")).all()
    assert (rows["source_host"] != "").all()


def test_clocks_are_off_and_one_is_far_off(day):
    delays = of(day, Quantity.DELAY)
    true_ms = 500.0 * TOPOLOGY.rtt_s[delays["source"], delays["destination"]]
    off = delays["value"] - true_ms
    by_site = {site: np.median(off[delays["destination"] == site]) for site in np.unique(delays["destination"])}
    assert max(map(abs, by_site.values())) > 100
    assert (delays["value"] < 0).any()
    assert np.median(np.abs(list(by_site.values()))) < 10


def test_probes_are_silent_for_hours(good_day):
    loss = of(good_day, Quantity.LOSS)
    longest = []
    for site in range(len(TOPOLOGY.sites)):
        own = np.sort(loss["at"][(loss["source"] == site)])
        longest.append(np.diff(own).max())
    assert max(longest) > 3 * HOUR
    assert np.median(longest) < 600


def test_a_firewall_stops_probes_and_not_the_throughput_test(good_day):
    loss = of(good_day, Quantity.LOSS)
    walled = np.unique(np.stack([loss["source"], loss["destination"]])[:, loss["value"] == 1.0], axis=1).T
    assert 0 < len(walled) < 0.03 * len(TOPOLOGY.sites) ** 2
    source, destination = walled[0]
    assert (of(good_day, Quantity.LOSS, source, destination)["value"] == 1.0).all()
    assert len(of(good_day, Quantity.DELAY, source, destination)) == 0
    assert len(of(good_day, Quantity.THROUGHPUT, source, destination)) > 0
    assert np.isnan(of(good_day, Quantity.TRACE, source, destination)["value"]).all()


def test_loss_on_a_path_shows_there_and_nowhere_else(good_day):
    lossy = probes().measure(
        conditions(fault(FaultKind.LINK_LOSSY, "network:CERN-PROD>BNL-OSG2", 0.02)), 0.0, 24 * HOUR
    )
    there = of(lossy, Quantity.LOSS, CERN, BNL)["value"]
    assert np.median(there) == pytest.approx(0.02, rel=0.25)
    back = (of(lossy, Quantity.LOSS, BNL, CERN), of(good_day, Quantity.LOSS, BNL, CERN))
    assert back[0].tobytes() == back[1].tobytes()
    rates = [of(day, Quantity.THROUGHPUT, CERN, BNL)["value"] for day in (lossy, good_day)]
    assert (rates[0] < 0.1 * rates[1]).all()
    resent = [of(day, Quantity.RETRANSMITS, CERN, BNL)["value"].mean() for day in (lossy, good_day)]
    assert resent[0] > 10 * resent[1]


def test_a_longer_route_shows_in_the_trace_and_the_delay(good_day):
    longer = probes().measure(
        conditions(fault(FaultKind.ROUTE_LONGER, "network:CERN-PROD>BNL-OSG2", 3.0)), 0.0, 24 * HOUR
    )
    traces = [of(day, Quantity.TRACE, CERN, BNL) for day in (longer, good_day)]
    assert np.median(traces[0]["value"]) == pytest.approx(3 * np.median(traces[1]["value"]), rel=0.05)
    assert (traces[0]["more"] > traces[1]["more"]).all()
    delays = [np.median(of(day, Quantity.DELAY, CERN, BNL)["value"]) for day in (longer, good_day)]
    assert delays[0] > 2 * delays[1]


def test_nothing_gets_through_to_a_dark_site():
    dark = probes().measure(conditions(fault(FaultKind.SITE_DARK, "site:BNL-OSG2", 1.0)), 0.0, 24 * HOUR)
    touched = dark[(dark["source"] == BNL) | (dark["destination"] == BNL)]
    assert set(touched["quantity"]) == {Quantity.LOSS, Quantity.TRACE}
    assert (of(touched, Quantity.LOSS)["value"] == 1.0).all()
    assert np.isnan(of(touched, Quantity.TRACE)["value"]).all()


def test_what_is_measured_is_what_the_network_loses(good_day):
    loss = of(good_day, Quantity.LOSS)
    usual = loss["value"][loss["value"] < 1.0]
    assert (usual == 0).mean() > 0.95
    assert 0.002 < (usual > 0.001).mean() < 0.03  # bursts that no transfer notices
