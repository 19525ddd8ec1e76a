"""Incidents as they are judged: when they were known, and which of their transfers a fault had hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from agent.evaluation.trial import Alarm
from detectors.localisation import Roles
from detectors.window import DELETING, FAILING, WINDOW_S, Ends, signal_of
from models.domain import Incident

HurtBy = Mapping[str, int]  # the fault that hurt a request, by its id


def alarm_of(incident: Incident, opened: float, requests: Sequence[str], hurt_by: HurtBy) -> Alarm:
    hurt: dict[int, int] = {}
    for request in requests:
        fault = hurt_by.get(request, -1)
        if fault >= 0:
            hurt[fault] = hurt.get(fault, 0) + 1
    return Alarm(
        opened=opened, culprit=str(incident.culprit), kind=str(incident.kind), anomalous=len(requests), hurt=hurt
    )


def anomalous_of(incidents: Sequence[Incident], observed: pd.DataFrame) -> list[list[str]]:
    """Request ids of each incident's anomalous transfers: its culprit's bad ones from half an hour before it opened.

    One of deletions has the transfers that failed there: what the truth knows to be hurt are transfers.
    """
    if not len(observed):
        return [[] for _ in incidents]
    roles, ends = Roles.of(observed), Ends.of(observed)
    requests, found = observed["request_id"].to_numpy(dtype=object), []
    for incident in incidents:
        signal = signal_of(incident.kind)
        if signal is None or signal is DELETING:
            signal = FAILING
        when = ends.at(signal)
        closed = np.inf if incident.closed_at is None else incident.closed_at.timestamp()
        lived = (when >= incident.opened_at.timestamp() - WINDOW_S) & (when < closed)
        found.append(requests[roles.badly(incident, ends.blame(signal)) & lived].tolist())
    return found
