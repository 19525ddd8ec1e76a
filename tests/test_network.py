from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from detectors import findings, series
from detectors.findings import Trouble, Turn
from detectors.network import FORGET_S, NetworkDetector
from models.domain import EntityKind, IncidentKind
from models.measurements import READING_COLUMNS

T0 = 1_450_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SITES = ("ALPHA", "BETA", "GAMMA", "DELTA")
BITS = 4e8


def frame(rows):
    table = pd.DataFrame(
        rows, columns=["source_site", "destination_site", "quantity", "value", "at", "source_host", "destination_host"]
    )
    table["at"] += T0
    return table.sort_values("at", kind="stable", ignore_index=True)[list(READING_COLUMNS)]


def path(
    source="ALPHA",
    destination="BETA",
    *,
    days=4.0,
    seed=0,
    level=40.0,
    every=20 * MINUTE,
    jitter=1.0,
    delay=lambda at: 0.0,
    loss=lambda at: 0.0,
    throughput=lambda at: 1.0,
    tests=6 * HOUR,
    start=0.0,
    hosts=("", ""),
):
    """A path's readings: delay around a level with jitter and bursts, loss mostly none, throughput with a spread of 15 %."""
    draw = np.random.default_rng([seed, *source.encode(), *destination.encode(), *hosts[0].encode()])
    rows = []
    for at in np.arange(start, days * DAY, every) + draw.uniform(0, every):
        burst = draw.exponential(20.0) if draw.uniform() < 0.05 else 0.0
        bad = draw.uniform(0.01, 0.3) if draw.uniform() < 0.01 else 0.0
        lost = max(loss(at), bad)
        rows.append((source, destination, "packet_loss", lost, at, *hosts))
        if lost < 1.0:
            ms = level + jitter * draw.normal() + burst + delay(at)
            rows += [
                (source, destination, "delay_mean", ms, at, *hosts),
                (source, destination, "delay_sd", 0.2 + burst, at, *hosts),
            ]
    for at in np.arange(start, days * DAY, tests) + draw.uniform(0, tests):
        bits = BITS * np.exp(0.15 * draw.normal()) * throughput(at)
        rows.append((source, destination, "throughput", bits, at, *hosts))
    return rows


def mesh(**changes):
    """All paths among the sites; a value of `changes` is a function of source and destination."""
    return [
        row
        for source in SITES
        for destination in SITES
        if source != destination
        for row in path(source, destination, **{name: of(source, destination) for name, of in changes.items()})
    ]


def found(rows, **kwargs):
    detector = NetworkDetector()
    return detector.absorb(rows if isinstance(rows, pd.DataFrame) else frame(rows), **kwargs), detector


def opened(turns):
    return [finding for finding in turns if finding.turn is Turn.OPENED]


def during(start, end, value, otherwise=0.0):
    return lambda at: value if start <= at < end else otherwise


def seconds(moment):
    return moment.timestamp() - T0


@pytest.mark.parametrize("module", [findings, series])
def test_the_formulas_are_what_their_docstrings_say(module):
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed


@pytest.mark.parametrize("seed", range(3))
def test_quiet_paths_with_jitter_bursts_and_gaps_show_nothing(seed):
    rows = [row for row in mesh(days=lambda s, d: 12.0, seed=lambda s, d: seed) if not 5 < row[4] / DAY < 5.3]
    turns, detector = found(rows)
    assert turns == []
    assert detector.counts["gaps"] == 0


def test_loss_is_found_within_three_readings_and_ends():
    turns, _ = found(path(loss=during(2 * DAY, 2 * DAY + 2 * HOUR, 0.02)))
    first, last = turns
    assert (first.turn, first.trouble, str(first.culprit)) == (Turn.OPENED, Trouble.LOSS, "network:ALPHA>BETA")
    assert first.kind is IncidentKind.DEGRADED_NETWORK
    assert 0 < seconds(first.opened_at) - 2 * DAY < HOUR
    assert (first.quantity, first.before, first.readings) == ("packet_loss", 0.0, 3)
    assert first.now == pytest.approx(0.02)
    assert first.confidence == pytest.approx(0.8)
    assert (last.turn, last.id, last.note) == (Turn.CLOSED, first.id, "recovered")
    assert 0 < seconds(last.closed_at) - (2 * DAY + 2 * HOUR) < 2 * HOUR


@pytest.mark.parametrize("step", [15.0, -15.0])
def test_a_step_of_the_delay_is_found_and_its_way_back_is_its_end(step):
    turns, _ = found(path(delay=during(2 * DAY, 3 * DAY, step)))
    first, last = turns
    assert (first.turn, first.trouble, str(first.culprit)) == (Turn.OPENED, Trouble.DELAY, "network:ALPHA>BETA")
    assert (last.turn, last.note) == (Turn.CLOSED, "recovered")
    assert first.now - first.before == pytest.approx(step, abs=2.0)
    assert abs(seconds(first.since) - 2 * DAY) < HOUR
    assert seconds(first.opened_at) - 2 * DAY < 3.5 * HOUR


