"""The life of a transfer, compiled: a source is chosen, FTS lines it up, the doors open, bytes flow, it ends, and may be tried again.

`live` moves a whole grid from event to event. Whatever happens within one second happens at its own time; what starts,
and how bandwidth is shared, is settled at the turn of each second in which something happened. Nothing depends on how the
time is cut into calls.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulator.draws import For, finish, fold
from simulator.errors import Code
from simulator.flows import USES, resource, share
from simulator.kernels import kernel
from simulator.queues import drop_first, first_in_line, join_tape, leave_line, leave_tape, line_up, schedule
from simulator.records import MOST_FILES, MOST_TRIES, What
from simulator.state import NOBODY, REPLICAS, Array, N, Phase, State
from simulator.topology import tcp_limit

CONVEYOR_S = 20.0  # mean time until Rucio's conveyor submits a request, and a retry
CONVEYOR_RETRY_S = 120.0
LOOK_S, LOOK_SPREAD = 1.5, 0.7  # until FTS's scheduler has seen a transfer: median, sigma of the logarithm
DOOR_SPREAD = 0.35  # how doors' times differ from file to file
STREAM_SPREAD = 0.7  # how disk servers of one storage differ
HICCUP, HICCUP_S = 0.04, 25.0  # share of transfers that a busy door keeps waiting, and for how long
HANDSHAKES = 12.0  # round trips before the first byte
RETRANSMIT_S = 100.0  # seconds of opening for each fraction of packets lost: a hundred packets, a second each
MISHAP = 0.004  # share that fails on a grid that is well
RETRIES = 3
PATIENCE_S = 86_400.0  # how long a request waits for a source or a destination
LOOK_AGAIN_S = 300.0
STUCK_S = 3600.0  # Rucio looks at what is stuck after one to three times this
FORGET_S = 6 * 3600.0
ALLURE = 0.2  # a broker prefers the site that is so much faster at ending what it is given
TURNAROUND_WEIGHT = 0.05  # of the newest transfer in a destination's mean
TAPE_DISTANCE = 1000  # what stands on disk comes first
MIB = 1 << 20

_SUBMIT, _READY, _STAGED, _OPEN, _FAIL, _AGAIN, _FORGET = range(7)  # what is due
_QUEUED, _WAITING, _SUBMITTED, _STAGING, _LINED_UP, _OPENING, _FLOWING, _FAILING, _RESTING = (int(p) for p in Phase)
_IN_DRIVE = -2  # `next` of what is not in the tape robot's line any more
_CLOCK, _FREE_TRANSFERS, _FREE_RULES, _FLOWS = int(N.CLOCK), int(N.FREE_TRANSFERS), int(N.FREE_RULES), int(N.FLOWS)
_EVENTS, _LINES, _RECORDS, _ARRIVED = int(N.EVENTS), int(N.LINES), int(N.RECORDS), int(N.ARRIVED)
_STALE, _CALLING = int(N.STALE), int(N.CALLING)
_REQUEST, _FILE = int(For.REQUEST), int(For.FILE)
_TELL_QUEUED, _TELL_WAITING, _TELL_SUBMITTED = int(What.QUEUED), int(What.WAITING), int(What.SUBMITTED)
_TELL_DONE, _TELL_FAILED = int(What.DONE), int(What.FAILED)
_FULL, _CREDENTIALS, _CORRUPT, _MISSING, _REFUSED, _HOLE, _BUSY = range(7)  # rows of `blame`
(
    _SOURCE_REFUSED, _DESTINATION_REFUSED, _NO_SPACE, _SOURCE_CREDENTIALS, _DESTINATION_CREDENTIALS, _CHECKSUM,
    _FILE_MISSING, _SOURCE_BUSY, _DESTINATION_BUSY, _BLACK_HOLE, _TIMED_OUT, _FIRST_MISHAP,
) = (
    int(code) for code in (
        Code.SOURCE_REFUSED, Code.DESTINATION_REFUSED, Code.NO_SPACE, Code.SOURCE_CREDENTIALS,
        Code.DESTINATION_CREDENTIALS, Code.CHECKSUM, Code.MISSING, Code.SOURCE_BUSY, Code.DESTINATION_BUSY,
        Code.BLACK_HOLE, Code.TIMED_OUT, Code.TIMED_OUT + 1,
    )
)  # fmt: skip
_MISHAPS = 6


class Surroundings(NamedTuple):
    """What the kernels read: the topology as the faults of the moment and the operators' limits leave it.

    R storage elements, S sites, F FTS servers; see `simulator.topology` and `simulator.faults` for each.
    """

    seed: np.uint64
    rse_site: Array  # i8[R]
    tape: Array  # bool[R]
    closed: Array  # bool[R, 3]; by operators, or announced
    door_s: Array  # f8[R]
    read: Array  # f8[R]; most that one file gets, bytes/s
    write: Array
    connections: Array  # i8[R]
    storage_limit: Array  # i8[R, 2]
    link_limit: Array  # i8[R, R]
    drives: Array  # i8[R]
    mount_s: Array  # f8[R]
    drive_rate: Array  # f8[R]
    full: Array  # f8[R] and so on: shares that fail
    credentials: Array
    corrupt: Array
    missing: Array
    refused: Array
    black_hole: Array
    blame: Array  # i8[9, R]
    site_fts: Array  # i8[S]
    slots: Array  # i8[F]
    rtt_s: Array  # f8[S, S]
    loss: Array  # f8[S, S]
    capacity: Array  # f8[2 R + 2 S + S * S]; of the resources of `simulator.flows`


class Arrivals(NamedTuple):
    """The rules of one period; see `simulator.workload.Period`."""

    rules: Array
    destinations: Array
    sources: Array
    bytes: Array


@kernel
def _luck(s: Surroundings, number: int, tries: int, purpose: int) -> float:
    return finish(fold(fold(fold(fold(s.seed, _REQUEST), number), tries), purpose))


@kernel
def _spread(s: Surroundings, number: int, tries: int, purpose: int, sigma: float) -> float:
    """Lognormal around 1 (Box and Muller)."""
    radius = math.sqrt(-2.0 * math.log(_luck(s, number, tries, purpose)))
    return math.exp(sigma * radius * math.cos(2 * math.pi * _luck(s, number, tries, purpose + 100)))


@kernel
def _exponential(s: Surroundings, number: int, tries: int, purpose: int) -> float:
    return -math.log(_luck(s, number, tries, purpose))


@kernel
def _link(state: State, slot: int) -> int:
    row = state.transfers[slot]
    return row.source * len(state.banned_until) + state.rules[row.rule].destination


@kernel
def _tell(state: State, slot: int, what: int, at: float, ended: float) -> None:
    row, rule = state.transfers[slot], state.rules[state.transfers[slot].rule]
    out = state.outbox[state.numbers[_RECORDS]]
    state.numbers[_RECORDS] += 1
    out.what, out.stagein, out.activity, out.tries, out.retry = what, rule.stagein, rule.activity, row.tries, row.retry
    out.code, out.fault = 0, -1
    out.source, out.destination = row.source, rule.destination
    out.file, out.bytes, out.at, out.created = row.number, row.bytes, at, row.created
    out.submitted, out.started, out.ended = row.submitted, row.started, ended
    if what == _TELL_FAILED:
        out.code, out.fault = row.code, row.fault


@kernel
def _arrive(state: State, s: Surroundings, arrivals: Arrivals, index: int) -> None:
    """A rule and its transfers."""
    given = arrivals.rules[index]
    state.numbers[_FREE_RULES] -= 1
    place = int(state.free_rules[state.numbers[_FREE_RULES]])
    rule = state.rules[place]
    rule.number, rule.activity, rule.priority, rule.stagein = (
        given.number,
        given.activity,
        given.priority,
        given.stagein,
    )
    rule.used, rule.mask, rule.stuck, rule.pending = 1, NOBODY, 0, given.files
    rule.destination = _broker(state, s, arrivals.destinations[index], given.brokered)
    for replica in range(REPLICAS):
        state.sources[place, replica] = arrivals.sources[index, replica]
    for file in range(given.files):
        state.numbers[_FREE_TRANSFERS] -= 1
        slot = int(state.free_transfers[state.numbers[_FREE_TRANSFERS]])
        row = state.transfers[slot]
        row.number, row.bytes = given.number * MOST_FILES + file, arrivals.bytes[given.first + file]
        row.rule, row.tries, row.retry, row.flow = place, 0, 0, NOBODY
        state.failures[slot, :] = 0
        state.blocked_until[slot, :] = 0.0
        _ask(state, s, slot, given.at)


@kernel
def _broker(state: State, s: Surroundings, candidates: Array, brokered: int) -> int:
    """The first candidate that may be written to; a broker takes one that ends what it is given much faster instead."""
    chosen = NOBODY
    for candidate in candidates:
        if candidate < 0 or s.closed[candidate, 1]:
            continue
        faster = brokered and state.turnaround[candidate] < ALLURE * state.turnaround[chosen]
        if chosen == NOBODY or faster:
            chosen = candidate
    return chosen if chosen != NOBODY else candidates[0]


@kernel
def _ask(state: State, s: Surroundings, slot: int, at: float) -> None:
    """A new request."""
    row = state.transfers[slot]
    row.phase, row.created, row.source, row.replica = _QUEUED, at, NOBODY, NOBODY
    row.submitted, row.started, row.code, row.fault = math.nan, math.nan, 0, -1
    row.priority = state.rules[row.rule].priority
    _tell(state, slot, _TELL_QUEUED, at, math.nan)
    mean = CONVEYOR_RETRY_S if row.retry else CONVEYOR_S
    schedule(state, at + 2.0 + mean * _exponential(s, row.number, row.tries, 1), _SUBMIT, slot, row.serial)


@kernel
def _submit(state: State, s: Surroundings, slot: int, at: float) -> None:
    """Choose a source and hand the request to FTS; or wait, and look again."""
    row = state.transfers[slot]
    destination = state.rules[row.rule].destination
    replica = NOBODY if s.closed[destination, 1] else _nearest(state, s, slot, at)
    if replica == NOBODY:
        if at - row.created > PATIENCE_S:
            _rest(state, s, slot, at, RETRIES)
            return
        if row.phase != _WAITING:
            row.phase = _WAITING
            _tell(state, slot, _TELL_WAITING, at, math.nan)
        schedule(state, at + LOOK_AGAIN_S, _SUBMIT, slot, row.serial)
        return
    row.replica, row.source = replica, state.sources[row.rule, replica]
    row.submitted, row.priority = at, state.rules[row.rule].priority
    _tell(state, slot, _TELL_SUBMITTED, at, math.nan)
    if s.tape[row.source]:
        row.phase = _STAGING
        join_tape(state, int(row.source), slot)
        _robot(state, s, int(row.source), at)
    else:
        row.phase = _SUBMITTED
        _look(state, s, slot, at)


@kernel
def _look(state: State, s: Surroundings, slot: int, at: float) -> None:
    row = state.transfers[slot]
    schedule(state, at + LOOK_S * _spread(s, row.number, row.tries, 2, LOOK_SPREAD), _READY, slot, row.serial)


@kernel
def _nearest(state: State, s: Surroundings, slot: int, at: float) -> int:
    """The replica that failed least for this transfer, then the one at the least distance, then any."""
    row, rule = state.transfers[slot], state.rules[state.transfers[slot].rule]
    best, best_failures, best_distance, best_chance = NOBODY, 0, 0, 0.0
    for replica in range(REPLICAS):
        source = state.sources[row.rule, replica]
        if source < 0 or s.closed[source, 0] or state.blocked_until[slot, replica] > at:
            continue
        if rule.mask != NOBODY and not state.masks[rule.mask, source]:
            continue
        distance = state.distance[source, rule.destination]
        if distance <= 0:
            continue
        if s.tape[source]:
            distance += TAPE_DISTANCE
        failures = state.failures[slot, replica]
        chance = finish(fold(fold(fold(s.seed, _FILE), row.number // MOST_FILES), source))
        if (
            best == NOBODY
            or failures < best_failures
            or (failures == best_failures and distance < best_distance)
            or (failures == best_failures and distance == best_distance and chance < best_chance)
        ):
            best, best_failures, best_distance, best_chance = replica, failures, distance, chance
    return best


@kernel
def _robot(state: State, s: Surroundings, rse: int, at: float) -> None:
    """Give free drives to who is first in line."""
    while state.tape_busy[rse] < s.drives[rse] and state.tape_heads[rse] != NOBODY:
        slot = int(state.tape_heads[rse])
        leave_tape(state, rse, slot)
        state.tape_busy[rse] += 1
        row = state.transfers[slot]
        row.next = _IN_DRIVE
        mount = s.mount_s[rse] * _spread(s, row.number, row.tries, 19, 0.4)
        schedule(state, at + mount + row.bytes / s.drive_rate[rse], _STAGED, slot, row.serial)


@kernel
def _dispatch(state: State, s: Surroundings, now: float) -> None:
    """Start what the limits allow, one on each link in turn."""
    state.numbers[_CALLING] = 0
    started = True
    while started:
        started, place = False, 0
        while place < state.numbers[_LINES]:
            link, lines = int(state.lines[place]), state.numbers[_LINES]
            if _free(state, s, link, now):
                slot = first_in_line(state, link)
                leave_line(state, link, slot)
                _start(state, s, slot, now)
                started = True
            if lines == state.numbers[_LINES]:
                place += 1


@kernel
def _free(state: State, s: Surroundings, link: int, now: float) -> bool:
    source, destination = divmod(link, len(state.banned_until))
    server = s.site_fts[s.rse_site[destination]]
    return (
        state.link_running[link] < s.link_limit[source, destination]
        and state.running[source, 0] < s.storage_limit[source, 0]
        and state.running[destination, 1] < s.storage_limit[destination, 1]
        and state.server_running[server] < s.slots[server]
        and state.banned_until[source] <= now
        and state.banned_until[destination] <= now
    )


@kernel
def _count(state: State, s: Surroundings, slot: int, change: int) -> None:
    """FTS runs one transfer more, or one less."""
    link = _link(state, slot)
    source, destination = divmod(link, len(state.banned_until))
    state.link_running[link] += change
    state.running[source, 0] += change
    state.running[destination, 1] += change
    state.server_running[s.site_fts[s.rse_site[destination]]] += change


@kernel
def _start(state: State, s: Surroundings, slot: int, now: float) -> None:
    row = state.transfers[slot]
    destination = state.rules[row.rule].destination
    number, tries = row.number, row.tries
    row.phase, row.started = _OPENING, now + 0.999 * _luck(s, number, tries, 3)
    row.deadline = row.started + 600.0 + 2.0 * row.bytes / MIB  # FTS's own timeout
    _count(state, s, slot, 1)
    here, there = s.rse_site[row.source], s.rse_site[destination]
    opening = (s.door_s[row.source] + s.door_s[destination]) * _spread(s, number, tries, 4, DOOR_SPREAD)
    opening += HANDSHAKES * s.rtt_s[here, there] + RETRANSMIT_S * min(s.loss[here, there], 0.5)
    if _luck(s, number, tries, 5) < HICCUP:
        opening += HICCUP_S * _exponential(s, number, tries, 6)
    schedule(state, row.started + opening, _OPEN, slot, row.serial)


@kernel
def _open(state: State, s: Surroundings, slot: int, at: float) -> None:
    """The doors have answered: the bytes flow, or it will fail."""
    row = state.transfers[slot]
    wait = _failure(state, s, slot)
    if row.code:
        row.phase = _FAILING
        schedule(state, at + wait, _FAIL, slot, row.serial)
        return
    row.phase, row.left, row.since, row.rate, row.end = _FLOWING, float(row.bytes), at, 0.0, math.inf
    row.limit = _limit(state, s, slot)
    row.flow = state.numbers[_FLOWS]
    state.flows[row.flow] = slot
    state.numbers[_FLOWS] += 1
    state.numbers[_STALE] = 1


@kernel
def _failure(state: State, s: Surroundings, slot: int) -> float:
    """Set the row's code if it fails before a byte flows; return the seconds until that shows."""
    row = state.transfers[slot]
    number, tries, source, destination = row.number, row.tries, row.source, state.rules[row.rule].destination
    row.code, row.fault = 0, -1
    wait = 1.0 + 3.0 * _luck(s, number, tries, 20)
    of_file = fold(fold(fold(s.seed, _FILE), number), source)  # a copy that is missing stays missing
    if _luck(s, number, tries, 7) < s.refused[source]:
        row.code, row.fault, wait = _SOURCE_REFUSED, s.blame[_REFUSED, source], 20.0 * wait
    elif _luck(s, number, tries, 8) < s.refused[destination]:
        row.code, row.fault, wait = _DESTINATION_REFUSED, s.blame[_REFUSED, destination], 20.0 * wait
    elif _luck(s, number, tries, 9) < s.black_hole[destination]:
        row.code, row.fault, wait = _BLACK_HOLE, s.blame[_HOLE, destination], 0.3 * wait
    elif _luck(s, number, tries, 10) < s.credentials[source]:
        row.code, row.fault = _SOURCE_CREDENTIALS, s.blame[_CREDENTIALS, source]
    elif _luck(s, number, tries, 11) < s.credentials[destination]:
        row.code, row.fault = _DESTINATION_CREDENTIALS, s.blame[_CREDENTIALS, destination]
    elif _crowd(state, source) > s.connections[source]:
        row.code, row.fault = _SOURCE_BUSY, s.blame[_BUSY, source]
    elif _crowd(state, destination) > s.connections[destination]:
        row.code, row.fault = _DESTINATION_BUSY, s.blame[_BUSY, destination]
    elif finish(fold(of_file, 1)) < s.missing[source]:
        row.code, row.fault = _FILE_MISSING, s.blame[_MISSING, source]
    elif _luck(s, number, tries, 12) < s.full[destination]:
        row.code, row.fault = _NO_SPACE, s.blame[_FULL, destination]
    elif _luck(s, number, tries, 13) < MISHAP:
        row.code = _FIRST_MISHAP + int(_MISHAPS * _luck(s, number, tries, 14))
        wait *= 5.0
    return wait


