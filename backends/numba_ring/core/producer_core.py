"""The writer of one shard, compiled: slots, arena, copy, the producer's own counters, and which groups
get a packet.

`p` is the address of its state (`producer_state`). The steps are those of `cpp_spmc/producer.cpp`.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.arena import (
    allocate,
    clear,
    frame_bytes,
    free_to,
    undo,
    wants_reclaim,
)
from asys_bench.backends.numba_ring.core.compiled import entry, inner
from asys_bench.backends.numba_ring.core.copy import (
    copy_cached,
    copy_streaming,
    get,
    load_acquire,
    load_relaxed,
    put,
    put_u32,
    store_relaxed,
    store_release,
)
from asys_bench.backends.numba_ring.core.producer_state import (
    P_ARENA,
    P_BYTES,
    P_COMMITTED,
    P_FILTERING,
    P_HEADER,
    P_INITIAL_SEQ,
    P_MASK,
    P_MAX_PAYLOAD,
    P_MISSED,
    P_MISSED_DIRTY,
    P_NEXT,
    P_PUBLISHED,
    P_RESERVED,
    P_SHARD,
    P_SINCE,
    P_SLOTS,
    P_STARTS,
    P_STREAMING,
    P_TAIL,
    P_TALLY,
)
from asys_bench.backends.numba_ring.core.ring import commit_seq, fill_slot, reclaim_slots

# Refusals, as results: 0..3 are the segment's drop counters in their order.
FULL, TIMEOUT, TOO_LARGE, CLOSED, ACCEPTED = 0, 1, 2, 3, 4

HEADER_BYTES = at.PACKET_HEADER_BYTES
COMMIT_BYTES = 64 << 10  # a batch is published in pieces, so that readers overlap
CRC_AT, SEQ_AT = 72, 8  # in a packet header
STATE, GROUP_MASK, LIVE = at.HDR_STATE, at.HDR_GROUP_MASK, at.STATE_LIVE
GROUPS, NAMES, ACTIVE_SHIFT = at.GROUPS, at.NAMES, at.ACTIVE_SHIFT
GROUPS_OFFSET, GROUP_STRIDE = at.GROUPS_OFFSET, at.GROUP_STRIDE
GRP_FLAGS, GRP_HOOKS = at.GRP_FLAGS, at.GRP_HOOKS
DROPPED, PUBLISHED, PUBLISHED_STRIDE = at.SH_DROPPED, at.SH_PUBLISHED, at.SH_PUBLISHED_STRIDE
SELECT, HARVEST, HARVEST_STRIDE = at.SH_HARVEST_SELECT, at.SH_HARVEST, at.SH_HARVEST_STRIDE


# ---- groups ---------------------------------------------------------------------------------------


@inner
def refresh_groups(p: int, mask: int) -> None:
    """The group mask changed: a new group missed everything until now."""
    born = mask & ~get(p + P_MASK)
    filtering = 1 if mask & 0xFF != mask >> ACTIVE_SHIFT else 0  # some group gets nothing
    for group in range(GROUPS):
        if (born >> group) & 1:
            put(p + P_MISSED + group * 8, get(p + P_NEXT) - get(p + P_INITIAL_SEQ))
        if (mask >> group) & 1:
            base = get(p + P_HEADER) + GROUPS_OFFSET + group * GROUP_STRIDE
            filtering |= load_relaxed(base + GRP_FLAGS) & 2
    put(p + P_MASK, mask)
    put(p + P_MISSED_DIRTY, 2)
    put(p + P_FILTERING, filtering)


@inner
def groups_that_want(p: int, hook_id: int) -> int:
    """Their bits; the others' `missed` is counted."""
    mask = get(p + P_MASK)
    wanted = 0
    for group in range(GROUPS):
        if (mask >> group) & 1 == 0:
            continue
        base = get(p + P_HEADER) + GROUPS_OFFSET + group * GROUP_STRIDE
        active = (mask >> ACTIVE_SHIFT >> group) & 1 != 0
        selected = active and load_relaxed(base + GRP_FLAGS) & 2 == 0
        if active and not selected and hook_id < NAMES:
            bits = load_relaxed(base + GRP_HOOKS + (hook_id >> 6) * 8)
            selected = (bits >> (hook_id & 63)) & 1 != 0
        if selected:
            wanted |= 1 << group
        else:
            put(p + P_MISSED + group * 8, get(p + P_MISSED + group * 8) + 1)
            put(p + P_MISSED_DIRTY, 2)
    return wanted


