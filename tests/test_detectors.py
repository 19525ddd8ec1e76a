"""Thresholds, classes of errors, localisation and the life of incidents, on streams whose truth is known."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest

import detectors.bounds
import detectors.failures
import detectors.localisation
import detectors.threshold
from detectors.bounds import fts_timeout
from detectors.failures import error_class
from detectors.incidents import RECOVERED_S, IncidentBook
from detectors.judgement import judge
from detectors.localisation import COLUMNS, Blame, Roles, localise
from detectors.threshold import DynamicThreshold
from models.domain import Entity, IncidentKind, Outcome

START = 1_500_000_000.0
SITES = [f"SITE-{n}" for n in range(8)]


def stream(
    seed: int, hours: float, *, per_hour: int = 1200, slow: dict[str, tuple[float, float]] | None = None
) -> pd.DataFrame:
    """Observed rows of a made-up grid: log-normal durations around a forecast that knows each link's mean.

    `slow` makes transfers of an RSE six times slower between two times (hours).
    """
    rng = np.random.default_rng(seed)
    n = int(hours * per_hour)
    source, destination = rng.integers(0, 8, n), rng.integers(0, 7, n)
    destination += destination >= source
    started = START + np.sort(rng.uniform(0, hours * 3600, n))
    names = np.array([f"{site}_DATADISK" for site in SITES], dtype=object)
    median = 3.0 + 0.2 * ((source * 7 + destination) % 8)
    log_seconds = median + 0.5 * rng.standard_normal(n)
    frame = pd.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(n)],
            "source": pd.Series(names[source], dtype="str"),
            "destination": pd.Series(names[destination], dtype="str"),
            "activity": "Production Input",
            "fts": "fts3.cern.ch",
            "rule_id": "",
            "reason": "",
            "bytes": 1e8,
            "submitted_at": started - 30.0,
            "started_at": started,
            "failed": False,
            "path_loss": np.nan,
            "path_delay_ms": np.nan,
            "path_throughput_bps": np.nan,
            "q05": median - 0.82,
            "q50": median,
            "q95": median + 0.82,
        }
    )
    seconds = np.expm1(log_seconds)
    for rse, (begin, end) in (slow or {}).items():
        hit = frame["source"].eq(rse) & frame["started_at"].between(START + begin * 3600, START + end * 3600)
        seconds = np.where(hit, seconds * 12 + 60, seconds)
    frame["ended_at"] = frame["started_at"] + seconds
    return frame.sort_values("ended_at", ignore_index=True)


def observe(
    frame: pd.DataFrame, *, cut: int, budget: float = 0.001
) -> tuple[pd.DataFrame, dict[str, object], IncidentBook]:
    threshold, book = DynamicThreshold(alarm_budget=budget), IncidentBook()
    parts, changed = [], {}
    for start in range(0, len(frame), cut):
        rows = frame.iloc[start : start + cut].reset_index(drop=True)
        verdicts = threshold.judge(rows)
        rows["threshold_s"], rows["slow_s"] = verdicts.threshold_s, verdicts.slow_s
        rows["flagged"], rows["slow"] = verdicts.flagged & ~rows["failed"], verdicts.slow & ~rows["failed"]
        for incident in book.advance(rows, until=float(rows["ended_at"].max())):
            changed[incident.id] = incident
        rows["calibrates"] = ~rows["failed"] & ~book.blamed(rows)
        threshold.absorb(rows)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True), changed, book


def standing(frame: pd.DataFrame, **known: float) -> pd.DataFrame:
    """The rows with what `Paths.standing` would say of their paths: loss, rtt_ms, throughput, and readings of each just now."""
    readings = known.pop("readings", 1.0)
    columns = {"path_loss_recent": "loss", "path_rtt_ms": "rtt_ms", "path_throughput_recent": "throughput"}
    values = {name: known.get(what, np.nan) for name, what in columns.items()}
    counts = {
        name: readings * np.isfinite(values[f"{name.removesuffix('_count')}_recent"])
        for name in ("path_loss_count", "path_throughput_count")
    }
    ages = dict.fromkeys(("path_loss_age_s", "path_rtt_age_s", "path_throughput_age_s"), 0.0)
    return frame.assign(**values, **counts, **ages)


def test_doctests():
    for module in (detectors.failures, detectors.localisation, detectors.threshold, detectors.bounds):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("SOURCE [70] globus_xio: Unable to connect to x:2811", "source-connection"),
        (
            "TRANSFER [5] SOURCE CHECKSUM MISMATCH User defined checksum and source checksum do not match",
            "source-checksum",
        ),
        ("TRANSFER [110] TRANSFER Operation timed out", "transfer-timeout"),
        ("SOURCE [70] 421 Service busy: Connection limit exceeded", "source-overload"),
        (
            "DESTINATION MAKE_PARENT srm-ifce err: Permission denied, err: [SE][Mkdir][SRM_AUTHORIZATION_FAILURE]",
            "destination-permission",
        ),
        ("DESTINATION [17] Destination file exists and overwrite is not enabled", "destination-exists"),
        ("<script>" * 2000, "transfer-error"),
    ],
)
def test_error_class(reason, expected):
    assert error_class(reason) == expected


def test_the_alarm_budget_holds_on_healthy_transfers():
    observed, changed, _ = observe(stream(1, 24), cut=500, budget=0.01)
    later = observed[observed["ended_at"] > START + 6 * 3600]
    # 60 s above the median are never an alarm, so the share may only lie below the budget
    assert later["flagged"].mean() <= 0.012
    assert changed == {}


def test_the_threshold_never_passes_the_timeout_of_fts():
    frame = stream(2, 1)
    frame["q50"], frame["q95"] = 9.0, 13.0
    threshold = DynamicThreshold(alarm_budget=0.001)
    assert (threshold.judge(frame).threshold_s <= fts_timeout(frame["bytes"].to_numpy())).all()


def test_a_slow_network_excuses_one_transfer_and_not_many():
    frame = stream(3, 1)
    frame["bytes"] = 1e9
    frame["ended_at"] = frame["started_at"] + 2000.0
    # 8 streams over 200 ms with 1 % loss reach 0.7 MB/s: a gigabyte needs more than 1,000 s
    lossy = DynamicThreshold(alarm_budget=0.001).judge(standing(frame, loss=0.01, rtt_ms=200.0, readings=60))
    assert not lossy.flagged.any()
    assert lossy.slow.all()
    blind = DynamicThreshold(alarm_budget=0.001).judge(frame)
    assert blind.flagged.any()
    np.testing.assert_array_equal(blind.slow_s, lossy.slow_s)
    assert (lossy.slow_s <= lossy.threshold_s).all()


def test_a_slow_source_is_one_incident_with_the_right_culprit():
    frame = stream(4, 12, slow={"SITE-3_DATADISK": (6.0, 9.0)})
    _, changed, book = observe(frame, cut=300)
    assert [(i.kind, i.culprit) for i in changed.values()] == [
        (IncidentKind.SLOW_TRANSFERS, Entity.parse("rse:SITE-3_DATADISK"))
    ]
    (incident,) = changed.values()
    assert incident.opened_at.timestamp() < START + 6.4 * 3600
    assert incident.closed
    assert incident.closed_at.timestamp() > START + 9 * 3600
    assert book.open == []
    evidence = incident.evidence
    assert (
        evidence.as_source.anomalous / evidence.as_source.total
        > 2 * evidence.as_destination.anomalous / evidence.as_destination.total
    )
    assert incident.evidence.examples[0].duration_s > incident.evidence.examples[0].threshold_s


def test_incidents_do_not_depend_on_how_the_stream_was_cut():
    frame = stream(5, 6, slow={"SITE-1_DATADISK": (3.0, 5.0)})
    _, whole, _ = observe(frame, cut=256)
    _, pieces, _ = observe(frame, cut=64)
    assert {(i.kind, i.culprit) for i in whole.values()} == {(i.kind, i.culprit) for i in pieces.values()}


def test_a_restart_from_rows_gives_the_same_book_and_thresholds():
    frame = stream(6, 8, slow={"SITE-1_DATADISK": (5.0, 8.0)})
    observed, changed, book = observe(frame, cut=300)
    again, threshold = IncidentBook(), DynamicThreshold(alarm_budget=0.001)
    again.reset(incidents=list(changed.values()), observed=observed, until=book.until)
    threshold.absorb(observed)
    reference = DynamicThreshold(alarm_budget=0.001)
    for start in range(0, len(observed), 123):
        reference.absorb(observed.iloc[start : start + 123])
    more = stream(7, 1)
    more[["submitted_at", "started_at", "ended_at"]] += 8 * 3600.0
    assert np.array_equal(threshold.judge(more).threshold_s, reference.judge(more).threshold_s)
    more["threshold_s"], more["slow_s"], more["flagged"], more["slow"] = 1.0, 1.0, False, False
    until = float(more["ended_at"].max())
    assert again.advance(more, until=until) == book.advance(more, until=until)


def suspects_of(frame, bad, usually=0.01):
    """Who is blamed where so many of everyone's transfers are usually bad."""
    roles = Roles.of(frame)
    usual = {column: np.full(len(roles.known(column)), usually) for column in COLUMNS}
    return localise(roles, Blame(source=bad, destination=bad), usual)


