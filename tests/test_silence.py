"""Feeds that fall silent or stand still, beside quiet nights, bursts, batches, recordings, restarts and clocks that are off."""

from __future__ import annotations

import doctest
import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from agent.calendar import Calendar
from agent.desk import words
from agent.desk.answers import Operators, give
from agent.feeds import Feeds
from detectors import gaps
from detectors import silence as module
from detectors.covers import Cover
from detectors.silence import Feed, Still, dump, load
from models.domain import (
    Answer,
    AnswerKind,
    Entity,
    EntityKind,
    IncidentKind,
    IncidentStatus,
    Outcome,
    SourceError,
)
from models.events import Page
from storage.ledger import Ledger
from tests.worlds import SickWorld

MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
NONE = np.empty(0)


def by_chance(per_hour, days, *, seed=1):
    """Own times of documents that come by chance, so many an hour as `per_hour` says of an hour of the day."""
    draws = np.random.default_rng(seed)
    minutes = np.arange(days * 1440)
    number = draws.poisson(np.array([per_hour(minute / 60 % 24) for minute in minutes]) / 60)
    return np.sort(np.repeat(minutes * 60.0, number) + draws.uniform(0, 60, number.sum())) + MIDNIGHT


def alarms(feed, own, start, end, *, every=120.0, lag=30.0, come=None):
    """Poll from `start` to `end`; `own` are times of documents, `come` when they can be read. Return the alarms."""
    come = own + lag if come is None else come
    order = np.argsort(come, kind="stable")
    own, come, found, before = own[order], come[order], [], feed.alarmed
    first = np.searchsorted(come, start, side="right")
    for at in np.arange(start + every, end + every / 2, every):
        until = np.searchsorted(come, at, side="right")
        feed.polled(at, read=int(until - first), times=own[first:until], caught_up=True)
        first = until
        if feed.alarmed and not before:
            found.append(feed.silence)
        before = feed.alarmed
    return found


def day_and_night(hour):
    """From 4 documents an hour at three in the night to 400 at three in the afternoon."""
    return 4.0 * 100.0 ** (0.5 - 0.5 * np.cos(2 * np.pi * (hour - 3) / 24))


def steady(per_hour=300.0):
    return lambda _: per_hour


@pytest.fixture(scope="module")
def known():
    """A feed of 300 documents an hour, watched for three days, as JSON."""
    feed = Feed()
    assert alarms(feed, by_chance(steady(), 3), MIDNIGHT, MIDNIGHT + 3 * DAY) == []
    return json.dumps(dump(feed))


@pytest.fixture
def steady_feed(known):
    return load(json.loads(known))


LATER = MIDNIGHT + 3 * DAY


def test_doctests():
    assert doctest.testmod(module).failed == doctest.testmod(gaps).failed == 0


def test_a_silent_source_is_told_from_a_quiet_night():
    own = by_chance(day_and_night, 8)
    watched = Feed()
    assert alarms(watched, own, MIDNIGHT, MIDNIGHT + 7 * DAY) == []
    # Half an hour without a document: at three in the night nobody minds, in the afternoon it is told of within 20 minutes.
    for hour, minds in ((3, False), (15, True)):
        feed, stop = load(dump(watched)), MIDNIGHT + 7 * DAY + hour * HOUR
        assert alarms(feed, own, MIDNIGHT + 7 * DAY, stop) == []
        found = alarms(feed, own[own < stop], stop, stop + 1800)
        assert [one.still for one in found] == ([Still.SILENT] if minds else [])
        if minds:
            assert 900 <= found[0].at - stop < 1200
            assert found[0].usual == pytest.approx(400, rel=0.2)


def test_fewer_documents_as_a_load_goes_down_are_no_silence():
    hours = np.arange(10 * 24)
    number = np.random.default_rng(2).poisson(2000 * np.exp(-hours / 40) + 8)
    own = np.sort(np.repeat(hours * HOUR, number) + np.random.default_rng(3).uniform(0, HOUR, number.sum())) + MIDNIGHT
    assert alarms(Feed(), own, MIDNIGHT, MIDNIGHT + 10 * DAY) == []


@pytest.mark.parametrize("size", [20, 100])
def test_bursts_are_learned(size):
    draws = np.random.default_rng(size)
    starts = by_chance(steady(6.0), 12, seed=size + 1)
    own = np.repeat(starts, draws.geometric(1 / size, len(starts)))
    own += draws.exponential(60.0, len(own))
    feed = Feed()
    found = alarms(feed, own, MIDNIGHT, MIDNIGHT + 11 * DAY)
    assert all(one.at < MIDNIGHT + 6 * HOUR for one in found)  # after that it is known
    # As many documents one by one would be told of in a quarter of an hour.
    stop = MIDNIGHT + 11 * DAY
    (found,) = alarms(feed, own[own < stop], stop, stop + 8 * HOUR)
    assert found.at - found.since > HOUR