def test_a_new_level_becomes_the_normal_one():
    turns, _ = found(path(days=8.0, delay=during(2 * DAY, 6 * DAY, 15.0)))
    assert [turn.turn for turn in turns] == [Turn.OPENED, Turn.CLOSED]  # and back down to a known level is no news
    assert seconds(turns[1].closed_at) == pytest.approx(4 * DAY, abs=HOUR)


def test_queues_that_fill_are_no_other_route():
    rows = path(days=6.0)
    draw = np.random.default_rng(1)
    for place, (source, destination, quantity, value, at, *hosts) in enumerate(rows):
        if quantity == "delay_mean" and 3 * DAY <= at < 3.5 * DAY:
            queue = draw.exponential(30.0)
            rows[place] = (source, destination, quantity, value + queue, at, *hosts)
            rows[place + 1] = (source, destination, "delay_sd", queue, at, *hosts)
    assert found(rows)[0] == []


def test_a_path_over_two_routes_at_once_has_no_steps_but_those_of_both():
    draw = np.random.default_rng(2)
    luck = {}
    two = lambda at: 22.0 if luck.setdefault(at, draw.uniform()) < 0.4 else 0.0  # noqa: E731
    assert found(path(days=10.0, delay=two))[0] == []
    turns, _ = found(path(days=10.0, delay=lambda at: two(at) + (15.0 if at >= 9 * DAY else 0.0)))
    assert [finding.trouble for finding in opened(turns)] in ([Trouble.DELAY], [])


def test_a_collapse_of_throughput_is_found_and_ends():
    turns, _ = found(path(days=20.0, throughput=during(12 * DAY, 15 * DAY, 0.3, 1.0)))
    first, last = turns
    assert (first.trouble, str(first.culprit)) == (Trouble.THROUGHPUT, "network:ALPHA>BETA")
    assert 0 < seconds(first.opened_at) - 12 * DAY < DAY
    assert first.now / first.before == pytest.approx(0.3, rel=0.3)
    assert (last.turn, last.note) == (Turn.CLOSED, "recovered")


def test_one_test_that_fails_is_no_collapse():
    assert found(path(days=20.0, throughput=during(12 * DAY, 12 * DAY + 6 * HOUR, 0.0, 1.0)))[0] == []


def test_total_loss_that_lasts_is_a_firewall():
    turns, _ = found(path(loss=during(2 * DAY, 3 * DAY, 1.0)))
    first, last = turns
    assert (first.trouble, first.now, str(first.culprit)) == (Trouble.FIREWALL, 1.0, "network:ALPHA>BETA")
    assert (last.turn, last.note) == (Turn.CLOSED, "recovered")


def test_loss_that_becomes_total_is_renamed_and_stays_one_finding():
    turns, _ = found(path(loss=lambda at: 1.0 if at >= 2.2 * DAY else 0.05 if at >= 2 * DAY else 0.0))
    assert [(turn.turn, turn.trouble) for turn in turns] == [
        (Turn.OPENED, Trouble.LOSS),
        (Turn.CHANGED, Trouble.FIREWALL),
    ]
    assert len({turn.id for turn in turns}) == 1


@pytest.mark.parametrize("ahead", [200.0, -200.0, 30.0])
def test_a_clock_that_jumps_is_one_finding_at_its_site_and_no_outage(ahead):
    def delay(source, destination):
        sign = (destination == "BETA") - (source == "BETA")
        return during(2 * DAY, 3 * DAY, sign * ahead)

    turns, _ = found(mesh(delay=delay))
    last = {turn.id: turn for turn in turns if turn.turn is not Turn.CLOSED}
    assert [(finding.trouble, str(finding.culprit)) for finding in last.values()] == [(Trouble.CLOCK, "site:BETA")]
    assert turns[0].kind is IncidentKind.CLOCK_OFF
    assert [turn.note for turn in turns if turn.turn is Turn.CLOSED] == ["recovered"]


def test_delays_that_are_negative_from_the_start_are_a_clocks():
    turns, detector = found(path(level=-60.0))
    assert [(turn.turn, turn.trouble) for turn in turns] == [(Turn.OPENED, Trouble.CLOCK)]
    assert turns[0].before is None
    assert detector.counts["negative"] > 100


