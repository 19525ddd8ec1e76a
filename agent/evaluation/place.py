"""Where plots go."""

from __future__ import annotations

import os
from pathlib import Path

from models.domain import ConfigError


def make_place(plots: Path) -> None:
    """Make the directory; raise ConfigError if it cannot be, or not be written to."""
    if plots.exists() and not plots.is_dir():
        raise ConfigError(f"{plots}: is no directory, so that plots have no place there; name another")
    try:
        plots.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{plots}: the directory of the plots cannot be made ({error.strerror}); name another"
        ) from error
    if not os.access(plots, os.W_OK):
        raise ConfigError(f"{plots}: cannot be written by this user; name another directory for the plots")
