"""NumbaRingBus: the ring client over the segment that numba's code works on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from asys_bench.backends.numba_ring import segment as segments
from asys_bench.backends.numba_ring.core import account_core, compiled
from asys_bench.backends.numba_ring.core.layout import GROUPS, MAX_PAYLOAD_BYTES
from asys_bench.backends.numba_ring.core.words import signed
from asys_bench.backends.numba_ring.producer import RingProducer
from asys_bench.backends.numba_ring.subscription import RingSubscription
from asys_bench.backends.numba_ring.tables import Tables
from asys_bench.backends.ring_client.client import (
    REFUSALS,
    RingBus,
    RingClient,
    RingMember,
    RingSegment,
    SegmentRequest,
    ShardWriter,
)
from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import BusError, GroupAccount

logger = logging.getLogger(__name__)


class NumbaSegment(RingSegment):
    """A segment and its tables."""

    def __init__(self, segment: segments.Segment) -> None:
        logger.info("numba_ring: %s", compiled.log)
        self._segment = segment
        self._tables = Tables(segment)
        self.shards = segment.geometry.shards

    @classmethod
    def create(cls, request: SegmentRequest) -> Self:
        most = min(request.max_payload, MAX_PAYLOAD_BYTES)
        return cls(segments.create(replace(request, max_payload=most)))

    @classmethod
    def attach_fd(cls, fd: int) -> Self:
        return cls(segments.attach_fd(fd))

    @classmethod
    def attach_name(cls, name: str) -> Self:
        return cls(segments.attach_name(name))

    @property
    def fd(self) -> int:
        return self._segment.fd

    def intern(self, name: str) -> int:
        return self._tables.intern(name)

    def name_of(self, name_id: int) -> str:
        return self._tables.name_of(name_id)

    def name_count(self) -> int:
        return self._tables.name_count()

    def group_names(self) -> list[str]:
        return self._tables.group_names()

    def add_group(
        self, name: str, at_least_once: bool, temporary: bool, hooks: Sequence[int] | None
    ) -> bool:
        return self._tables.add_group(name, at_least_once, temporary, hooks).at_least_once

    def subscribe(self, group: str, member: str, options: RingOptions) -> RingMember:
        found = self._tables.find_group(group)
        if found is None:
            raise BusError(f"no group {group!r}; this bus has {self.group_names()}")
        return RingSubscription(self._segment, found, member, options.spin_us, options.poll_us)

    def writer(self, shard: int, options: RingOptions, source: int | None) -> ShardWriter:
        return RingProducer(self._segment, shard, options, source)

    def counts(self) -> tuple[int, int, Sequence[int], Sequence[GroupAccount]]:
        segment = self._segment
        groups = self._tables.groups()
        mask = sum(1 << group.number for group in groups)
        account = np.zeros(account_core.ACCOUNT_WORDS, np.int64)
        address = int(account.__array_interface__["data"][0])
        for shard in range(self.shards):
            account_core.read_shard(
                segment.shard_address(shard),
                segment.geometry.slots,
                signed(segment.initial_seq),
                mask,
                address,
            )
        counted = account.tolist()
        accepted = counted[account_core.ACCEPTED]

        def account_of(name: str, number: int) -> GroupAccount:
            tallies = counted[account_core.TALLY + number : account_core.READY : GROUPS]
            lost, dead, redelivered, left = tallies
            ready = counted[account_core.READY + number]
            missed = counted[account_core.MISSED + number] + left
            delivered = accepted - lost - dead - ready - missed
            return GroupAccount(name, delivered, lost, dead, redelivered, ready, missed)

        return (
            accepted,
            counted[account_core.BYTES],
            counted[account_core.DROPS : account_core.DROPS + len(REFUSALS)],
            [account_of(group.name, group.number) for group in groups],
        )

    def retire(self, group: str) -> None:
        watch = self._segment.owner_watch
        if watch is not None and watch.dead():
            raise BusError(
                f"cannot retire {group!r}: the bus's owner is dead, its groups end by draining"
            )
        self._tables.retire(group)

    def reap(self, pid: int) -> int:
        return self._tables.reap_pid(pid)

    def refuse(self) -> None:
        self._segment.refuse()

    def finish(self) -> None:
        self._segment.finish()

    def unlink(self) -> None:
        self._segment.unlink()


class NumbaRingClient(RingClient):
    """Another process's attachment."""

    segment_type = NumbaSegment


class NumbaRingBus(RingBus):
    """The bus as its owner holds it."""

    backend = "numba_ring"
    segment_type = NumbaSegment
