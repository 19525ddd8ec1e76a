"""What waits: the heap of what is due, a line for each link and priority, a line for each tape robot. Compiled."""

from __future__ import annotations

from simulator.kernels import kernel
from simulator.state import NOBODY, PRIORITIES, Array, N, State

_EVENTS, _ORDER, _LINES = int(N.EVENTS), int(N.ORDER), int(N.LINES)


@kernel
def _before(heap: Array, a: int, b: int) -> bool:
    if heap[a].at != heap[b].at:
        return heap[a].at < heap[b].at
    return heap[a].order < heap[b].order


@kernel
def _swap(heap: Array, a: int, b: int) -> None:
    at, order, slot, serial, what = heap[a].at, heap[a].order, heap[a].slot, heap[a].serial, heap[a].what
    heap[a].at, heap[a].order, heap[a].slot, heap[a].serial, heap[a].what = (
        heap[b].at, heap[b].order, heap[b].slot, heap[b].serial, heap[b].what,
    )  # fmt: skip
    heap[b].at, heap[b].order, heap[b].slot, heap[b].serial, heap[b].what = at, order, slot, serial, what


@kernel
def schedule(state: State, at: float, what: int, slot: int, serial: int) -> None:
    heap, numbers = state.heap, state.numbers
    place = numbers[_EVENTS]
    numbers[_EVENTS] += 1
    numbers[_ORDER] += 1
    heap[place].at, heap[place].order = at, numbers[_ORDER]
    heap[place].slot, heap[place].serial, heap[place].what = slot, serial, what
    while place > 0 and _before(heap, place, (place - 1) // 2):
        _swap(heap, place, (place - 1) // 2)
        place = (place - 1) // 2


@kernel
def drop_first(state: State) -> None:
    heap, numbers = state.heap, state.numbers
    numbers[_EVENTS] -= 1
    count = numbers[_EVENTS]
    if count:
        _swap(heap, 0, count)
    place = 0
    while True:
        least, left = place, 2 * place + 1
        if left < count and _before(heap, left, least):
            least = left
        if left + 1 < count and _before(heap, left + 1, least):
            least = left + 1
        if least == place:
            return
        _swap(heap, place, least)
        place = least


@kernel
def line_up(state: State, link: int, slot: int) -> None:
    """At the end of its link's line for its priority."""
    place = state.transfers[slot].priority - 1
    state.transfers[slot].next = NOBODY
    if state.heads[link, place] == NOBODY:
        state.heads[link, place] = slot
    else:
        state.transfers[state.tails[link, place]].next = slot
    state.tails[link, place] = slot
    if state.line_place[link] == NOBODY:
        state.line_place[link] = state.numbers[_LINES]
        state.lines[state.numbers[_LINES]] = link
        state.numbers[_LINES] += 1


@kernel
def first_in_line(state: State, link: int) -> int:
    """The row that is next on the link, of the highest priority that waits; NOBODY if nothing does."""
    for place in range(PRIORITIES - 1, -1, -1):
        if state.heads[link, place] != NOBODY:
            return int(state.heads[link, place])
    return NOBODY


@kernel
def leave_line(state: State, link: int, slot: int) -> None:
    """Out of its link's line, wherever it stands there."""
    place = state.transfers[slot].priority - 1
    before, here = NOBODY, state.heads[link, place]
    while here != slot:
        before, here = here, state.transfers[here].next
    behind = state.transfers[slot].next
    if before == NOBODY:
        state.heads[link, place] = behind
    else:
        state.transfers[before].next = behind
    if behind == NOBODY:
        state.tails[link, place] = before
    state.transfers[slot].next = NOBODY
    if first_in_line(state, link) == NOBODY:
        count = state.numbers[_LINES] - 1
        last, gap = state.lines[count], state.line_place[link]
        state.lines[gap], state.line_place[last] = last, gap
        state.line_place[link] = NOBODY
        state.numbers[_LINES] = count


@kernel
def join_tape(state: State, rse: int, slot: int) -> None:
    state.transfers[slot].next = NOBODY
    if state.tape_heads[rse] == NOBODY:
        state.tape_heads[rse] = slot
    else:
        state.transfers[state.tape_tails[rse]].next = slot
    state.tape_tails[rse] = slot


@kernel
def leave_tape(state: State, rse: int, slot: int) -> bool:
    """Out of the tape robot's line; False if it is not in it (a drive has it)."""
    before, here = NOBODY, state.tape_heads[rse]
    while here != slot and here != NOBODY:  # noqa: PLR1714 - numba knows no membership of mixed tuples
        before, here = here, state.transfers[here].next
    if here == NOBODY:
        return False
    behind = state.transfers[slot].next
    if before == NOBODY:
        state.tape_heads[rse] = behind
    else:
        state.transfers[before].next = behind
    if behind == NOBODY:
        state.tape_tails[rse] = before
    return True
