"""What an incident has to say for itself: what its transfers took, what their limits are made of, and what is usual on their path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from agent.desk import words
from agent.desk.terminal import incident_text
from detectors.incidents import IncidentBook
from detectors.weather import Weather
from models.domain import IncidentKind
from tests.desk_stories import incident

START = 1_500_000_000.0
NOW = START + 86_400.0
SITES = ("A", "B", "C", "D")


def rows(*, sick, minutes=30):
    """Ended transfers of all pairs of four sites, one a minute on each; `sick` ones took ten times as long."""
    pairs = [(one, other) for one in SITES for other in SITES if one != other]
    at = np.repeat(NOW + 60.0 * np.arange(minutes), len(pairs))
    frame = pd.DataFrame(pairs * minutes, columns=["from", "to"])
    ill = sick(frame).to_numpy() & (at >= NOW + 600.0)
    took = np.where(ill, 600.0, 60.0)
    return pd.DataFrame(
        {
            "request_id": [f"r{number}" for number in range(len(frame))],
            "source": frame["from"] + "_DISK",
            "destination": frame["to"] + "_DISK",
            "fts": "f",
            "activity": "a",
            "rule_id": "",
            "reason": "",
            "bytes": 1024.0**3,
            "submitted_at": at - took - 30.0,
            "started_at": at - took,
            "ended_at": at,
            "due_at": at + 3600.0,
            "failed": False,
            "slow": ill,
            "q50": np.log1p(50.0),
            "slow_s": 200.0,
            "threshold_s": 900.0,
            "expected_s": 70.0,
            "network_s": np.where(ill, 400.0, 0.0),
            "path_loss": np.where(ill, 0.02, 0.0),
            "path_delay_ms": 20.0,
            "path_throughput_bps": np.nan,
        }
    )


@pytest.fixture(scope="module")
def found():
    """A path between two sites that loses packets, which it usually does not."""
    weather = Weather()
    at = START + 600.0 * np.arange(160)
    for quantity, values in (
        ("packet_loss", np.where(at >= NOW, 0.02, 0.0)),
        ("delay_mean", np.full(len(at), 20.0)),
    ):
        hosts = {"source_host": "", "destination_host": ""}
        columns = {
            "source_site": "A",
            "destination_site": "B",
            **hosts,
            "quantity": quantity,
            "value": values,
            "at": at,
        }
        weather.absorb(pd.DataFrame(columns))
    book = IncidentBook(weather)
    told = book.advance(rows(sick=lambda frame: (frame["from"] == "A") & (frame["to"] == "B")), until=NOW + 1860.0)
    (one,) = {incident.id: incident for incident in told}.values()
    return one


def test_the_network_is_told_with_what_is_usual(found):
    assert (found.kind, str(found.culprit)) == (IncidentKind.DEGRADED_NETWORK, "network:A>B")
    assert found.evidence.network == pytest.approx(
        {"loss": 0.02, "delay_ms": 20.0, "usual_loss": 0.0, "usual_delay_ms": 20.0}
    )
    network = dict(words.of_incident(found).facts)["Network"]
    assert network == "packet loss 2.00 % (usually 0.00 %) · delay 20 ms (usually 20 ms)"


def test_the_limits_are_told_with_all_that_they_are_made_of(found):
    assert found.evidence.limits == pytest.approx(
        {
            "took_s": 600.0,
            "forecast_s": 50.0,
            "expected_s": 70.0,
            "slow_s": 200.0,
            "threshold_s": 900.0,
            "network_s": 400.0,
            "timeout_s": 2648.0,
            "overdue_s": 4230.0,
        }
    )
    assert dict(words.of_incident(found).facts)["Times (medians)"] == (
        "took 10 min · forecast 50 s · usual 70 s · slow beyond 3 min · alarm beyond 15 min · the network alone needs 7 min by "
        "perfSONAR · FTS gives up after 44 min · overdue 70 min after submission"
    )
    assert "Times (medians): took 10 min" in incident_text(found)


def test_how_long_what_fails_took_is_not_the_question():
    failing = rows(sick=lambda frame: frame["from"] == "A").assign(reason="source-missing")
    failing = failing.assign(failed=failing["slow"], slow=False)
    (one, *_) = IncidentBook().advance(failing, until=NOW + 1860.0)
    assert one.kind is IncidentKind.FAILING_TRANSFERS
    assert one.evidence.limits == {}


def test_an_activity_is_blamed_with_all_that_shows_it():
    """A quarter of the grid's transfers are of one that looks for a space that is not there."""
    failing = rows(sick=lambda frame: pd.Series(np.arange(len(frame)) // 12 % 4 == 0), minutes=40)
    failing = failing.assign(
        activity=np.where(np.arange(len(failing)) // 12 % 4 == 0, "Staging", "Production Input"),
        failed=failing["slow"],
        reason=np.where(failing["slow"], "destination-space", ""),
        slow=False,
    )
    found = {one.id: one for one in IncidentBook().advance(failing, until=NOW + 2460.0)}
    (one,) = found.values()
    assert (str(one.culprit), one.evidence.role) == ("activity:Staging", "activity")
    assert one.evidence.activities == {"Staging": one.evidence.anomalous}


def test_what_is_usual_is_told_where_nothing_was_measured_since():
    told = incident()
    told = replace(told, evidence=replace(told.evidence, network={"usual_loss": 0.001, "jitter": 3.0}))
    assert dict(words.of_incident(told).facts)["Network"] == "usually packet loss 0.10 % · jitter 3"