def test_the_partner_of_a_bad_storage_element_is_not_blamed():
    frame = stream(8, 1)
    bad = frame["destination"].eq("SITE-2_DATADISK")
    suspects = suspects_of(frame, bad.to_numpy())
    assert [str(s.entity) for s in suspects] == ["rse:SITE-2_DATADISK"]
    assert suspects[0].confidence > 0.8


def test_one_bad_link_is_told_from_its_ends():
    frame = stream(9, 2)
    bad = frame["source"].eq("SITE-2_DATADISK") & frame["destination"].eq("SITE-5_DATADISK")
    suspects = suspects_of(frame, bad.to_numpy())
    assert [str(s.entity) for s in suspects] == ["link:SITE-2_DATADISK>SITE-5_DATADISK"]


def test_failures_open_an_incident_of_their_own():
    frame = stream(10, 3)
    broken = frame["destination"].eq("SITE-6_DATADISK") & (frame["started_at"] > START + 2 * 3600)
    frame["failed"], frame.loc[broken, "reason"] = broken, "destination-space"
    frame.loc[broken, ["q05", "q50", "q95"]] = np.nan
    _, changed, _ = observe(frame, cut=200)
    assert [(i.kind, str(i.culprit)) for i in changed.values()] == [
        (IncidentKind.FAILING_TRANSFERS, "rse:SITE-6_DATADISK")
    ]
    (incident,) = changed.values()
    assert dict(incident.evidence.reasons) == {"destination-space": incident.evidence.anomalous}


