"""Whether an action helped: the core's own verdict, in the same way for every remedy and for waiting.

The signal is the incident's own: how many transfers of the culprit are anomalous in an hour, before the action and in
its settle time. A transfer counts as touched by the action only if it started after it.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.localisation import Roles
from detectors.window import DELETING, WINDOW_S, Ends, signal_of
from models.domain import Incident, Outcome

MIN_BEFORE = 3  # fewer anomalous transfers than this before an action say nothing about after
MIN_AFTER = 3  # fewer transfers than this after it say nothing: a place that stands still has no bad ones either
FIXED_BELOW = 0.25  # of the rate before
WORSE_ABOVE = 1.5


def judge(incident: Incident, observed: pd.DataFrame, *, applied_at: datetime, now: datetime) -> tuple[Outcome, str]:
    """Compare the rates of anomalous transfers; `observed` covers half an hour before `applied_at` up to `now`.

    Of an incident of deletions it is their rows, and all that is said of transfers holds for them.
    """
    start, end = applied_at.timestamp(), now.timestamp()
    signal = signal_of(incident.kind)
    noun = "deletions" if signal is DELETING else "transfers"
    if signal is None or observed.empty or end <= start:
        return Outcome.UNKNOWN, "there is no signal to judge by"
    takes_part, bad = Ends.of(observed).split(signal)
    members, bad = observed[takes_part], bad[takes_part]
    own = Roles.of(members).in_part_of(incident)
    ended = members["ended_at"].to_numpy(np.float64)
    began = members["started_at"].fillna(members["ended_at"]).to_numpy(np.float64)
    before = own & (ended >= start - WINDOW_S) & (ended < start)
    after = own & (began >= start) & (ended < end)
    if np.count_nonzero(after) < MIN_AFTER:
        return Outcome.UNKNOWN, f"only {np.count_nonzero(after)} {noun} began and ended after it"
    # Some transfers are always anomalous: what counts is what there is beyond the usual share.
    excess_before = _excess(bad[before], signal.expected)
    hourly_before = excess_before * 3600.0 / WINDOW_S
    hourly_after = _excess(bad[after], signal.expected) * 3600.0 / (end - start)
    note = f"anomalous {noun} an hour, beyond the usual: {hourly_before:.0f} before, {hourly_after:.0f} after"
    if excess_before < MIN_BEFORE:
        return Outcome.UNKNOWN, f"too little to compare with: {note}"
    if hourly_after <= FIXED_BELOW * hourly_before:
        return Outcome.FIXED, note
    return (Outcome.WORSE if hourly_after >= WORSE_ABOVE * hourly_before else Outcome.UNCHANGED), note


def _excess(bad: npt.NDArray[np.bool_], usual: float) -> float:
    return max(0.0, float(bad.sum()) - usual * len(bad))
