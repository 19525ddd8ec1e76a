"""What is announced: CRIC's lists in files and at addresses, silences, and that nothing is done to what they cover."""

from __future__ import annotations

import doctest
import json
import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.assembly import calendar, downtime_lists, problems
from agent.calendar import ANNOUNCED, Calendar
from agent.config import load, parse
from agent.guards import Guards
from agent.sources import cric as cric_form
from agent.sources.cric import decode
from agent.sources.downtimes import DowntimesFile, DowntimesUrl
from detectors.covers import Cover
from models.domain import (
    BlastRadius,
    Block,
    Candidate,
    ConfigError,
    Entity,
    Evidence,
    Incident,
    IncidentKind,
    Permission,
    RemedyCard,
    Safety,
    SourceError,
)
from models.events import RefusalReason
from models.measurements import SiteMap
from remedies.policy import Limits
from simulator.announcements import announced, listed
from simulator.world import World
from storage.ledger import Ledger
from tests.worlds import SickWorld, scenario_of

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
ROOT = Path(__file__).parent.parent


def test_doctests():
    assert doctest.testmod(cric_form).failed == 0


def entry(**other):
    """A downtime as CRIC tells of it; None leaves a field out."""
    usual = {
        "id": 31415,
        "rc_site": "BNL-OSG2",
        "provider": "GOCDB",
        "classification": "SCHEDULED",
        "severity": "OUTAGE",
        "affected_services": "SRM, webdav",
        "description": "dCache upgrade",
        "info_url": "https://goc.example/31415",
        "start_time": "2026-03-02T05:00:00",
        "end_time": "2026-03-02T09:30:00",
        "last_modified": "2026-02-27T11:12:13.141592",
    }
    return {name: value for name, value in (usual | other).items() if value is not None}


def read(document, sites=None):
    return decode(document, where="list.json", sites=sites or SiteMap())


def entities(announced):
    return [str(cover.entity) for cover in announced.covers]


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Told:
    """A list that says what it is given, or fails with it."""

    def __init__(self, document, name="list"):
        self.name, self.document, self.reads = name, document, 0

    def read(self):
        self.reads += 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


@pytest.mark.parametrize(
    "document",
    [
        {"BNL-ATLAS": {"31415": entry()}},  # by site and id
        {"BNL-OSG2": {"31415": entry(rc_site=None)}},
        {"BNL-OSG2": [entry(rc_site=None)]},  # by site in a list
        {"BNL-OSG2": entry(rc_site=None)},
        {"31415": entry()},  # by id
        [entry()],
        [entry(rc_site=None, site="BNL-OSG2")],
        [entry(rc_site=None, name="BNL-OSG2")],
        {"BNL-OSG2": [entry(rc_site=None, affected_services=None, services=[{"type": "SRM", "endpoint": "x:8443"}])]},
    ],
)
def test_every_nesting_is_read(document):
    found = read(document)
    assert found.covers == (
        Cover(
            entity=Entity.parse("site:BNL-OSG2"),
            start=at("2026-03-02T05:00:00"),
            end=at("2026-03-02T09:30:00"),
            why="scheduled downtime 31415: dCache upgrade",
        ),
    )
    assert (found.refusals, found.passed_over, found.read) == ((), 0, 1)


