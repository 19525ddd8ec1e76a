"""Made-up streams of ended transfers, for the benchmarks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.events import EVENT_COLUMNS, empty_events

START_S = 1.7e9
ACTIVITIES = ("Production Output", "Production Input", "User Subscriptions", "Data Consolidation", "Functional Test")
FAILED_SHARE = 0.03
REASONS = ("TRANSFER [110] TRANSFER Operation timed out", "DESTINATION [28] No space left on device")


def ended_transfers(count: int, *, links: int, per_second: float, seed: int = 1) -> pd.DataFrame:
    """So many ended transfers in the order in which they ended, on links whose use is skewed as ATLAS's is.

    The n-th busiest link has a share of about 1 / n: of 5,000 links a handful carries a third, and most are rare.
    """
    draw, grid = np.random.default_rng(seed), np.random.default_rng(0)  # another seed, other transfers on the same grid
    ends = np.array([f"SITE-{number:03d}_DATADISK" for number in range(int(np.ceil(links**0.5)) + 2)])
    pairs = np.array([(a, b) for a in range(len(ends)) for b in range(len(ends)) if a != b])
    pairs = pairs[grid.permutation(len(pairs))[:links]]
    weight = 1.0 / np.arange(1, links + 1)
    link = draw.choice(links, size=count, p=weight / weight.sum())
    size = np.exp(draw.normal(18.0, 2.0, count))
    speed = np.exp(grid.normal(15.5, 1.0, links))[link]
    took = np.round(5.0 + size / speed * np.exp(draw.normal(0.0, 0.4, count)), 3)
    ended = START_S + np.cumsum(draw.exponential(1.0 / per_second, count))
    started = ended - took
    failed = draw.random(count) < FAILED_SHARE
    columns: dict[str, object] = {
        "type": np.where(failed, "transfer-failed", "transfer-done"),
        "request_id": [f"{seed:08x}{number:024x}" for number in range(count)],
        "source": ends[pairs[link, 0]],
        "destination": ends[pairs[link, 1]],
        "activity": draw.choice(ACTIVITIES, count),
        "protocol": "davs",
        "source_type": "DISK",
        "destination_type": "DISK",
        "fts": draw.choice(["fts-a.example", "fts-b.example"], count),
        "reason": np.where(failed, draw.choice(REASONS, count), ""),
        "bytes": size,
        "created_at": ended + 2.0,
        "submitted_at": started - draw.exponential(60.0, count),
        "started_at": started,
        "ended_at": ended,
        "duration": took,
    }
    blank = empty_events().reindex(range(count))
    missing = {name: "" if blank[name].dtype == "str" else np.nan for name in EVENT_COLUMNS if name not in columns}
    return pd.DataFrame({**missing, **columns})[list(EVENT_COLUMNS)].astype(empty_events().dtypes)
