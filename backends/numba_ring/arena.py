"""Where the next frame goes in a shard's arena, for compiled producers: `cpp_spmc/arena.hpp` in numba.

Frames are freed in the order of their sequence numbers, so this is a ring, with one change: once the
head has passed the window and the readers are done with the start, it wraps early. While the readers
keep up, only the first `window` bytes are touched and stay in cache. Streaming stores want the
opposite (`hot` = 0): they pass by the cache, and would only find lines that a reader's cache holds.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring import layout as at
from asys_bench.backends.numba_ring.compiled import inner
from asys_bench.backends.numba_ring.copy import get, put
from asys_bench.backends.numba_ring.producer_state import (
    P_ARENA_BYTES,
    P_FREED,
    P_HEAD,
    P_WINDOW,
    P_WRAPPED,
)

HEADER_BYTES = at.PACKET_HEADER_BYTES


@inner
def frame_bytes(nbytes: int) -> int:
    """Packet header, payload and padding."""
    return HEADER_BYTES + ((nbytes + 63) & ~63)


@inner
def wrap_at(p: int, hot: int) -> int:
    return get(p + P_WINDOW) if hot != 0 else get(p + P_ARENA_BYTES)


@inner
def allocate(p: int, need: int, hot: int) -> int:
    """Offset of `need` free bytes, or -1. `hot`: wrap early if possible."""
    head = get(p + P_HEAD)
    if get(p + P_WRAPPED) != 0:
        if head + need > get(p + P_FREED):
            return -1
    elif need <= get(p + P_FREED) and head + need > wrap_at(p, hot):
        put(p + P_WRAPPED, 1)
        head = 0
    elif head + need > get(p + P_ARENA_BYTES):
        return -1
    put(p + P_HEAD, head + need)
    return head


@inner
def free_to(p: int, start: int) -> None:
    """The oldest live frame starts here now."""
    if get(p + P_WRAPPED) != 0 and start < get(p + P_FREED):
        put(p + P_WRAPPED, 0)
    put(p + P_FREED, start)


@inner
def wants_reclaim(p: int, need: int, hot: int) -> bool:
    """An early wrap could be possible if only we knew what the readers have finished."""
    return hot != 0 and get(p + P_WRAPPED) == 0 and get(p + P_HEAD) + need > get(p + P_WINDOW)


@inner
def clear(p: int) -> None:
    """Nothing lives in the arena."""
    put(p + P_HEAD, 0)
    put(p + P_FREED, 0)
    put(p + P_WRAPPED, 0)
