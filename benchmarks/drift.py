"""When the drift alarm goes off: on simulated grids as they are, and when durations or intervals change halfway.

    python benchmarks/drift.py SCENARIO DAYS SEED…

For each seed: alarms, the least and most coverage and loss (as a multiple of the one held out) of a block; then after how
many transfers an alarm comes if from halfway on each takes so many times as long, or its interval is so much narrower.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from agent.assembly import watch
from models.drift import FORECAST, Drift
from models.measurements import SiteMap
from models.metrics import pinball
from models.registry import default_model, load_model
from simulator.scenario import load
from simulator.world import World

START, STEP = datetime(2026, 1, 5, tzinfo=UTC), timedelta(minutes=15)
PART = 100  # transfers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("days", type=float)
    parser.add_argument("seeds", type=int, nargs="+")
    asked = parser.parse_args()
    held_out = load_model(default_model())[0].metrics["model"]["pinball"]
    for seed in asked.seeds:
        rows = pd.concat(observed(asked.scenario, asked.days, seed), ignore_index=True)
        alarms, blocks = played(rows, held_out)
        covered, loss = np.array(blocks).T
        print(
            f"{asked.scenario} {seed}: {len(rows):,} transfers, {alarms} alarms; in a block coverage "
            f"{covered.min():.3f} to {covered.max():.3f}, loss {loss.min():.2f} to {loss.max():.2f}",
            flush=True,
        )
        for what, changed in changes(rows):
            print(f"    {what}: {first_alarm(changed, len(rows) // 2, held_out)}", flush=True)


def observed(scenario: str, days: float, seed: int) -> Iterator[pd.DataFrame]:
    """What calibrates, as the agent scored it."""
    world, eyes = World(load(scenario), seed=seed, start=START), watch(default_model(), SiteMap(), 0.001)
    while world.now < START + timedelta(days=days):
        emitted = world.advance(world.now + STEP)
        eyes.measure(world.probes.frame(emitted.measurements))
        rows = eyes.observe(world.documents.frame(emitted.events), world.now).observed
        yield rows.loc[rows["calibrates"] & rows["q50"].notna(), ["started_at", "ended_at", *FORECAST, "calibrates"]]


def played(rows: pd.DataFrame, held_out: float) -> tuple[int, list[tuple[float, float]]]:
    """How many alarms there are, and coverage and relative loss of every 1,000 transfers."""
    drift, alarms, before = Drift(held_out=held_out), 0, False
    for start in range(0, len(rows), PART):
        drift.absorb(rows[start : start + PART])
        alarms += drift.alarm is not None and not before
        before = drift.alarm is not None
    blocks = []
    for start in range(0, len(rows) - 999, 1000):
        block = rows[start : start + 1000]
        took = np.log1p((block["ended_at"] - block["started_at"]).to_numpy())
        quantiles = block[list(FORECAST)].to_numpy()
        inside = (quantiles[:, 0] <= took) & (took <= quantiles[:, -1])
        blocks.append((float(inside.mean()), pinball(took, quantiles) / held_out))
    return alarms, blocks


def changes(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    late = np.arange(len(rows)) >= len(rows) // 2
    took = rows["ended_at"] - rows["started_at"]
    for times in (2.0, 1.5, 1.25):
        yield f"{times:g} times as long", rows.assign(ended_at=rows["started_at"] + took * np.where(late, times, 1.0))
    for width in (0.6, 0.8):
        share = np.where(late, width, 1.0)
        narrower = {name: rows["q50"] + (rows[name] - rows["q50"]) * share for name in FORECAST}
        yield f"intervals of {width:.0%}", rows.assign(**narrower)


def first_alarm(rows: pd.DataFrame, change: int, held_out: float) -> str:
    drift = Drift(held_out=held_out)
    drift.absorb(rows[:change])
    for start in range(change, len(rows), PART):
        drift.absorb(rows[start : start + PART])
        if drift.alarm is not None:
            return f"after {start + PART - change:,} transfers"
    return f"none within {len(rows) - change:,}"


if __name__ == "__main__":
    main()
