"""What the bandit sees of an incident, and how that is written for Vowpal Wabbit.

The context is logged with each decision and is all that the bandit is given, so a replay needs nothing else. Words and
numbers only; numbers lie in [0, 1]. It names no storage element and no site: what was learned at one serves at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from urllib.parse import quote

from models.domain import Evidence, Incident, aware

VERSION = 1  # of what `context` and `example` write; a bandit that learned from another is rebuilt
MAX_CLASSES = 5  # classes of error told apart, the most frequent
LOSSY = 0.01  # packet loss from which TCP over a wide area collapses
SLOW_BPS = 1e8  # a wide-area path between grid sites that carries less than 100 Mbit/s is ill
ONE_SIDED = 0.8  # share of a culprit's anomalous transfers on one side that makes it its role

# How much of a rating each feature takes up: what is known of the remedy in this kind of incident moves most, the other
# words less, numbers least. With equal weights the numbers fit noise: docs/ranking.md has the measurements.
KIND_WEIGHT = 2.0
WORD_WEIGHT = 0.5
NUMBER_WEIGHT = 0.2

Context = Mapping[str, float | str]


def context(incident: Incident, now: datetime) -> dict[str, float | str]:
    """Describe an incident as of `now`, in words and in numbers from 0 to 1; what is not known is left out."""
    evidence = incident.evidence
    hours = max(0.0, (aware(now) - incident.opened_at).total_seconds() / 3600.0)
    words: dict[str, float | str] = {
        "kind": str(incident.kind),
        "culprit": str(incident.culprit.kind),
        "role": _role(evidence),
        "network": _network(evidence.network),
    }
    numbers = {
        "confidence": incident.confidence,
        "severity": incident.severity,
        "anomalous": evidence.anomalous / evidence.total if evidence.total > 0 else math.nan,
        "background": evidence.background,
        "size": math.log10(1 + max(0, incident.anomalous)) / 6,
        "links": math.log10(1 + len(evidence.links)) / 2,
        "open": math.log1p(hours) / math.log1p(24 * 7),
        "loss": _log(evidence.network.get("loss", math.nan) * 1e4, top=1e4),
        "delay": _log(evidence.network.get("delay_ms", math.nan), top=1e3),
        "throughput": _log(evidence.network.get("throughput_bps", math.nan) / 1e6, top=1e5),
        **_errors(evidence.reasons),
    }
    return words | {name: _unit(value) for name, value in numbers.items() if math.isfinite(value)}


def example(seen: Context, remedies: Sequence[str], label: tuple[float, float] | None = None) -> list[str]:
    """Write one decision for Vowpal Wabbit: the shared line, then one line per remedy.

    `label` is (cost, probability) of the first remedy. Raises ValueError for anything that Vowpal Wabbit would take
    without a word and go wrong on.
    """
    lines = ["shared |context " + " ".join(_feature(name, value) for name, value in sorted(seen.items()))]
    lines += [f"|action remedy={escaped(remedy)}" for remedy in remedies]
    if label is not None:
        cost, probability = label
        if not (0.0 <= cost <= 1.0 and 0.0 < probability <= 1.0):
            raise ValueError(f"a label of cost {cost!r} and probability {probability!r} is not one to learn from")
        lines[1] = f"0:{cost:.6f}:{probability:.6f} {lines[1]}"
    return lines


def escaped(text: str) -> str:
    """Percent-encode all but letters, digits and `_.-~`, so that no text can end a feature; distinct texts stay so.

    >>> escaped("a b|c:d=e")
    'a%20b%7Cc%3Ad%3De'
    """
    return quote(text, safe="", errors="surrogatepass")


def _feature(name: str, value: float | str) -> str:
    match value:
        case str():
            weight = KIND_WEIGHT if name == "kind" else WORD_WEIGHT
            return f"{escaped(name)}={escaped(value)}:{weight}"
        case float() | int() if not isinstance(value, bool) and 0.0 <= value <= 1.0:
            return f"{escaped(name)}:{NUMBER_WEIGHT * value:.6f}"
        case _:
            raise ValueError(f"the context has {name!r} = {value!r}; it takes words and numbers from 0 to 1")


def _role(evidence: Evidence) -> str:
    """On which side of its anomalous transfers the culprit stands."""
    source, destination = evidence.as_source.anomalous, evidence.as_destination.anomalous
    if source + destination == 0:
        return "none"
    share = source / (source + destination)
    if share >= ONE_SIDED:
        return "source"
    return "destination" if share <= 1.0 - ONE_SIDED else "both"


def _network(network: Mapping[str, float]) -> str:
    if network.get("loss", 0.0) >= LOSSY:
        return "lossy"
    if network.get("throughput_bps", math.inf) < SLOW_BPS:
        return "slow"
    return "clean" if any(math.isfinite(value) for value in network.values()) else "unknown"


def _errors(reasons: Mapping[str, int]) -> dict[str, float]:
    """Shares of the most frequent classes of error."""
    total = sum(reasons.values())
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:MAX_CLASSES]
    return {f"error.{name[:64]}": n / total for name, n in most} if total > 0 else {}


def _log(value: float, *, top: float) -> float:
    """0 to 1 on a logarithmic scale that ends at `top`; NaN stays NaN."""
    return math.log1p(max(0.0, value)) / math.log1p(top) if math.isfinite(value) else math.nan


def _unit(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 4)
