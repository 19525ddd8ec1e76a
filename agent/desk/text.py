"""Numbers, times and text from events as one line that is safe to look at; escaping is each desk's own affair."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime


def clean(text: str, limit: int = 300) -> str:
    """Return `text` on one line, without control, direction and invisible characters, cut to `limit` characters."""
    shown = "".join(
        " " if category in {"Cc", "Zl", "Zp"} else "" if category in {"Cf", "Cs"} else character
        for character in text[: 4 * limit]
        for category in [unicodedata.category(character)]
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def percent(share: float) -> str:
    """Return a share of 0..1 in per cent, never rounded to a nought or a hundred that it is not."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Return a span with its unit: `45 s`, `12 min`, `3.5 h`, `2 d`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    size, unit = (3600, "h") if seconds < 172_800 else (86_400, "d")
    return f"{f'{seconds / size:.1f}'.removesuffix('.0')} {unit}"


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%d %b %H:%M} UTC"
