"""The grids that remedies may act on: each implements `models.grid.Grid`."""

from __future__ import annotations

from collections.abc import Mapping

from agent.grid.dry_run import DryRun
from agent.grid.simulated import SimulatedGrid
from models.domain import ConfigError
from models.grid import Grid


def open_grid(settings: Mapping[str, object]) -> Grid:
    """Open the grid that the section `grid` of the configuration describes: `kind`, `url`, `dry_run`.

    Nothing is asked of it yet. Raise ConfigError for a kind that is not known.
    """
    if settings.get("kind") != "simulated":
        raise ConfigError(f"grid.kind: {settings.get('kind')!r} is not known; write simulated")
    grid = SimulatedGrid(str(settings["url"]))
    return DryRun(grid) if settings.get("dry_run") else grid
