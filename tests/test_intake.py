"""Repeats are recognised, and ended transfers get their rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from agent.intake import SeenKeys, ended_transfers
from models.events import EVENT_COLUMNS, TEXT_COLUMNS


def test_repeats_are_recognised_within_a_batch_and_between_batches():
    seen = SeenKeys(np.array([5, 7], dtype=np.uint64))
    keys = np.array([7, 9, 9, 1, 5], dtype=np.uint64)
    assert seen.unseen(keys).tolist() == [False, True, False, True, False]
    seen.add(keys)
    assert not seen.unseen(keys).any()
    assert SeenKeys(np.array([], dtype=np.uint64)).unseen(keys).sum() == 4


def events(**columns):
    n = len(next(iter(columns.values())))
    frame = pd.DataFrame({name: [""] * n if name in TEXT_COLUMNS else [np.nan] * n for name in EVENT_COLUMNS})
    return frame.assign(**columns)


def test_only_ended_transfers_get_rows_and_their_rule_is_looked_up():
    frame = events(
        type=["transfer-done", "transfer-queued", "transfer-failed", "stagein-done", "transfer-done"],
        request_id=["a", "b", "c", "d", "e"],
        ended_at=[10.0, np.nan, 11.0, 12.0, np.nan],
        reason=["", "", "TRANSFER [110] Operation timed out", "", ""],
    )
    rules = {"a": "rule-1"}
    rows = ended_transfers(
        frame,
        lambda ids: np.array([rules.get(request, "") for request in ids], dtype=object),
        lambda reasons: np.array([reason.lower() for reason in reasons], dtype=object),
    )
    assert rows["request_id"].tolist() == ["a", "c", "d"]
    assert rows["failed"].tolist() == [False, True, False]
    assert rows["rule_id"].tolist() == ["rule-1", "", ""]
    assert rows["reason"].tolist() == ["", "transfer [110] operation timed out", ""]
