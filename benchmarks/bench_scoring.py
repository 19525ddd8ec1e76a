"""How fast ended transfers are scored, and how near that is to what this machine's matrix unit allows.

One stream of 5,000 links, in pages of 5,000 events as the daemon polls them. The limit is measured in the same run: the
multiplications and additions of the net for one transfer, at the rate of a large float32 product of matrices.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from streams import ended_transfers

from agent.assembly import watch
from models.features import NAMES, NUMBERS, OUTCOMES
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS, SiteMap
from models.registry import default_model, load_model

EVENTS, WARM_UP, PAGE = 150_000, 50_000, 5_000
LINKS, PER_SECOND = 5_000, 25.0  # 2.2 million a day, as a full day of ATLAS
SQUARE = 1_024


def main() -> None:
    stream = ended_transfers(EVENTS, links=LINKS, per_second=PER_SECOND)
    busiest = (stream["source"] + stream["destination"]).value_counts()
    print(f"stream      {EVENTS:,} ended transfers on {len(busiest):,} links, the busiest with {busiest.iloc[0]:,}")
    eyes = watch(default_model(), SiteMap(), 0.001)
    now = datetime.fromtimestamp(float(stream["created_at"].max()), UTC)
    whole = rate(stream, lambda page: eyes.observe(page, now))
    bare = stream.assign(**dict.fromkeys(PATH_COLUMNS, np.nan), failed=stream["type"] == "transfer-failed")
    forecaster = Forecaster.load(default_model())
    alone = rate(bare, forecaster.score)
    limit = matrix_limit()
    print(f"whole path  {whole:,.0f} events/s (Watch.observe: paths, forecast, threshold, incidents)")
    print(f"forecaster  {alone:,.0f} events/s (Forecaster.score alone: history, features, LSTM, head)")
    print(f"net's limit {limit:,.0f} events/s if nothing but its products of matrices had to be done")
    print(f"ratios      forecaster / limit {alone / limit:.4f}, whole path / forecaster {whole / alone:.2f}")


def rate(stream: pd.DataFrame, take: Callable[[pd.DataFrame], object]) -> float:
    """Events a second after the warm-up, page by page."""
    pages = [stream.iloc[start : start + PAGE].reset_index(drop=True) for start in range(0, len(stream), PAGE)]
    for page in itertools.islice(pages, WARM_UP // PAGE):
        take(page)
    began = time.perf_counter()
    for page in pages[WARM_UP // PAGE :]:
        take(page)
    return (EVENTS - WARM_UP) / (time.perf_counter() - began)


def matrix_limit() -> float:
    """Transfers a second that the net's products of matrices alone would take, at the best rate found here."""
    square = np.random.default_rng(0).random((SQUARE, SQUARE), dtype=np.float32)
    best = min(timed(lambda: square @ square) for _ in range(20))
    return 2.0 * SQUARE**3 / best / operations()


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def operations() -> float:
    """Floating-point operations of the net for one transfer: one step of its link's LSTM, one look by the head."""
    _, weights = load_model(default_model())
    used = ("step_outcome", "step_state", "head_input", "head_state", "deep", "out", "out_input")
    assert weights["step_outcome"].shape[0] == 2 * len(OUTCOMES)
    assert weights["head_input"].shape[0] == 2 * len(NUMBERS) + len(NAMES)
    return 2.0 * sum(weights[name].size for name in used)


if __name__ == "__main__":
    main()
