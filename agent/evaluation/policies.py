"""Who looks after the grid: nobody, the rule that it began with, the agent's detection with fixed remedies, and the agent."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

from agent import config
from agent.assembly import build, limits, watch
from agent.choice import Chooser
from agent.evaluation.alarms import HurtBy, alarm_of, anomalous_of
from agent.evaluation.arena import Arena, calendar_of, seconds
from agent.evaluation.deeds import Deeds
from agent.evaluation.desk import Desk
from agent.evaluation.fixed import FIXED, FixedChooser
from agent.evaluation.scratch import ScratchLedger
from agent.evaluation.seed_rule import Forecasts, SeedRule
from agent.evaluation.trial import Trial
from agent.evaluation.upkeep import Upkeep
from models.domain import Action, ActionStatus, Incident, IncidentKind, IncidentStatus
from models.forecaster import Forecaster
from models.measurements import Paths, SiteMap
from models.registry import default_model
from remedies.catalog import Catalog
from remedies.executors import InProcess
from remedies.runner import Runner
from simulator.operators import Crew
from simulator.records import What

_ALL: Final = 1_000_000  # documents of one pass: a step brings far fewer
_ENDED: Final = (What.DONE, What.FAILED)
_LATELY: Final = 50  # incidents, the newest first: no step opens so many


class Policy(Protocol):
    """One of those who look after the grid."""

    def live(self, to: datetime) -> None:
        """Let the world live on to `to`, and do what is to be done then."""

    def tell(self, trial: Trial, hurt_by: HurtBy) -> None:
        """Put what was found and done into the trial."""

    def close(self) -> None:
        """Let go of everything."""


class Nobody:
    """Nothing is done."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def live(self, to: datetime) -> None:
        self._arena.live(to)

    def tell(self, trial: Trial, hurt_by: HurtBy) -> None:
        """There is nothing to tell."""

    def close(self) -> None:
        """Nothing is held."""


class SeedPolicy:
    """The seed's rule, and one remedy for all that it finds."""

    def __init__(self, arena: Arena, crew: Crew) -> None:
        self._arena = arena
        self._rule = SeedRule()
        self._forecasts = Forecasts(Forecaster.load(default_model()), Paths(SiteMap()))
        self._card = Catalog.load([]).cards[FIXED[IncidentKind.SLOW_TRANSFERS]]
        self._runner = Runner(InProcess(grid=arena.grid))
        self._upkeep = Upkeep(arena, self._runner, crew)
        self._deeds = Deeds(arena)

    def live(self, to: datetime) -> None:
        arena = self._arena
        arena.live(to, show=_ENDED)
        events, readings = (feed.poll(None, limit=_ALL, now=to).rows for feed in (arena.events, arena.measurements))
        for case in self._rule.look(self._forecasts.of(events, readings), to):
            self._treat(case.incident, to)
        self._upkeep.put_back({case.incident.id for case in self._rule.book.open.values()})
        self._deeds.note()

    def tell(self, trial: Trial, hurt_by: HurtBy) -> None:
        trial.alarms = [
            alarm_of(one.incident, seconds(one.opened, self._arena), one.flagged, hurt_by) for one in self._rule.cases
        ]
        trial.right_actions, trial.wrong_actions = self._deeds.right, self._deeds.wrong

    def close(self) -> None:
        """Nothing is held."""

    def _treat(self, incident: Incident, now: datetime) -> None:
        candidate = self._runner.plan(self._card, incident)
        if candidate is None:
            return
        action = Action(
            id=incident.id, incident_id=incident.id, candidate=candidate, status=ActionStatus.RUNNING, due_at=now
        )
        result = self._runner.carry_out(action, self._card, keep=lambda _: None)
        acts = self._deeds.note().get(action.id, [])
        if result.status is ActionStatus.APPLIED:
            self._upkeep.add(replace(action, memory=result.memory), self._card, acts)


class AgentPolicy:
    """The agent as a daemon runs it, in this process, on the shipped configuration. With `asks` operators answer it."""

    def __init__(self, arena: Arena, crew: Crew, *, asks: bool) -> None:
        self._arena = arena
        self._stack = ExitStack()
        self._ledger = ScratchLedger.in_memory()
        self._stack.callback(self._ledger.close)
        shipped, executor = config.Config(), InProcess(grid=arena.grid)
        self._catalog = Catalog.load([])
        self._agent = build(
            self._stack,
            ledger=self._ledger,
            catalog=self._catalog,
            events=[arena.events],
            measurements=[arena.measurements],
            eyes=watch(default_model(), SiteMap(), shipped.detection.alarm_budget),
            executor=executor,
            limits=limits(shipped),
            page=_ALL,
            acting=True,
            dry_run=False,
            bandit_file=None,
            chooser=Chooser if asks else FixedChooser,
            calendar=calendar_of(arena.world),
        )
        self._desk = Desk(arena, self._ledger, self._catalog, crew) if asks else None
        self._upkeep = Upkeep(arena, Runner(executor), crew)
        self._deeds = Deeds(arena)
        self._opened: dict[str, float] = {}

    def live(self, to: datetime) -> None:
        self._arena.live(to, show=tuple(What))
        if self._desk is not None:
            self._desk.answer(to)
        done = self._agent.run_once(to)
        if done.incidents:
            self._note_opened(to)
        if done.actions:
            self._note_actions()
        if self._desk is not None and done.decisions:
            self._desk.ask(to)
        if self._upkeep.pending:
            self._put_back()

    def tell(self, trial: Trial, hurt_by: HurtBy) -> None:
        with self._ledger.begin(write=False) as tx:
            incidents, observed = tx.incidents(), tx.rows("observed")
        trial.alarms = [
            alarm_of(one, self._opened[one.id], anomalous, hurt_by)
            for one, anomalous in zip(incidents, anomalous_of(incidents, observed), strict=True)
        ]
        trial.right_actions, trial.wrong_actions = self._deeds.right, self._deeds.wrong
        if self._desk is not None:
            trial.questions, trial.first_choices = self._desk.questions, self._desk.first_choices

    def close(self) -> None:
        self._stack.close()

    def _note_opened(self, now: datetime) -> None:
        with self._ledger.begin(write=False) as tx:
            for incident in tx.incidents(limit=_LATELY):
                self._opened.setdefault(incident.id, seconds(now, self._arena))

    def _note_actions(self) -> None:
        acts = self._deeds.note()
        with self._ledger.begin(write=False) as tx:
            done = {key: tx.action(key) for key in acts}
        for key, action in done.items():
            if action is not None and action.status is ActionStatus.APPLIED:
                self._upkeep.add(action, self._catalog.cards[action.candidate.remedy], acts[key])

    def _put_back(self) -> None:
        with self._ledger.begin(write=False) as tx:
            still_open = {incident.id for incident in tx.incidents(status=IncidentStatus.OPEN)}
        undone = self._upkeep.put_back(still_open)
        if undone:
            self._deeds.note()