# ---- room -----------------------------------------------------------------------------------------


@inner
def reclaim(p: int, full: int) -> None:
    """Take back what the readers finished; when `full`, also what waits for groups that nobody reads."""
    put(p + P_SINCE, 0)
    abandoned = 0
    if full != 0:
        mask = load_acquire(get(p + P_HEADER) + GROUP_MASK)
        abandoned = mask & ~(mask >> ACTIVE_SHIFT) & 0xFF
    shard = get(p + P_SHARD)
    slots = get(p + P_SLOTS)
    before = get(p + P_TAIL)
    tail = reclaim_slots(shard, slots, before, get(p + P_COMMITTED), p + P_TALLY, abandoned)
    if tail != before:
        put(p + P_TAIL, tail)
        # Two records, selected by a word of their own: these slots leave the window that an account
        # scans exactly when their totals enter the record.
        valid = load_relaxed(shard + SELECT) & 1
        record = shard + HARVEST + (valid ^ 1) * HARVEST_STRIDE
        store_relaxed(record, tail)
        for i in range(4 * GROUPS):
            store_relaxed(record + 8 + i * 8, get(p + P_TALLY + i * 8))
        store_release(shard + SELECT, valid ^ 1)
    # Frames that are queued but not committed keep the arena from being empty.
    if tail == get(p + P_NEXT):
        clear(p)
    else:
        free_to(p, get(get(p + P_STARTS) + (tail & (slots - 1)) * 8))


@inner
def reserve_room(p: int, nbytes: int) -> int:
    """Room for one payload: its frame's offset, or -1 - refusal (not counted)."""
    if load_acquire(get(p + P_HEADER) + STATE) != LIVE:
        return -1 - CLOSED
    if nbytes > get(p + P_MAX_PAYLOAD):
        return -1 - TOO_LARGE
    need = frame_bytes(nbytes)
    hot = 1 if nbytes < get(p + P_STREAMING) else 0
    slots = get(p + P_SLOTS)
    if wants_reclaim(p, need, hot) or get(p + P_NEXT) - get(p + P_TAIL) == slots:
        reclaim(p, 0)
    offset = -1
    if get(p + P_NEXT) - get(p + P_TAIL) != slots:
        offset = allocate(p, need, hot)
    if offset < 0:
        reclaim(p, 1)
        if get(p + P_NEXT) - get(p + P_TAIL) != slots:
            offset = allocate(p, need, hot)
    if offset < 0:
        return -1 - FULL
    put(p + P_RESERVED, offset)
    return offset


# ---- publishing ------------------------------------------------------------------------------------


@inner
def queue(p: int, nbytes: int, hook_id: int) -> None:
    """The reserved payload is complete. `nbytes` may be smaller than was reserved."""
    mask = load_acquire(get(p + P_HEADER) + GROUP_MASK)
    if mask != get(p + P_MASK):
        refresh_groups(p, mask)
    reserved = get(p + P_RESERVED)
    undo(p, reserved + frame_bytes(nbytes))  # give back what was reserved but not used
    seq = get(p + P_NEXT)
    slots = get(p + P_SLOTS)
    put(get(p + P_STARTS) + (seq & (slots - 1)) * 8, reserved)
    wanted = groups_that_want(p, hook_id) if get(p + P_FILTERING) != 0 else mask & 0xFF
    fill_slot(get(p + P_SHARD), slots, seq, ((reserved >> 6) << 32) | nbytes, wanted)
    put(p + P_BYTES, get(p + P_BYTES) + nbytes)
    put(p + P_NEXT, seq + 1)


@inner
def commit_queued(p: int) -> None:
    """Publish everything queued with one store."""
    following = get(p + P_NEXT)
    if following == get(p + P_COMMITTED):
        return
    # The counters of this commit go to the record that is not valid now: a kill before the store of
    # wseq leaves the other one, whose `upto` is still the newest that does not exceed wseq.
    shard = get(p + P_SHARD)
    record = shard + PUBLISHED + get(p + P_PUBLISHED) * PUBLISHED_STRIDE
    store_relaxed(record + 8, get(p + P_BYTES))
    if get(p + P_MISSED_DIRTY) != 0:
        put(p + P_MISSED_DIRTY, get(p + P_MISSED_DIRTY) - 1)
        store_relaxed(record + 16, get(p + P_MASK))
        for group in range(GROUPS):
            store_relaxed(record + 24 + group * 8, get(p + P_MISSED + group * 8))
    store_relaxed(record, following)
    put(p + P_PUBLISHED, get(p + P_PUBLISHED) ^ 1)
    put(p + P_COMMITTED, following)
    commit_seq(get(p + P_HEADER), shard, following)