def test_documents_that_come_in_batches_are_learned():
    own = by_chance(steady(), 12)
    half_hourly, two_hourly = (MIDNIGHT + np.ceil((own - MIDNIGHT) / period) * period for period in (1800, 7200))
    assert alarms(Feed(), own, MIDNIGHT, MIDNIGHT + 12 * DAY, come=half_hourly) == []
    found = alarms(Feed(), own, MIDNIGHT, MIDNIGHT + 12 * DAY, come=two_hourly)
    assert len(found) <= 3
    assert all(one.at < MIDNIGHT + 0.5 * DAY for one in found)


def test_a_frozen_feed_repeats_what_is_known(steady_feed):
    old = LATER - np.arange(10) * 5.0
    for at in np.arange(LATER + 60, LATER + 1800, 60):
        steady_feed.polled(at, read=10, times=old, caught_up=True)
    silence = steady_feed.silence
    assert silence.still is Still.FROZEN
    assert silence.newest == pytest.approx(LATER, abs=60)
    assert silence.repeated > 100
    incident = module.incident_of("events", silence, None)
    assert "documents in" in incident.evidence.summary
    assert "and none newer than 2026-03-0" in incident.evidence.summary


def test_documents_of_which_none_can_be_used_are_a_frozen_feed(steady_feed):
    for at in np.arange(LATER + 60, LATER + 1800, 60):
        steady_feed.polled(at, read=5, times=NONE, caught_up=True)
    assert steady_feed.silence.still is Still.FROZEN


def test_late_documents_beside_new_ones_freeze_nothing():
    own = by_chance(steady(), 6)
    late = own + np.random.default_rng(1).exponential(1800.0, len(own))
    assert alarms(Feed(), own, MIDNIGHT, MIDNIGHT + 6 * DAY, come=late) == []


def test_a_clock_that_is_ahead_freezes_nothing():
    """A document that lags less than the others, as one of a clock that is ahead does, lifts the newest time above theirs."""
    own = by_chance(steady(), 4)
    come = own + 3000.0
    feed = Feed()
    assert alarms(feed, own, MIDNIGHT, MIDNIGHT + 3 * DAY, come=come) == []
    feed.polled(
        LATER + 60, read=1, times=np.array([LATER + 3000.0]), caught_up=True
    )  # of the future: told nothing by it
    feed.polled(LATER + 61, read=1, times=np.array([LATER + 60.0]), caught_up=True)
    assert alarms(feed, own, LATER + 61, LATER + DAY, come=come) == []


def test_what_cannot_be_reached_does_not_turn_silent(steady_feed):
    """No poll is answered for three hours; then the source answers, and its producers need a while."""
    back = LATER + 3 * HOUR
    for at in (back, back + 5, back + 10):
        steady_feed.polled(at, read=0, times=NONE, caught_up=True)
        assert not steady_feed.alarmed


def test_its_own_absence_is_no_silence(steady_feed):
    own = by_chance(steady(), 4, seed=5)
    back = LATER + 8 * HOUR
    missed = own[(own > LATER) & (own < back)]
    before = steady_feed._usual(back)
    for place in range(0, len(missed), 500):
        page = missed[place : place + 500]
        steady_feed.polled(back + place / 500, read=len(page), times=page, caught_up=place + 500 >= len(missed))
    assert alarms(steady_feed, own, back + 10, LATER + DAY) == []
    assert steady_feed._usual(back) == pytest.approx(before, rel=0.1)
    assert steady_feed.idle.longest * 12 < HOUR  # in seconds, at 300 an hour


def test_started_again_at_every_poll_it_is_what_it_would_have_been():
    own = by_chance(day_and_night, 2)
    own = own[(own < MIDNIGHT + 30 * HOUR) | (own > MIDNIGHT + 33 * HOUR)]
    one, other, states = Feed(), Feed(), []
    for at in np.arange(MIDNIGHT, MIDNIGHT + 2 * DAY, 300.0):
        page = own[(own > at - 300) & (own <= at)]
        one.polled(at, read=len(page), times=page, caught_up=True)
        other = load(json.loads(json.dumps(dump(other))))
        other.polled(at, read=len(page), times=page, caught_up=True)
        states.append(one.alarmed)
    assert dump(one) == dump(other)
    assert any(states)
    assert len(json.dumps(dump(one))) < 5000


