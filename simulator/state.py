"""Everything that changes in a world, as arrays: the compiled kernels work on them, and they go to a file and come back equal.

Times are float seconds after the world's start. A transfer is a file that a rule still has to place; its row holds the
request that is made for it now.
"""

from __future__ import annotations

import enum
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from models.domain import ConfigError
from simulator.records import RECORD
from simulator.topology import Topology

Stream = Literal["events", "measurements"]
Array = npt.NDArray[Any]

REPLICAS = 4  # most that a file has
PRIORITIES = 5
NOBODY = -1


class Phase(enum.IntEnum):
    """Where a transfer stands. 0 is a row that is free."""

    QUEUED = 1  # Rucio has to choose a source
    WAITING = 2  # the same, and there was none
    SUBMITTED = 3  # FTS has it
    STAGING = 4  # on its way from tape to the tape's own disk
    LINED_UP = 5  # in its link's queue
    OPENING = 6  # both doors are being asked
    FLOWING = 7
    FAILING = 8  # it has failed, and nobody knows it yet
    RESTING = 9  # between two requests


TRANSFER = np.dtype(
    [
        ("number", "i8"),
        ("bytes", "i8"),
        ("rule", "i4"),
        ("next", "i4"),  # behind it in its queue
        ("serial", "i4"),  # what was scheduled for an earlier serial is void
        ("flow", "i4"),  # its place among the flows
        ("phase", "u1"),
        ("tries", "u1"),
        ("retry", "u1"),
        ("priority", "u1"),
        ("code", "u1"),
        ("replica", "i1"),  # which of the rule's sources
        ("source", "i2"),
        ("fault", "i2"),
        ("created", "f8"),
        ("submitted", "f8"),
        ("started", "f8"),
        ("deadline", "f8"),  # FTS's timeout
        ("since", "f8"),  # when `left` was right
        ("left", "f8"),  # bytes
        ("rate", "f8"),
        ("limit", "f8"),  # what it gets when it is alone
        ("end", "f8"),  # when it ends at this rate
    ],
    align=True,
)
RULE = np.dtype(
    [
        ("number", "i8"),
        ("pending", "i4"),
        ("stuck", "i4"),
        ("mask", "i4"),  # of its source expression, in `masks`; NOBODY: any source
        ("destination", "i2"),
        ("activity", "u1"),
        ("priority", "u1"),
        ("stagein", "u1"),
        ("used", "u1"),
    ],
    align=True,
)
EVENT = np.dtype([("at", "f8"), ("order", "i8"), ("slot", "i4"), ("serial", "i4"), ("what", "u1")], align=True)


class N(enum.IntEnum):
    """Places in `State.numbers`."""

    CLOCK = 0  # the second that comes next
    ORDER = 1
    EVENTS = 2  # on the heap
    FREE_TRANSFERS = 3
    FREE_RULES = 4
    FLOWS = 5
    LINES = 6  # links where something waits
    RECORDS = 7  # in the outbox
    ARRIVED = 8  # rules of this period
    STALE = 9  # rates have to be shared out anew
    CALLING = 10  # something may start that could not before
    PERIOD = 11
    CUTS = 12


class State(NamedTuple):
    """R storage elements, F servers, T rows of transfers, P rows of rules. What operators set stands first."""

    distance: Array  # i8[R, R]
    link_limit: Array  # i8[R, R]; 0: the default
    storage_limit: Array  # i8[R, 2]; outbound, inbound; 0: the default
    closed: Array  # bool[R, 3]; read, write, delete
    banned_until: Array  # f8[R]
    masks: Array  # bool[M, R]; the sources that an expression allows
    numbers: Array  # i8[len(N)]
    transfers: Array  # TRANSFER[T]
    failures: Array  # u1[T, REPLICAS]; of this chain, by source
    blocked_until: Array  # f8[T, REPLICAS]; replicas that are declared unavailable
    free_transfers: Array  # i4[T]; a stack
    rules: Array  # RULE[P]
    sources: Array  # i2[P, REPLICAS]
    free_rules: Array  # i4[P]
    heap: Array  # EVENT[T + P]
    flows: Array  # i4[T]; rows of transfers
    heads: Array  # i4[R * R, PRIORITIES]
    tails: Array  # i4[R * R, PRIORITIES]
    lines: Array  # i4[R * R]; links where something waits
    line_place: Array  # i4[R * R]; where in `lines`, or NOBODY
    link_running: Array  # i4[R * R]
    running: Array  # i4[R, 2]; outbound, inbound
    server_running: Array  # i4[F]
    tape_heads: Array  # i4[R]
    tape_tails: Array  # i4[R]
    tape_busy: Array  # i4[R]; drives
    turnaround: Array  # f8[R]; mean seconds of the last transfers to it
    outbox: Array  # RECORD[...]