@inner
def write_header(p: int, template: int) -> None:
    """In front of the reserved payload; the sequence number is filled in."""
    frame = get(p + P_ARENA) + get(p + P_RESERVED)
    for i in range(HEADER_BYTES // 8):
        put(frame + i * 8, get(template + i * 8))
    put(frame + SEQ_AT, get(p + P_NEXT))


@inner
def place(p: int, template: int, source: int, nbytes: int, hook_id: int) -> None:
    write_header(p, template)
    to = get(p + P_ARENA) + get(p + P_RESERVED) + HEADER_BYTES
    if nbytes >= get(p + P_STREAMING):
        copy_streaming(to, source, nbytes)
    else:
        copy_cached(to, source, nbytes)
    queue(p, nbytes, hook_id)


@inner
def push_one(p: int, template: int, source: int, nbytes: int, hook_id: int) -> int:
    room = reserve_room(p, nbytes)
    if room < 0:
        return -1 - room
    place(p, template, source, nbytes, hook_id)
    commit_queued(p)
    return ACCEPTED


# ---- entry points ----------------------------------------------------------------------------------


@entry(5)
def push(p: int, template: int, source: int, nbytes: int, hook_id: int) -> int:
    """Copy and publish one packet; ACCEPTED or the refusal (not counted)."""
    return push_one(p, template, source, nbytes, hook_id)


@entry(5, nogil=True)
def push_unlocked(p: int, template: int, source: int, nbytes: int, hook_id: int) -> int:
    """As `push`, without the GIL."""
    return push_one(p, template, source, nbytes, hook_id)


@entry(8, nogil=True)
def push_rows(
    p: int, template: int, source: int, row: int, rows: int, nbytes: int, hook_id: int, crcs: int
) -> int:
    """Push the rows from number `row` on, `nbytes` each; `crcs`: their checksums (u64), or 0.

    Returns rows done * 8 + (ACCEPTED or the refusal that ended it).
    """
    queued = 0
    while row < rows:
        room = reserve_room(p, nbytes)
        if room < 0 and queued != 0:  # what is queued may be what keeps the ring full
            commit_queued(p)
            queued = 0
            room = reserve_room(p, nbytes)
        if room < 0:
            commit_queued(p)
            return row * 8 - 1 - room
        if crcs != 0:
            put_u32(template + CRC_AT, get(crcs + row * 8))
        place(p, template, source + row * nbytes, nbytes, hook_id)
        row += 1
        queued += nbytes + HEADER_BYTES
        if queued >= COMMIT_BYTES:
            commit_queued(p)
            queued = 0
    commit_queued(p)
    return row * 8 + ACCEPTED


@entry(2)
def reserve(p: int, nbytes: int) -> int:
    """The payload's offset in the arena, or -1 - refusal (not counted)."""
    room = reserve_room(p, nbytes)
    return room + HEADER_BYTES if room >= 0 else room


@entry(1)
def abort(p: int) -> int:
    """Forget the last reserve."""
    undo(p, get(p + P_RESERVED))
    return 0


@entry(4)
def commit(p: int, template: int, nbytes: int, hook_id: int) -> int:
    """Publish the reserved payload, which is written; ACCEPTED or CLOSED (and then aborted)."""
    if load_acquire(get(p + P_HEADER) + STATE) != LIVE:
        undo(p, get(p + P_RESERVED))
        return CLOSED
    write_header(p, template)
    queue(p, nbytes, hook_id)
    commit_queued(p)
    return ACCEPTED


@entry(2)
def count_refusal(p: int, refusal: int) -> int:
    counter = get(p + P_SHARD) + DROPPED + refusal * 8
    store_relaxed(counter, load_relaxed(counter) + 1)
    return refusal


@entry(1)
def harvest(p: int) -> int:
    """Reclaim what the readers finished; returns slots in use (the arena's use is in the state)."""
    reclaim(p, 0)
    return get(p + P_NEXT) - get(p + P_TAIL)
