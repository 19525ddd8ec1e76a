"""What operators and outcomes have taught so far: the bandit and the trust of each remedy, both folds over feedback rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.domain import Incident, RemedyCard
from ranking.autonomy import Record, Trust
from ranking.bandit import Bandit
from ranking.reward import Lesson
from storage.ledger import Transaction


class Experience:
    """Both in one state: lessons are taken in the order of their rows. One owner: the loop."""

    def __init__(self, cards: Mapping[str, RemedyCard], tx: Transaction, *, file: Path | None) -> None:
        """`file` keeps the bandit's weights between two starts; None: they are learned anew."""
        self._file = file
        lessons = _lessons(tx, after=0)
        self.bandit = Bandit.restore(file, cards, lessons) if file and file.exists() else Bandit.rebuild(cards, lessons)
        self._record = Record(lessons)

    def catch_up(self, tx: Transaction) -> None:
        """Learn from the feedback rows that came since."""
        fresh = _lessons(tx, after=self.bandit.last_row)
        self.bandit.learn(fresh)
        self._record.add(fresh)

    def trust(self, remedy: str, incident: Incident) -> Trust:
        return self._record.trust(remedy, incident.kind)

    def close(self) -> None:
        if self._file is not None:
            self.bandit.save(self._file)
        self.bandit.close()


def _lessons(tx: Transaction, *, after: int) -> list[Lesson]:
    rows = tx.feedback(after=after)
    decisions = tx.decisions({row.decision_id for row in rows})
    return [Lesson.of(row, decisions[row.decision_id]) for row in rows]
