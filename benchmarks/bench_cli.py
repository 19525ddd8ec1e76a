"""How long small commands take from the shell and back, beside an interpreter that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from models.domain import (
    Block,
    Candidate,
    Decision,
    DecisionStatus,
    Entity,
    Evidence,
    Incident,
    IncidentKind,
    Option,
    Permission,
)
from storage.ledger import Ledger

RUNS = 15
OPEN = 20  # incidents that wait for an operator
GRIDMEDIC = Path(sys.executable).with_name("gridmedic")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gridmedic-bench-") as name:
        folder = Path(name)
        (folder / "config.yaml").write_text("{}\n", encoding="utf-8")
        fill(folder / "var" / "ledger.db")
        bare = timed([sys.executable, "-c", "pass"], folder)
        print(f"{'python that does nothing':<26}{bare * 1000:>6.0f} ms")
        for command in (["proposals"], ["proposals", "inc-0-1"], ["incidents"], ["--help"]):
            took = timed([GRIDMEDIC, *command], folder)
            print(f"{'gridmedic ' + ' '.join(command):<26}{took * 1000:>6.0f} ms, {took / bare:.0f} times as long")
    print(f"medians of {RUNS} whole processes, over a ledger with {OPEN} open proposals")


def timed(command: Sequence[str | Path], folder: Path) -> float:
    """Median of the wall seconds of whole processes; the first, which fills the disk's caches, is not counted."""
    spans = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        spans.append(time.perf_counter() - began)
    return statistics.median(spans[1:])


def fill(path: Path) -> None:
    """A ledger with open incidents and a proposal for each."""
    ledger = Ledger.open(f"sqlite:///{path}")
    with ledger.begin(write=True) as tx:
        for number in range(OPEN):
            incident = made_up_incident(number)
            tx.save_incident(incident)
            tx.record_decision(made_up_decision(incident))
    ledger.close()


def made_up_incident(number: int) -> Incident:
    return Incident(
        id=f"inc-{number}",
        kind=IncidentKind.SLOW_TRANSFERS,
        culprit=Entity.parse(f"rse:SITE-{number}_DATADISK"),
        opened_at=NOW + timedelta(minutes=number),
        updated_at=NOW + timedelta(minutes=number),
        anomalous=40,
        confidence=0.9,
        severity=0.5,
        evidence=Evidence(
            summary="Reading is slow for every destination.", window_s=1800, anomalous=40, total=60, background=0.05
        ),
    )


def made_up_decision(incident: Incident) -> Decision:
    remedies = ("switch_source", "throttle_link", "open_ticket", "wait")
    options = tuple(
        Option(
            candidate=Candidate(remedy=remedy, params={}, targets=(str(incident.culprit),), summary=f"{remedy} here"),
            permission=Permission.ASK,
            blocks=(Block.AUTONOMY_OFF,),
            probability=1 / len(remedies),
            expected_cost=0.3,
        )
        for remedy in remedies
    )
    return Decision(
        id=f"{incident.id}-1",
        incident_id=incident.id,
        culprit=str(incident.culprit),
        made_at=incident.updated_at,
        status=DecisionStatus.OPEN,
        options=options,
        recommended=0,
        propensity=1 / len(remedies),
        context={},
        model_hash="m",
        catalogue_hash="c",
        policy_hash="p",
    )


if __name__ == "__main__":
    main()
