"""What there is to say for an incident: counts, links, reasons, the network and examples, for a person to check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from detectors.bounds import fts_timeout
from detectors.explanation import medians
from detectors.localisation import site_of
from detectors.weather import Weather
from detectors.window import WINDOW_S, Look, Places, Window
from models.domain import Entity, Evidence, Example, Incident, IncidentKind, Share

Flags = npt.NDArray[np.bool_]

MAX_EXAMPLES = 5
MAX_LISTED = 10

_TEXTS = ("request_id", "source", "destination", "reason")
_NUMBERS = ("started_at", "ended_at", "q50", "slow_s")
_LIMITS = (
    "started_at",
    "ended_at",
    "submitted_at",
    "due_at",
    "bytes",
    "q50",
    "expected_s",
    "slow_s",
    "threshold_s",
    "network_s",
)
_PATHS = {"loss": "path_loss", "delay_ms": "path_delay_ms", "throughput_bps": "path_throughput_bps"}


def gather(incident: Incident, look: Look, window: Window, weather: Weather) -> Evidence:
    """Evidence of one incident as of a minute, from the rows of the window."""
    kind, culprit, role = incident.kind, incident.culprit, incident.evidence.role
    bad, own = look.bad, look.roles.in_part_of(incident)
    guilty = look.roles.badly(incident, look.blame)
    others = ~own
    rows = look.members[guilty]
    failed = rows[window.failed[rows]]
    background = float(bad[others].mean()) if others.any() else 0.0
    sources, destinations = (window.texts(end, rows) for end in ("source", "destination"))
    rules = [rule for rule in dict.fromkeys(window.texts("rule_id", rows)) if rule]
    return Evidence(
        role=role,
        summary=_summary(kind, culprit, int(guilty.sum()), int(own.sum()), background),
        window_s=WINDOW_S,
        anomalous=int(guilty.sum()),
        total=int(own.sum()),
        background=round(background, 5),
        as_source=_share(look.roles.of_name("source", culprit.name), bad),
        as_destination=_share(look.roles.of_name("destination", culprit.name), bad),
        links=_counts(f"{source}>{destination}" for source, destination in zip(sources, destinations, strict=True)),
        activities=_counts(window.texts("activity", rows)),
        reasons=_counts(window.texts("reason", failed)),
        rules=tuple(rules[:MAX_LISTED]),
        network=_network(window, rows) | _usual(sources, destinations, weather, look.at),
        limits={} if look.signal.failing else _limits(window, rows),
        examples=_examples(window, rows),
    )


def _summary(kind: IncidentKind, culprit: Entity, bad: int, total: int, background: float) -> str:
    what = _WHAT[kind]
    share = f"{bad} of {total} transfers ({bad / max(total, 1):.0%})"
    return f"{share} of {culprit.name} {what} in the last 30 minutes; elsewhere {background:.1%} did"


_WHAT = {
    IncidentKind.FAILING_TRANSFERS: "failed",
    IncidentKind.SLOW_TRANSFERS: "took longer than their link allows now",
    IncidentKind.STALLED_TRANSFERS: "should have ended by now or waited for long",
    IncidentKind.DEGRADED_NETWORK: "took longer than their link allows now",
}


def _share(own: Flags, bad: Flags) -> Share:
    return Share(anomalous=int((own & bad).sum()), total=int(own.sum()))


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common(MAX_LISTED))


def _network(window: Window, rows: Places) -> dict[str, float]:
    """The medians of what perfSONAR had last said of the paths."""
    found = {name: window.numbers(column, rows) for name, column in _PATHS.items()}
    return {name: float(np.nanmedian(values)) for name, values in found.items() if not np.isnan(values).all()}


def _usual(sources: list[str], destinations: list[str], weather: Weather, at: float) -> dict[str, float]:
    """What perfSONAR says as a rule of the path that most of them took."""
    paths = Counter(
        (site_of(source), site_of(destination))
        for source, destination in zip(sources, destinations, strict=True)
        if site_of(source) != site_of(destination)
    )
    if not paths:
        return {}
    outlook = weather.of(">".join(paths.most_common(1)[0][0]), at)
    found = {"usual_loss": outlook.usual_loss, "usual_delay_ms": outlook.usual_delay_ms}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _limits(window: Window, rows: Places) -> dict[str, float]:
    """What the transfers took, and what the limits that they passed are made of: see `agent.desk.words`."""
    number = {name: window.numbers(name, rows) for name in _LIMITS}
    ended = np.where(np.isfinite(number["ended_at"]), number["ended_at"], np.nan)
    return medians(
        {
            "took_s": ended - number["started_at"],
            "forecast_s": np.expm1(number["q50"]),
            "expected_s": number["expected_s"],
            "slow_s": number["slow_s"],
            "threshold_s": number["threshold_s"],
            "network_s": number["network_s"],
            "timeout_s": fts_timeout(number["bytes"]),
            "overdue_s": number["due_at"] - number["submitted_at"],
        }
    )


def _examples(window: Window, rows: Places) -> tuple[Example, ...]:
    """The last to end."""
    worst = rows[np.argsort(window.ended[rows], kind="stable")[-MAX_EXAMPLES:]]
    texts = zip(*(window.texts(name, worst) for name in _TEXTS), strict=True)
    numbers = zip(*(window.numbers(name, worst).tolist() for name in _NUMBERS), strict=True)
    return tuple(_example(*named, *numbered) for named, numbered in zip(texts, numbers, strict=True))


def _example(
    request_id: str,
    source: str,
    destination: str,
    reason: str,
    started: float,
    ended: float,
    median: float,
    slow_s: float,
) -> Example:
    return Example(
        request_id=request_id,
        link=f"{source}>{destination}",
        ended_at=None if not math.isfinite(ended) else datetime.fromtimestamp(ended, UTC),
        duration_s=None if math.isnan(started) or not math.isfinite(ended) else round(ended - started, 1),
        expected_s=None if math.isnan(median) else round(math.expm1(median), 1),
        threshold_s=None if math.isnan(slow_s) else round(slow_s, 1),
        reason=reason,
    )