@kernel
def _crowd(state: State, rse: int) -> int:
    """Connections at a storage's door."""
    return state.running[rse, 0] + state.running[rse, 1]


@kernel
def _limit(state: State, s: Surroundings, slot: int) -> float:
    """Bytes a second that the transfer gets when it is alone."""
    row = state.transfers[slot]
    destination = state.rules[row.rule].destination
    here, there = s.rse_site[row.source], s.rse_site[destination]
    disks = min(
        s.read[row.source] * _spread(s, row.number, row.tries, 15, STREAM_SPREAD),
        s.write[destination] * _spread(s, row.number, row.tries, 16, STREAM_SPREAD),
    )
    return min(disks, tcp_limit(s.rtt_s[here, there], s.loss[here, there]))


@kernel
def _share_out(state: State, s: Surroundings, now: float) -> None:
    """New rates for all flows, and when each ends at its own."""
    state.numbers[_STALE] = 0
    count, rses, sites = state.numbers[_FLOWS], len(s.rse_site), len(s.site_fts)
    uses, limits, rates = np.empty((count, USES), dtype=np.int64), np.empty(count), np.empty(count)
    for flow in range(count):
        row = state.transfers[state.flows[flow]]
        destination = state.rules[row.rule].destination
        limits[flow] = row.limit
        here, there = s.rse_site[row.source], s.rse_site[destination]
        for use in range(USES):
            uses[flow, use] = resource(use, row.source, destination, here, there, rses, sites)
    share(uses, limits, s.capacity, rates)
    for flow in range(count):
        row = state.transfers[state.flows[flow]]
        if rates[flow] == row.rate:
            continue
        if row.rate > 0:
            row.left, row.since = row.left - row.rate * (now - row.since), now
        row.rate = rates[flow]
        row.end = min(row.since + row.left / row.rate if row.rate > 0 else math.inf, row.deadline)


