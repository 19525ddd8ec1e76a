"""A whole agent over a simulated world in this process: what the tests of the loop drive."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pandas as pd

from agent.assembly import build, watch_by
from agent.incumbent import Incumbent
from models.domain import BlastRadius, Safety
from models.events import Page
from models.forecaster import Forecaster
from models.measurements import SiteMap
from models.registry import default_model
from remedies.catalog import Catalog
from remedies.executors import InProcess
from remedies.policy import Limits
from simulator.grid import SimulatedGrid
from simulator.scenario import parse
from simulator.world import World
from storage.ledger import Ledger

START = datetime(2026, 3, 2, tzinfo=UTC)
SICK_SITE, SICK_DISK = "FZK-LCG2", "FZK-LCG2_DATADISK"  # one of the busiest
EAGER = Limits(
    autonomy=True,
    safety_cap=Safety.DISRUPTIVE,
    blast_radius_cap=BlastRadius.GRID,
    min_trust=0.0,
    min_confidence=0.0,
    max_actions_per_hour=100,
)


def scenario_of(*faults, transfers_per_hour=3000.0, sites=12, **settings):
    """A scenario of the tests' own; each fault is a kind, a culprit, a strength, and hours from and to which it lasts."""
    named = [
        {"kind": kind, "culprit": culprit, "strength": strength, "start": 3600 * begin, "end": 3600 * end}
        for kind, culprit, strength, begin, end in faults
    ]
    load = {"transfers_per_day": 24 * transfers_per_hour}
    return parse({"grid": {"sites": sites}, "load": load, "faults": named} | settings, "test")


def acting(remedies):
    """One of these remedies that changes something on the grid at once."""
    return next(name for name in ("throttle_link", "exclude_storage", "switch_source") if name in remedies)


class WorldSource:
    """One of a world's streams, in frames as they were emitted; it keeps them, as a real source does."""

    def __init__(self, name):
        self.name, self._frames = name, []

    def __len__(self):
        return sum(map(len, self._frames))

    def take(self, rows):
        self._frames.append(rows)

    def poll(self, cursor, *, limit, now):
        seq = (cursor or {}).get("seq", 0)
        parts, first = [self._frames[0].iloc[:0]], 0
        for frame in self._frames:
            parts.append(frame.iloc[max(0, seq - first) : max(0, seq + limit - first)])
            first += len(frame)
        rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        end = seq + len(rows)
        return Page(rows=rows, cursor={"seq": end}, caught_up=end == len(self), read=len(rows))

    def close(self):
        pass


class SickWorld:
    """A world with one slow storage element from the third hour on, and agents that watch it."""

    def __init__(self, *, seed=2, fault="read-slow", culprit=f"rse:{SICK_DISK}", strength=0.03, hours=3.0):
        scenario = scenario_of((fault, culprit, strength, 3.0, 3.0 + hours))
        self.world = World(scenario, seed=seed, start=START)
        self.grid = SimulatedGrid(self.world)
        self.events, self.readings = WorldSource("events"), WorldSource("measurements")

    @property
    def now(self):
        return self.world.now

    def advance(self, **delta):
        emitted = self.world.advance(self.world.now + timedelta(**delta))
        self.events.take(self.world.documents.frame(emitted.events))
        self.readings.take(self.world.probes.frame(emitted.measurements))

    def agent(
        self,
        stack: ExitStack,
        url: str,
        *,
        limits: Limits | None = None,
        page: int = 5000,
        versions=None,
        archive=None,
        calendar=None,
    ):
        """An agent of the shipped forecaster, or of the one that `versions` have in service."""
        ledger = Ledger.open(url)
        stack.callback(ledger.close)
        incumbent = None if versions is None else Incumbent(versions)
        forecaster = Forecaster.load(default_model()) if incumbent is None else incumbent.first()
        return build(
            stack,
            ledger=ledger,
            catalog=Catalog.load([]),
            events=[self.events],
            measurements=[self.readings],
            eyes=watch_by(forecaster, SiteMap(), 0.001),
            executor=InProcess(grid=self.grid),
            limits=limits or Limits(),
            page=page,
            acting=True,
            dry_run=False,
            bandit_file=None,
            incumbent=incumbent,
            archive=archive,
            calendar=calendar,
        )

    def live(self, agent, *, hours, step_min=5):
        """Let the world live on, with a pass of the agent after each step, until it has caught up."""
        for _ in range(int(hours * 60 / step_min)):
            self.advance(minutes=step_min)
            while not agent.run_once(self.now).caught_up:
                pass
