"""The numbers of an incident's evidence in an operator's words: what was measured, and what limits are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.desk.text import clean, duration

_MEASURES = {"loss": "packet loss", "delay_ms": "delay", "throughput_bps": "throughput"}
_TIMES = {  # what stands in `Evidence.limits`
    "took_s": "took {}",
    "forecast_s": "forecast {}",
    "expected_s": "usual {}",
    "slow_s": "slow beyond {}",
    "threshold_s": "alarm beyond {}",
    "network_s": "the network alone needs {} by perfSONAR",
    "timeout_s": "FTS gives up after {}",
    "overdue_s": "overdue {} after submission",
}


def times(limits: Mapping[str, float]) -> Iterator[str]:
    """Say what transfers took, and what their limits are made of."""
    for name, text in _TIMES.items():
        if name in limits:
            yield text.format(duration(limits[name]))


def readings(network: Mapping[str, float]) -> Iterator[str]:
    """Say what perfSONAR measured, each with what is usual."""
    for name, value in network.items():
        usual = network.get(f"usual_{name.removeprefix('path_')}")
        if not name.startswith("usual_"):
            yield _reading(name, value) + ("" if usual is None else f" (usually {_amount(name, usual)})")
        elif name.removeprefix("usual_") not in network:
            yield f"usually {_reading(name.removeprefix('usual_'), value)}"


def _reading(name: str, value: float) -> str:
    measure = name.removeprefix("path_")
    return f"{_MEASURES.get(measure) or clean(measure, 40).replace('_', ' ')} {_amount(name, value)}"


def _amount(name: str, value: float) -> str:
    match name.removeprefix("path_"):
        case "loss":
            return f"{value:.2%}".replace("%", " %")
        case "delay_ms":
            return f"{value:.0f} ms"
        case "throughput_bps":
            return f"{value / 1e6:,.0f} Mbit/s"
        case _:
            return f"{value:.3g}"