@kernel
def _stop_flow(state: State, slot: int) -> None:
    row = state.transfers[slot]
    state.numbers[_FLOWS] -= 1
    last = state.flows[state.numbers[_FLOWS]]
    state.flows[row.flow] = last
    state.transfers[last].flow = row.flow
    row.flow = NOBODY
    state.numbers[_STALE] = 1


@kernel
def _arrived(state: State, s: Surroundings, slot: int) -> None:
    """All bytes are there, or FTS's timeout has passed."""
    row = state.transfers[slot]
    at = row.end
    _stop_flow(state, slot)
    of_file = fold(fold(fold(s.seed, _FILE), row.number), row.source)
    if row.left - row.rate * (at - row.since) > 1.0 + 1e-6 * row.bytes:
        row.code = _TIMED_OUT
    elif finish(fold(of_file, 2)) < s.corrupt[row.source]:
        row.code, row.fault = _CHECKSUM, s.blame[_CORRUPT, row.source]
    _ended(state, s, slot, at)


@kernel
def _ended(state: State, s: Surroundings, slot: int, at: float) -> None:
    row = state.transfers[slot]
    destination = state.rules[row.rule].destination
    _count(state, s, slot, -1)
    state.numbers[_CALLING] = 1
    state.turnaround[destination] += TURNAROUND_WEIGHT * (at - row.started - state.turnaround[destination])
    if row.code:
        _tell(state, slot, _TELL_FAILED, at, at)
        state.failures[slot, row.replica] += 1
        _rest(state, s, slot, at, row.retry)
    else:
        _tell(state, slot, _TELL_DONE, at, at)
        _let_go(state, slot, at)


