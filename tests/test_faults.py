"""What each fault does to the grid's conditions while it lasts, and when that changes."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.faults import (
    FLAP_S,
    LONGER_ROUTE_LOSS,
    NATURES,
    Blame,
    Conditions,
    Disturbance,
    DisturbanceKind,
    Fault,
    FaultKind,
    Target,
    changes,
)
from simulator.topology import build

GRID = build(sites=6, rses=22, capacity=1.0, seed=1)
DISK, TAPE = GRID.rse("FZK-LCG2_DATADISK"), GRID.rse("FZK-LCG2_DATATAPE")
SITE, OTHER = GRID.site("FZK-LCG2"), GRID.site("BNL-OSG2")
CULPRITS = {
    Target.RSE: "rse:FZK-LCG2_DATADISK",
    Target.SITE: "site:FZK-LCG2",
    Target.NETWORK: "network:FZK-LCG2>BNL-OSG2",
    Target.FTS: f"fts:{GRID.fts[0]}",
}
SHARES = {
    FaultKind.STORAGE_FULL: ("full", Blame.FULL),
    FaultKind.CREDENTIALS_EXPIRED: ("credentials", Blame.CREDENTIALS),
    FaultKind.DISK_CORRUPT: ("corrupt", Blame.CORRUPT),
    FaultKind.FILES_MISSING: ("missing", Blame.MISSING),
    FaultKind.BLACK_HOLE: ("black_hole", Blame.BLACK_HOLE),
}


def fault(kind, strength, *, number=3, start=0.0, end=7200.0, culprit=None):
    target = "rse:FZK-LCG2_DATATAPE" if kind is FaultKind.TAPE_SLOW else CULPRITS[NATURES[kind].target]
    return Fault(number=number, kind=kind, culprit=culprit or target, start=start, end=end, strength=strength)


def under(*faults, at=60.0):
    return Conditions.of(GRID, faults, at)


def differences(conditions):
    """What is not as in a grid that is well."""
    sound = under()
    return {
        field.name
        for field in fields(Conditions)
        if not np.array_equal(getattr(conditions, field.name), getattr(sound, field.name))
    }


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_kind_says_what_it_strikes_and_how_strongly(kind):
    nature = NATURES[kind]
    assert nature.means
    assert nature.low <= min(nature.mildest, nature.gravest) < max(nature.mildest, nature.gravest) <= nature.high


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_kind_makes_something_worse_and_leaves_the_topology_alone(kind):
    before = (GRID.loss.copy(), GRID.rtt_s.copy())
    assert differences(under(fault(kind, NATURES[kind].gravest)))
    assert np.array_equal(GRID.loss, before[0])
    assert np.array_equal(GRID.rtt_s, before[1])


def test_without_faults_all_is_as_in_the_topology():
    sound = under()
    assert (sound.read == 1).all()
    assert (sound.overhead == 1).all()
    assert (sound.blame == -1).all()
    assert np.array_equal(sound.loss, GRID.loss)


@pytest.mark.parametrize("kind", list(SHARES))
def test_a_share_fails_at_the_culprit_alone(kind):
    found = under(fault(kind, 0.7))
    name, row = SHARES[kind]
    share = getattr(found, name)
    assert share[DISK] == 0.7
    assert share.sum() == 0.7
    assert found.blame[row, DISK] == 3
    assert differences(found) == {name, "blame"}


@pytest.mark.parametrize(("kind", "name"), [(FaultKind.READ_SLOW, "read"), (FaultKind.WRITE_SLOW, "write")])
def test_slow_disks_have_slow_doors(kind, name):
    found = under(fault(kind, 0.04))
    assert getattr(found, name)[DISK] == 0.04
    assert found.overhead[DISK] == pytest.approx(0.04**-0.8)
    assert np.delete(found.overhead, DISK) == pytest.approx(1.0)
    assert differences(found) == {name, "overhead", "blame"}


def test_a_door_takes_few_connections_and_a_robot_is_slow():
    found = under(fault(FaultKind.OVERLOADED, 2.6), fault(FaultKind.TAPE_SLOW, 12.0))
    assert found.busy[DISK] == 3
    assert found.busy.sum() == 3
    assert found.blame[Blame.BUSY, DISK] == 3
    assert found.mount[TAPE] == 12.0
    assert np.delete(found.mount, TAPE) == pytest.approx(1.0)


def test_packets_are_lost_in_one_direction_of_a_path():
    found = under(fault(FaultKind.LINK_LOSSY, 0.02))
    assert found.loss[SITE, OTHER] == 0.02
    assert found.loss[OTHER, SITE] == GRID.loss[OTHER, SITE]
    assert differences(found) == {"loss"}


def test_a_longer_route_loses_a_little_and_takes_longer():
    found = under(fault(FaultKind.ROUTE_LONGER, 5.0))
    assert found.rtt_s[SITE, OTHER] == 5 * GRID.rtt_s[SITE, OTHER]
    assert found.rtt_s[OTHER, SITE] == GRID.rtt_s[OTHER, SITE]
    assert found.loss[SITE, OTHER] == LONGER_ROUTE_LOSS


def test_a_lossy_site_loses_on_all_its_paths_and_not_within():
    found = under(fault(FaultKind.SITE_LOSSY, 0.03))
    others = np.arange(len(GRID.sites)) != SITE
    assert (found.loss[SITE, others] == 0.03).all()
    assert (found.loss[others, SITE] == 0.03).all()
    assert found.loss[SITE, SITE] == GRID.loss[SITE, SITE]
    assert np.array_equal(found.loss[others][:, others], GRID.loss[others][:, others])


def test_a_dark_site_refuses_at_all_its_storage_and_answers_no_probe():
    found = under(fault(FaultKind.SITE_DARK, 0.95))
    there = GRID.rse_site == SITE
    assert (found.refused[there] == 0.95).all()
    assert (found.refused[~there] == 0).all()
    assert (found.blame[Blame.REFUSED, there] == 3).all()
    assert (np.delete(found.loss[SITE], SITE) == 1.0).all()
    assert (np.delete(found.loss[:, SITE], SITE) == 1.0).all()


def test_a_stalled_server_has_few_slots():
    assert under(fault(FaultKind.FTS_STALLED, 0.01)).slots.tolist() == [0.01] + [1.0] * (len(GRID.fts) - 1)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("kind", "mild", "grave", "name", "row"),
    [
        (FaultKind.STORAGE_FULL, 0.3, 0.9, "full", Blame.FULL),
        (FaultKind.READ_SLOW, 0.5, 0.1, "read", Blame.READ),
        (FaultKind.OVERLOADED, 5, 2, "busy", Blame.BUSY),
    ],
)
def test_of_two_faults_the_graver_one_counts_and_is_blamed(kind, mild, grave, name, row, order):
    faults = [fault(kind, mild, number=1), fault(kind, grave, number=2)][::order]
    found = under(*faults)
    assert getattr(found, name)[DISK] == grave
    assert found.blame[row, DISK] == 2


def test_faults_of_different_kinds_add_up():
    found = under(fault(FaultKind.READ_SLOW, 0.04), fault(FaultKind.STORAGE_FULL, 1.0), fault(FaultKind.SITE_DARK, 0.9))
    assert {"read", "full", "refused", "loss"} <= differences(found)


@pytest.mark.parametrize("kind", list(FaultKind))
def test_of_two_faults_of_a_kind_on_the_same_thing_the_graver_one_counts(kind):
    nature = NATURES[kind]
    mild, grave = fault(kind, nature.mildest, number=1), fault(kind, nature.gravest, number=2)
    both, alone = under(mild, grave), under(grave)
    for field in fields(Conditions):
        assert np.array_equal(getattr(both, field.name), getattr(alone, field.name)), field.name


def test_a_flapping_link_is_ill_for_half_of_each_period():
    flapping = fault(FaultKind.LINK_FLAPPING, 0.05, start=100.0, end=100.0 + 3 * FLAP_S)
    states = [under(flapping, at=100.0 + step).loss[SITE, OTHER] == 0.05 for step in np.arange(0, 3 * FLAP_S, 60.0)]
    assert states == ([True] * 10 + [False] * 10) * 3
    moments, at = [], 0.0
    while (at := changes([flapping], at)) < math.inf:
        moments.append(at)
    assert moments == [100.0 + half * FLAP_S / 2 for half in range(7)]


def test_changes_are_starts_and_ends():
    faults = [
        fault(FaultKind.READ_SLOW, 0.1, start=10.0, end=30.0),
        fault(FaultKind.SITE_DARK, 1.0, start=20.0, end=25.0),
    ]
    assert [changes(faults, after) for after in (0.0, 10.0, 20.0, 25.0, 29.9)] == [10.0, 20.0, 25.0, 30.0, 30.0]
    assert changes(faults, 30.0) == math.inf
    assert changes([], 0.0) == math.inf


def test_what_never_ends_changes_nothing_more():
    forever = fault(FaultKind.READ_SLOW, 0.1, start=10.0, end=math.inf)
    assert changes([forever], 0.0) == 10.0
    assert changes([forever], 10.0) == math.inf
    assert forever.active(1e12)
    flapping = fault(FaultKind.LINK_FLAPPING, 0.1, start=0.0, end=math.inf)
    assert changes([flapping], 1e6) == 1e6 + FLAP_S / 2 - 1e6 % (FLAP_S / 2)


@given(
    spans=st.lists(
        st.tuples(
            st.sampled_from(list(FaultKind)),
            st.floats(0, 5000),
            st.floats(1, 5000),
        ),
        max_size=4,
    ),
    after=st.floats(0, 10_000),
    share=st.floats(0.01, 0.99),
)
def test_between_two_changes_conditions_stay_as_they_are(spans, after, share):
    faults = [
        fault(kind, NATURES[kind].gravest, number=number, start=start, end=start + lasts)
        for number, (kind, start, lasts) in enumerate(spans)
    ]
    until = min(changes(faults, after), after + 20_000)
    assert until > after

    def at(moment):
        return Conditions.of(GRID, [one for one in faults if one.active(moment)], moment)

    later = after + share * (until - after)
    if not after < later < until - 1e-6:
        return
    first, last = at(after), at(later)
    for field in fields(Conditions):
        assert np.array_equal(getattr(first, field.name), getattr(last, field.name)), field.name


@pytest.mark.parametrize(
    ("kind", "told", "found"),
    [
        (FaultKind.READ_SLOW, "rse:FZK-LCG2_DATADISK", True),
        (FaultKind.READ_SLOW, "site:FZK-LCG2", True),
        (FaultKind.READ_SLOW, "link:FZK-LCG2_DATADISK>BNL-OSG2_DATADISK", True),
        (FaultKind.READ_SLOW, "link:BNL-OSG2_DATADISK>FZK-LCG2_DATADISK", True),
        (FaultKind.READ_SLOW, "link:BNL-OSG2_DATADISK>FZK-LCG2_DATATAPE", False),
        (FaultKind.READ_SLOW, "rse:FZK-LCG2_DATATAPE", False),
        (FaultKind.READ_SLOW, "network:FZK-LCG2>BNL-OSG2", False),
        (FaultKind.SITE_DARK, "site:FZK-LCG2", True),
        (FaultKind.SITE_DARK, "rse:FZK-LCG2_DATATAPE", True),
        (FaultKind.SITE_DARK, "network:BNL-OSG2>FZK-LCG2", True),
        (FaultKind.SITE_DARK, "link:BNL-OSG2_DATADISK>FZK-LCG2_DATATAPE", True),
        (FaultKind.SITE_DARK, "site:BNL-OSG2", False),
        (FaultKind.LINK_LOSSY, "network:FZK-LCG2>BNL-OSG2", True),
        (FaultKind.LINK_LOSSY, "link:FZK-LCG2_DATADISK>BNL-OSG2_DATADISK", True),
        (FaultKind.LINK_LOSSY, "network:BNL-OSG2>FZK-LCG2", False),
        (FaultKind.LINK_LOSSY, "site:FZK-LCG2", False),
        (FaultKind.FTS_STALLED, f"fts:{GRID.fts[0]}", True),
        (FaultKind.FTS_STALLED, "site:FZK-LCG2", False),
        (FaultKind.READ_SLOW, "activity:Staging", False),
        (FaultKind.READ_SLOW, "", False),
    ],
)
def test_support_finds_what_it_is_told_of(kind, told, found):
    assert fault(kind, NATURES[kind].gravest).found_by(told, GRID) is found


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("rse:FZK-LCG2_DATADISK", {"FZK-LCG2_DATADISK"}),
        ("site:TRIUMF-LCG2", {"TRIUMF-LCG2_DATADISK", "TRIUMF-LCG2_SCRATCHDISK", "TRIUMF-LCG2_DATATAPE"}),
        ("", set(GRID.rses)),
        ("activity:Staging", set(GRID.rses)),
    ],
)
def test_a_disturbance_knows_its_storage(where, names):
    one = Disturbance(kind=DisturbanceKind.DOWNTIME, where=where, start=0.0, end=1.0, strength=1.0)
    assert {GRID.rses[rse] for rse in one.rses(GRID)} == {name for name in names if name in GRID.rses}


def test_a_fault_is_active_from_its_start_to_before_its_end():
    one = fault(FaultKind.READ_SLOW, 0.1, start=10.0, end=20.0)
    assert [one.active(at) for at in (9.9, 10.0, 19.9, 20.0)] == [False, True, True, False]
    assert not replace(one, end=15.0).active(16.0)
