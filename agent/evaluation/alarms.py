"""Incidents as they are judged: when they were known, and which of their transfers a fault had hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from agent.evaluation.trial import Alarm
from detectors.localisation import Roles
from detectors.window import SIGNALS, WINDOW_S
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
    """Request ids of each incident's anomalous transfers: its culprit's bad ones from half an hour before it opened."""
    if not len(observed):
        return [[] for _ in incidents]
    roles, ended = Roles.of(observed), observed["ended_at"].to_numpy(np.float64)
    failed, slow = observed["failed"].to_numpy(np.bool_), observed["slow"].to_numpy(np.bool_)
    requests, found = observed["request_id"].to_numpy(dtype=object), []
    for incident in incidents:
        signal = next((signal for signal in SIGNALS if signal.kind is incident.kind), None)
        bad = failed | slow if signal is None else signal.split(failed, slow)[1]
        closed = np.inf if incident.closed_at is None else incident.closed_at.timestamp()
        lived = (ended >= incident.opened_at.timestamp() - WINDOW_S) & (ended < closed)
        found.append(requests[roles.touched(incident.culprit) & bad & lived].tolist())
    return found
