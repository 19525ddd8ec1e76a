"""The grid's parts: names that stay, capacities that differ for good, paths of the earth's size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulator.topology import MOST_SITES, MOST_SPACES, MSS, PROTOCOLS, STREAMS, WINDOW, Topology, build, tcp_limit


def atlas(seed: int = 1, capacity: float = 1.0) -> Topology:
    return build(sites=60, rses=150, capacity=capacity, seed=seed)


@pytest.mark.parametrize(
    ("sites", "rses"), [(2, None), (2, 2), (2, 12), (12, 24), (20, None), (60, 150), (64, None), (64, 384)]
)
def test_grids_of_every_size_are_whole(sites: int, rses: int | None) -> None:
    grid = build(sites=sites, rses=rses, capacity=0.3, seed=5)
    count = len(grid.rses)
    assert len(set(grid.sites)) == sites
    assert len(set(grid.rses)) == count == (rses or round(2.5 * sites))
    assert len(set(grid.hosts)) == count
    assert set(grid.rse_site.tolist()) == set(range(sites))
    sizes = {"site": sites, "rse": count, "fts": len(grid.fts)}
    of_site = ("latitude", "longitude", "site_weight", "uplink_in", "uplink_out", "site_fts", "probed")
    of_rse = (
        "rse_site", "tape", "weight", "read", "write", "stream", "overhead_s", "connections", "outbound", "inbound",
        "protocol", "drives", "mount_s", "drive_rate",
    )  # fmt: skip
    shapes = dict.fromkeys(of_site, (sizes["site"],)) | dict.fromkeys(of_rse, (sizes["rse"],))
    shapes |= dict.fromkeys(("rtt_s", "loss", "capacity"), (sites, sites))
    shapes |= dict.fromkeys(("distance", "link_limit"), (count, count)) | {"slots": (sizes["fts"],)}
    for name, shape in shapes.items():
        assert getattr(grid, name).shape == shape, name
        assert np.isfinite(getattr(grid, name)).all(), name
    for name in ("uplink_in", "read", "write", "stream", "overhead_s", "weight", "capacity", "rtt_s"):
        assert (getattr(grid, name) > 0).all(), name
    for name in ("connections", "outbound", "inbound", "link_limit", "slots"):
        assert (getattr(grid, name) >= 1).all(), name
    assert set(grid.site_fts.tolist()) == set(range(len(grid.fts)))
    assert grid.protocol.max() < len(PROTOCOLS)


def test_the_first_sites_and_their_disks_stay() -> None:
    small, large = build(sites=12, rses=None, capacity=0.1, seed=1), atlas(seed=2)
    assert small.sites == large.sites[:12]
    assert small.sites[0] == "CERN-PROD"
    for site in large.sites:
        assert f"{site}_DATADISK" in large.rses
    assert large.rses[large.rse("RAL-LCG2_DATADISK")] == "RAL-LCG2_DATADISK"
    assert large.sites[large.rse_site[large.rse("RAL-LCG2_DATADISK")]] == "RAL-LCG2"


def test_the_seed_changes_what_things_can_do_and_not_what_they_are_called() -> None:
    one, same, other = atlas(1), atlas(1), atlas(2)
    for field in dataclasses.fields(Topology):
        assert np.array_equal(getattr(one, field.name), getattr(same, field.name))
    assert (one.sites, one.rses, one.fts, one.hosts) == (other.sites, other.rses, other.fts, other.hosts)
    assert not np.array_equal(one.overhead_s, other.overhead_s)


def test_atlas_has_the_proportions_of_atlas() -> None:
    grid = atlas()
    assert len(grid.fts) == 4
    spaces = {name: grid.space.count(name) for name in set(grid.space)}
    assert spaces["DATADISK"] == 60
    assert 40 <= spaces["SCRATCHDISK"] < 60
    assert spaces["DATATAPE"] == 10 == grid.tape.sum()
    assert ((grid.drives > 0) == grid.tape).all()
    assert 10 <= spaces["LOCALGROUPDISK"] <= 40
    assert grid.uplink_in.max() / grid.uplink_in.min() == pytest.approx(100)


def test_storages_differ_strongly() -> None:
    grid = atlas()
    assert np.log(grid.overhead_s).std() > 0.5
    assert np.log(grid.stream).std() > 0.4


def test_capacity_multiplies_bandwidths_and_leaves_what_a_single_file_sees() -> None:
    one, tenth = atlas(capacity=1.0), atlas(capacity=0.1)
    for name in ("uplink_in", "uplink_out", "read", "write"):
        assert np.allclose(getattr(tenth, name), 0.1 * getattr(one, name))
    for name in ("stream", "overhead_s", "rtt_s", "loss"):
        assert np.array_equal(getattr(tenth, name), getattr(one, name))
    assert (tenth.link_limit <= one.link_limit).all()


def test_round_trips_come_from_the_map() -> None:
    grid = atlas()
    cern, lyon, tokyo = grid.site("CERN-PROD"), grid.site("IN2P3-CC"), grid.site("TOKYO-LCG2")
    assert np.allclose(grid.rtt_s, grid.rtt_s.T)
    assert grid.rtt_s[cern, cern] < 0.001
    assert grid.rtt_s[cern, lyon] < 0.01
    assert 0.1 < grid.rtt_s[cern, tokyo] < 0.3
    assert (np.diag(grid.loss) == 0).all()


def test_distances_rank_by_round_trip() -> None:
    grid = atlas()
    here = grid.rse("CERN-PROD_DATADISK")
    assert grid.distance[here, here] == 0
    assert grid.distance[here, grid.rse("CERN-PROD_DATATAPE")] == 1
    assert grid.distance[here, grid.rse("IN2P3-CC_DATADISK")] < grid.distance[here, grid.rse("TOKYO-LCG2_DATADISK")]
    assert (grid.distance[grid.tape][:, grid.tape] == 0).all()
    disks = grid.distance[~grid.tape][:, ~grid.tape]
    assert (disks[~np.eye(len(disks), dtype=bool)] > 0).all()


def test_tcp_is_limited_by_the_window_and_by_loss() -> None:
    assert tcp_limit(0.1, 0.0) == pytest.approx(STREAMS * WINDOW / 0.1)
    assert tcp_limit(0.1, 1e-4) == pytest.approx(STREAMS * 1.5**0.5 * MSS / (0.1 * 0.01))
    assert tcp_limit(0.1, 4e-4) == pytest.approx(tcp_limit(0.1, 1e-4) / 2)
    assert tcp_limit(0.2, 1e-4) == pytest.approx(tcp_limit(0.1, 1e-4) / 2)


def test_unknown_names_raise_key_errors() -> None:
    grid = build(sites=2, rses=None, capacity=1.0, seed=1)
    for find in (grid.site, grid.rse, grid.server):
        with pytest.raises(KeyError, match="NOWHERE"):
            find("NOWHERE")
    assert grid.server("fts3-cern.example") == 0


@pytest.mark.parametrize(("sites", "rses"), [(1, None), (MOST_SITES + 1, None), (4, 3), (4, 4 * MOST_SPACES + 1)])
def test_impossible_sizes_are_refused(sites: int, rses: int | None) -> None:
    with pytest.raises(ValueError, match=r"there can be|storage elements"):
        build(sites=sites, rses=rses, capacity=1.0, seed=1)
