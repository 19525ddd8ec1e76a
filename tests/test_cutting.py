"""However a stream is cut into polls: the same limits, the same flags, the same incidents."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest

from agent.assembly import watch
from agent.evaluation.loop import START
from models.measurements import SiteMap
from models.registry import default_model
from simulator.scenario import parse
from simulator.world import World

ILL = parse(
    {
        "grid": {"sites": 6},
        "load": {"transfers_per_day": 30_000},
        "faults": [
            {
                "kind": "storage-full",
                "culprit": "rse:BNL-OSG2_DATADISK",
                "start": "1h",
                "duration": "40m",
                "strength": 1.0,
            },
            {"kind": "fts-stalled", "culprit": "fts:any", "start": "80m", "duration": "40m", "strength": 0.0},
        ],
    },
    "ill",
)
HOURS = 2.5


@pytest.fixture(scope="module")
def stream():
    """Two hours and a half of a sick grid as one frame of events, in the order in which they can be read."""
    world = World(ILL, seed=1, start=START)
    emitted = [world.advance(START + timedelta(minutes=minute)) for minute in range(1, int(60 * HOURS) + 1)]
    return pd.concat([world.documents.frame(one.events) for one in emitted], ignore_index=True)


def watched(stream, sizes, *, restarted_at=None):
    """The rows that were observed in polls of these sizes, and the incidents as they stand at last; started anew after a row."""
    now, eyes, place, incidents = START + timedelta(days=1), fresh(), 0, {}
    observed, requests, deletions = [], [], []
    while place < len(stream):
        size = sizes[len(observed) % len(sizes)]
        found = eyes.observe(stream.iloc[place : place + size].reset_index(drop=True), now)
        observed.append(found.observed)
        requests.append(found.requests)
        deletions.append(found.deletions)
        incidents |= {incident.id: incident for incident in found.changed}
        place += size
        if restarted_at is not None and place >= restarted_at:
            restarted_at, until, eyes = None, eyes.book.until, fresh()
            eyes.reset(
                observed=pd.concat(observed, ignore_index=True),
                readings=pd.DataFrame(),
                requests=pd.concat(requests, ignore_index=True),
                deletions=pd.concat(deletions, ignore_index=True),
                incidents=list(incidents.values()),
                until=until,
            )
    # Which rule a request belongs to may be told by what stands later in the same poll; nothing is judged by it.
    rows = pd.concat(observed, ignore_index=True).drop(columns="rule_id")
    return rows, [replace(one, evidence=replace(one.evidence, rules=())) for one in incidents.values()]


def fresh():
    return watch(default_model(), SiteMap(), 0.001)


@pytest.fixture(scope="module")
def at_once(stream):
    return watched(stream, [len(stream)])


@pytest.mark.parametrize("sizes", [[2_000], [256], [97, 1, 611, 13]])
def test_how_a_stream_is_cut_changes_nothing(stream, at_once, sizes):
    rows, incidents = watched(stream, sizes)
    pd.testing.assert_frame_equal(rows, at_once[0])
    assert incidents == at_once[1]


def test_there_is_something_to_be_changed(at_once):
    rows, incidents = at_once
    assert len(rows) > 10 * 256
    assert rows["slow"].any()
    assert rows["flagged"].any()
    assert (rows["due_at"] < rows["ended_at"]).any()
    assert not rows.loc[~rows["failed"], "calibrates"].all()
    assert {str(incident.kind) for incident in incidents} >= {"failing-transfers", "stalled-transfers"}


def test_neither_does_a_restart(stream, at_once):
    rows, incidents = watched(stream, [97, 1, 611, 13], restarted_at=len(stream) // 2)
    pd.testing.assert_frame_equal(rows, at_once[0])
    assert incidents == at_once[1]
