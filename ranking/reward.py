"""What each feedback says a remedy cost, from 0 (right) to 1 (wrong). The only table of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.domain import Decision, Feedback, FeedbackSource, Outcome, Rating

CHOSEN = "chosen"
REJECTED = "rejected"
AUTONOMY = "autonomy"  # who chooses when no operator did
RIGHT_BELOW = 0.5  # where feedback is counted as yes or no: a cost below this is a yes


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A cost in [0, 1], or None where the feedback teaches nothing; and why."""

    cost: float | None
    why: str


PRICES: Mapping[tuple[FeedbackSource, str], Price] = {
    (FeedbackSource.RATING, Rating.GOOD): Price(cost=0.0, why="an operator says that it is the right thing to do"),
    (FeedbackSource.RATING, Rating.NOT_APPLICABLE): Price(
        cost=0.8, why="it does not belong here; harmless, unlike a wrong one"
    ),
    (FeedbackSource.RATING, Rating.WRONG): Price(cost=1.0, why="an operator says that it must not be done"),
    (FeedbackSource.CHOICE, CHOSEN): Price(cost=0.15, why="the best of what was offered, which is less than good"),
    (FeedbackSource.CHOICE, REJECTED): Price(cost=0.75, why="not wanted now; the reason may lie outside the remedy"),
    (FeedbackSource.OUTCOME, Outcome.FIXED): Price(cost=0.0, why="the incident's signal went away"),
    (FeedbackSource.OUTCOME, Outcome.UNCHANGED): Price(cost=0.7, why="time lost and nothing won"),
    (FeedbackSource.OUTCOME, Outcome.WORSE): Price(cost=1.0, why="it did harm"),
    (FeedbackSource.OUTCOME, Outcome.UNKNOWN): Price(cost=None, why="nobody can tell, so it teaches nothing"),
}


def cost(feedback: Feedback) -> float | None:
    """The cost in [0, 1] that a feedback row puts on its option; None if it teaches nothing.

    What autonomy chose by itself teaches nothing: it would agree with itself. Raises ValueError for a value that
    its source does not have.
    """
    price = PRICES.get((feedback.source, feedback.value))
    if price is None:
        known = ", ".join(sorted(value for source, value in PRICES if source is feedback.source))
        raise ValueError(
            f"feedback row {feedback.row}: {feedback.value!r} is no {feedback.source} feedback; use one of {known}"
        )
    if feedback.source is FeedbackSource.CHOICE and feedback.by == AUTONOMY:
        return None
    return price.cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A feedback row with what was decided then: all that learning, trust and evaluation ever see.

    `options` are (remedy, probability) in the order of the decision, 0 for what the policy had taken out.
    """

    feedback: Feedback
    context: Mapping[str, float | str]
    options: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        feedback = self.feedback
        if not 0 <= feedback.option < len(self.options):
            raise ValueError(
                f"feedback row {feedback.row} is on option {feedback.option!r} of {len(self.options)};"
                f" was it joined with another decision than {feedback.decision_id!r}?"
            )
        if feedback.propensity is not None and not 0.0 < feedback.propensity <= 1.0:
            raise ValueError(
                f"feedback row {feedback.row} has the propensity {feedback.propensity!r}; it must lie in (0, 1],"
                " or be None where the option was not the recommendation"
            )

    @classmethod
    def of(cls, feedback: Feedback, decision: Decision) -> Lesson:
        """Join a row with its decision."""
        options = tuple((option.candidate.remedy, option.probability) for option in decision.options)
        return cls(feedback=feedback, context=decision.context, options=options)

    @property
    def remedy(self) -> str:
        return self.options[self.feedback.option][0]

    @property
    def cost(self) -> float | None:
        return cost(self.feedback)
