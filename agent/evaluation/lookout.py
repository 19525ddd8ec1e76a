"""The agent as one of those who only look: a daemon's passes over a simulated grid, with nobody to ask and nothing to do.

It also forecasts what ended, so that every other rule can read the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Final

import numpy as np
import pandas as pd

from agent import config
from agent.assembly import build, watch
from agent.calendar import Calendar
from agent.choice import Chooser, Prepared
from agent.evaluation.alarms import anomalous_of
from agent.evaluation.arena import Feed
from agent.evaluation.cases import Case
from agent.evaluation.scratch import ScratchLedger
from detectors.window import HISTORY_COLUMNS
from models.domain import Incident
from models.events import empty_events
from models.measurements import SiteMap, empty_readings
from models.registry import default_model
from remedies.catalog import Catalog
from remedies.executors import ChildProcess
from remedies.policy import Limits
from storage.ledger import Transaction

_ALL: Final = 1_000_000  # documents of one pass: a step brings far fewer
_KEPT: Final = ("request_id", *HISTORY_COLUMNS)  # of what went badly


class Lookout:
    """Give it each stretch of events and readings once, in order."""

    def __init__(self, calendar: Calendar | None = None) -> None:
        """`calendar`: what is announced; nothing without it."""
        self._stack = ExitStack()
        ledger = ScratchLedger.in_memory()
        self._stack.callback(ledger.close)
        self._events, self._readings = Feed("events", empty_events()), Feed("measurements", empty_readings())
        self._eyes = watch(default_model(), SiteMap(), config.Config().detection.alarm_budget)
        self._agent = build(
            self._stack,
            ledger=ledger,
            catalog=Catalog.load([]),
            events=[self._events],
            measurements=[self._readings],
            eyes=self._eyes,
            executor=ChildProcess(),
            limits=Limits(),
            page=_ALL,
            acting=False,
            dry_run=True,
            bandit_file=None,
            chooser=_told_to(self._hear),
            calendar=calendar,
        )
        self._opened: dict[str, datetime] = {}
        self._incidents: dict[str, Incident] = {}  # as they were last told of
        self._bad: list[pd.DataFrame] = []
        self.flagged: list[str] = []  # request ids

    def look(self, events: pd.DataFrame, readings: pd.DataFrame, now: datetime) -> pd.DataFrame:
        """Make a pass; return the rows of the transfers that ended, without columns if nothing came."""
        self._events.put(events)
        self._readings.put(readings)
        rows = self._agent.run_once(now).observed
        if rows is None or rows.empty:
            return pd.DataFrame()
        bad = rows["failed"] | rows["slow"] | (rows["due_at"] < rows["ended_at"])
        self._bad.append(rows.loc[bad, list(_KEPT)])
        self.flagged += rows["request_id"].to_numpy(dtype=object)[rows["flagged"].to_numpy(np.bool_)].tolist()
        return rows

    @property
    def cases(self) -> list[Case]:
        """Every incident, opened at the pass in which it was first known, as it stands now."""
        incidents = list(self._incidents.values())
        anomalous = anomalous_of(incidents, self._went_badly())
        return [
            Case(incident=incident, opened=self._opened[incident.id], flagged=requests)
            for incident, requests in zip(incidents, anomalous, strict=True)
        ]

    def overdue_in(self, cases: Sequence[Case]) -> dict[str, float]:
        """Since when each of these incidents' transfers that was overdue was known to be one of them, in seconds since 1970: once it
        was overdue, and the first incident known.
        """
        bad, since = self._went_badly(), dict[str, float]()
        late = bad[bad["due_at"] < bad["ended_at"]] if len(bad) else bad
        due = dict(zip(late["request_id"], late["due_at"], strict=True)) if len(late) else {}
        for case in sorted(cases, key=lambda case: case.opened):
            for request in case.flagged:
                if request in due:
                    since.setdefault(request, max(due[request], case.opened.timestamp()))
        return since

    def _went_badly(self) -> pd.DataFrame:
        """Transfers that ended badly, and those that are under way and overdue."""
        waiting = self._eyes.all_overdue().assign(ended_at=np.inf, failed=False, slow=False, reason="")
        parts = [*self._bad, waiting.loc[:, list(_KEPT)]]
        return pd.concat([part for part in parts if len(part)] or [pd.DataFrame()], ignore_index=True)

    def close(self) -> None:
        self._stack.close()

    def _hear(self, changed: Sequence[Incident], now: datetime) -> None:
        for incident in changed:
            self._opened.setdefault(incident.id, now)
            self._incidents[incident.id] = incident


def _told_to(hear: Callable[[Sequence[Incident], datetime], None]) -> type[Chooser]:
    """A chooser that decides nothing; `hear` is told which incidents have changed."""

    class Listener(Chooser):
        def prepare(self, tx: Transaction, incidents: Sequence[Incident], now: datetime) -> list[Prepared]:  # noqa: ARG002 - as the chooser's
            return []

        def decide(
            self,
            tx: Transaction,  # noqa: ARG002 - as the chooser's
            prepared: Sequence[Prepared],  # noqa: ARG002
            changed: Sequence[Incident],
            now: datetime,
        ) -> int:
            hear(changed, now)
            return 0

    return Listener
