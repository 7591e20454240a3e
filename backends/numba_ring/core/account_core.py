"""The account of one shard, compiled: `cpp_spmc/account.cpp` in numba.

Nobody counts on the data path: the group words are the truth. What left the window was harvested by
the producer, what is inside it is scanned here, and `delivered` is what remains.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.compiled import entry, inner
from asys_bench.backends.numba_ring.core.copy import get, load_acquire, load_relaxed, put
from asys_bench.backends.numba_ring.core.ring import (
    DELIVERED,
    SEQ_MASK,
    count_word,
    slot_of,
    word_seq,
    word_state,
)

GROUPS = at.GROUPS
WSEQ, DROPPED = at.SH_WSEQ, at.SH_DROPPED
PUBLISHED, PUBLISHED_STRIDE = at.SH_PUBLISHED, at.SH_PUBLISHED_STRIDE
SELECT, HARVEST, HARVEST_STRIDE = at.SH_HARVEST_SELECT, at.SH_HARVEST, at.SH_HARVEST_STRIDE

# ---- results: word numbers -------------------------------------------------------------------------
ACCEPTED, BYTES, DROPS = 0, 1, 2
TALLY = 6  # lost, dead, redelivered, left: GROUPS words each
READY = TALLY + 4 * GROUPS
MISSED = READY + GROUPS
ACCOUNT_WORDS = MISSED + GROUPS


@inner
def add(account: int, word: int, value: int) -> None:
    put(account + word * 8, get(account + word * 8) + value)


@inner
def newest_record(shard: int, wseq: int) -> int:
    """The published record whose `upto` is the latest that does not exceed wseq."""
    first = shard + PUBLISHED
    second = first + PUBLISHED_STRIDE
    behind_first = wseq - load_relaxed(first)
    behind_second = wseq - load_relaxed(second)
    # As unsigned numbers: one beyond wseq is hugely behind.
    if (behind_second < 0) == (behind_first < 0):
        return second if behind_second < behind_first else first
    return second if behind_first < 0 else first


@entry(5)
def read_shard(shard: int, slots: int, initial: int, mask: int, account: int) -> int:
    """Add the counters of one shard to the `ACCOUNT_WORDS` words at `account`."""
    wseq = load_acquire(shard + WSEQ)
    accepted = wseq - initial
    add(account, ACCEPTED, accepted)
    for reason in range(4):
        add(account, DROPS + reason, load_relaxed(shard + DROPPED + reason * 8))
    record = newest_record(shard, wseq)
    add(account, BYTES, load_relaxed(record + 8))
    known = load_relaxed(record + 16)

    harvest = shard + HARVEST + (load_acquire(shard + SELECT) & 1) * HARVEST_STRIDE
    start = load_relaxed(harvest)
    if wseq - start > slots or wseq - start < 0:
        start = wseq - slots  # the producer ran on while we read
    for group in range(GROUPS):
        if (mask >> group) & 1 == 0:
            continue
        ready = 0
        seq = start
        while seq != wseq:
            word = load_acquire(slot_of(shard, slots, seq) + group * 8)
            if word_seq(word) == seq & SEQ_MASK:
                count_word(account + TALLY * 8, group, word)
                if word_state(word) < DELIVERED:
                    ready += 1
            seq += 1
        for counter in range(4):
            total = load_relaxed(harvest + 8 + (counter * GROUPS + group) * 8)
            add(account, TALLY + counter * GROUPS + group, total)
        missed = load_relaxed(record + 24 + group * 8) if (known >> group) & 1 else accepted
        add(account, READY + group, ready)
        add(account, MISSED + group, missed)
    return accepted
