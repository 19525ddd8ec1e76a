"""What operators see and say: proposals, answers, the feedback learned from, settings, and what each desk has posted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, select, update

from models.domain import (
    Action,
    Answer,
    AnswerKind,
    Decision,
    Feedback,
    FeedbackSource,
    Incident,
    IncidentStatus,
    LedgerError,
    Proposal,
    Rating,
)
from storage.documents import dump_json, load, load_json
from storage.statements import Statements
from storage.tables import actions, answers, decisions, feedback, incidents, posts, settings


class Answers(Statements):
    def add_answer(self, answer: Answer) -> bool:
        """Append an answer for the loop to settle; False if its key is known, whatever it says."""
        values = {
            "key": answer.key,
            "by": answer.by,
            "via": answer.via,
            "kind": answer.kind,
            "decision_id": answer.decision_id,
            "option": answer.option,
            "rating": answer.rating,
        }
        return self._add(answers, values) is not None

    def unsettled_answers(self) -> list[tuple[int, Answer]]:
        """Return (row, answer) in the order given."""
        statement = select(answers).where(answers.c.settled_at.is_(None)).order_by(answers.c.row)
        return [(row.row, _answer(row)) for row in self._connection.execute(statement)]

    def settle_answer(self, row: int, note: str, at: datetime) -> None:
        """Say what became of an answer; raise LedgerError if the row is unknown or settled already."""
        statement = update(answers).where(answers.c.row == row, answers.c.settled_at.is_(None))
        if self._connection.execute(statement.values(note=note, settled_at=at)).rowcount == 0:
            raise LedgerError(f"answer {row!r} is unknown or settled already; take rows from unsettled_answers")

    def pending_choice(self, decision_id: str) -> Answer | None:
        """Return the first approval or rejection of a decision that is not settled yet."""
        statement = select(answers).where(
            answers.c.settled_at.is_(None),
            answers.c.decision_id == decision_id,
            answers.c.kind.in_([AnswerKind.APPROVE, AnswerKind.REJECT]),
        )
        row = self._connection.execute(statement.order_by(answers.c.row).limit(1)).first()
        return None if row is None else _answer(row)

    def add_feedback(
        self,
        *,
        at: datetime,
        decision_id: str,
        option: int,
        source: FeedbackSource,
        value: str,
        by: str,
        propensity: float | None,
    ) -> Feedback:
        """Append a row that the bandit learns from, and return it with its place."""
        values = {
            "at": at,
            "decision_id": decision_id,
            "option": option,
            "source": source,
            "value": value,
            "by": by,
            "propensity": propensity,
        }
        return _feedback(self._connection.execute(self._insert(feedback).values(values).returning(feedback)).one())

    def feedback(self, after: int = 0) -> list[Feedback]:
        """Return the feedback of rows greater than `after`, in the order of writing."""
        statement = select(feedback).where(feedback.c.row > after).order_by(feedback.c.row)
        return [_feedback(row) for row in self._connection.execute(statement)]


class Proposals(Statements):
    def proposals(self, limit: int) -> list[Proposal]:
        """Return each incident's newest decision: open incidents by their newest decision, then the last ones closed."""
        newest = _newest()
        is_open = incidents.c.status == IncidentStatus.OPEN
        rows = self._connection.execute(newest.where(is_open).order_by(decisions.c.row.desc()).limit(limit)).all()
        if len(rows) < limit:
            closed = newest.where(incidents.c.status == IncidentStatus.CLOSED)
            order = (incidents.c.closed_at.desc(), decisions.c.row.desc())
            rows = [*rows, *self._connection.execute(closed.order_by(*order).limit(limit - len(rows)))]
        return self._proposals(rows)

    def proposal(self, decision_id: str) -> Proposal:
        """Return one decision with its incident, action and ratings; raise LedgerError if there is none with this id."""
        row = self._connection.execute(_joined().where(decisions.c.id == decision_id)).first()
        if row is None:
            raise LedgerError(f"there is no decision {decision_id!r}; `gridmedic proposals` lists the open ones")
        return self._proposals([row])[0]

    def _proposals(self, rows: Sequence[Row[Any]]) -> list[Proposal]:
        ratings = self._ratings([row.decision_id for row in rows])
        return [
            Proposal(
                incident=load(Incident, row.incident),
                decision=load(Decision, row.decision),
                action=None if row.action is None else load(Action, row.action),
                ratings=ratings.get(row.decision_id, {}),
            )
            for row in rows
        ]

    def _ratings(self, decision_ids: Sequence[str]) -> dict[str, dict[int, Rating]]:
        statement = select(feedback.c.decision_id, feedback.c.option, feedback.c.value).where(
            feedback.c.decision_id.in_(decision_ids), feedback.c.source == FeedbackSource.RATING
        )
        ratings: dict[str, dict[int, Rating]] = {}
        for decision_id, option, value in self._connection.execute(statement.order_by(feedback.c.row)):
            ratings.setdefault(decision_id, {})[option] = Rating(value)
        return ratings


class Desks(Statements):
    def setting(self, key: str) -> Any:  # noqa: ANN401  (JSON; callers know what they put there)
        """Return the JSON value of a setting; None if it was never set."""
        text = self._connection.scalar(select(settings.c.value).where(settings.c.key == key))
        return None if text is None else load_json(text)

    def set_setting(self, key: str, value: object) -> None:
        self._put(settings, {"key": key, "value": dump_json(value)})

    def post(self, desk: str, incident_id: str) -> dict[str, Any] | None:
        """Return what a desk remembers of the message that it posted for an incident; None if it posted none."""
        statement = select(posts.c.post).where(posts.c.desk == desk, posts.c.incident_id == incident_id)
        text = self._connection.scalar(statement)
        return None if text is None else load_json(text)

    def save_post(self, desk: str, incident_id: str, post: Mapping[str, object]) -> None:
        self._put(posts, {"desk": desk, "incident_id": incident_id, "post": dump_json(post)})


def _joined() -> Select[Any]:
    return (
        select(
            decisions.c.id.label("decision_id"),
            incidents.c.document.label("incident"),
            decisions.c.document.label("decision"),
            actions.c.document.label("action"),
        )
        .join_from(decisions, incidents, decisions.c.incident_id == incidents.c.id)
        .outerjoin(actions, actions.c.id == decisions.c.id)
    )


def _newest() -> Select[Any]:
    """Select the newest decision of each incident, by one look into the index for each incident."""
    later = decisions.alias("of_incident")
    row = select(func.max(later.c.row)).where(later.c.incident_id == incidents.c.id).scalar_subquery()
    return _joined().where(decisions.c.row == row)


def _answer(row: Row[Any]) -> Answer:
    return Answer(
        key=row.key,
        by=row.by,
        via=row.via,
        kind=AnswerKind(row.kind),
        decision_id=row.decision_id,
        option=row.option,
        rating=None if row.rating is None else Rating(row.rating),
    )


def _feedback(row: Row[Any]) -> Feedback:
    return Feedback(
        row=row.row,
        at=row.at,
        decision_id=row.decision_id,
        option=row.option,
        source=FeedbackSource(row.source),
        value=row.value,
        by=row.by,
        propensity=row.propensity,
    )
