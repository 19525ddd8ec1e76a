"""The people who are asked: how well they see what would help, how long they take, and how often they disagree.

They are told how good each of the options truly is, and see it as their skill allows. Draws are keyed by the question, so that
the same question gets the same answer whatever was asked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from models.domain import Rating
from simulator.draws import Draws, For
from simulator.schema import Operators

SPREAD: Final = 0.6  # of the logarithm of the time that they take
LONGEST: Final = 20.0  # times the median: by then somebody else has taken over
HARM, HELP = -0.25, 0.25  # what is worth less than the one is wrong, what is worth more than the other is good


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What they say and when. `choice` is None where they want none of the options."""

    after_s: float
    choice: int | None
    ratings: tuple[Rating, ...]  # of each option


class Crew:
    """Whoever is on shift. `worth` of an option is how much it truly helps: 1 as much as can be, 0 not at all, -1 it harms."""

    def __init__(self, settings: Operators, draws: Draws) -> None:
        self._settings = settings
        self._draws = draws

    def reply(self, question: int, worth: Sequence[float]) -> Reply:
        """Their answer to the question of that number; raise ValueError for one without options."""
        if not worth:
            raise ValueError("a question without options cannot be answered")
        seen = [self._seen(question, place, truly) for place, truly in enumerate(worth)]
        best = max(range(len(seen)), key=lambda place: (seen[place], -place))
        ratings = tuple(self._rating(question, place, value) for place, value in enumerate(seen))
        return Reply(after_s=self.delay(question), choice=best if seen[best] >= 0 else None, ratings=ratings)

    def delay(self, question: int) -> float:
        """Seconds until one of them answers."""
        median = 60.0 * self._settings.delay_min
        drawn = self._draws.lognormal(median, SPREAD, For.OPERATOR, question, 0) if median else 0.0
        return min(drawn, LONGEST * median)

    def _seen(self, question: int, place: int, truly: float) -> float:
        """How good the option looks to them: as good as it is if they know, and anything if they do not."""
        if self._draws.uniform(For.OPERATOR, question, 1, place) < self._settings.skill:
            return truly
        return self._draws.between(-1.0, 1.0, For.OPERATOR, question, 2, place)

    def _rating(self, question: int, place: int, seen: float) -> Rating:
        if self._draws.uniform(For.OPERATOR, question, 3, place) < self._settings.disagreement:
            seen = -seen  # the colleague who rates it is of another opinion
        if seen > HELP:
            return Rating.GOOD
        return Rating.WRONG if seen < HARM else Rating.NOT_APPLICABLE