@pytest.mark.parametrize(
    "moments",
    [
        ("2026-03-02T05:00:00Z", "2026-03-02T10:30:00+01:00"),
        ("2026-03-02 05:00:00.000000", "2026-03-02 09:30"),
        (at("2026-03-02T05:00:00"), int(at("2026-03-02T09:30:00"))),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(moments):
    start, end = moments
    assert read([entry(start_time=start, end_time=end)]).covers == read([entry()]).covers


@pytest.mark.parametrize("named", [["A_DISK", "A_TAPE"], {"A_DISK": {}, "A_TAPE": {}}, [{"name": "A_DISK"}, "A_TAPE"]])
def test_storage_elements_that_are_named_stand_for_their_site(named):
    assert entities(read([entry(ddmendpoints=named)])) == ["rse:A_DISK", "rse:A_TAPE"]
    assert entities(read([entry(ddmendpoints=[])])) == ["site:BNL-OSG2"]


def test_the_map_of_sites_tells_whose_storage_elements_are_meant():
    assert entities(read([entry(rc_site="bnl-atlas")], SiteMap({"BNL-ATLAS": "BNL-OSG2"}))) == ["site:BNL-OSG2"]
    assert entities(read([entry(site="BNL-OSG2", rc_site="BNL-ATLAS")])) == ["site:BNL-OSG2"]


@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({"severity": "WARNING"}, False),
        ({"severity": "AT_RISK"}, False),
        ({"severity": "outage"}, True),
        ({"severity": None}, True),
        ({"affected_services": "CE, Site-BDII"}, False),
        ({"affected_services": ["org.opensciencegrid.htcondorce", "net.perfSONAR.Bandwidth"]}, False),
        ({"affected_services": "CE, SRM"}, True),
        ({"affected_services": "dcdoor17.bnl.example"}, True),
        ({"affected_services": ""}, True),
        ({"affected_services": None, "services": [{"type": "CE", "flavour": "ARC-CE"}]}, False),
        ({"affected_services": None, "services": [{"type": "CE"}, {"type": "SRM"}]}, True),
    ],
)
def test_what_stops_no_transfer_is_passed_over(fields, stops):
    found = read([entry(**fields)])
    assert (len(found.covers), found.passed_over, found.refusals) == ((1, 0, ()) if stops else (0, 1, ()))


@pytest.mark.parametrize(
    ("bad", "reason", "told"),
    [
        ("down", RefusalReason.NOT_AN_OBJECT, "give an object with start_time and end_time"),
        (None, RefusalReason.NOT_AN_OBJECT, "give an object"),
        (entry(start_time="soon"), RefusalReason.BAD_TIME, "start_time 'soon' is no time; write it as 2026-03-02T"),
        (entry(end_time=None), RefusalReason.BAD_TIME, "end_time 'None' is no time"),
        (entry(end_time=1772442000000), RefusalReason.BAD_TIME, "end_time '1772442000000' is no time"),
        (entry(end_time=True), RefusalReason.BAD_TIME, "end_time"),
        (entry(end_time=float("inf")), RefusalReason.BAD_TIME, "end_time"),
        (entry(end_time={"at": 5}), RefusalReason.BAD_TIME, "end_time"),
        (entry(end_time="2026-03-02T05:00:00"), RefusalReason.ENDS_BEFORE_START, "must end after it begins"),
        (entry(rc_site=None), RefusalReason.NO_SITE, "it names no site; set `site`"),
        (entry(rc_site="<b>x</b>"), RefusalReason.BAD_NAME, "cannot be one"),
        (entry(rc_site="A\x1b[2J"), RefusalReason.BAD_NAME, "cannot be one"),
        (entry(rc_site="A\ud800"), RefusalReason.BAD_NAME, "cannot be one"),
        (entry(rc_site="A" * 501), RefusalReason.BAD_NAME, "cannot be one"),
        (entry(ddmendpoints=["A>B"]), RefusalReason.BAD_NAME, "cannot be one"),
    ],
)
def test_a_bad_entry_is_refused_and_stops_no_other(bad, reason, told):
    found = read([entry(id=1), bad, entry(id=2)])
    assert len(found.covers) == 2
    assert [refusal.reason for refusal in found.refusals] == [reason]
    assert told in found.refusals[0].detail
    assert found.refusals[0].detail.startswith("list.json, '1': ")
    assert found.read == 3


def test_what_goes_deeper_than_any_list_is_refused():
    found = read({"A": {"1": entry(), "2": {"x": {"y": {"z": 1}}}}})
    assert [refusal.reason for refusal in found.refusals] == [RefusalReason.NOT_AN_OBJECT]
    assert len(found.covers) == 1


@pytest.mark.parametrize("document", [{"error": "not allowed"}, "maintenance", 5, None, ["x"], {"A": ["x", 3]}])
def test_what_holds_no_downtime_at_all_is_no_list(document):
    with pytest.raises(SourceError, match=r"list\.json: holds no downtimes .*give CRIC's JSON"):
        read(document)


@pytest.mark.parametrize("document", [{}, [], {"BNL-OSG2": {}}])
def test_a_list_may_be_empty(document):
    assert read(document).covers == ()


def test_why_is_one_short_line():
    (cover,) = read([entry(description="pipes\r\n\tburst " + "x" * 5000)]).covers
    assert cover.why.startswith("scheduled downtime 31415: pipes burst xxx")
    assert len(cover.why) == 200


