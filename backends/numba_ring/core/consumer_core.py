"""One member of one group, compiled: claiming over all shards, releasing, waiting.

Its state is an array of words in memory of this process; `c` is that array's address. A claim is a
record of `CLAIM_WORDS` words: seq, claimed word, payload offset from the first arena (-1: damaged),
payload bytes, shard.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.compiled import entry, inner
from asys_bench.backends.numba_ring.core.copy import (
    fetch_and_seq_cst,
    get,
    load_acquire,
    load_relaxed,
    load_seq_cst,
    put,
)
from asys_bench.backends.numba_ring.core.kernel_calls import futex_wait, monotonic_ns, relax
from asys_bench.backends.numba_ring.core.ring import (
    begin_wait,
    claim_packets,
    has_news,
    release_packet,
    repair_hint,
    return_packet,
    ring,
    slot_of,
    tag_distance,
    word_owner,
    word_seq,
    word_state,
)

# ---- state: byte offsets of words ------------------------------------------------------------------
C_HEADER, C_SHARDS, C_STRIDE, C_SLOTS = 0, 8, 16, 24  # stride: from shard to shard
C_ARENA_BYTES, C_GROUP, C_OWNER, C_TURN = 32, 40, 48, 56
C_AT_LEAST_ONCE, C_SPIN_NS = 64, 72
C_POLL_NS, C_NAP_NS = 80, 88
C_STATE_BYTES = 96

CLAIM_WORDS = 5
CLAIM_BYTES = CLAIM_WORDS * 8
LOOK_NS = 50_000_000
LONGEST_NAP = 8  # times the polling interval, after a while without a packet
NEWS, NOTHING, FINISHED = 1, 0, 2  # what `wait` found

HEADER_BYTES, SHARDS_OFFSET = at.PACKET_HEADER_BYTES, at.SHARDS_OFFSET
WSEQ, DESCRIPTOR, DOORBELL, WAITERS = (
    at.SH_WSEQ,
    at.SLOT_DESCRIPTOR,
    at.HDR_DOORBELL,
    at.HDR_WAITERS,
)
STATE, STATE_FINISHED = at.HDR_STATE, at.STATE_FINISHED
PENDING, CLAIMED = at.STATE_PENDING, at.STATE_CLAIMED


@inner
def shard_of(c: int, shard: int) -> int:
    return get(c + C_HEADER) + SHARDS_OFFSET + shard * get(c + C_STRIDE)


@inner
def any_news(c: int) -> bool:
    for shard in range(get(c + C_SHARDS)):  # noqa: SIM110 - numba compiles no generator here
        if has_news(shard_of(c, shard), get(c + C_GROUP)):
            return True
    return False


@inner
def locate(c: int, claim: int, shard: int) -> None:
    """Complete a claim's record: where its payload lies."""
    descriptor = load_relaxed(
        slot_of(shard_of(c, shard), get(c + C_SLOTS), get(claim)) + DESCRIPTOR
    )
    frame = ((descriptor >> 32) & 0xFFFFFFFF) * 64
    nbytes = descriptor & 0xFFFFFFFF
    arena_bytes = get(c + C_ARENA_BYTES)
    payload = shard * arena_bytes + frame + HEADER_BYTES
    if frame + HEADER_BYTES + nbytes > arena_bytes:  # never trust it
        payload, nbytes = -1, 0
    put(claim + 16, payload)
    put(claim + 24, nbytes)
    put(claim + 32, shard)


@entry(3)
def claim(c: int, claims: int, most: int) -> int:
    """Claim up to `most` packets, all shards in turn. Never waits. Returns how many."""
    taken = 0
    shards = get(c + C_SHARDS)
    for _ in range(shards):
        if taken >= most:
            break
        shard = get(c + C_TURN)
        put(c + C_TURN, shard + 1 if shard + 1 < shards else 0)
        first = claims + taken * CLAIM_BYTES
        new = claim_packets(
            shard_of(c, shard),
            get(c + C_SLOTS),
            get(c + C_GROUP),
            get(c + C_OWNER),
            most - taken,
            first,
            CLAIM_BYTES,
        )
        for i in range(new):
            locate(c, first + i * CLAIM_BYTES, shard)
        taken += new
    return taken