def test_a_few_negative_delays_are_counted_and_nothing_else():
    turns, detector = found(path(level=1.0, delay=lambda at: -50.0 if at % DAY < HOUR / 3 else 0.0))
    assert turns == []
    assert detector.counts["negative"] > 3


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"loss": lambda s, d: during(2 * DAY, 3 * DAY, 0.03 * ("BETA" in {s, d}))}, Trouble.LOSS),
        ({"loss": lambda s, d: during(2 * DAY, 3 * DAY, 1.0 * ("BETA" in {s, d}))}, Trouble.FIREWALL),
        ({"delay": lambda s, d: during(2 * DAY, 3 * DAY, 20.0 * ("BETA" in {s, d}))}, Trouble.DELAY),
        (
            {
                "days": lambda s, d: 10.0,
                "throughput": lambda s, d: during(6 * DAY, 9 * DAY, 0.2 if s == "BETA" else 1.0, 1.0),
            },
            Trouble.THROUGHPUT,
        ),
    ],
)
def test_what_several_peers_of_a_site_see_is_one_finding_for_the_site(change, trouble):
    turns, detector = found(mesh(**change))
    merged = {turn.id for turn in turns if turn.note.startswith("the same cause")}
    still = {turn.id: turn for turn in turns if turn.id not in merged}
    assert [(turn.trouble, str(turn.culprit)) for turn in still.values()] == [(trouble, "site:BETA")]
    assert len(opened(turns)) <= 2
    assert len(next(iter(still.values())).paths) >= 3
    assert detector.open == []


def test_what_one_peer_sees_is_of_the_path():
    bad = lambda s, d: during(2 * DAY, 3 * DAY, 0.03 * ((s, d) == ("ALPHA", "BETA")))  # noqa: E731
    turns, _ = found(mesh(loss=bad))
    assert [str(finding.culprit) for finding in opened(turns)] == ["network:ALPHA>BETA"]


def plain(turns):
    return [str(turn) for turn in turns]


def test_it_does_not_matter_how_the_stream_is_cut():
    rows = frame(
        mesh(
            days=lambda s, d: 5.0,
            every=lambda s, d: HOUR,
            loss=lambda s, d: during(2 * DAY, 3 * DAY, 0.03 * (d == "BETA")),
            delay=lambda s, d: during(3.2 * DAY, 4 * DAY, 25.0 * (s == "GAMMA")),
        )
    )
    whole, detector = found(rows)
    assert len(whole) > 3
    draw = np.random.default_rng(3)
    for pieces in (2, 7, 60):
        cuts = np.sort(draw.integers(0, len(rows), pieces))
        other = NetworkDetector()
        turns = [turn for part in np.split(np.arange(len(rows)), cuts) for turn in other.absorb(rows.iloc[part])]
        assert plain(turns) == plain(whole)
        assert plain(other.open) == plain(detector.open)
        assert other.counts == detector.counts
    detector.reset()
    assert detector.open == []
    assert plain(detector.absorb(rows)) == plain(whole)


def test_readings_that_come_late_or_twice_are_counted_and_change_nothing():
    rows = frame(path(loss=during(2 * DAY, 2.2 * DAY, 0.05)))
    whole, _ = found(rows)
    draw = np.random.default_rng(4)
    again = rows.iloc[draw.choice(len(rows), 40)].assign(come=lambda table: table["at"] + HOUR)
    mixed = pd.concat([rows.assign(come=rows["at"]), again]).sort_values("come", kind="stable", ignore_index=True)
    turns, detector = found(mixed.drop(columns="come"))
    assert plain(turns) == plain(whole)
    spread = again["quantity"].eq("delay_sd")
    assert detector.counts["unmatched"] == spread.sum()
    assert detector.counts["repeated"] + detector.counts["late"] == (~spread).sum()  # told apart for a day or so
    detector.counts["late"] = 0
    last = rows[rows["quantity"] == "packet_loss"].iloc[-1:]
    detector.absorb(last.assign(at=last["at"] - 3 * DAY))
    assert detector.counts["late"] == 1


def test_an_hour_late_is_left_out():
    rows = frame(path())
    moved = rows.assign(come=rows["at"] + np.where(np.arange(len(rows)) % 97 == 0, HOUR + 1, 0.0))
    turns, detector = found(moved.sort_values("come", kind="stable", ignore_index=True).drop(columns="come"))
    assert turns == []
    assert detector.counts["late"] > 0


def test_what_cannot_be_is_counted_and_nothing_more():
    rows = frame(path())
    bad = rows.iloc[:8].assign(
        quantity=["packet_loss", "packet_loss", "packet_loss", "delay_mean", "throughput", "hops", "delay_mean", "rtt"],
        value=[1.5, -0.1, np.nan, np.inf, -5.0, 4.0, np.nan, 3.0],
    )
    nowhere = rows.iloc[:2].assign(source_site="", source_host="")
    turns, detector = found(pd.concat([bad, nowhere, rows], ignore_index=True))
    assert turns == []
    assert detector.counts["impossible"] == 6
    assert detector.counts["unused"] == 2
    assert detector.counts["unplaced"] == 2
    assert detector.counts["read"] == len(rows) + 10