def test_what_is_known_stays_bounded(steady_feed):
    at = LATER
    for _ in range(40):
        for _ in range(30):
            at += 600
            steady_feed.polled(at, read=0, times=NONE, caught_up=True)
        for _ in range(12):
            at += 600
            steady_feed.polled(at, read=50, times=at - np.arange(50.0), caught_up=True)
    assert 1 < len(steady_feed.spans) <= module.MOST_SPANS
    assert len(json.dumps(dump(steady_feed))) < 5000


@pytest.mark.parametrize("per_hour", [1.0, 3.0])
def test_a_trickle_never_alarms(per_hour):
    own, feed = by_chance(steady(per_hour), 6), Feed()
    assert alarms(feed, own, MIDNIGHT, MIDNIGHT + 6 * DAY) == []
    assert alarms(feed, own[:0], MIDNIGHT + 6 * DAY, MIDNIGHT + 12 * DAY) == []


def test_a_recording_that_ends_is_no_silence():
    own = by_chance(steady(), 3)
    years_later, feed = MIDNIGHT + 1000 * DAY, Feed()
    for place in range(0, len(own), 50):  # for two hours
        feed.polled(years_later + place / 3, read=50, times=own[place : place + 50], caught_up=False)
    assert alarms(feed, NONE, years_later + 2 * HOUR, years_later + 5 * DAY) == []


def test_without_passing_time_nothing_is_missed():
    own, feed = by_chance(steady(), 3), Feed()
    for place in range(0, len(own), 50):
        feed.polled(LATER, read=50, times=own[place : place + 50], caught_up=False)
    for _ in range(1000):
        feed.polled(LATER, read=0, times=NONE, caught_up=True)
    assert not feed.alarmed
    assert feed.watched == 0


def test_a_clock_that_goes_back_is_followed(steady_feed):
    """Another run of a simulated grid: its time begins anew, before that of the one that was watched."""
    own = by_chance(steady(), 1, seed=9)
    assert alarms(steady_feed, own, MIDNIGHT, MIDNIGHT + DAY) == []
    (found,) = alarms(steady_feed, own[:0], MIDNIGHT + DAY, MIDNIGHT + 1.1 * DAY)
    assert found.newest < MIDNIGHT + DAY


def page_of(times):
    return Page(rows=pd.DataFrame({"at": times}), read=len(times))


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def feeds_of(known, calendar=None):
    feeds = Feeds(["events"], calendar or Calendar())
    feeds._feeds["events"] = load(json.loads(known))
    return feeds


def quiet(feeds, start, end, every=60.0):
    """Poll without a document from start to end; return every word on an incident."""
    said = []
    for at in np.arange(start + every, end + every / 2, every):
        feeds.polled("events", page_of([]), NONE, moment(at))
        said += feeds.review(moment(at))
    return said


def come(feeds, at):
    feeds.polled("events", page_of([at - 5.0]), np.array([at - 5.0]), moment(at))
    return feeds.review(moment(at))


def test_the_incident_of_a_silent_feed_lives_and_ends(known):
    feeds = feeds_of(known)
    said = quiet(feeds, LATER, LATER + HOUR)
    (identity,) = {one.id for one in said}
    assert 5 <= len(said) <= 10  # one in five minutes
    assert said[0].kind is IncidentKind.SILENT_FEED
    assert said[0].culprit == Entity(EntityKind.FEED, "events")
    assert said[0].opened_at == said[-1].opened_at
    assert abs(said[0].opened_at.timestamp() - LATER) < 300  # when a document came last
    assert [one.severity for one in said] == sorted(one.severity for one in said)
    assert feeds.open == [said[-1]]
    summary = said[-1].evidence.summary
    assert summary.startswith("events: nothing new for ")
    assert " minutes; at this hour 294 documents an hour are usual; last document of 2026-03-04 23:59" in summary
    assert words.of_incident(said[-1]).headline == "No news from the feed events"

    (closed,) = come(feeds, LATER + HOUR + 60)
    assert closed.id == identity
    assert closed.closed_at == moment(LATER + HOUR + 60)
    assert feeds.open == []
    # It returns soon: the same incident. A day later it is another.
    again = quiet(feeds, LATER + HOUR + 60, LATER + 1.5 * HOUR + 60)
    assert {(one.id, one.closed_at) for one in again} <= {(identity, None)}
    come(feeds, LATER + 2.5 * HOUR)
    other = quiet(feeds, LATER + 2.5 * HOUR, LATER + 8 * HOUR)
    assert other
    assert {one.id for one in other}.isdisjoint({identity})


def test_it_is_known_of_which_times_a_feed_told_nothing(known):
    feeds = feeds_of(known)
    assert feeds.silent(LATER) == frozenset()
    quiet(feeds, LATER, LATER + HOUR)
    assert feeds.silent(LATER + 60) == feeds.silent(LATER + 2 * HOUR) == {"events"}
    assert feeds.silent(LATER - 600) == frozenset()
    come(feeds, LATER + HOUR + 60)
    assert feeds.silent(LATER + 1800) == {"events"}
    assert feeds.silent(LATER + HOUR + 60) == frozenset()