@kernel
def _let_go(state: State, slot: int, at: float) -> None:
    """The transfer is over; so is its rule with the last one."""
    row = state.transfers[slot]
    row.phase = 0
    row.serial += 1
    state.free_transfers[state.numbers[_FREE_TRANSFERS]] = slot
    state.numbers[_FREE_TRANSFERS] += 1
    rule = state.rules[row.rule]
    rule.pending -= 1
    if not rule.pending:
        schedule(state, at + FORGET_S, _FORGET, row.rule, 0)


@kernel
def _rest(state: State, s: Surroundings, slot: int, at: float, retry: int) -> None:
    """It is tried again soon, or is stuck and Rucio looks at it again after hours."""
    row = state.transfers[slot]
    row.phase, row.retry = _RESTING, retry + 1
    if retry < RETRIES:
        pause = 20.0 + 70.0 * _luck(s, row.number, row.tries, 17)
    else:
        state.rules[row.rule].stuck += 1
        pause = STUCK_S * (1.0 + 2.0 * _luck(s, row.number, row.tries, 18))
    schedule(state, at + pause, _AGAIN, slot, row.serial)


@kernel
def _again(state: State, s: Surroundings, slot: int, at: float) -> None:
    row = state.transfers[slot]
    if row.retry > RETRIES:
        row.retry = 0
        state.failures[slot, :] = 0
        state.rules[row.rule].stuck -= 1
    if row.tries == MOST_TRIES - 1:  # after so many days nobody wants it any more
        _let_go(state, slot, at)
        return
    row.tries += 1
    _ask(state, s, slot, at)