def test_whether_an_action_helped_is_judged_from_the_signal():
    frame = stream(11, 6, slow={"SITE-3_DATADISK": (3.0, 4.5)})
    observed, changed, _ = observe(frame, cut=300)
    (incident,) = changed.values()
    at = pd.Timestamp(START + 4.5 * 3600, unit="s", tz="UTC").to_pydatetime()
    later = pd.Timestamp(START + 5.5 * 3600, unit="s", tz="UTC").to_pydatetime()
    assert judge(incident, observed, applied_at=at, now=later)[0] is Outcome.FIXED
    early = pd.Timestamp(START + 3.6 * 3600, unit="s", tz="UTC").to_pydatetime()
    assert judge(incident, observed, applied_at=early, now=at)[0] is Outcome.UNCHANGED
    before = pd.Timestamp(START + 1 * 3600, unit="s", tz="UTC").to_pydatetime()
    assert judge(incident, observed, applied_at=before, now=early)[0] is Outcome.UNKNOWN
    # A place where nothing ends any more has no bad transfers, and is not mended.
    standing = observed[observed["started_at"] < early.timestamp()]
    assert judge(incident, standing, applied_at=early, now=at)[0] is Outcome.UNKNOWN
    assert RECOVERED_S > 0


def test_two_faults_at_once_are_two_incidents_and_no_more():
    frame = stream(12, 6, per_hour=2400, slow={"SITE-1_DATADISK": (3.0, 5.0), "SITE-6_DATADISK": (3.5, 5.0)})
    _, changed, book = observe(frame, cut=400)
    named = sorted(str(incident.culprit) for incident in changed.values() if incident.anomalous > 30)
    assert named == ["rse:SITE-1_DATADISK", "rse:SITE-6_DATADISK"]
    assert len({incident.culprit for incident in book.open}) == len(book.open)
