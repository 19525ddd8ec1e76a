"""Who is blamed, on transfers whose fault is known: roles, sides of errors, wide suspects, own history, and doubt."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest

import detectors.failures
import detectors.localisation
import detectors.stalls
import detectors.usual
import detectors.weather
from detectors.covers import Cover, Covers
from detectors.localisation import COLUMNS, Blame, Roles, bayes_factor, localise
from detectors.usual import Load, Usual
from models.domain import Entity

SITES = ("A", "B", "C", "D")
RSES = tuple(f"{site}_{space}" for site in SITES for space in ("DISK", "SCRATCH"))


@pytest.fixture
def transfers():
    """As many of every link as of every other."""
    links = [(a, b) for a in RSES for b in RSES if a != b]
    rows = pd.DataFrame(links * 4, columns=["source", "destination"])
    rows["fts"] = np.where(rows["destination"].str[0].isin(["A", "B"]), "f1", "f2")
    return rows


def blamed(rows, bad, *, usually=0.02, **kinds):
    roles = Roles.of(rows)
    usual = {column: np.full(len(roles.known(column)), usually) for column in COLUMNS}
    flags = Blame(source=np.asarray(bad), destination=np.asarray(bad))
    return [(str(one.entity), one.column) for one in localise(roles, flags, usual, **kinds)]


@pytest.mark.parametrize(
    "module", [detectors.localisation, detectors.usual, detectors.weather, detectors.stalls, detectors.failures]
)
def test_what_the_pages_show_holds(module):
    assert doctest.testmod(module).failed == 0


def test_a_role_is_told_from_the_other(transfers):
    assert blamed(transfers, transfers["source"] == "B_DISK") == [("rse:B_DISK", "source")]
    either = (transfers["source"] == "B_DISK") | (transfers["destination"] == "B_DISK")
    assert blamed(transfers, either) == [("rse:B_DISK", "rse")]


def test_what_is_bad_at_both_storage_elements_of_a_site_is_the_site(transfers):
    of_site = transfers["source"].str.startswith("C_") | transfers["destination"].str.startswith("C_")
    assert blamed(transfers, of_site) == [("site:C", "site")]


def test_what_is_bad_for_all_destinations_of_a_server_is_the_server(transfers):
    assert blamed(transfers, transfers["fts"] == "f2")[0][0] == "fts:f2"


def test_a_path_between_sites_is_one_suspect_however_many_links_it_has(transfers):
    path = transfers["source"].str.startswith("A_") & transfers["destination"].str.startswith("D_")
    assert blamed(transfers, path) == [("network:A>D", "network")]


def test_two_at_once_are_two(transfers):
    two = (transfers["source"] == "A_DISK") | (transfers["destination"] == "D_SCRATCH")
    assert {name for name, _ in blamed(transfers, two)} == {"rse:A_DISK", "rse:D_SCRATCH"}


class TestActivities:
    @pytest.fixture
    def mixed(self, transfers):
        """Each link has one transfer of each of four activities."""
        links = len(RSES) * (len(RSES) - 1)
        names = np.array(["Production Input", "Data Consolidation", "User Subscriptions", "Staging"], dtype=object)
        return transfers.assign(activity=names[np.arange(len(transfers)) // links])

    def test_one_that_goes_badly_on_many_links_where_the_others_are_well_is_to_blame(self, mixed):
        assert blamed(mixed, mixed["activity"] == "Staging") == [("activity:Staging", "activity")]

    def test_one_that_mostly_goes_badly_too(self, mixed):
        sick = (mixed["activity"] == "Staging") & (np.random.default_rng(3).random(len(mixed)) < 0.6)
        assert blamed(mixed, sick) == [("activity:Staging", "activity")]

    def test_a_site_is_blamed_although_it_moves_next_to_nothing_else(self, mixed):
        of_site = mixed["source"].str.startswith("C_")
        mostly = of_site & (np.random.default_rng(4).random(len(mixed)) < 0.9)
        rows = mixed.assign(activity=np.where(mostly, "Reprocessing", mixed["activity"]))
        assert blamed(rows, of_site) == [("site:C", "source_site")]
        assert blamed(rows, mostly) == [("site:C", "source_site")]

    def test_so_is_a_storage_element_and_a_server(self, mixed):
        one = mixed["destination"] == "D_DISK"
        assert blamed(mixed.assign(activity=np.where(one, "Recovery", "Staging")), one) == [
            ("rse:D_DISK", "destination")
        ]
        server = mixed["fts"] == "f2"
        rows = mixed.assign(activity=np.where(server, "Recovery", "Staging"))
        assert blamed(rows, server)[0][0] == "fts:f2"

    def test_where_no_other_runs_nobody_can_tell(self, mixed):
        bad = np.random.default_rng(5).random(len(mixed)) < 0.3
        assert blamed(mixed.assign(activity="Staging"), bad) == []
        assert blamed(mixed.assign(activity=""), bad) == []

    def test_where_all_go_badly_it_is_none(self, mixed):
        bad = (mixed["activity"] == "Staging") | (np.random.default_rng(6).random(len(mixed)) < 0.5)
        assert blamed(mixed, bad) == []

    def test_the_silence_of_one_covers_its_transfers(self, mixed):
        silence = Cover(entity=Entity.parse("activity:Staging"), start=0.0, end=10.0, why="campaign")
        covered = Covers([silence]).touched(Roles.of(mixed), np.full(len(mixed), 5.0))
        assert covered.tolist() == (mixed["activity"] == "Staging").tolist()


def test_an_error_of_one_end_blames_no_other():
    # One link alone: counts cannot tell its ends apart, the text of the errors can.
    rows = pd.DataFrame({"source": ["A_DISK"] * 12, "destination": ["B_DISK"] * 12, "fts": "f1"})
    roles = Roles.of(rows)
    usual = {column: np.full(len(roles.known(column)), 0.02) for column in COLUMNS}
    bad, good = np.ones(12, dtype=bool), np.zeros(12, dtype=bool)
    for blame, culprit in (
        (Blame(source=bad, destination=good), "rse:A_DISK"),
        (Blame(source=good, destination=bad), "rse:B_DISK"),
        (Blame(source=bad, destination=bad), "link:A_DISK>B_DISK"),
    ):
        assert [str(one.entity) for one in localise(roles, blame, usual)] == [culprit]


def test_whoever_is_usually_bad_is_no_news(transfers):
    rng = np.random.default_rng(1)
    bad = (transfers["source"] == "B_DISK") & (rng.random(len(transfers)) < 0.6)
    assert blamed(transfers, bad) == [("rse:B_DISK", "source")]
    assert blamed(transfers, bad, usually=0.5) == []


def test_of_a_network_in_doubt_less_has_to_be_seen(transfers):
    path = transfers["source"].str.startswith("A_") & transfers["destination"].str.startswith("D_")
    few = path & (np.cumsum(path) <= 4)
    assert blamed(transfers, few) == []
    assert blamed(transfers, few, doubt=lambda name: 12.0 * (name == "A>D")) == [("network:A>D", "network")]
    assert blamed(transfers, few, doubt=lambda name: 12.0 * (name == "D>A")) == []


def test_the_factor_is_exact_for_few():
    # Five of five, usually one in fifty: B(6, 1) against the beta-binomial with two in a hundred, worth forty.
    (factor,) = bayes_factor(np.array([5.0]), np.array([5.0]), np.array([0.02]))
    healthy = np.prod([(0.8 + i) / (40.0 + i) for i in range(5)])
    assert factor == pytest.approx(np.log(1 / 6) - np.log(healthy))


def test_history_is_that_of_the_last_day_in_any_order(transfers):
    roles, bad = Roles.of(transfers), (transfers["source"] == "A_DISK").to_numpy()
    at = 1e9 + np.linspace(0, 3000.0, len(transfers))
    whole, parts = Usual(0.05), Usual(0.05)
    size = np.full(len(transfers), 2e9)
    whole.absorb(roles, bad, at, size)
    for rows in np.array_split(np.random.default_rng(2).permutation(len(transfers)), 7):
        parts.absorb(roles.take(rows), bad[rows], at[rows], size[rows])
    for later, sick in ((1e9 + 4000.0, True), (1e9 + 30 * 3600.0, False)):
        one, other = (usual.shares(roles, later) for usual in (whole, parts))
        for column in COLUMNS:
            assert np.array_equal(one[column], other[column])
        share = one["source"][list(roles.known("source")).index("A_DISK")]
        assert bool(share > 0.4) is sick
    assert whole.load("source", "A_DISK", 1e9 + 4000.0) == Load(14.0, 28e9)  # of two hours
    assert whole.load("rse", "A_DISK", 1e9 + 4000.0) == Load(28.0, 56e9)  # in either role
    assert whole.load("source", "A_DISK", 1e9 + 30 * 3600.0) is None