@kernel
def _happen(state: State, s: Surroundings, at: float, what: int, slot: int) -> None:
    if what == _SUBMIT:
        _submit(state, s, slot, at)
    elif what == _READY:
        state.transfers[slot].phase = _LINED_UP
        line_up(state, _link(state, slot), slot)
        state.numbers[_CALLING] = 1
    elif what == _STAGED:
        rse = int(state.transfers[slot].source)
        state.tape_busy[rse] -= 1
        state.transfers[slot].phase = _SUBMITTED
        _look(state, s, slot, at)
        _robot(state, s, rse, at)
    elif what == _OPEN:
        _open(state, s, slot, at)
    elif what == _FAIL:
        _ended(state, s, slot, at)
    elif what == _AGAIN:
        _again(state, s, slot, at)


@kernel
def _due(state: State, s: Surroundings, arrivals: Arrivals, until: float) -> None:
    """Whatever comes before `until`, in its order."""
    numbers, heap = state.numbers, state.heap
    while True:
        arrival = arrivals.rules[numbers[_ARRIVED]].at if numbers[_ARRIVED] < len(arrivals.rules) else math.inf
        event = heap[0].at if numbers[_EVENTS] else math.inf
        if min(arrival, event) >= until:
            return
        if arrival <= event:
            _arrive(state, s, arrivals, numbers[_ARRIVED])
            numbers[_ARRIVED] += 1
            continue
        at, what, slot, serial = heap[0].at, int(heap[0].what), int(heap[0].slot), heap[0].serial
        drop_first(state)
        if what == _FORGET:
            state.rules[slot].used = 0
            state.free_rules[numbers[_FREE_RULES]] = slot
            numbers[_FREE_RULES] += 1
        elif serial == state.transfers[slot].serial:
            _happen(state, s, at, what, slot)


