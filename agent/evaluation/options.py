"""What the commands of an evaluation are given."""

from __future__ import annotations

from collections.abc import Sequence

from models.domain import ConfigError


def listed(text: str, known: Sequence[str], *, option: str, word: str) -> tuple[str, ...]:
    """What a list with commas names, each once; raise ConfigError with all that there are not. `word` is what one is called."""
    named = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in named if part not in known]
    if unknown or not named:
        all_of_them = ", ".join(map(repr, unknown)) or "none named"
        raise ConfigError(f"{option}: there is no {word} {all_of_them}; choose out of {', '.join(known)}")
    return named
