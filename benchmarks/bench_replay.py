"""How fast recorded events go the whole path: `gridmedic replay` over a simulated day with its troubles and measurements."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from simulator.scenario import load
from simulator.world import World, run

HOURS = 24.0
GRIDMEDIC = Path(sys.executable).with_name("gridmedic")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gridmedic-bench-") as folder:
        events, measurements = Path(folder, "events.jsonl"), Path(folder, "measurements.jsonl")
        record(events, measurements)
        command = [GRIDMEDIC, "replay", "--json", "--measurements", measurements, events]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    counts, refused = told["events"], sum(told["events"]["refused"].values())
    print(f"a day       {counts['read']:,} events read, {counts['scored']:,} scored, {refused:,} refused (repeats)")
    print(f"replay      {told['events_per_second']:,.0f} events/s (decoding, scoring, incidents, decisions, ledger)")
    print(
        f"that is     a day in {counts['read'] / told['events_per_second']:,.1f} s; incidents {len(told['incidents'])}"
    )


def record(events: Path, measurements: Path) -> None:
    """Write the documents of a world with faults that nobody touches."""
    world = World(load("demo"), seed=7, start=datetime(2026, 3, 2, tzinfo=UTC))
    with events.open("wb") as event_file, measurements.open("wb") as measurement_file:
        for emitted in run(world, hours=HOURS):
            event_file.writelines(line + b"\n" for line in world.documents.lines(emitted.events))
            measurement_file.writelines(line + b"\n" for line in world.probes.lines(emitted.measurements))


if __name__ == "__main__":
    main()