@kernel
def _first_end(state: State) -> float:
    first = math.inf
    for flow in range(state.numbers[_FLOWS]):
        first = min(first, state.transfers[state.flows[flow]].end)
    return first


@kernel
def live(state: State, s: Surroundings, arrivals: Arrivals, until: int) -> None:
    """Let time pass to the second `until`, or until the outbox is half full: `numbers[N.CLOCK]` says which."""
    numbers = state.numbers
    while numbers[_CLOCK] < until and numbers[_RECORDS] < len(state.outbox) // 2:
        first = _first_end(state)
        if numbers[_EVENTS]:
            first = min(first, state.heap[0].at)
        if numbers[_ARRIVED] < len(arrivals.rules):
            first = min(first, arrivals.rules[numbers[_ARRIVED]].at)
        if not numbers[_CALLING] and not numbers[_STALE] and first >= numbers[_CLOCK] + 1:
            numbers[_CLOCK] = until if first >= until else int(first)
            continue
        now = numbers[_CLOCK]
        if numbers[_STALE]:
            _share_out(state, s, float(now))
        if numbers[_CALLING]:
            _dispatch(state, s, float(now))
        _due(state, s, arrivals, now + 1.0)
        for flow in range(numbers[_FLOWS] - 1, -1, -1):
            slot = int(state.flows[flow])
            if state.transfers[slot].end < now + 1.0:
                _arrived(state, s, slot)
        numbers[_CLOCK] = now + 1


