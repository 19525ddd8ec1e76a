"""Whether the alarm budget holds on a grid on which nothing is wrong, in total and on each link, and how fast thresholds are.

The scenario `calm` with 100,000 transfers a day is lived for three days, by the passes of a daemon. The first day is the thresholds' to learn in. On a link
with n transfers a budget of b allows b * n flags; that their number varies between links as chance has it is seen by their
dispersion (chi-squared over degrees of freedom: 1), and a link stands out if chance makes so many flags on none of twenty such grids
(Poisson, over all links at once).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from scipy.stats import poisson
from streams import ended_transfers

from agent.assembly import watch
from agent.watch import Watch
from detectors.threshold import DynamicThreshold
from models.measurements import PATH_COLUMNS, SiteMap
from models.registry import default_model
from simulator.scenario import load
from simulator.world import World

BUDGET = 0.001
START, DAYS, LEARNING, STEP = datetime(2026, 1, 5, tzinfo=UTC), 3, 1, timedelta(minutes=5)
A_DAY = 100_000.0
EVENTS, PAGE = 150_000, 5_000
CHANCE = 0.05


def main() -> None:
    rows = lived(watch(default_model(), SiteMap(), BUDGET))
    print(f"calm        {len(rows):,} transfers outside incidents after {LEARNING} day of {DAYS}, budget {BUDGET:g}")
    print(f"total       {rows['flagged'].mean():.5f} flagged, {rows['flagged'].mean() / BUDGET:.2f} of the budget")
    for name in ("link", "source", "destination"):
        print(f"{name:<12}{spread(rows.groupby(name)['flagged'].agg(['sum', 'count']))}")
    judged, absorbed = speeds()
    print(f"speed       {judged:.2f} us to judge a transfer, {absorbed:.2f} us to learn from it, in pages of {PAGE:,}")


def lived(eyes: Watch) -> pd.DataFrame:
    """The scored transfers outside incidents, after the time to learn."""
    calm = load("calm")
    busy = calm.model_copy(update={"load": calm.load.model_copy(update={"transfers_per_day": A_DAY})})
    world, parts = World(busy, seed=1, start=START), []
    while world.now < START + timedelta(days=DAYS):
        emitted = world.advance(world.now + STEP)
        eyes.measure(world.probes.frame(emitted.measurements))
        parts.append(eyes.observe(world.documents.frame(emitted.events), world.now).observed)
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True)
    late = rows["ended_at"] >= (START + timedelta(days=LEARNING)).timestamp()
    rows = rows[rows["calibrates"] & late]
    return rows.assign(link=rows["source"] + ">" + rows["destination"])


def spread(counts: pd.DataFrame) -> str:
    """How evenly flags fall on what they are counted by, and what has more of them than chance gives it."""
    allowed = BUDGET * counts["count"]
    expected = counts["count"] * counts["sum"].sum() / counts["count"].sum()
    dispersion = ((counts["sum"] - expected) ** 2 / expected).sum() / (len(counts) - 1)
    out = counts[poisson.sf(counts["sum"] - 1, allowed) < CHANCE / len(counts)]
    told = ", ".join(f"{name} {row['sum']} of {row['count']:,}" for name, row in out.iterrows()) or "none"
    return f"{len(counts):,}, dispersion {dispersion:.2f}, above the budget by more than chance: {told}"


def speeds() -> tuple[float, float]:
    """Microseconds for each transfer: to judge, and to absorb."""
    stream = ended_transfers(EVENTS, links=5_000, per_second=25.0)
    took = np.log1p(stream["ended_at"] - stream["started_at"])
    median = took + np.random.default_rng(0).normal(0.0, 0.4, EVENTS)
    rows = stream.assign(q50=median, q95=median + 0.8, calibrates=True, **dict.fromkeys(PATH_COLUMNS, np.nan))
    pages = [
        {name: page[name].to_numpy() for name in rows.columns}
        for page in (rows.iloc[start : start + PAGE] for start in range(0, EVENTS, PAGE))
    ]
    threshold, spent = DynamicThreshold(alarm_budget=BUDGET), np.zeros(2)
    for page in pages * 2:
        began = time.perf_counter()
        threshold.judge(page)
        judged = time.perf_counter()
        threshold.absorb(page)
        spent += judged - began, time.perf_counter() - judged
    judged_us, absorbed_us = (1e6 * spent / (2 * EVENTS)).tolist()
    return judged_us, absorbed_us


if __name__ == "__main__":
    main()