class TestSimulated:
    DISTURBANCES = (
        {"kind": "downtime", "where": "site:BNL-OSG2", "start": "1h", "duration": "2h"},
        {"kind": "downtime", "where": "rse:FZK-LCG2_DATADISK", "start": "3d", "duration": "90m"},
        {"kind": "downtime", "where": "site:any", "start": "30d", "duration": "1h"},
        {"kind": "busy-day", "start": "1h", "duration": "2h"},
    )

    @pytest.fixture
    def world(self):
        return World(scenario_of(disturbances=list(self.DISTURBANCES)), seed=1, start=NOW)

    def test_a_world_announces_in_the_form_that_is_read(self, world):
        found = read(json.loads(json.dumps(announced(world))))
        assert not found.refusals
        assert [(str(c.entity), c.start - NOW.timestamp(), c.end - NOW.timestamp()) for c in found.covers] == [
            ("site:BNL-OSG2", 3600.0, 3 * 3600.0),
            ("rse:FZK-LCG2_DATADISK", 72 * 3600.0, 73.5 * 3600.0),
        ]

    def test_an_entry_is_called_by_the_same_number_always(self, world):
        later = listed(world, since=86_400.0, until=40 * 86_400.0)
        assert later["FZK-LCG2"] == announced(world)["FZK-LCG2"]
        assert sum(map(len, later.values())) == 2
        assert listed(world, since=0.0, until=3600.0) == {}


class TestFile:
    def test_it_is_read_as_it_is_now(self, tmp_path):
        path = tmp_path / "downtimes.json"
        path.write_text(json.dumps([entry()]))
        assert DowntimesFile(path).read() == [entry()]

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (None, "cannot be read .*fetch CRIC's list into it"),
            (b"<html>sign in</html>", "is not JSON .*<html>.*by \\?json"),
            (b"\xff\xfe\x00", "is not JSON"),
            (b"[" * 100_000, "is not JSON"),
            (b"", "is not JSON"),
        ],
    )
    def test_what_cannot_be_read_says_what_to_do(self, tmp_path, content, told):
        path = tmp_path / "downtimes.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SourceError, match=f"downtimes.json: {told}"):
            DowntimesFile(path).read()


