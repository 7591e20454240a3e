"""Where the next frame goes in a shard's arena, for compiled producers: `cpp_spmc/arena.hpp` in numba.

Frames are freed in the order of their sequence numbers. Live frames lie in a few runs of contiguous
bytes, oldest run first; the newest grows. A run ends where another lies in its way, at the end of
the arena, or early: once it has passed the window and the start is free. While the readers keep up,
only the first `window` bytes are touched and stay in cache; when they fall behind, a run is begun in
whatever gap is left, so the whole arena is used. Streaming stores want no early wrap (`hot` = 0):
they pass by the cache, and would only find lines that a reader's cache holds.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.compiled import inner
from asys_bench.backends.numba_ring.core.copy import get, put
from asys_bench.backends.numba_ring.core.producer_state import (
    EARLY_RUNS,
    MOST_RUNS,
    P_ARENA_BYTES,
    P_RUN_COUNT,
    P_RUNS,
    P_SINCE,
    P_WINDOW,
)

HEADER_BYTES = at.PACKET_HEADER_BYTES


@inner
def frame_bytes(nbytes: int) -> int:
    """Packet header, payload and padding."""
    return HEADER_BYTES + ((nbytes + 63) & ~63)


@inner
def fits(p: int, start: int, need: int) -> bool:
    """Whether these bytes are in the arena and in no run."""
    if start + need > get(p + P_ARENA_BYTES):
        return False
    for i in range(get(p + P_RUN_COUNT)):
        run = p + P_RUNS + i * 16
        if start < get(run + 8) and get(run) < start + need:
            return False
    return True


@inner
def begin(p: int, start: int, need: int) -> int:
    """A new run; its start."""
    count = get(p + P_RUN_COUNT)
    put(p + P_RUNS + count * 16, start)
    put(p + P_RUNS + count * 16 + 8, start + need)
    put(p + P_RUN_COUNT, count + 1)
    put(p + P_SINCE, get(p + P_SINCE) + need)
    return start


@inner
def allocate(p: int, need: int, hot: int) -> int:
    """Offset of `need` free bytes, or -1. `hot`: in the window if possible."""
    count = get(p + P_RUN_COUNT)
    if count != 0:
        newest = p + P_RUNS + (count - 1) * 16
        end = get(newest + 8)
        grows = fits(p, end, need)
        window = get(p + P_WINDOW)
        inside = grows and end + need <= window
        early = hot != 0 and not inside and need <= window and count < EARLY_RUNS
        if early and fits(p, 0, need):
            return begin(p, 0, need)
        if grows:
            put(newest + 8, end + need)
            put(p + P_SINCE, get(p + P_SINCE) + need)
            return end
    if count == MOST_RUNS:
        return -1
    start = 0
    tried = 0
    while not fits(p, start, need):
        if tried == count:
            return -1
        start = get(p + P_RUNS + tried * 16 + 8)
        tried += 1
    return begin(p, start, need)


@inner
def undo(p: int, offset: int) -> None:
    """Give back the end of the last allocation, still unpublished, from `offset` on."""
    count = get(p + P_RUN_COUNT)
    newest = p + P_RUNS + (count - 1) * 16
    put(p + P_SINCE, get(p + P_SINCE) - (get(newest + 8) - offset))
    put(newest + 8, offset)
    if get(newest) == offset:
        put(p + P_RUN_COUNT, count - 1)


@inner
def free_to(p: int, start: int) -> None:
    """The oldest live frame starts here now."""
    count = get(p + P_RUN_COUNT)
    gone = 0
    while gone < count:
        run = p + P_RUNS + gone * 16
        if get(run) <= start and start < get(run + 8):
            break
        gone += 1
    if gone != 0:
        for word in range(2 * (count - gone)):
            put(p + P_RUNS + word * 8, get(p + P_RUNS + (gone * 2 + word) * 8))
        put(p + P_RUN_COUNT, count - gone)
    if count != gone:
        put(p + P_RUNS, start)


@inner
def wants_reclaim(p: int, need: int, hot: int) -> bool:
    """The newest run cannot grow within the window: it could, or another begin there, if only we knew
    what the readers have finished. Asked anew every so many bytes: each look at a slot costs a miss."""
    count = get(p + P_RUN_COUNT)
    if hot == 0 or count == 0:
        return False
    window = get(p + P_WINDOW)
    end = get(p + P_RUNS + (count - 1) * 16 + 8)
    if get(p + P_SINCE) < window >> 3:
        return False
    return end + need > window or not fits(p, end, need)


@inner
def clear(p: int) -> None:
    """Nothing lives in the arena."""
    put(p + P_RUN_COUNT, 0)
