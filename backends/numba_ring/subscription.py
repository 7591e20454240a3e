"""One member of one group: claiming, waiting, and noticing the dead."""

from __future__ import annotations

import time

import numpy as np

from asys_bench.backends.numba_ring.core import consumer_core
from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.consumer_core import (
    C_ARENA_BYTES,
    C_AT_LEAST_ONCE,
    C_GROUP,
    C_HEADER,
    C_NAP_NS,
    C_OWNER,
    C_POLL_NS,
    C_SHARDS,
    C_SLOTS,
    C_SPIN_NS,
    C_STATE_BYTES,
    C_STRIDE,
    LOOK_NS,
    NEWS,
)
from asys_bench.backends.numba_ring.lease import ClaimBuffer, ClaimBuffers, RingLease
from asys_bench.backends.numba_ring.segment import Segment
from asys_bench.backends.numba_ring.tables import Group, Tables
from asys_bench.backends.ring_client import forks
from asys_bench.backends.ring_client.client import RingMember
from asys_bench.contracts.bus import BusError, Lease

_MOST = 1 << 22
FIRST_DOZE_S, DOZES, MANY = 0.001, 8, 32
"""Who waits for MANY packets or more looks DOZES times in its time: after the first so long, then seldom
while few come. Fewer are large ones, of which a ring is soon full: it looks more often."""


class RingSubscription(RingMember):
    """A member; it holds an owner id in the segment until it closes or its process dies."""

    def __init__(
        self, segment: Segment, group: Group, member: str, spin_us: int, poll_us: int
    ) -> None:
        self.group = group.name
        self.member = member
        self.segment = segment
        self._doze_s = FIRST_DOZE_S
        self.generation = forks.generation
        self._tables = Tables(segment)
        self._group_number = group.number
        self._buffers = ClaimBuffers()
        self._next_look = 0
        self._owner = 0
        geometry = segment.geometry
        state = np.zeros(C_STATE_BYTES // 8, np.int64)
        self._state = state
        self._address = int(state.__array_interface__["data"][0])
        self._owner = self._tables.register_owner(group.number)
        for offset, value in {
            C_HEADER: segment.base,
            C_SHARDS: geometry.shards,
            C_STRIDE: geometry.shard_stride,
            C_SLOTS: geometry.slots,
            C_ARENA_BYTES: geometry.arena_bytes,
            C_GROUP: group.number,
            C_OWNER: self._owner,
            C_AT_LEAST_ONCE: int(group.at_least_once),
            C_SPIN_NS: spin_us * 1000,
            C_POLL_NS: poll_us * 1000,
            C_NAP_NS: poll_us * 1000,
        }.items():
            state[offset // 8] = value
        self._tables.reap_dead()

    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        if self.generation != forks.generation:
            raise forks.refuse()
        if self._owner == 0:
            raise BusError("the subscription is closed")
        most = min(max(0, max_packets), _MOST)
        claims = self._buffers.take(most)
        count = consumer_core.claim(self._address, claims.address, most)
        least = min(min_packets, most)
        if count >= least:
            self._filled()
        if count >= least or timeout_s <= 0:
            return RingLease(self, claims, count)
        return RingLease(self, claims, self._wait_for(claims, count, most, least, timeout_s))

    @property
    def ended(self) -> bool:
        if self.generation != forks.generation:
            raise forks.refuse()
        if not self.segment.no_more:
            return False
        self._tables.reap_dead()
        return consumer_core.may_come(self._address) == 0

    def close(self) -> None:
        if self._owner == 0 or self.generation != forks.generation:
            return
        owner, self._owner = self._owner, 0
        self.closed = True
        self._tables.reap_owner(owner, self._group_number)
        self.segment.words.clear_bits(at.HDR_WAITERS, 1 << (owner >> 10))
        self._tables.free_owner(owner)
        self._tables.let_go_of_empty_groups()

    def settle(self, claims: ClaimBuffer, count: int, *, delivered: bool) -> int:
        """Release or give back what a lease holds; how many packets that was true for."""
        settle = consumer_core.release if delivered else consumer_core.give_back
        settled = settle(self._address, claims.address, count) if count else 0
        self._buffers.give(claims)
        return settled

    def __del__(self) -> None:
        # In a forked child the member is the parent's: its claims are not ours to settle.
        if getattr(self, "_owner", 0):
            self.close()

    def _wait_for(
        self, claims: ClaimBuffer, count: int, most: int, least: int, timeout_s: float
    ) -> int:
        deadline = time.monotonic_ns() + int(min(timeout_s, 1e9) * 1e9)
        more = True
        try:
            while more and count < least and time.monotonic_ns() < deadline:
                if least > 1:
                    more = not self._look_around()
                    if more:
                        self._doze(timeout_s, least, deadline)
                elif (found := consumer_core.wait(self._address, deadline)) != NEWS:
                    more = found != consumer_core.FINISHED and not self._look_around()
                after_those = claims.address + count * consumer_core.CLAIM_BYTES
                count += consumer_core.claim(self._address, after_those, most - count)
        except BaseException:  # a signal came while waiting: nobody will see this lease
            consumer_core.give_back(self._address, claims.address, count)
            raise
        if count >= least:
            self._filled()
        return count

    def _filled(self) -> None:
        """There were as many as were wanted: look sooner the next time."""
        self._doze_s = max(self._doze_s / 4, FIRST_DOZE_S)

    def _doze(self, timeout_s: float, least: int, deadline: int) -> None:
        """Sleep unwoken: neither this reader nor a producer pays for each of several packets."""
        longest_s = min(LOOK_NS / 1e9, timeout_s / DOZES * min(least, MANY) / MANY)
        left_s = (deadline - time.monotonic_ns()) / 1e9
        time.sleep(max(0.0, min(self._doze_s, longest_s, left_s)))
        self._doze_s = min(2 * self._doze_s, LOOK_NS / 1e9)

    def _look_around(self) -> bool:
        """Nothing came for a while: take back what the dead hold. True when nothing more will come."""
        now = time.monotonic_ns()
        if now >= self._next_look:
            self._next_look = now + LOOK_NS
            self._tables.stay_in(self._group_number)
            self._tables.reap_dead()
            consumer_core.repair(self._address)
        return self.segment.no_more
