"""What a simulated day costs, and that memory does not grow with the days: `gridmedic simulate` for 1, 3 and 7 days.

By default a twentieth of ATLAS's load on its sites; `--full` takes the scenario `atlas` itself (1.2 million transfers a day,
minutes and a gigabyte of files for each day).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

DAYS = (1, 3, 7)
SHARE = 20
GRIDMEDIC = Path(sys.executable).with_name("gridmedic")
EVERY_S = 0.2  # between two looks at memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="ATLAS's load")
    parser.add_argument("--days", type=int, nargs="+", default=DAYS)
    parser.add_argument("--workers", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gridmedic-bench-") as folder:
        scenario = "atlas" if chosen.full else small(Path(folder))
        for days in chosen.days:
            used_before = processor_s()
            seconds, memory, counts, size = simulated(scenario, days, chosen.workers, Path(folder, f"days-{days}"))
            events = sum(counts["events"].values())
            print(
                f"{days} day{'s' * (days > 1):<1}  {seconds:6.1f} s ({seconds / days:.1f} s a day, "
                f"{(processor_s() - used_before) / days:.1f} s of processors)  {counts['finished']:,} finished transfers, "
                f"{events:,} events ({events / seconds:,.0f}/s), {sum(counts['measurements'].values()):,} measurements  "
                f"{size / 1e6:,.0f} MB of files  memory {memory:,.0f} MB",
                flush=True,
            )


def small(folder: Path) -> str:
    """ATLAS's sites and faults with less to do."""
    from simulator.scenario import load  # noqa: PLC0415 - the full run does not need it

    content = load("atlas").model_dump(mode="json", exclude_none=True)
    content["load"]["transfers_per_day"] /= SHARE
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def simulated(scenario: str, days: int, workers: int, out: Path) -> tuple[float, float, dict, int]:
    """Seconds, peak memory of all processes together in MB, counts, and bytes of files of one run."""
    command = [GRIDMEDIC, "simulate", scenario, "--days", str(days), "--workers", str(workers), "--out", out]
    began = time.perf_counter()
    peaks: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peaks |= peaks_of(str(process.pid))
            time.sleep(EVERY_S)
    if process.returncode:
        sys.exit(process.returncode)
    seconds = time.perf_counter() - began
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    size = 0
    for path in out.rglob("*.*"):
        size += path.stat().st_size
        path.unlink()
    return seconds, sum(peaks.values()) / 1024, counts, size


def processor_s() -> float:
    """What all processes that were started here, and have ended, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peaks_of(process: str) -> dict[str, int]:
    """The most memory in KB that the process and each of its children ever had."""
    found = {}
    try:
        for each in (process, *Path(f"/proc/{process}/task/{process}/children").read_text().split()):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    found[each] = int(line.split()[1])
    except OSError:  # one of them has just ended
        pass
    return found


if __name__ == "__main__":
    main()