@kernel
def change_limits(state: State, s: Surroundings) -> None:
    """The surroundings are others: every flow gets its new limit, and what waits may start."""
    for flow in range(state.numbers[_FLOWS]):
        slot = int(state.flows[flow])
        state.transfers[slot].limit = _limit(state, s, slot)
    state.numbers[_STALE] = 1
    state.numbers[_CALLING] = 1


@kernel
def reorder(state: State, rule: int) -> None:
    """Give the rule's waiting transfers its new priority."""
    for slot in range(len(state.transfers)):
        row = state.transfers[slot]
        if row.phase == 0 or row.rule != rule:
            continue
        if row.phase == _LINED_UP:
            link = _link(state, slot)
            leave_line(state, link, slot)
            row.priority = state.rules[rule].priority
            line_up(state, link, slot)
        else:
            row.priority = state.rules[rule].priority


@kernel
def look_again(state: State, s: Surroundings, rule: int, at: float) -> None:
    """Have Rucio look within minutes at what is stuck or has no source: someone has touched the rule."""
    for slot in range(len(state.transfers)):
        row = state.transfers[slot]
        if row.rule != rule or not (row.phase == _WAITING or (row.phase == _RESTING and row.retry > RETRIES)):
            continue
        row.serial += 1
        pause = 30.0 + 150.0 * _luck(s, row.number, row.tries, 21)
        schedule(state, at + pause, _SUBMIT if row.phase == _WAITING else _AGAIN, slot, row.serial)


@kernel
def requeue(state: State, s: Surroundings, rule: int, at: float) -> int:
    """Cancel the rule's requests, wherever they are, and have Rucio ask anew; return how many were cancelled."""
    found = 0
    for slot in range(len(state.transfers)):
        row = state.transfers[slot]
        if row.phase == 0 or row.rule != rule:
            continue
        found += 1
        if row.phase == _LINED_UP:
            leave_line(state, _link(state, slot), slot)
        elif row.phase == _STAGING:
            if not leave_tape(state, int(row.source), slot):
                state.tape_busy[row.source] -= 1
                _robot(state, s, int(row.source), at)
        elif row.phase == _OPENING or row.phase == _FAILING or row.phase == _FLOWING:  # noqa: PLR1714 - as above
            if row.phase == _FLOWING:
                _stop_flow(state, slot)
            _count(state, s, slot, -1)
            state.numbers[_CALLING] = 1
        elif row.phase == _RESTING and row.retry > RETRIES:
            state.rules[rule].stuck -= 1
        row.serial += 1
        row.phase, row.retry = _RESTING, 0
        state.failures[slot, :] = 0
        schedule(state, at + 2.0 + 10.0 * _luck(s, row.number, row.tries, 22), _AGAIN, slot, row.serial)
    return found
