"""What was done to the grid, counted by whether it could help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.evaluation.arena import Arena
from agent.evaluation.worth import worth
from agent.grid.dry_run import Act


class Deeds:
    """What was done to the grid, and whether it could help at that time; what is put back counts as neither."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.right = self.wrong = 0

    def note(self) -> Mapping[str, Sequence[Act]]:
        """Judge what was done since the last time; return it by the key of the action behind it."""
        acts = {key: found for key, found in self._arena.acts().items() if not key.endswith("/undo")}
        for found in acts.values():
            value = worth(found, self._arena.running(), self._arena.world.topology)
            self.right += value > 0
            self.wrong += value < 0
        return acts
