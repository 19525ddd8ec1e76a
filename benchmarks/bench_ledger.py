"""How fast the ledger keeps observed rows and gives them back, and how long a desk waits for its proposals."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from streams import ended_transfers

from models.domain import (
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

PAGES, PAGE = 40, 5_000
INCIDENTS, SHOWN, ASKED = 2_000, 50, 50
NOW = datetime(2026, 3, 2, tzinfo=UTC)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gridmedic-bench-") as folder:
        path = Path(folder, "ledger.db")
        ledger = Ledger.open(f"sqlite:///{path}")
        rows = ended_transfers(PAGES * PAGE, links=5_000, per_second=25.0)
        rows = rows.assign(**{name: np.float64(3.0) for name in ("q05", "q25", "q50", "q75", "q95", "threshold_s")})
        began = time.perf_counter()
        for start in range(0, len(rows), PAGE):
            with ledger.begin(write=True) as tx:
                tx.append_rows("observed", rows.iloc[start : start + PAGE])
        kept = time.perf_counter()
        with ledger.begin(write=False) as tx:
            assert len(tx.rows("observed")) == len(rows)
        read = time.perf_counter()
        print(f"keep        {len(rows) / (kept - began):,.0f} rows/s, a transaction for each {PAGE:,}")
        print(
            f"give back   {len(rows) / (read - kept):,.0f} rows/s; {path.stat().st_size / len(rows):,.0f} bytes a row"
        )
        fill(ledger)
        began = time.perf_counter()
        for _ in range(ASKED):
            with ledger.begin(write=False) as tx:
                assert len(tx.proposals(SHOWN)) == SHOWN
        took = (time.perf_counter() - began) / ASKED
        print(f"proposals   {1e3 * took:,.1f} ms for {SHOWN} of {INCIDENTS:,} incidents")
        ledger.close()


def fill(ledger: Ledger) -> None:
    """Incidents with a decision each."""
    evidence = Evidence(summary="some failed", window_s=1800.0, anomalous=9, total=20, background=0.01)
    candidate = Candidate(remedy="wait", params={}, targets=(), summary="nothing is done")
    options = tuple(
        Option(candidate=candidate, permission=Permission.ASK, blocks=(), probability=0.2) for _ in range(5)
    )
    with ledger.begin(write=True) as tx:
        for number in range(INCIDENTS):
            at = NOW + timedelta(minutes=number)
            tx.save_incident(
                Incident(
                    id=f"inc-{number}",
                    kind=IncidentKind.FAILING_TRANSFERS,
                    culprit=Entity.parse(f"rse:SITE-{number}_DATADISK"),
                    opened_at=at,
                    updated_at=at,
                    confidence=0.9,
                    severity=0.5,
                    evidence=evidence,
                )
            )
            tx.record_decision(
                Decision(
                    id=f"inc-{number}-1",
                    incident_id=f"inc-{number}",
                    made_at=at,
                    status=DecisionStatus.OPEN,
                    options=options,
                    recommended=0,
                    propensity=0.2,
                    context={},
                    model_hash="m",
                    catalogue_hash="c",
                    policy_hash="p",
                )
            )


if __name__ == "__main__":
    main()
