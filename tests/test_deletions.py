"""Deletions that fail, crawl or are not carried out: one incident at whom it is, and one only where transfers go badly there, too."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from agent.desk import words
from detectors.covers import Cover, Covers
from detectors.deletions import BLOCK, Deletions
from detectors.incidents import IncidentBook
from detectors.judgement import judge
from models.domain import Entity, IncidentKind, Outcome
from models.events import DELETIONS, EVENT_COLUMNS, TEXT_COLUMNS
from remedies.builtin.open_ticket import body
from simulator.records import What
from simulator.world import World
from tests.worlds import SICK_DISK, SickWorld, scenario_of
from tests.worlds import START as WORLD_START

START = 1_500_000_000.0 - 1_500_000_000.0 % 3600.0
RSES = ("A_DATADISK", "A_SCRATCHDISK", "B_DATADISK", "C_DATADISK", "D_DATADISK", "E_DATADISK")
REFUSED = "srm-ifce err: Communication error on send, err: [SE][srmRm][] could not open connection to x.example:8446"
KIND = IncidentKind.FAILING_DELETIONS


def deletions(seed, hours, *, per_hour=600, planned=True):
    """Deletions of a made-up grid that is well, one row each: when planned, when carried out, how long that took."""
    rng = np.random.default_rng(seed)
    n = int(hours * per_hour)
    at = START + np.sort(rng.uniform(0, hours * 3600, n))
    took = rng.lognormal(-1.5, 0.8, n)
    return pd.DataFrame(
        {
            "rse": np.array(RSES, dtype=object)[rng.integers(0, len(RSES), n)],
            "name": [f"f{seed}-{k}" for k in range(n)],
            "planned": at if planned else np.nan,
            "ended": at + rng.exponential(60.0, n) + took,
            "took": took,
            "kind": "deletion-done",
            "reason": "",
        }
    )


def between(rows, rse, begin, end):
    """Which of the rows are planned at a storage element, or at one of a site, in these hours."""
    at = rows["planned"].fillna(rows["ended"])
    return rows["rse"].str.startswith(rse) & (at >= START + begin * 3600) & (at < START + end * 3600)


def refused(rows, which):
    rows.loc[which, ["kind", "reason", "took"]] = "deletion-failed", REFUSED, np.nan
    return rows


def events_of(rows):
    """Their documents in the order in which they were written, as a batch of events."""
    plans = rows.assign(kind="deletion-planned", at=rows["planned"], took=np.nan, reason="")
    both = pd.concat([plans, rows.assign(at=rows["ended"])]).dropna(subset=["at"]).sort_values("at", kind="stable")
    columns = {name: "" if name in TEXT_COLUMNS else np.nan for name in EVENT_COLUMNS}
    return pd.DataFrame(index=range(len(both)), columns=list(EVENT_COLUMNS)).assign(
        **columns
        | {
            "type": both["kind"].to_numpy(),
            "scope": "s",
            "name": both["name"].to_numpy(),
            "destination": both["rse"].to_numpy(),
            "reason": both["reason"].to_numpy(),
            "created_at": both["at"].to_numpy(),
            "ended_at": both["at"].to_numpy(),
            "duration": both["took"].to_numpy(np.float64),
        }
    )


class Eyes:
    """What watches deletions, as `agent.watch` does."""

    def __init__(self, covers=None):
        self.deletions, self.book, self.covers = Deletions(), IncidentBook(), covers or Covers()
        self.rows, self.found = [], {}

    def see(self, events, until, observed=None):
        rows = self.deletions.take(events)
        over = ~np.isnan(rows["ended_at"])
        ended = {name: values[over] for name, values in rows.items()}
        changed = self.book.advance(
            {"ended_at": np.empty(0)} if observed is None else observed,
            until=until,
            deletions=ended,
            undeleted=self.deletions.overdue((self.book.until or until) - 1800.0, until),
            covers=self.covers,
        )
        rows["calibrates"] = over & ~rows["failed"]
        rows["calibrates"][over] &= ~self.book.blamed(ended, self.covers, deletions=True)
        self.deletions.learn(rows)
        self.rows.append(pd.DataFrame(rows))
        self.found |= {incident.id: incident for incident in changed}
        return changed

    def live(self, events, *, step_s=300.0, observed=None, until=None):
        at = events["created_at"].to_numpy(np.float64)
        for end in np.arange(np.floor(at.min() / step_s) * step_s + step_s, until or at.max() + step_s, step_s):
            now = None if observed is None else observed[observed["ended_at"].between(end - step_s, end, "left")]
            self.see(events[(at >= end - step_s) & (at < end)], end, now)
        return self

    @property
    def named(self):
        return [(incident.kind, str(incident.culprit)) for incident in self.found.values()]


def seen(rows, **rest):
    return Eyes(**rest).live(events_of(rows))


def test_deletions_that_fail_are_one_incident_which_closes_and_reopens():
    rows = deletions(1, 8)
    refused(rows, between(rows, "B_DATADISK", 3, 4) | between(rows, "B_DATADISK", 4.6, 5))
    eyes = seen(rows)
    assert eyes.named == [(KIND, "rse:B_DATADISK")]
    (incident,) = eyes.found.values()
    assert START + 3 * 3600 < incident.opened_at.timestamp() < START + 3.25 * 3600
    assert START + 5 * 3600 < incident.closed_at.timestamp() < START + 6 * 3600
    evidence = incident.evidence
    assert evidence.reasons == {"deletion-connection": evidence.anomalous}
    assert f"{evidence.anomalous} of {evidence.total} deletions" in evidence.summary
    assert f"{evidence.anomalous} failed" in evidence.summary
    assert evidence.examples[0].link == "B_DATADISK"
    assert evidence.examples[0].request_id.startswith("s:f1-")


def test_a_stream_that_does_not_tell_what_is_planned_will_do():
    rows = deletions(2, 5, planned=False)
    refused(rows, between(rows, "C_DATADISK", 3, 4))
    assert seen(rows).named == [(KIND, "rse:C_DATADISK")]


def test_deletions_that_crawl_are_an_incident_with_the_numbers():
    rows = deletions(3, 6)
    slow = between(rows, "C_DATADISK", 4, 5)
    rows.loc[slow, "ended"] += rows["took"] * 40
    rows.loc[slow, "took"] *= 41
    eyes = seen(rows)
    assert eyes.named == [(KIND, "rse:C_DATADISK")]
    (incident,) = eyes.found.values()
    assert "crawled (half took over " in incident.evidence.summary
    assert "0.2" in incident.evidence.summary.partition("half took over")[2]
    (example, *_) = incident.evidence.examples
    assert example.duration_s > example.threshold_s > example.expected_s


def test_who_always_takes_long_does_not_crawl():
    rows = deletions(4, 6)
    own = rows["rse"] == "D_DATADISK"
    rows.loc[own, "took"] *= 41
    rows.loc[own, "ended"] += rows["took"]
    assert seen(rows).named == []


def test_what_is_planned_and_not_carried_out_is_an_incident():
    rows = deletions(5, 6)
    stuck = between(rows, "E_DATADISK", 4, 6)
    rows.loc[stuck, "ended"] = np.nan
    eyes = seen(rows)
    assert eyes.named == [(KIND, "rse:E_DATADISK")]
    (incident,) = eyes.found.values()
    assert not incident.closed
    assert "planned and not carried out in time" in incident.evidence.summary
    assert any("not carried out" in line for line in words.of_incident(incident).examples)


def test_a_whole_site_is_named_once():
    rows = deletions(6, 5)
    refused(rows, between(rows, "A_", 3, 4.5))
    eyes = seen(rows)
    assert [named for named in eyes.named if "site:" in named[1]] == [(KIND, "site:A")]
    assert len(eyes.found) == 1
    (incident,) = eyes.found.values()
    assert "A_SCRATCHDISK" in incident.evidence.summary


def test_a_few_failures_are_anecdotes():
    rows = deletions(7, 5)
    refused(rows, rows.index[between(rows, "B_DATADISK", 3, 5)][:4])
    assert seen(rows).named == []


def test_what_is_not_found_is_no_failure():
    rows = deletions(8, 5)
    gone = between(rows, "B_DATADISK", 3, 5)
    rows.loc[gone, ["kind", "reason", "took"]] = "deletion-not-found", "File not found", np.nan
    assert seen(rows).named == []


@pytest.mark.parametrize(("history", "expected"), [(0.22, []), (0.0, [(KIND, "rse:B_DATADISK")])])
def test_failures_are_held_against_the_own_history(history, expected):
    rows = deletions(9, 8)
    rng = np.random.default_rng(9)
    luck = rng.uniform(size=len(rows))
    refused(rows, between(rows, "B_DATADISK", 0, 6) & (luck < history))
    refused(rows, between(rows, "B_DATADISK", 6, 7.5) & (luck < 0.55))
    assert seen(rows).named == expected


def test_where_everything_fails_no_storage_is_to_blame():
    rows = deletions(10, 5)
    refused(rows, rows["planned"] >= START + 3 * 3600)
    assert seen(rows).named == []


def test_announced_downtimes_are_respected():
    rows = deletions(11, 6)
    refused(rows, between(rows, "B_DATADISK", 3, 3.5))
    cover = Cover(entity=Entity.parse("site:B"), start=START + 2.9 * 3600, end=START + 4 * 3600, why="")
    eyes = seen(rows, covers=Covers([cover]))
    assert eyes.named == []
    kept = pd.concat(eyes.rows)
    covered = kept["destination"].eq("B_DATADISK") & kept["ended_at"].between(cover.start, cover.end)
    assert covered.any()
    assert not kept.loc[covered, "calibrates"].any()


def test_documents_out_of_order_leave_nothing_planned():
    rows = deletions(12, 1)
    events = events_of(rows)
    early = Deletions()
    early.take(events[events["type"] != "deletion-planned"])
    early.take(events[events["type"] == "deletion-planned"])
    assert early.overdue(0.0, np.inf).empty
    early.take(events.assign(created_at=events["created_at"] + 7200, ended_at=events["ended_at"] + 7200)[:50])
    assert not early.overdue(0.0, np.inf).empty


def test_a_restart_from_rows_gives_the_same_book():
    rows = deletions(13, 5)
    refused(rows, between(rows, "B_DATADISK", 4.2, 6))
    rows.loc[between(rows, "E_DATADISK", 4.5, 6), "ended"] = np.nan
    events = events_of(rows)
    whole, first = Eyes(), Eyes()
    cut = START + 4.75 * 3600
    whole.live(events)
    first.live(events[events["created_at"] < cut], until=cut + 1.0)
    kept = pd.concat(first.rows, ignore_index=True)
    assert len(kept) > 2 * BLOCK
    second = Eyes()
    second.deletions.absorb(kept)
    second.book.reset(
        incidents=list(first.found.values()),
        observed=None,
        until=first.book.until,
        deletions=kept[kept["ended_at"].notna()],
    )
    later = events[events["created_at"] >= cut]
    first.live(later)
    second.live(later)
    assert first.found == whole.found
    for again, once in zip(second.rows, first.rows[-len(second.rows) :], strict=True):
        pd.testing.assert_frame_equal(again, once)
    assert second.found.items() <= first.found.items()
    assert second.book.open == first.book.open
    assert len(second.book.open) == 2
    pd.testing.assert_frame_equal(second.deletions.overdue(0.0, np.inf), first.deletions.overdue(0.0, np.inf))


def test_hostile_text_stays_harmless():
    rows = deletions(14, 5)
    which = between(rows, "B_DATADISK", 3, 5)
    refused(rows, which)
    rows.loc[which, "reason"] = "<script>alert(1)</script>\x1b[2J" * 50
    rows.loc[which, "name"] = rows["name"] + "<img src=x>\n\x1b[31m|@here"
    (incident,) = seen(rows).found.values()
    assert set(incident.evidence.reasons) == {"deletion-error"}
    shown = words.of_incident(incident)
    assert not any(set(line) & set("\n\x1b") for line in (*shown.examples, shown.summary, shown.headline))
    ticket = body(incident)
    assert "<" not in ticket
    assert "deletions in 30 minutes" in ticket


def test_numbers_that_cannot_be_are_ignored():
    rows = deletions(15, 2)
    rows.loc[::7, "took"] = 1e300
    rows.loc[::11, "took"] = np.nan
    assert seen(rows).named == []


def test_whether_an_action_helped_is_judged_from_the_deletions():
    rows = deletions(16, 6)
    refused(rows, between(rows, "B_DATADISK", 3, 4.5))
    eyes = seen(rows)
    (incident,) = eyes.found.values()
    kept = pd.concat(eyes.rows).query("ended_at == ended_at")
    at = pd.Timestamp(START + 4.5 * 3600, unit="s", tz="UTC").to_pydatetime()
    outcome, note = judge(incident, kept, applied_at=at, now=at + timedelta(hours=1))
    assert outcome is Outcome.FIXED
    assert "anomalous deletions an hour" in note


def transfers(seed, hours, *, broken=None, per_hour=1200):
    """Observed rows of a grid whose transfers to one place fail between two hours."""
    rng = np.random.default_rng(seed)
    n = int(hours * per_hour)
    source, step = rng.integers(0, 6, n), rng.integers(1, 6, n)
    names = np.array(RSES, dtype=object)
    at = START + np.sort(rng.uniform(0, hours * 3600, n))
    rows = pd.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(n)],
            "source": names[source],
            "destination": names[(source + step) % 6],
            "fts": "f0",
            "activity": "a",
            "rule_id": "",
            "reason": "",
            "bytes": 1e8,
            "submitted_at": at - 60.0,
            "started_at": at - 30.0,
            "ended_at": at,
            "failed": False,
            "slow": False,
            "slow_s": 300.0,
        }
    )
    if broken is not None:
        rse, begin, end = broken
        hit = rows["destination"].eq(rse) & rows["ended_at"].between(START + begin * 3600, START + end * 3600)
        rows.loc[hit, ["failed", "reason"]] = True, "destination-connection"
    return rows


@pytest.mark.parametrize(("deleting", "moving"), [(3.0, 3.5), (3.5, 3.0)])
def test_deletions_and_transfers_that_fail_at_one_place_are_one_incident(deleting, moving):
    rows = deletions(17, 6)
    refused(rows, between(rows, "B_DATADISK", deleting, 4.5))
    eyes = Eyes().live(events_of(rows), observed=transfers(17, 6, broken=("B_DATADISK", moving, 4.5)))
    assert eyes.named == [(IncidentKind.FAILING_TRANSFERS, "rse:B_DATADISK")]
    (incident,) = eyes.found.values()
    assert incident.opened_at.timestamp() < START + 3.3 * 3600
    assert incident.closed_at.timestamp() > START + 4.5 * 3600
    assert incident.evidence.deletions.anomalous > 5
    assert "Deletions" in dict(words.of_incident(incident).facts)


def test_a_partner_that_is_at_fault_by_what_its_errors_say_is_another_cause():
    rows, observed = deletions(19, 6), transfers(19, 6)
    refused(rows, between(rows, "B_DATADISK", 3.0, 4.5))
    to_whom = observed["source"].eq("E_DATADISK") & observed["ended_at"].gt(START + 3 * 3600)
    observed.loc[to_whom, "destination"] = "B_DATADISK"
    hit = to_whom & observed["ended_at"].between(START + 3.4 * 3600, START + 4.5 * 3600)
    observed.loc[hit, ["failed", "reason"]] = True, "source-connection"
    eyes = Eyes().live(events_of(rows), observed=observed)
    assert sorted(eyes.named) == [(KIND, "rse:B_DATADISK"), (IncidentKind.FAILING_TRANSFERS, "rse:E_DATADISK")]


def test_transfers_calibrate_where_only_deletions_fail():
    rows, observed = deletions(18, 4), transfers(18, 4)
    refused(rows, between(rows, "B_DATADISK", 3, 5))
    eyes = Eyes().live(events_of(rows), observed=observed)
    assert [str(incident.culprit) for incident in eyes.book.open] == ["rse:B_DATADISK"]
    assert not eyes.book.blamed(observed).any()


def test_a_calm_day_of_the_simulated_grid_has_no_incident_of_deletions():
    load = {"transfers_per_day": 2400, "deletions_per_day": 24_000}
    world = World(scenario_of(load=load), seed=5, start=WORLD_START)
    eyes = Eyes()
    for _ in range(24 * 4):
        emitted = world.advance(world.now + timedelta(minutes=15))
        events = world.documents.frame(emitted.events[emitted.events["what"] >= What.PLANNED])
        eyes.see(events, world.now.timestamp())
    assert sum(len(rows) for rows in eyes.rows) > 40_000
    assert eyes.named == []


class DeletingWorld(SickWorld):
    """The same, of which nothing but deletions is heard."""

    def advance(self, **delta):
        emitted = self.world.advance(self.world.now + timedelta(**delta))
        events = self.world.documents.frame(emitted.events)
        self.events.take(events[events["type"].isin(DELETIONS)].reset_index(drop=True))
        self.readings.take(self.world.probes.frame(emitted.measurements))


def test_refused_deletions_of_the_simulated_grid_are_proposed_a_remedy_for_and_outlive_a_restart(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    world = DeletingWorld(fault="credentials-expired", strength=0.95)
    with ExitStack() as stack:
        agent = world.agent(stack, url)
        world.live(agent, hours=3.5)
        with ExitStack() as later:
            again = world.agent(later, url)
            again._rebuild()
            assert again._watch.book.open == agent._watch.book.open
            pending = [one._watch._deletions.overdue(0.0, np.inf) for one in (again, agent)]
            pd.testing.assert_frame_equal(*pending)
        world.live(agent, hours=0.5)
        with agent.ledger.begin(write=False) as tx:
            (incident,) = tx.incidents()
            decision = tx.newest_decision(incident.id)
    assert (incident.kind, str(incident.culprit)) == (KIND, f"rse:{SICK_DISK}")
    assert {"open_ticket", "exclude_storage"} <= {option.candidate.remedy for option in decision.options}


def test_one_fault_of_the_simulated_grid_is_one_incident_of_transfers_and_deletions(tmp_path):
    world = SickWorld(fault="credentials-expired", strength=0.95)
    with ExitStack() as stack:
        agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db")
        world.live(agent, hours=4.0)
        with agent.ledger.begin(write=False) as tx:
            (incident,) = tx.incidents()
            assert tx.row_count("deletions") > 1000
    assert (incident.kind, str(incident.culprit)) == (IncidentKind.FAILING_TRANSFERS, f"rse:{SICK_DISK}")
    assert incident.evidence.deletions.anomalous > 5
