"""Why a transfer was judged as it was, as a terminal shows it. Names from events are cleaned: `table` and `clean` do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent.desk.terminal import table
from agent.desk.text import clean, percent

if TYPE_CHECKING:
    from agent.explain import Explained
    from detectors.explanation import Expectation, Explanation, Measured

_SETS = {
    "forecast": "the forecast's limit",
    "norm": "the norm's limit",
    "worth": "the least that is worth a call",
    "loss": "what packet loss allows",
    "throughput": "what measured throughput allows",
    "fts-timeout": "FTS's timeout",
    "alarm": "the alarm's threshold, which slow never passes",
}
_SAID = {  # by flagged and slow
    (True, True): "flagged, and slow",
    (True, False): "flagged, but not slow",
    (False, True): "slow, but not flagged",
    (False, False): "neither flagged nor slow",
}
_WHO = {
    "link": "this link",
    "source": "its source",
    "destination": "its destination",
    "all": "all",
    "prior": "nobody (prior)",
}


def explanation_text(told: Explained) -> str:
    """Return everything about the judgement of a transfer."""
    why = told.explanation
    parts = (_verdict(told), _expectations(why), _residuals(why), _limits(why), _network(why))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _verdict(told: Explained) -> Iterator[str]:
    why = told.explanation
    size = "an unknown size" if why.bytes is None else f"{why.bytes / 1e6:,.1f} MB"
    yield f"{clean(told.request_id)}  {clean(why.source)} > {clean(why.destination)}  {clean(told.activity)}"
    yield f"{size} from {_moment(told.started_at)} to {_moment(told.ended_at)}: {_s(why.duration_s)}"
    yield (
        f"{'FLAGGED' if why.flagged else 'not flagged'}: the threshold is {_s(why.threshold_s)}, set by {_SETS[why.threshold_by]}"
    )
    yield f"{'SLOW' if why.slow else 'not slow'}: slow is more than {_s(why.slow_s)}, set by {_SETS[why.slow_by]}"
    if told.judged is None:
        yield f"judged as if it came next, by version {clean(told.model)} of the forecaster"
        return
    limits = ", ".join(
        f"{word} {_s(float(told.judged[name]))}"
        for word, name in (("threshold", "threshold_s"), ("slow", "slow_s"))
        if name in told.judged
    )
    learned = "" if told.judged.get("calibrates", True) else "; nothing was learned from it: it ran in an incident"
    said = _SAID[bool(told.judged.get("flagged")), bool(told.judged.get("slow"))]
    yield f"when it ended it was {said} ({limits}){learned}"
    if told.judged_by != told.model:
        yield f"forecast anew by version {clean(told.model)}; it was judged by {clean(told.judged_by or 'another')}"


def _expectations(why: Explanation) -> Iterator[str]:
    low = "" if why.q05_s is None else f"5 % {_s(why.q05_s)}, "
    yield f"Forecast at its start: {low}median {_s(why.q50_s)}, 95 % {_s(why.q95_s)}"
    rows = [
        (one.by, _s(one.median_s), _s(one.expected_s), _s(one.slow_s), _s(one.alarm_s), f"{one.score:+.2f}")
        for one in why.expectations
    ]
    yield table(("by", "median", "on this link", "slow", "alarm", "score of the transfer"), rows)


def _residuals(why: Explanation) -> Iterator[str]:
    yield "Residuals on this link, and whose they are"
    yield table(
        ("of", "scale", "mean", "spread", "whose", "transfers", "weight", "own mean", "own spread"),
        [row for one in why.expectations for row in _parts(one)],
    )


def _parts(one: Expectation) -> Iterator[tuple[str, ...]]:
    yield (one.by, f"{one.scale:.3f}", f"{one.mean:+.3f}", f"{one.spread:.3f}", "", "", "", "", "")
    for part in one.parts:
        own = (f"{part.mean:+.3f}", f"{part.spread:.3f}") if part.transfers or part.of == "prior" else ("-", "-")
        yield ("", "", "", "", _WHO[part.of], f"{part.transfers:.0f}", percent(part.weight), *own)


def _limits(why: Explanation) -> Iterator[str]:
    yield "Limits"
    yield f"  slow         score {why.slow_limit:.2f}"
    yield f"  alarm        score {why.link_alarm:.2f}: {why.alarm:.2f} on all links for a budget of {why.alarm_budget:g}, and"
    yield f"               {why.tail_ratio:.2f} times the usual share of this link's transfers in the tail"
    yield f"  worth a call {_s(why.worth_s)}; worth calling slow {_s(why.slow_worth_s)}"
    yield f"  FTS's timeout {_s(why.timeout_s)}"


def _network(why: Explanation) -> Iterator[str]:
    yield "The network as of its start, by perfSONAR"
    yield f"  loss {_number(why.loss, 1e2, '%')}, round trip {_number(why.rtt_ms, 1, 'ms')} (delay {_number(why.delay_ms, 1, 'ms')}), throughput {_number(why.throughput_bps, 1e-6, 'Mbit/s')}"
    yield table(
        ("by", "readings", "age of the last", "weight", "the path needs", "an alarm only beyond"),
        [_measured(one) for one in why.measured],
    )


def _measured(one: Measured) -> tuple[str, ...]:
    name = "loss (Mathis)" if one.by == "loss" else "throughput"
    if not one.readings:
        return (name, "0", "-", "-", "-", "-")
    age = "-" if one.age_s is None else _s(one.age_s)
    needs = _s(one.needs_s) if one.needs_s else "no bound"
    return (name, str(one.readings), age, percent(one.weight), needs, _s(one.raised_s))


def _number(value: float | None, times: float, unit: str) -> str:
    return "unknown" if value is None else f"{value * times:.4g} {unit}"


def _s(seconds: float) -> str:
    return f"{seconds:,.1f} s"


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
