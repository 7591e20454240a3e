"""The protocol of one shard, for compiled functions: `cpp_spmc/ring.hpp` in numba.

ROLES, LAYOUT, PROTOCOL, ORDERING, INVARIANTS and LOSS are written there and hold here word for word;
the step and site numbers below (S1..S9) are its numbers. `shard` is the address of a shard's control
block, `header` that of the segment, `slots` the number of slots.

PROOF: the model check runs ring.hpp. Here every order is tested in the emitted LLVM code, and every
test of the bus contract runs with a C++ peer as well.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.compiled import inner
from asys_bench.backends.numba_ring.core.copy import (
    cmpxchg,
    cmpxchg_seq_cst,
    exchange_acq_rel,
    fetch_add_release,
    fetch_or_seq_cst,
    get,
    load_acquire,
    load_relaxed,
    load_seq_cst,
    prefetch,
    put,
    store_relaxed,
    store_seq_cst,
)
from asys_bench.backends.numba_ring.core.kernel_calls import futex_wake

# numba reads module-level numbers as constants, but not through a module.
GROUPS, MAX_DELIVERIES = at.GROUPS, at.MAX_DELIVERIES
SEQ_MASK, OWNER_MASK = at.SEQ_MASK, at.OWNER_MASK
WSEQ, HINTS, HINT_STRIDE = at.SH_WSEQ, at.SH_HINTS, at.SH_HINT_STRIDE
SLOTS, SLOT_STRIDE, DESCRIPTOR = at.SH_SLOTS, at.SLOT_STRIDE, at.SLOT_DESCRIPTOR
WAITERS, DOORBELL = at.HDR_WAITERS, at.HDR_DOORBELL
PENDING, CLAIMED, DELIVERED = at.STATE_PENDING, at.STATE_CLAIMED, at.STATE_DELIVERED
LOST, DEAD, MISSED, LEFT = at.STATE_LOST, at.STATE_DEAD, at.STATE_MISSED, at.STATE_LEFT
ORDINARY = 1 << DELIVERED | 1 << MISSED

# ---- words: seq:40 | redeliveries:4 | owner:16 | state:4 (shifts of signed words need their mask) ---


@inner
def make_word(seq: int, redeliveries: int, owner: int, state: int) -> int:
    return ((seq & SEQ_MASK) << 24) | (redeliveries << 20) | (owner << 4) | state


@inner
def word_seq(word: int) -> int:
    return (word >> 24) & SEQ_MASK


@inner
def word_redeliveries(word: int) -> int:
    return (word >> 20) & 0xF


@inner
def word_owner(word: int) -> int:
    return (word >> 4) & OWNER_MASK


@inner
def word_state(word: int) -> int:
    return word & 0xF


@inner
def with_state(word: int, state: int) -> int:
    return (word & ~0xFFFFF) | state


@inner
def tag_distance(a: int, b: int) -> int:
    """a - b for 40-bit sequence tags, signed, so that a tag from before a wrap compares right."""
    return ((a - b) << 24) >> 24


@inner
def returned(word: int, at_least_once: int) -> int:
    """What becomes of a claimed packet whose reader did not finish it."""
    if at_least_once == 0:
        return with_state(word, LOST)
    deliveries = word_redeliveries(word) + 1
    if deliveries >= MAX_DELIVERIES:
        return with_state(word, DEAD)
    return make_word(word_seq(word), deliveries, 0, PENDING)


@inner
def slot_of(shard: int, slots: int, seq: int) -> int:
    return shard + SLOTS + (seq & (slots - 1)) * SLOT_STRIDE


@inner
def hint_of(shard: int, group: int) -> int:
    return shard + HINTS + group * HINT_STRIDE


# ---- tallies: lost, dead, redelivered, left (GROUPS words each) in memory of this process -----------


@inner
def count_word(tally: int, group: int, word: int) -> None:
    state = word_state(word)
    if state == LOST:
        put(tally + group * 8, get(tally + group * 8) + 1)
    if state == DEAD:
        put(tally + (GROUPS + group) * 8, get(tally + (GROUPS + group) * 8) + 1)
    again = tally + (2 * GROUPS + group) * 8
    put(again, get(again) + word_redeliveries(word))
    if state == LEFT:
        put(tally + (3 * GROUPS + group) * 8, get(tally + (3 * GROUPS + group) * 8) + 1)


# ---- producer --------------------------------------------------------------------------------------


@inner
def reclaim_slots(shard: int, slots: int, tail: int, end: int, tally: int, abandoned: int) -> int:
    """Step 1: the new tail after passing every slot whose words are all final, at most to `end`.

    Packets that wait for one of `abandoned` (groups without members) are passed over.
    """
    while tail != end:
        slot = slot_of(shard, slots, tail)
        for group in range(GROUPS):
            word = load_acquire(slot + group * 8)  # S4: pairs with S3
            if word_state(word) == PENDING and (abandoned >> group) & 1:
                left = with_state(word, LEFT)
                if cmpxchg(slot + group * 8, word, left) == word:
                    word = left
            if word_state(word) < DELIVERED:
                return tail
        for group in range(GROUPS):
            word = load_relaxed(slot + group * 8)  # final: only this producer changes it now
            if (ORDINARY >> word_state(word)) & 1 == 0 or word_redeliveries(word) != 0:
                count_word(tally, group, word)
        tail += 1
    return tail


@inner
def fill_slot(shard: int, slots: int, seq: int, descriptor: int, wanted: int) -> None:
    """Step 2 without the commit: the slot of `seq` is ours, its payload is written."""
    slot = slot_of(shard, slots, seq)
    store_relaxed(slot + DESCRIPTOR, descriptor)
    for group in range(GROUPS):
        state = PENDING if (wanted >> group) & 1 else MISSED
        store_relaxed(slot + group * 8, make_word(seq, 0, 0, state))


@inner
def commit_seq(header: int, shard: int, next_seq: int) -> None:
    store_seq_cst(shard + WSEQ, next_seq)  # S1: pairs with S2; S7: first half
    ring(header)


@inner
def ring(header: int) -> None:
    """Step 3. Clearing first: a waiter that sets its bit later sees the doorbell move or is seen."""
    if load_seq_cst(header + WAITERS) == 0:  # S7: second half
        return
    exchange_acq_rel(header + WAITERS, 0)
    fetch_add_release(header + DOORBELL, 1)  # S9: pairs with begin_wait
    futex_wake(header + DOORBELL)


# ---- consumer --------------------------------------------------------------------------------------


@inner
def claim_packets(
    shard: int, slots: int, group: int, owner: int, most: int, seqs: int, stride: int
) -> int:
    """Step 4: claim up to `most` packets; (seq, word) of each goes to `seqs`, `stride` bytes apart."""
    hint = load_acquire(hint_of(shard, group))  # S6: pairs with S5
    end = load_acquire(shard + WSEQ)  # S2: pairs with S1
    behind = tag_distance(end, hint)
    if behind <= 0:
        return 0
    seq = end - min(behind, slots)  # older ones are final: their slots were reused
    taken = 0
    while seq != end and taken < most:
        if end - seq > 8:
            prefetch(slot_of(shard, slots, seq + 8))
        address = slot_of(shard, slots, seq) + group * 8
        word = load_relaxed(address)
        if word_seq(word) == seq & SEQ_MASK and word_state(word) == PENDING:
            mine = make_word(seq, word_redeliveries(word), owner, CLAIMED)
            if cmpxchg(address, word, mine) != word:
                continue  # someone was faster: look at the same word again
            put(seqs + taken * stride, seq)
            put(seqs + taken * stride + 8, mine)
            taken += 1
        seq += 1
    # Losing this swap only costs a longer scan: another scan moved it, or a reaper rewound it.
    cmpxchg(hint_of(shard, group), hint, (hint & ~SEQ_MASK) | (seq & SEQ_MASK))
    return taken


@inner
def finish_packet(
    shard: int, slots: int, group: int, seq: int, claimed: int, following: int
) -> bool:
    address = slot_of(shard, slots, seq) + group * 8
    return cmpxchg(address, claimed, following) == claimed  # S3: pairs with S4


@inner
def release_packet(shard: int, slots: int, group: int, seq: int, claimed: int) -> bool:
    """Step 5. False: the lease was taken away; drop what was read."""
    return finish_packet(shard, slots, group, seq, claimed, with_state(claimed, DELIVERED))


@inner
def return_packet(
    shard: int, slots: int, group: int, seq: int, claimed: int, at_least_once: int
) -> bool:
    """Step 6 for one packet: by its living reader that failed, or by a reaper for a dead one."""
    following = returned(claimed, at_least_once)
    if not finish_packet(shard, slots, group, seq, claimed, following):
        return False
    if word_state(following) == PENDING:
        rewind(shard, group, word_seq(claimed))
    return True


# ---- reaper ----------------------------------------------------------------------------------------


@inner
def reap_claims(shard: int, slots: int, group: int, owner: int, at_least_once: int) -> int:
    """Step 6 for one group: everything `owner` (dead) holds. Returns packets taken back."""
    count = 0
    for slot in range(slots):
        word = load_acquire(slot_of(shard, slots, slot) + group * 8)
        if (
            word_state(word) == CLAIMED
            and word_owner(word) == owner
            and return_packet(shard, slots, group, slot, word, at_least_once)
        ):
            count += 1
    return count


@inner
def rewind(shard: int, group: int, seq: int) -> None:
    """Move the hint back to `seq` and bump its epoch, so that no older scan moves it forward."""
    address = hint_of(shard, group)
    hint = load_relaxed(address)
    while True:
        low = seq & SEQ_MASK if tag_distance(hint, seq) > 0 else hint & SEQ_MASK
        epoch = (hint >> 40) + 1
        found = cmpxchg_seq_cst(address, hint, (epoch << 40) | low)  # S5: pairs with S6; S7
        if found == hint:
            return
        hint = found


@inner
def repair_hint(shard: int, slots: int, group: int) -> None:
    """Undo what a reaper killed between word and hint left: scan the whole window again."""
    rewind(shard, group, load_acquire(shard + WSEQ) - slots)


# ---- waiting ---------------------------------------------------------------------------------------


@inner
def begin_wait(header: int, bit: int) -> int:
    """Step 7: the doorbell value to sleep on. Look for packets after this, then sleep."""
    bell = load_acquire(header + DOORBELL)  # S9: pairs with ring
    fetch_or_seq_cst(header + WAITERS, bit)  # S8: first half
    return bell


@inner
def has_news(shard: int, group: int) -> bool:
    hint = load_seq_cst(hint_of(shard, group))
    return tag_distance(load_seq_cst(shard + WSEQ), hint) > 0  # S8: second half
