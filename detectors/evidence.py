"""What there is to say for an incident: counts, links, reasons, the network and examples, for a person to check."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from detectors.window import WINDOW_S, Look
from models.domain import Entity, Evidence, Example, IncidentKind, Share

Flags = npt.NDArray[np.bool_]

MAX_EXAMPLES = 5
MAX_LISTED = 10

_EXAMPLE = ("request_id", "source", "destination", "started_at", "ended_at", "q50", "slow_s", "reason")


def gather(culprit: Entity, look: Look, window: pd.DataFrame) -> Evidence:
    """Evidence of one incident as of a minute, from the rows of the window."""
    bad, own = look.bad, look.own(culprit)
    guilty = own & bad
    others = ~own
    rows = window.iloc[look.members[guilty]]
    background = float(bad[others].mean()) if others.any() else 0.0
    worst = rows[list(_EXAMPLE)].sort_values("ended_at").tail(MAX_EXAMPLES)
    paths = {"loss": "path_loss", "delay_ms": "path_delay_ms", "throughput_bps": "path_throughput_bps"}
    network = {name: float(rows[column].median()) for name, column in paths.items() if rows[column].notna().any()}
    rules = [rule for rule in rows["rule_id"].unique() if rule]
    return Evidence(
        summary=_summary(look.signal.kind, culprit, int(guilty.sum()), int(own.sum()), background),
        window_s=WINDOW_S,
        anomalous=int(guilty.sum()),
        total=int(own.sum()),
        background=round(background, 5),
        as_source=_share(look.roles.of_name("source", culprit.name), bad),
        as_destination=_share(look.roles.of_name("destination", culprit.name), bad),
        links=_counts(rows["source"] + ">" + rows["destination"]),
        activities=_counts(rows["activity"]),
        reasons=_counts(rows.loc[rows["failed"], "reason"]),
        rules=tuple(rules[:MAX_LISTED]),
        network=network,
        examples=tuple(_example(row) for row in worst.to_dict("records")),
    )


def _summary(kind: IncidentKind, culprit: Entity, bad: int, total: int, background: float) -> str:
    what = "failed" if kind is IncidentKind.FAILING_TRANSFERS else "took longer than their link allows now"
    share = f"{bad} of {total} transfers ({bad / max(total, 1):.0%})"
    return f"{share} of {culprit.name} {what} in the last 30 minutes; elsewhere {background:.1%} did"


def _share(own: Flags, bad: Flags) -> Share:
    return Share(anomalous=int((own & bad).sum()), total=int(own.sum()))


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(n) for name, n in values.value_counts().head(MAX_LISTED).items()}


def _example(row: dict[object, object]) -> Example:
    started, ended = _number(row["started_at"]), _number(row["ended_at"])
    median = _number(row["q50"])
    return Example(
        request_id=str(row["request_id"]),
        link=f"{row['source']}>{row['destination']}",
        ended_at=datetime.fromtimestamp(ended, UTC),
        duration_s=None if np.isnan(started) else round(ended - started, 1),
        expected_s=None if np.isnan(median) else round(math.expm1(median), 1),
        threshold_s=None if np.isnan(_number(row["slow_s"])) else round(_number(row["slow_s"]), 1),
        reason=str(row["reason"]),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
