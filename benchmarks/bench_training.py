"""How fast the forecaster is trained: reading Parquet, preparing lessons, and learning from them, on made-up streams of 5,000 links.

Beside it the first design, an LSTM over windows of 100 events, which learns from one target a window. `--events 36000000`
makes it a month of ATLAS: one epoch over all of it, with the memory that it takes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from streams import ended_transfers

from agent.evaluation import windowed
from agent.sources.finished import Recording
from models import training
from models.lessons import CHUNK, Book, prepare

LINKS, PER_SECOND, PAGE = 5_000, 25.0, 65_536
EVENTS = 10 * CHUNK
WINDOWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    events: int = parser.parse_args().events
    with tempfile.TemporaryDirectory(prefix="gridmedic-bench-") as folder:
        print(
            f"reading     {rate_of_reading(Path(folder) / 'events.parquet'):,.0f} transfers/s from Parquet", flush=True
        )
        made = timed_pages(events)
        began = time.perf_counter()
        book = prepare(Path(folder), [made], task="")
        seconds = time.perf_counter() - began - made.spent
        print(f"stream      {book.rows:,} finished transfers on {book.links:,} links", flush=True)
        print(f"preparing   {book.rows / seconds:,.0f} transfers/s (features, states' places, to disk)", flush=True)
        trainer = training.Trainer(book, units=training.UNITS, seed=1)
        streams = rate(trainer, book)
        print(f"learning    {streams:,.0f} targets/s, over all of them once", flush=True)
    print(f"memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    windows = rate_of_windows()
    print(f"windows     {windows:,.0f} targets/s in the first design, {windowed.UNITS} units")
    print(f"ratio       {streams / windows:.0f} times as many targets a second")


def rate_of_reading(path: Path) -> float:
    """Transfers a second from a table."""
    rows = pd.concat(timed_pages(2 * PAGE), ignore_index=True)
    rows.assign(request_id=[f"{i:032x}" for i in range(len(rows))]).to_parquet(path)
    began = time.perf_counter()
    read = sum(map(len, Recording({"train": [path]}, measurements=(), site_map=None).pages()))
    assert read == len(rows)
    return read / (time.perf_counter() - began)


class timed_pages(Iterator[pd.DataFrame]):  # noqa: N801 - reads as a function
    """Pages of a made-up stream; `spent` seconds were taken to make them up."""

    def __init__(self, events: int) -> None:
        self.spent = 0.0
        self._left = events
        self._number = 0
        self._start = 0.0

    def __next__(self) -> pd.DataFrame:
        if self._left <= 0:
            raise StopIteration
        began = time.perf_counter()
        page = ended_transfers(PAGE, links=LINKS, per_second=PER_SECOND, seed=1 + self._number)
        times = ["created_at", "submitted_at", "started_at", "ended_at"]
        page[times] += self._start
        self._start += PAGE / PER_SECOND
        self._left -= PAGE
        self._number += 1
        page["type"] = "transfer-done"
        self.spent += time.perf_counter() - began
        return page


def rate(trainer: training.Trainer, book: Book) -> float:
    """Targets a second over all blocks but the first, in which TensorFlow builds its graph."""
    course = training.Course()
    trainer.learn(course)
    began = time.perf_counter()
    while course.block < book.blocks - 1:
        trainer.learn(course)
    return (book.blocks - 2) * CHUNK / (time.perf_counter() - began)


def rate_of_windows() -> float:
    """Targets a second of the first design, one for each window."""
    net = windowed.network(9, seed=1)
    windows = np.random.default_rng(1).random((WINDOWS, windowed.WINDOW, 9), dtype=np.float32)
    target = windows[:, -1, :1]
    net.fit(windows[: WINDOWS // 10], target[: WINDOWS // 10], batch_size=256, verbose=0)
    began = time.perf_counter()
    net.fit(windows, target, batch_size=256, verbose=0)
    return WINDOWS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