def test_what_was_delivered_late_was_told_of(known):
    feeds = feeds_of(known)
    quiet(feeds, LATER, LATER + HOUR)
    late = np.arange(LATER, LATER + HOUR, 12.0)
    feeds.polled("events", page_of(late), late, moment(LATER + HOUR + 60))
    assert feeds.silent(LATER + 1800) == frozenset()


def test_an_announced_silence_of_a_feed_is_no_incident(known):
    cover = Cover(entity=Entity(EntityKind.FEED, "events"), start=LATER, end=LATER + HOUR, why="an upgrade")
    feeds = feeds_of(known, Calendar(silences=[cover]))
    assert quiet(feeds, LATER, LATER + HOUR - 60) == []
    assert feeds.silent(LATER + 1800) == {"events"}
    assert quiet(feeds, LATER + HOUR, LATER + HOUR + 600)[0].kind is IncidentKind.SILENT_FEED


def test_a_feed_that_is_no_longer_configured_takes_its_incident_with_it(known, tmp_path):
    feeds = feeds_of(known)
    quiet(feeds, LATER, LATER + HOUR)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.begin(write=True) as tx:
        feeds.record(tx)
    same, other = Feeds(["events"], Calendar()), Feeds(["others"], Calendar())
    with ledger.begin(write=False) as tx:
        same.restore(tx, feeds.open)
        other.restore(tx, feeds.open)
    ledger.close()
    assert same.open == feeds.open
    assert same.silent(LATER + 60) == {"events"}
    assert same.review(moment(LATER + HOUR)) == []
    (closed,) = other.review(moment(LATER + HOUR))
    assert closed.closed
    assert other.open == []


def test_the_loop_tells_of_a_silent_feed_and_of_nothing_else(tmp_path):
    """Events stop while readings go on; the daemon is started again meanwhile; then they come again."""
    url, world = f"sqlite:///{tmp_path}/ledger.db", SickWorld(fault="write-slow", hours=0.01)

    def live(agent, *, minutes, events=True):
        for _ in range(minutes // 5):
            take, world.events.take = world.events.take, world.events.take if events else lambda _: None
            world.advance(minutes=5)
            world.events.take = take
            while not agent.run_once(world.now).caught_up:
                pass

    def silent(tx):
        return [one for one in tx.incidents() if one.kind is IncidentKind.SILENT_FEED]

    with ExitStack() as stack:
        agent = world.agent(stack, url)
        live(agent, minutes=150)
        with agent.ledger.begin(write=False) as tx:
            assert silent(tx) == []
        last = world.now
        live(agent, minutes=60, events=False)
        with agent.ledger.begin(write=False) as tx:
            (incident,) = silent(tx)
            decision = tx.newest_decision(incident.id)
        assert str(incident.culprit) == "feed:events"
        assert incident.opened_at == last
        assert [option.candidate.remedy for option in decision.options] == ["wait"]
        approval = Answer(key="a", by="ada", via="cli", kind=AnswerKind.APPROVE, decision_id=decision.id, option=0)
        give(agent.ledger, approval, operators=Operators.local("ada"))
    with ExitStack() as stack:
        agent = world.agent(stack, url)
        live(agent, minutes=30, events=False)
        with agent.ledger.begin(write=False) as tx:
            (goes_on,) = silent(tx)
            assert tx.action(decision.id).outcome is None  # without events nobody knows what came of anything
        assert (goes_on.id, goes_on.status) == (incident.id, IncidentStatus.OPEN)
        assert goes_on.updated_at > incident.updated_at
        live(agent, minutes=10)
        with agent.ledger.begin(write=False) as tx:
            (over,) = silent(tx)
            assert tx.action(decision.id).outcome is Outcome.UNKNOWN
        assert over.closed
        assert world.now - over.closed_at <= timedelta(minutes=10)


def test_the_loop_takes_no_unreachable_source_for_a_silent_one(tmp_path, monkeypatch):
    world = SickWorld(fault="write-slow", hours=0.01)
    with ExitStack() as stack:
        agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db")
        world.live(agent, hours=2)

        def away(*_, **__):
            raise SourceError("not there; start it")

        with monkeypatch.context() as patch:
            patch.setattr(world.readings, "poll", away)
            world.live(agent, hours=2)
        world.live(agent, hours=0.5)
        with agent.ledger.begin(write=False) as tx:
            assert [one for one in tx.incidents() if one.kind is IncidentKind.SILENT_FEED] == []