@contextmanager
def cric(answer):
    """A server whose every answer is (status, body); `answer` is asked each time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answer(self.path)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.end_headers()
            self.wfile.write(b"" if status == 302 else body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/core/downtime/query/?json"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.usefixtures("direct")
class TestUrl:
    def test_it_is_fetched_with_its_query(self):
        asked = []

        def answer(path):
            asked.append(path)
            return 200, json.dumps({"BNL-ATLAS": {"31415": entry()}}).encode()

        with cric(answer) as url:
            assert entities(read(DowntimesUrl(url).read())) == ["site:BNL-OSG2"]
        assert asked == ["/api/core/downtime/query/?json"]

    def test_a_redirection_is_followed(self):
        def answer(path):
            return (200, b"[]") if path == "/there" else (302, b"/there")

        with cric(answer) as url:
            assert DowntimesUrl(url).read() == []

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            ((500, b"down"), "cannot be fetched .*500"),
            ((200, b"<html>"), "is not JSON"),
            ((403, b"{}"), "cannot be fetched"),
        ],
    )
    def test_what_cannot_be_fetched_says_what_to_do(self, answer, told):
        with cric(lambda _: answer) as url, pytest.raises(SourceError, match=told) as caught:
            DowntimesUrl(url).read()
        assert url in str(caught.value)

    def test_nobody_answers(self):
        with cric(lambda _: (200, b"[]")) as url:
            pass
        with pytest.raises(SourceError, match=r"cannot be fetched .*correct downtimes\.lists"):
            DowntimesUrl(url).read()

    def test_an_answer_without_end_is_cut(self, monkeypatch):
        monkeypatch.setattr("agent.sources.downtimes._LARGEST", 1000)
        with cric(lambda _: (200, b"[" + b"1," * 5000)) as url, pytest.raises(SourceError, match="ask for less"):
            DowntimesUrl(url).read()

    def test_a_failure_keeps_what_was_known_and_is_told_once(self):
        """The whole way: an address that comes, goes, and comes back."""
        status = 200

        def answer(_):
            return status, json.dumps([entry(), entry(end_time="never")]).encode()

        with cric(answer) as url, capture_logs() as logs:
            known = Calendar([DowntimesUrl(url)], every=timedelta(minutes=10))
            for minute, code in ((0, 200), (10, 500), (20, 500), (30, 200), (40, 200)):
                status = code
                known.refresh(NOW + timedelta(minutes=minute))
                assert len(known.covers) == 1
        told = [line["event"] for line in logs]
        assert told == ["downtimes-refused", "downtimes-unreadable", "downtimes-readable-again"]
        assert logs[0]["refused"] == 1
        assert "'never' is no time" in logs[0]["first"]


class TestCalendar:
    def test_a_list_is_read_when_it_is_time(self):
        told = Told([])
        known = Calendar([told], every=timedelta(minutes=10))
        for minute in (0, 1, 9, 10, 12, 20):
            known.refresh(NOW + timedelta(minutes=minute))
        assert told.reads == 3
        known.refresh(NOW - timedelta(days=1))  # another grid's clock
        assert told.reads == 4

    def test_a_list_that_cannot_be_read_is_left_alone_as_long(self):
        told = Told(SourceError("gone"))
        known = Calendar([told], every=timedelta(minutes=10))
        for minute in range(11):
            known.refresh(NOW + timedelta(minutes=minute))
        assert told.reads == 2

    def test_one_broken_list_does_not_hide_the_others(self):
        known = Calendar([Told({"error": 1}, "broken"), Told([entry()], "whole")])
        with capture_logs() as logs:
            known.refresh(NOW)
        assert len(known.covers) == 1
        assert [line["event"] for line in logs] == ["downtimes-unreadable", "downtimes-read"]

    def test_silences_stand_beside_downtimes(self):
        silence = Cover(entity=Entity.parse("fts:one"), start=at("2026-03-02T05:00:00"), end=1e10, why="tests")
        known = Calendar([Told([entry()])], [silence])
        known.refresh(NOW)
        assert known.touched([], NOW) == {"fts:one", "site:BNL-OSG2"}
        assert known.touched([], NOW - timedelta(hours=2)) == frozenset()

    def test_what_is_over_is_kept_though_the_list_drops_it(self):
        told = Told([entry()])
        known = Calendar([told], every=timedelta(minutes=10))
        known.refresh(NOW)
        told.document = []
        known.refresh(datetime(2026, 3, 2, 9, 40, tzinfo=UTC))
        assert [cover.end for cover in known.covers] == [at("2026-03-02T09:30:00")]
        told.document = [entry(id=2, start_time="2026-03-20T00:00:00", end_time="2026-03-21T00:00:00")]
        known.refresh(NOW + timedelta(days=9))
        assert [cover.start for cover in known.covers] == [at("2026-03-20T00:00:00")]

    def test_what_is_withdrawn_ends_now(self):
        future = entry(id=2, start_time="2026-03-04T00:00:00", end_time="2026-03-05T00:00:00")
        told = Told([entry(), future])
        known = Calendar([told], every=timedelta(minutes=10))
        known.refresh(NOW)
        told.document = []
        known.refresh(NOW + timedelta(minutes=10))
        assert [(cover.start, cover.end) for cover in known.covers] == [
            (at("2026-03-02T05:00:00"), at("2026-03-02T06:10:00"))
        ]

    def test_the_ledger_remembers_and_counts_once(self, ledger_url):
        ledger = Ledger.open(ledger_url)
        told = Told([entry(), entry(start_time="soon")], "cric.json")
        for _ in range(2):
            known = Calendar([told])
            with ledger.begin(write=False) as tx:
                known.restore(tx)
            known.refresh(NOW)
            with ledger.begin(write=True) as tx:
                known.record(tx, NOW)
            known.recorded()
            assert len(known.covers) == 1
        with ledger.begin(write=False) as tx:
            assert tx.counts() == {("cric.json", "read"): 2, ("cric.json", "refused:bad-time"): 1}
            (refused,) = tx.quarantined(10)
            assert (
                refused.detail
                == "cric.json, '1': start_time 'soon' is no time; write it as 2026-03-02T05:00:00, in UTC"
            )
            assert set(tx.setting(ANNOUNCED)) == {"cric.json"}
        away = Calendar([Told(SourceError("no network"), "cric.json")])
        with ledger.begin(write=False) as tx:
            away.restore(tx)
        away.refresh(NOW)
        assert away.touched([], NOW) == {"site:BNL-OSG2"}
        other = Calendar([Told(SourceError("no network"), "another.json")])
        with ledger.begin(write=False) as tx:
            other.restore(tx)
        assert len(other.covers) == 0
        ledger.close()


def test_a_pass_notes_what_it_read_once_though_another_broke(tmp_path, monkeypatch):
    world = SickWorld()
    world.advance(minutes=5)
    known = Calendar([Told([entry(), "broken"], "cric.json")])
    with ExitStack() as stack:
        agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db", calendar=known)
        with monkeypatch.context() as patch:
            patch.setattr(agent._chooser.__class__, "decide", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                agent.run_once(world.now)
        for _ in range(2):
            agent.run_once(world.now)
        with agent.ledger.begin(write=False) as tx:
            counted = {word: n for (source, word), n in tx.counts().items() if source == "cric.json"}
            assert counted == {"read": 2, "refused:not-an-object": 1}
            assert len(tx.setting(ANNOUNCED)["cric.json"]["covers"]) == 1


def test_another_map_of_sites_is_heeded_though_the_list_is_the_same(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    found = []
    for sites in ({}, {"BNL-OSG2": "BNL"}):
        known = Calendar([Told([entry()])], sites=SiteMap(sites))
        with ledger.begin(write=True) as tx:
            known.restore(tx)
            known.refresh(NOW + timedelta(seconds=len(sites)))
            known.record(tx, NOW)
        found.append(known.touched([], NOW + timedelta(minutes=1)))
    ledger.close()
    assert found == [{"site:BNL-OSG2"}, {"site:BNL"}]


CARD = RemedyCard(
    name="throttle",
    title="",
    spec="x:Y",
    builtin=True,
    addresses=frozenset(IncidentKind),
    safety=Safety.REVERSIBLE,
    blast_radius=BlastRadius.LINK,
    cooldown=timedelta(0),
    settle_time=timedelta(0),
    prior=0.5,
)


def incident(culprit):
    evidence = Evidence(summary="", window_s=1800, anomalous=9, total=9, background=0)
    return Incident(
        id="inc-1",
        kind=IncidentKind.FAILING_TRANSFERS,
        culprit=Entity.parse(culprit),
        opened_at=NOW,
        updated_at=NOW,
        confidence=0.9,
        severity=0.5,
        evidence=evidence,
    )


@pytest.mark.parametrize(
    ("target", "culprit", "hour", "blocked"),
    [
        ("rse:BNL-OSG2_DATADISK", "rse:A_DISK", 6, True),  # a storage element of the site
        ("link:A_DISK>BNL-OSG2_DATADISK", "rse:A_DISK", 6, True),
        ("rule:17", "rse:BNL-OSG2_DATADISK", 6, True),
        ("site:BNL-OSG2", "site:BNL-OSG2", 6, True),
        ("rse:BNL-OSG2_DATADISK", "rse:A_DISK", 4, False),
        ("rse:BNL-OSG2_DATADISK", "rse:A_DISK", 10, False),
        ("rse:B_DISK", "rse:A_DISK", 6, False),
        ("rse:B_DISK", "link:A_DISK>B_DISK", 6, False),
    ],
)
def test_nothing_is_done_to_what_is_in_a_downtime(tmp_path, target, culprit, hour, blocked):
    known = Calendar([Told([entry()])])
    now = NOW.replace(hour=hour)
    known.refresh(now)
    limits = Limits(autonomy=True, safety_cap=Safety.DISRUPTIVE, blast_radius_cap=BlastRadius.GRID)
    guards = Guards(cards={CARD.name: CARD}, limits=limits, calendar=known)
    candidate = Candidate(remedy=CARD.name, params={}, targets=(target,), summary="")
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.begin(write=False) as tx:
        ruling = guards.ruling(tx, candidate, incident(culprit), now=now)
    ledger.close()
    assert (ruling.permission, ruling.blocks) == (
        (Permission.SKIP, (Block.DOWNTIME,)) if blocked else (Permission.AUTO, ())
    )


class TestConfiguration:
    def parsed(self, base, **content):
        return parse(content, base=base, where="here.yaml")

    def test_the_simulated_grids_own_list_unless_others_are_named(self, tmp_path):
        names = [one.name for one in downtime_lists(self.parsed(tmp_path))]
        assert names == ["http://127.0.0.1:8850/downtimes"]
        assert downtime_lists(self.parsed(tmp_path, events=[{"kind": "files", "paths": ["x.csv"]}])) == []
        assert downtime_lists(self.parsed(tmp_path, downtimes={"lists": []})) == []
        named = downtime_lists(self.parsed(tmp_path, downtimes={"lists": ["cric.json", "https://cric.example/q?json"]}))
        assert [one.name for one in named] == [str(tmp_path / "cric.json"), "https://cric.example/q?json"]

    def test_silences(self, tmp_path):
        given = {"entity": "link:A>B", "from": "2026-03-02 05:00", "to": "2026-03-02T08:00:00+01:00", "why": "tests"}
        config = self.parsed(tmp_path, downtimes={"lists": []}, silences=[given])
        assert list(calendar(config).covers) == [
            Cover(
                entity=Entity.parse("link:A>B"),
                start=at("2026-03-02T05:00:00"),
                end=at("2026-03-02T07:00:00"),
                why="silence: tests",
            )
        ]

    def test_silences_as_the_shipped_file_shows_them(self, tmp_path):
        (shown,) = [
            line for line in (ROOT / "config.yaml").read_text().splitlines() if line.startswith("#   - {entity")
        ]
        other = '  - {entity: "fts:one", from: 2026-03-02T08:00:00Z, to: 2026-03-03, why: tests}'
        (tmp_path / "config.yaml").write_text(f"silences:\n{shown.removeprefix('# ')}\n{other}\n")
        covers = list(calendar(load(tmp_path / "config.yaml")).covers)
        assert [(str(one.entity), one.start, one.end) for one in covers] == [
            ("rse:CERN-PROD_DATADISK", at("2026-03-02T08:00:00"), at("2026-03-02T12:00:00")),
            ("fts:one", at("2026-03-02T08:00:00"), at("2026-03-03")),
        ]

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"entity": "A"}, "silences.0.entity: 'A' is not an entity; write kind:name with a kind out of rse, link"),
            ({"entity": "link:A>"}, "silences.0.entity: it needs two ends, written link:A>B (it is 'link:A>')"),
            ({"from": "soon"}, "silences.0.from: "),
            ({"to": "2026-03-02 04:00"}, "silences.0: a silence ends after it begins; it is from 2026-03-02 05:00"),
            ({"why": ""}, "silences.0.why: "),
            ({"until": 5}, "silences.0.until: there is no such setting"),
        ],
    )
    def test_a_bad_silence_is_named_by_its_key_path(self, tmp_path, fields, told):
        good = {"entity": "link:A>B", "from": "2026-03-02 05:00", "to": "2026-03-02 08:00", "why": "tests"}
        with pytest.raises(ConfigError) as caught:
            self.parsed(tmp_path, silences=[good | fields])
        assert told in str(caught.value)

    @pytest.mark.parametrize("place", ["ftp://cric.example/x", "http://", "http://host:port/", ""])
    def test_a_bad_list_is_named_by_its_key_path(self, tmp_path, place):
        with pytest.raises(ConfigError, match=r"downtimes\.lists\.0: "):
            self.parsed(tmp_path, downtimes={"lists": [place]})

    def test_a_password_does_not_stand_in_an_address(self, tmp_path):
        with pytest.raises(ConfigError, match="this holds a secret") as caught:
            self.parsed(tmp_path, downtimes={"lists": ["https://me:hunter2@cric.example/"]})
        assert "hunter2" not in str(caught.value)

    def test_config_check_reads_the_files(self, tmp_path):
        (tmp_path / "cric.json").write_text(json.dumps([entry(), entry(end_time="never")]))
        found = problems(self.parsed(tmp_path, downtimes={"lists": ["cric.json", "none.json"]}))
        told = [line for line in found if line.startswith("downtimes.lists: ")]
        assert len(told) == 2
        assert "cric.json, '1': end_time 'never' is no time" in told[0]
        assert "none.json: cannot be read (No such file or directory)" in told[1]
