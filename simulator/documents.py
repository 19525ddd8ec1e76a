"""Rucio's messages about transfers and deletions, as `hermes` delivers them: late, now and then out of order or twice.

One record of `simulator.records` is one message. What stands in it is a function of the record and the seed, so the rows of
`frame` are what `models.events.decode` reads from `lines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from models.events import EVENT_COLUMNS, empty_events
from simulator.draws import Draws, FloatArray, For
from simulator.fields import Fields
from simulator.origin import Origin
from simulator.records import Records, What
from simulator.texts import Template, together
from simulator.topology import Topology

_OFTEN_LATE = 0.02  # share of messages that the index shows minutes later
_TWICE = 0.005  # share that it shows twice
_INDEX_S, _LATE_S, _AGAIN_S = 3.0, 120.0, 60.0  # means
_LEAST_LATE_S = 60.0
_BLOCK = 1 << 15  # messages that are written at once

_REQUESTED = """\
"request-id": "<request_id>", "request-type": "<request_type>", "scope": "<scope>", "name": "<name>", \
"dst-rse-id": "<destination_id>", "dst-rse": "<destination>", "retry-count": <retries>, "activity": "<activity>", \
"file-size": <bytes>, "bytes": <bytes>, "checksum-md5": null, "checksum-adler": "<checksum>", "queued_at": "<queued_at>\""""
_WAITS = Template(
    '{"event_type": "<type>", "payload": {' + _REQUESTED + ', "state": "<state>", "rule-id": "<rule_id>"}, '
    '"created_at": "<created_at>"}\n'
)
_SUBMITTED = Template(
    '{"event_type": "<type>", "payload": {' + _REQUESTED + ', "state": "SUBMITTED", "src-rse": "<source>", '
    '"src-rse-id": "<source_id>", "external-id": "<job>", "external-host": "https://<fts>:8446", '
    '"datatype": "<datatype>"}, "created_at": "<created_at>"}\n'
)
_ENDED = Template(
    '{"event_type": "<type>", "payload": {"activity": "<activity>", "request-id": "<request_id>", '
    '"previous-request-id": <previous>, "duration": <duration>, "checksum-adler": "<checksum>", "checksum-md5": null, '
    '"file-size": <bytes>, "bytes": <bytes>, "guid": null, "protocol": "<protocol>", "scope": "<scope>", '
    '"name": "<name>", "dataset": "<dataset>", "datasetScope": "<scope>", "src-type": "<source_type>", '
    '"src-rse": "<source>", "src-url": "<source_url>", "dst-type": "<destination_type>", "dst-rse": "<destination>", '
    '"dst-url": "<destination_url>", "reason": <whole_reason>, "transfer-endpoint": "https://<fts>:8446", '
    '"transfer-id": "<job>", "transfer-link": "https://<fts>:8449/fts3/ftsmon/#/job/<job>", '
    '"created_at": "<requested_at>", "submitted_at": <submitted_at>, "started_at": <started_at>, '
    '"transferred_at": "<ended_at>", "tool-id": "rucio-conveyor", "account": null, "datatype": "<datatype>"}, '
    '"created_at": "<created_at>"}\n'
)
_DELETED = (
    '{"event_type": "<type>", "payload": {"scope": "<scope>", "name": "<name>", "rse": "<destination>", '
    '"file-size": <bytes>, "bytes": <bytes>, "url": "<destination_url>", "protocol": "<protocol>", "datatype": "<datatype>"'
)
_TEMPLATES: Mapping[Template, tuple[What, ...]] = {
    _WAITS: (What.QUEUED, What.WAITING),
    _SUBMITTED: (What.SUBMITTED,),
    _ENDED: (What.DONE, What.FAILED),
    Template(_DELETED + '}, "created_at": "<created_at>"}\n'): (What.PLANNED,),
    Template(_DELETED + ', "duration": <took>}, "created_at": "<created_at>"}\n'): (What.DELETED,),
    Template(_DELETED + ', "reason": <whole_reason>}, "created_at": "<created_at>"}\n'): (
        What.NOT_DELETED,
        What.NOT_FOUND,
    ),
}


class Documents:
    """Messages of one grid. Times of records are seconds after `start`."""

    def __init__(self, topology: Topology, draws: Draws, start: datetime) -> None:
        self._draws = draws
        self._origin = Origin(topology, draws, start)

    def deliver(self, records: Records) -> tuple[FloatArray, Records]:
        """The messages as the index shows them, some of them twice, each with when it does. Not in order."""
        draws, names = self._draws, (For.DELIVERY, records["file"], records["tries"], records["what"])
        luck = draws.uniforms(*names, 3)
        readable = self._origin.written(records) + draws.exponentials(_INDEX_S, *names, 2)
        late = luck < _OFTEN_LATE
        readable[late] += _LEAST_LATE_S + draws.exponentials(_LATE_S, *names, 4)[late]
        twice = luck > 1 - _TWICE
        again = readable[twice] + draws.exponentials(_AGAIN_S, *names, 4)[twice]
        return np.concatenate([readable, again]), np.concatenate([records, records[twice]])

    def frame(self, records: Records) -> pd.DataFrame:
        """The messages in the form of a batch of events, in the order of their records."""
        if len(records) == 0:
            return empty_events()
        blocks = [Fields(self._origin, block) for block in _blocks(records)]
        columns = {name: [block.column(name) for block in blocks] for name in EVENT_COLUMNS}
        table = pa.table(
            {
                name: np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.chunked_array(parts)
                for name, parts in columns.items()
            }
        )
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def text(self, records: Records) -> bytes:
        """The messages as JSON lines, in the order of their records."""
        return b"".join(self._block(block) for block in _blocks(records))

    def lines(self, records: Records) -> list[bytes]:
        """The messages as JSON, in the order of their records."""
        return self.text(records).split(b"\n")[:-1]

    def _block(self, records: Records) -> bytes:
        """Written form by form, and put in order."""
        texts, order = [], []
        for template, whats in _TEMPLATES.items():
            rows = np.flatnonzero(np.isin(records["what"], whats))
            if len(rows):
                texts.append(template.filled(Fields(self._origin, records[rows])))
                order.append(rows)
        places = np.empty(len(records), dtype=np.int64)
        places[np.concatenate(order)] = np.arange(len(records))
        return together(pa.concat_arrays(texts).take(pa.array(places)))


def _blocks(records: Records) -> Iterator[Records]:
    for first in range(0, len(records), _BLOCK):
        yield records[first : first + _BLOCK]
