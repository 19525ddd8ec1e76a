"""Putting back what was changed, once nothing on the grid asks for it any more. No policy does that by itself.

People do it: when the incident has closed and what was wrong there, if anything was, is over, after the time that they take to answer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from agent.evaluation.arena import Arena, seconds
from agent.evaluation.worth import worth
from agent.grid.dry_run import Act
from models.domain import Action, RemedyCard
from remedies.runner import Runner
from simulator.operators import Crew

_QUESTIONS = 1 << 40  # so far apart are their numbers from those of proposals


@dataclass(slots=True, kw_only=True)
class _Change:
    action: Action
    card: RemedyCard
    acts: Sequence[Act]
    due: float | None = None  # when it is put back; None as long as it is needed


class Upkeep:
    """What stands changed on the grid because of actions."""

    def __init__(self, arena: Arena, runner: Runner, crew: Crew) -> None:
        self._arena = arena
        self._runner = runner
        self._crew = crew
        self._changes: list[_Change] = []
        self._number = 0

    def add(self, action: Action, card: RemedyCard, acts: Sequence[Act]) -> None:
        """`action` has had its effect by these acts."""
        if acts and action.memory:
            self._changes.append(_Change(action=action, card=card, acts=acts))

    @property
    def pending(self) -> bool:
        """Whether anything stands changed."""
        return bool(self._changes)

    def put_back(self, still_open: Container[str]) -> list[Action]:
        """Put back what is due; return these actions. `still_open`: ids of the incidents that are."""
        now, running, done = seconds(self._arena.now, self._arena), self._arena.running(), []
        for change in self._changes:
            if change.action.incident_id in still_open or worth(change.acts, running, self._arena.world.topology) > 0:
                change.due = None
            elif change.due is None:
                self._number += 1
                change.due = now + self._crew.delay(_QUESTIONS + self._number)
            elif change.due <= now:
                done.append(change)
        for change in reversed(done):  # the last first: each found what those before it had left
            self._runner.undo(change.action, change.card)
            self._changes.remove(change)
        return [change.action for change in done]