@entry(3)
def release(c: int, claims: int, count: int) -> int:
    """Acknowledge; how many were still ours."""
    delivered = 0
    for i in range(count):
        record = claims + i * CLAIM_BYTES
        shard = shard_of(c, get(record + 32))
        if release_packet(shard, get(c + C_SLOTS), get(c + C_GROUP), get(record), get(record + 8)):
            delivered += 1
    return delivered


@entry(3)
def give_back(c: int, claims: int, count: int) -> int:
    """The reader failed but lives: as a reaper would do for it. Returns packets given back."""
    slots, group, again = get(c + C_SLOTS), get(c + C_GROUP), get(c + C_AT_LEAST_ONCE)
    returned = 0
    for i in range(count):
        record = claims + i * CLAIM_BYTES
        shard = shard_of(c, get(record + 32))
        if return_packet(shard, slots, group, get(record), get(record + 8), again):
            returned += 1
    if returned != 0:
        ring(get(c + C_HEADER))
    return returned


@entry(2, nogil=True)
def wait(c: int, deadline_ns: int) -> int:
    """Wait for something to claim: until the deadline, and never longer than about 50 ms.

    FINISHED means that the bus was finished and nothing is left to claim.
    """
    header = get(c + C_HEADER)
    now = monotonic_ns()
    until = min(now + get(c + C_SPIN_NS), deadline_ns)
    while now < until:
        for _ in range(16):
            if any_news(c):
                return NEWS
            relax()
        now = monotonic_ns()
    if now >= deadline_ns:
        finished = load_seq_cst(header + STATE) == STATE_FINISHED
        if any_news(c):
            return NEWS
        return FINISHED if finished else NOTHING
    bit = 1 << (get(c + C_OWNER) >> 10)
    # A poller does not say that it waits: no producer pays a system call to wake it.
    poll = get(c + C_POLL_NS)
    bell = load_acquire(header + DOORBELL) if poll != 0 else begin_wait(header, bit)
    finished = load_seq_cst(header + STATE) == STATE_FINISHED  # before the look: see below
    if not finished and not any_news(c):
        longest = get(c + C_NAP_NS) if poll != 0 else LOOK_NS
        futex_wait(header + DOORBELL, bell & 0xFFFFFFFF, min(deadline_ns - now, longest))
    if poll == 0:
        fetch_and_seq_cst(header + WAITERS, ~bit)  # spare the producer a needless wake-up
    if any_news(c):
        put(c + C_NAP_NS, poll)
        return NEWS
    put(c + C_NAP_NS, min(get(c + C_NAP_NS) * 2, poll * LONGEST_NAP))
    return FINISHED if finished else NOTHING  # what came before `finish` was seen by that look


@entry(1)
def may_come(c: int) -> int:
    """1 while something is or may become claimable, given that no producer goes on."""
    slots, group = get(c + C_SLOTS), get(c + C_GROUP)
    for number in range(get(c + C_SHARDS)):
        shard = shard_of(c, number)
        for slot in range(slots):
            word = load_acquire(slot_of(shard, slots, slot) + group * 8)
            # A packet beyond wseq has words but was never published: its producer died.
            if tag_distance(load_acquire(shard + WSEQ), word_seq(word)) <= 0:
                continue
            if word_state(word) == PENDING:
                return 1
            # Another member's claim may still come back.
            theirs = word_state(word) == CLAIMED and word_owner(word) != get(c + C_OWNER)
            if theirs and get(c + C_AT_LEAST_ONCE) != 0:
                return 1
    return 0


@entry(1)
def repair(c: int) -> int:
    """Undo what a reaper that was killed half-way left behind."""
    for number in range(get(c + C_SHARDS)):
        repair_hint(shard_of(c, number), get(c + C_SLOTS), get(c + C_GROUP))
    return 0
