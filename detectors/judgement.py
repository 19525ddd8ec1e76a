"""Whether an action helped: the core's own verdict, in the same way for every remedy and for waiting.

The signal is the incident's own: how many anomalous transfers of the culprit end in an hour, before the action and at the end
of its settle time. A transfer counts as touched by the action only if it started after it.
"""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from detectors.incidents import SIGNALS, WINDOW_S
from detectors.localisation import roles, touches
from models.domain import Incident, Outcome

MIN_BEFORE = 3  # fewer anomalous transfers than this before an action say nothing about after
FIXED_BELOW = 0.25  # of the rate before
WORSE_ABOVE = 1.5


def judge(incident: Incident, observed: pd.DataFrame, *, applied_at: datetime, now: datetime) -> tuple[Outcome, str]:
    """Compare the rates of anomalous transfers; `observed` covers half an hour before `applied_at` up to `now`."""
    start, end = applied_at.timestamp(), now.timestamp()
    signal = next((s for s in SIGNALS if s.kind is incident.kind), None)
    if signal is None or observed.empty or end <= start:
        return Outcome.UNKNOWN, "there is no signal to judge by"
    members, bad = signal.select(observed)
    own = bad & touches(incident.culprit, roles(members))
    ended, began = members["ended_at"], members["started_at"].fillna(members["ended_at"])
    before = own & (ended >= start - WINDOW_S) & (ended < start)
    after = own & (began >= start) & (ended < end)
    hourly_before = float(before.sum()) * 3600.0 / WINDOW_S
    hourly_after = float(after.sum()) * 3600.0 / (end - start)
    note = f"anomalous transfers an hour: {hourly_before:.0f} before, {hourly_after:.0f} after"
    if int(before.sum()) < MIN_BEFORE:
        return Outcome.UNKNOWN, f"too little to compare with: {note}"
    if hourly_after <= FIXED_BELOW * hourly_before:
        return Outcome.FIXED, note
    return (Outcome.WORSE if hourly_after >= WORSE_ABOVE * hourly_before else Outcome.UNCHANGED), note
