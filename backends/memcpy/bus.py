"""`MemcpyBus`: the queues and arenas of mp_queue without sockets; consumers are threads."""

from __future__ import annotations

import os

from asys_bench.backends.memcpy.subscription import Bell, MemcpySubscription
from asys_bench.backends.mp_queue.broker import Broker
from asys_bench.backends.mp_queue.producer import QueueProducer
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusAccount,
    BusClient,
    BusError,
    BusHandle,
    BusRequest,
    BusSubscription,
    GroupSpec,
)

MAX_PAYLOAD_BYTES = 1 << 30


class MemcpyBus(BaseDataBus):
    """One process, one copy."""

    def __init__(self, request: BusRequest) -> None:
        """Take the arenas. Raises BusError: a request that cannot be met."""
        super().__init__()
        if min(request.shards, request.capacity_packets, request.capacity_bytes) < 1:
            raise BusError("a bus needs at least 1 shard, 1 packet and 1 byte of capacity")
        self._request = request
        self._broker = Broker(request)
        self._bell = Bell()
        self._subscriptions: list[MemcpySubscription] = []
        self._pid = os.getpid()
        self._closed = False

    def producer(self, shard: int = 0) -> QueueProducer:
        self._check()
        self._broker.take_shard(shard)
        return QueueProducer(
            self._broker,
            self._broker.arenas[shard],
            self._bell.ring,
            shard,
            self._request.source,
            with_checksum=self._request.checksum,
            max_payload_bytes=min(MAX_PAYLOAD_BYTES, self._request.capacity_bytes),
        )

    def intern(self, name: str) -> int:
        self._check()
        return self._broker.intern(name)

    def retire(self, group: str) -> None:
        self._broker.retire(group)

    def name_of(self, name_id: int) -> str:
        return self._broker.name_of(name_id)

    def handle(self) -> BusHandle:
        raise BusError("the memcpy bus lives in one process and has no handle")

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        self._check()
        joined = self._broker.join(group, spec)
        subscription = MemcpySubscription(group, member, self._broker, joined, self._bell)
        self._subscriptions.append(subscription)
        return subscription

    def account(self) -> BusAccount:
        self._check_pid()
        return self._broker.account()

    def fill_ratio(self) -> float:
        return self._broker.fill_ratio()

    def finish(self) -> None:
        self._check()
        self._broker.finish()
        self._bell.ring()

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._broker.finish()
        for subscription in self._subscriptions:
            subscription.close()
        self._broker.close()

    def _check(self) -> None:
        self._check_pid()
        if self._closed:
            raise BusError("this bus is closed; build a new one")

    def _check_pid(self) -> None:
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's bus")


def attach(handle: BusHandle) -> BusClient:
    """There is nothing to attach to."""
    raise BusError("the memcpy bus lives in one process; it cannot be attached to")