def fresh(topology: Topology) -> State:
    """A grid that has not begun to move."""
    rses, servers, room, rules = len(topology.rses), len(topology.fts), 4096, 1024
    links = rses * rses
    state = State(
        distance=topology.distance.astype(np.int64),
        link_limit=np.zeros((rses, rses), dtype=np.int64),
        storage_limit=np.zeros((rses, 2), dtype=np.int64),
        closed=np.zeros((rses, 3), dtype=np.bool_),
        banned_until=np.zeros(rses),
        masks=np.zeros((0, rses), dtype=np.bool_),
        numbers=np.zeros(len(N), dtype=np.int64),
        transfers=np.zeros(room, dtype=TRANSFER),
        failures=np.zeros((room, REPLICAS), dtype=np.uint8),
        blocked_until=np.zeros((room, REPLICAS)),
        free_transfers=np.arange(room, dtype=np.int32)[::-1].copy(),
        rules=np.zeros(rules, dtype=RULE),
        sources=np.full((rules, REPLICAS), NOBODY, dtype=np.int16),
        free_rules=np.arange(rules, dtype=np.int32)[::-1].copy(),
        heap=np.zeros(room + rules, dtype=EVENT),
        flows=np.zeros(room, dtype=np.int32),
        heads=np.full((links, PRIORITIES), NOBODY, dtype=np.int32),
        tails=np.full((links, PRIORITIES), NOBODY, dtype=np.int32),
        lines=np.zeros(links, dtype=np.int32),
        line_place=np.full(links, NOBODY, dtype=np.int32),
        link_running=np.zeros(links, dtype=np.int32),
        running=np.zeros((rses, 2), dtype=np.int32),
        server_running=np.zeros(servers, dtype=np.int32),
        tape_heads=np.full(rses, NOBODY, dtype=np.int32),
        tape_tails=np.full(rses, NOBODY, dtype=np.int32),
        tape_busy=np.zeros(rses, dtype=np.int32),
        turnaround=np.full(rses, 30.0),
        outbox=np.zeros(32768, dtype=RECORD),
    )
    state.numbers[N.FREE_TRANSFERS], state.numbers[N.FREE_RULES] = room, rules
    state.numbers[N.PERIOD] = NOBODY
    return state


def with_room(state: State, *, transfers: int, rules: int) -> State:
    """The same state with at least so many free rows."""
    numbers = state.numbers
    more = _more(len(state.transfers), int(numbers[N.FREE_TRANSFERS]), transfers)
    if more:
        state = state._replace(
            transfers=_longer(state.transfers, more),
            failures=_longer(state.failures, more),
            blocked_until=_longer(state.blocked_until, more),
            flows=_longer(state.flows, more),
            heap=_longer(state.heap, more),
            free_transfers=_stacked(state.free_transfers, N.FREE_TRANSFERS, more, numbers),
        )
    more = _more(len(state.rules), int(numbers[N.FREE_RULES]), rules)
    if more:
        state = state._replace(
            rules=_longer(state.rules, more),
            sources=_longer(state.sources, more),
            heap=_longer(state.heap, more),
            free_rules=_stacked(state.free_rules, N.FREE_RULES, more, numbers),
        )
    return state


def _more(rows: int, free: int, wanted: int) -> int:
    """Rows to add: none, or as many as double the table often enough."""
    more = 0
    while free + more < wanted:
        more += max(rows + more, 1)
    return more


def _longer(array: Array, more: int) -> Array:
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), dtype=array.dtype)])


def _stacked(stack: Array, count: N, more: int, numbers: Array) -> Array:
    """The free rows, with the new ones below those that were free."""
    rows, free = len(stack), int(numbers[count])
    longer = np.zeros(rows + more, dtype=stack.dtype)
    longer[:more] = np.arange(rows + more - 1, rows - 1, -1)
    longer[more : more + free] = stack[:free]
    numbers[count] = free + more
    return longer


@dataclass(slots=True, kw_only=True)
class Ticket:
    id: str
    mark: str
    culprit: str
    title: str
    body: str
    opened_at: float
    solved_at: float


@dataclass(slots=True, kw_only=True)
class Chronicle:
    """What happened that no kernel needs to know. `acts` holds every act that had its effect: its key, method and arguments."""

    clock: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)
    acts: dict[str, bool] = field(default_factory=dict)
    expressions: list[str] = field(default_factory=list)  # of `State.masks`
    mended: dict[int, float] = field(default_factory=dict)  # ends of faults that a ticket brought forward
    tests: list[tuple[int, int, float]] = field(default_factory=list)  # path and end of throughput tests under way
    emitted: dict[str, int] = field(default_factory=lambda: {"events": 0, "measurements": 0})


def dump(state: State, chronicle: Chronicle, posted: dict[str, Array]) -> bytes:
    """All of it as a file's contents. `posted` are documents that cannot be read yet."""
    file = io.BytesIO()
    told = json.dumps(asdict(chronicle)).encode()
    arrays = state._asdict() | {f"posted {name}": rows for name, rows in posted.items()}
    np.savez(file, allow_pickle=False, told=np.frombuffer(told, dtype=np.uint8), **arrays)
    return file.getvalue()


def undump(contents: bytes, like: State) -> tuple[State, Chronicle, dict[str, Array]]:
    """What `dump` wrote; raise ConfigError if it is not of this version or of another grid than `like`."""
    try:
        with np.load(io.BytesIO(contents), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(arrays.pop("told").tobytes())
        told["tickets"] = [Ticket(**ticket) for ticket in told["tickets"]]
        told["mended"] = {int(number): end for number, end in told["mended"].items()}
        told["tests"] = [tuple(test) for test in told["tests"]]
        chronicle = Chronicle(**told)
        state = State(**{name: arrays.pop(name) for name in State._fields})
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ConfigError(f"the snapshot cannot be read by this version: {error!r}") from None
    for name, array, model in zip(State._fields, state, like, strict=True):
        if array.dtype != model.dtype or array.ndim != model.ndim or (name == "closed" and array.shape != model.shape):
            raise ConfigError(f"the snapshot's {name} is not of this version or of this grid")
    # A file does not tell that its records are aligned, and kernels are compiled anew for those that are not.
    state = State(*(array.view(model.dtype) for array, model in zip(state, like, strict=True)))
    return state, chronicle, {name.removeprefix("posted "): rows for name, rows in arrays.items()}
