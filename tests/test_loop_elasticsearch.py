"""The loop over a real Elasticsearch: events and measurements that come late, come twice, and outlive a restart."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import timedelta

import pytest
from elasticsearch import Elasticsearch, helpers

from agent.sources import EVENTS, READINGS
from agent.sources.elasticsearch import ElasticsearchSource
from models.domain import IncidentStatus
from models.events import FAILED, FINISHED
from tests.worlds import SICK_SITE, SickWorld

pytestmark = pytest.mark.elasticsearch

EVENT_INDEX, READING_INDEX = "loop-rucio-events", "loop-ps"
DATE = {
    "type": "date",
    "format": "strict_date_optional_time||yyyy-MM-dd HH:mm:ss||yyyy-MM-dd HH:mm:ss.SSSSSS||epoch_millis",
}


@pytest.fixture
def client(elasticsearch_url):
    with Elasticsearch(elasticsearch_url) as client:
        for index, field in ((EVENT_INDEX, "created_at"), (READING_INDEX, "timestamp")):
            mappings = {"dynamic": False, "properties": {field: DATE}}
            client.indices.create(index=index, settings={"number_of_replicas": 0}, mappings=mappings)
        yield client
        for index in (EVENT_INDEX, READING_INDEX):
            client.indices.delete(index=index)


class IndexedWorld(SickWorld):
    """A sick world whose documents are kept by Elasticsearch. One in fifty comes ten minutes late, one in a hundred twice."""

    def __init__(self, client, url):
        super().__init__()
        self.client, self.late, self.seen = client, [], 0
        self.events = ElasticsearchSource(
            name="events",
            url=url,
            index=EVENT_INDEX,
            time_field="created_at",
            decoder=EVENTS,
            overlap=timedelta(hours=1),
        )
        self.readings = ElasticsearchSource(
            name="measurements", url=url, index=READING_INDEX, time_field="timestamp", decoder=READINGS
        )

    def advance(self, **delta):
        emitted = self.world.advance(self.world.now + timedelta(**delta))
        events = [json.loads(line) for line in self.world.documents.lines(emitted.events)]
        late, self.late = self.late, [d for n, d in enumerate(events) if n % 50 == 7]
        now = [d for n, d in enumerate(events) if n % 50 != 7] + late
        twice = now[::100]
        self.seen += len(now) + len(twice)
        actions = [{"_index": EVENT_INDEX, "_source": document} for document in now + twice]
        readings = self.world.probes.lines(emitted.measurements)
        actions += [{"_index": READING_INDEX, "_source": json.loads(line)} for line in readings]
        helpers.bulk(self.client, actions, refresh=True)


def test_nothing_is_lost_or_counted_twice_and_the_fault_is_found(client, elasticsearch_url, tmp_path):
    with ExitStack() as stack:
        world = IndexedWorld(client, elasticsearch_url)
        for _ in range(3):  # a new agent each time, as after a restart
            with ExitStack() as short:
                agent = world.agent(short, f"sqlite:///{tmp_path}/ledger.db", page=2000)
                world.live(agent, hours=1.3, step_min=13)
                world.events = _again(world.events, elasticsearch_url, EVENT_INDEX, "created_at", EVENTS)
                world.readings = _again(world.readings, elasticsearch_url, READING_INDEX, "timestamp", READINGS)
        agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db", page=2000)
        while not agent.run_once(world.now).caught_up:
            pass
        with agent.ledger.begin(write=False) as tx:
            observed, open_now = tx.rows("observed"), tx.incidents(status=IncidentStatus.OPEN)
            readings = tx.row_count("readings")
    ended = {
        hit["_source"]["payload"]["request-id"]
        for hit in helpers.scan(client, index=EVENT_INDEX)
        if hit["_source"]["event_type"] in {*FINISHED, *FAILED}
    }
    assert set(observed["request_id"]) == ended
    assert not observed["request_id"].duplicated().any()
    assert readings > 0
    assert any(SICK_SITE in str(incident.culprit) for incident in open_now)


def _again(source, url, index, field, decoder):
    changes = {"overlap": timedelta(hours=1)} if decoder is EVENTS else {}
    return ElasticsearchSource(name=source.name, url=url, index=index, time_field=field, decoder=decoder, **changes)
