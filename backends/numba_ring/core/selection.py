"""Which groups get a packet, for compiled producers; and what each of them missed."""

from __future__ import annotations

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.compiled import inner
from asys_bench.backends.numba_ring.core.copy import get, load_relaxed, put
from asys_bench.backends.numba_ring.core.producer_state import (
    P_FILTERING,
    P_HEADER,
    P_INITIAL_SEQ,
    P_MASK,
    P_MISSED,
    P_MISSED_DIRTY,
    P_NEXT,
)

GROUPS, NAMES, ACTIVE_SHIFT = at.GROUPS, at.NAMES, at.ACTIVE_SHIFT
GROUPS_OFFSET, GROUP_STRIDE = at.GROUPS_OFFSET, at.GROUP_STRIDE
GRP_FLAGS, GRP_HOOKS = at.GRP_FLAGS, at.GRP_HOOKS


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
