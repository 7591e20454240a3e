"""What a compiled producer remembers: words in memory of its process, by byte offset.

tail <= committed <= next, modulo 2^64. The runs are the arena's: start and end, oldest first.
"""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at

P_HEADER, P_SHARD, P_ARENA, P_STARTS = 0, 8, 16, 24  # addresses; starts: frame offset per slot
P_SLOTS, P_ARENA_BYTES, P_WINDOW, P_MAX_PAYLOAD = 32, 40, 48, 56
P_STREAMING, P_INITIAL_SEQ = 64, 72
P_NEXT, P_COMMITTED, P_TAIL = 80, 88, 96  # tail <= committed <= next, modulo 2^64
P_RUN_COUNT, P_SINCE = 104, 112  # since: bytes allocated since the last reclaim
P_RESERVED, P_BYTES, P_MASK, P_FILTERING = 128, 136, 144, 152
P_MISSED_DIRTY, P_PUBLISHED = 160, 168
P_MISSED = 176  # a word per group
P_TALLY = P_MISSED + at.GROUPS * 8  # four words per group
P_RUNS = P_TALLY + 4 * at.GROUPS * 8
MOST_RUNS = 16
EARLY_RUNS = 3  # the others are for the gaps that early wraps leave
P_STATE_BYTES = P_RUNS + MOST_RUNS * 16
