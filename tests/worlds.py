"""A whole agent over a simulated world in this process: what the tests of the loop drive."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

from agent.assembly import build, watch
from agent.sources import EVENTS, READINGS
from models.domain import BlastRadius, Safety
from models.events import Page
from models.measurements import SiteMap
from models.registry import default_model
from remedies.catalog import Catalog
from remedies.executors import InProcess
from remedies.policy import Limits
from simulator.faults import Fault, FaultKind
from simulator.grid import SimulatedGrid
from simulator.world import Setup, World
from storage.ledger import Ledger

START = datetime(2026, 3, 2, tzinfo=UTC)
EAGER = Limits(
    autonomy=True,
    safety_cap=Safety.DISRUPTIVE,
    blast_radius_cap=BlastRadius.GRID,
    min_trust=0.0,
    min_confidence=0.0,
    max_actions_per_hour=100,
)


class WorldSource:
    """One of a world's streams; what it emitted is kept, as a real source keeps it."""

    def __init__(self, name, decoder):
        self.name, self.decoder, self.documents = name, decoder, []

    def poll(self, cursor, *, limit, now):
        seq = (cursor or {}).get("seq", 0)
        documents = self.documents[seq : seq + limit]
        rows, refusals = self.decoder.documents(documents, now=now)
        end = seq + len(documents)
        return Page(
            rows=rows,
            refusals=tuple(refusals),
            cursor={"seq": end},
            caught_up=end == len(self.documents),
            read=len(documents),
        )

    def close(self):
        pass


class SickWorld:
    """A world with one slow storage element from the third hour on, and agents that watch it."""

    def __init__(self, *, seed=1, fault=FaultKind.READ_SLOW, culprit="rse:RAL-LCG2_DATADISK", strength=0.03, hours=3.0):
        fault = Fault(
            number=0, kind=fault, culprit=culprit, start=3 * 3600.0, end=(3 + hours) * 3600.0, strength=strength
        )
        self.world = World(Setup(seed=seed, start=START, transfers_per_hour=3000.0, faults=(fault,)))
        self.grid = SimulatedGrid(self.world)
        self.events, self.readings = WorldSource("events", EVENTS), WorldSource("measurements", READINGS)

    @property
    def now(self):
        return self.world.now

    def advance(self, **delta):
        emitted = self.world.advance(self.world.now + timedelta(**delta))
        self.events.documents += emitted.events
        self.readings.documents += emitted.measurements

    def agent(self, stack: ExitStack, url: str, *, limits: Limits | None = None, page: int = 5000):
        ledger = Ledger.open(url)
        stack.callback(ledger.close)
        return build(
            stack,
            ledger=ledger,
            catalog=Catalog.load([]),
            events=[self.events],
            measurements=[self.readings],
            eyes=watch(default_model(), SiteMap(), 0.001),
            executor=InProcess(grid=self.grid),
            limits=limits or Limits(),
            page=page,
            acting=True,
            dry_run=False,
            bandit_file=None,
        )

    def live(self, agent, *, hours, step_min=5):
        """Let the world live on, with a pass of the agent after each step, until it has caught up."""
        for _ in range(int(hours * 60 / step_min)):
            self.advance(minutes=step_min)
            while not agent.run_once(self.now).caught_up:
                pass