def test_two_hosts_of_one_site_have_levels_of_their_own_and_one_finding():
    def rows(bad):
        return path(level=20.0, hosts=("a1", "b"), loss=bad) + path(level=60.0, hosts=("a2", "b"), loss=bad)

    assert found(rows(lambda at: 0.0))[0] == []
    turns, _ = found(rows(during(2 * DAY, 3 * DAY, 0.05)))
    assert [(turn.turn, str(turn.culprit)) for turn in turns] == [
        (Turn.OPENED, "network:ALPHA>BETA"),
        (Turn.CLOSED, "network:ALPHA>BETA"),
    ]


def test_two_hosts_that_are_not_told_apart_are_no_trouble():
    assert found(path(level=20.0, days=8.0) + path(level=60.0, days=8.0, seed=9))[0] == []


def test_a_gap_of_a_week_is_no_finding():
    rows = path(days=4.0) + path(days=15.0, start=11 * DAY, seed=1)
    turns, detector = found(rows)
    assert turns == []
    assert detector.counts["gaps"] == 2  # of loss and of delay: the throughput of a month ago still says something


def test_another_level_after_a_gap_is_dated_after_it_and_one_after_a_month_is_no_news():
    week = path(days=4.0) + path(days=12.0, start=11 * DAY, level=90.0, seed=1)
    turns, _ = found(week)
    assert [finding.trouble for finding in opened(turns)] == [Trouble.DELAY]
    assert seconds(turns[0].since) >= 11 * DAY
    assert found(path(days=4.0) + path(days=40.0, start=34 * DAY, level=90.0, seed=1))[0] == []


def test_a_finding_ends_when_nothing_is_heard_any_more():
    rows = path(days=4.0, loss=lambda at: 0.05 if at >= 3.5 * DAY else 0.0)
    rows += path("GAMMA", "DELTA", days=8.0)
    turns, detector = found(rows)
    assert [(turn.turn, turn.note) for turn in turns] == [(Turn.OPENED, ""), (Turn.CLOSED, "no more readings")]
    assert detector.open == []


def test_a_site_that_changes_its_name_keeps_its_past_by_its_hosts():
    hosts = ("ps1.alpha", "ps1.beta")
    rows = path(hosts=hosts) + path("ALPHA-T2", days=8.0, start=4 * DAY, hosts=hosts, seed=1)
    turns, detector = found(rows)
    assert turns == []
    assert detector.counts["renamed"] == 3
    rows += path("ALPHA-T2", days=10.0, start=8 * DAY, hosts=hosts, seed=2, loss=lambda at: 0.05)
    assert [str(finding.culprit) for finding in opened(found(rows)[0])] == ["network:ALPHA-T2>BETA"]
    nameless = path() + path("ALPHA-T2", days=8.0, start=4 * DAY, level=90.0)
    assert found(nameless)[0] == []


def test_names_are_text_and_nothing_else():
    hostile = "<script>$x|A>B\n\x00"
    turns, _ = found(path(hostile, "BETA", loss=lambda at: 0.05 if at > DAY else 0.0))
    assert [turn.culprit.kind for turn in turns] == [EntityKind.NETWORK]


def test_what_is_silent_for_a_month_is_forgotten():
    detector = NetworkDetector()
    detector.absorb(frame(path()))
    assert detector.counts["forgotten"] == 0
    detector.absorb(frame(path("GAMMA", "DELTA", days=4.2 + FORGET_S / DAY, start=3.8 * DAY + FORGET_S)))
    assert detector.counts["forgotten"] == 3
    assert {site for _, site, _ in detector._tracks} == {"gamma"}


def test_the_counts_account_for_every_reading():
    rows = frame(path())
    _, detector = found(rows)
    assert detector.counts == Counter(read=len(rows))


def test_no_readings_are_no_trouble():
    assert NetworkDetector().absorb(frame([])) == []


def test_a_detour_of_one_path_alone_is_no_clock_however_far():
    far = during(2 * DAY, 3 * DAY, 150.0)
    turns, _ = found(mesh(delay=lambda s, d: far if (s, d) == ("ALPHA", "BETA") else lambda at: 0.0))
    first = turns[0]
    assert (first.trouble, str(first.culprit)) == (Trouble.DELAY, "network:ALPHA>BETA")
    assert first.kind is IncidentKind.DEGRADED_NETWORK
    assert {turn.trouble for turn in turns} == {Trouble.DELAY}
