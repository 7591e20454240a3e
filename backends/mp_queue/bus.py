"""`PythonQueueBus`: the bus as its owner holds it."""

from __future__ import annotations

import os
import secrets

from asys_bench.backends.mp_queue.arena import MAX_PAYLOAD_BYTES
from asys_bench.backends.mp_queue.broker import Broker
from asys_bench.backends.mp_queue.channel import close_in_children
from asys_bench.backends.mp_queue.client import Connector
from asys_bench.backends.mp_queue.config import MpQueueOptions
from asys_bench.backends.mp_queue.io_loop import IoLoop
from asys_bench.backends.mp_queue.producer import QueueProducer
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusAccount,
    BusError,
    BusHandle,
    BusRequest,
    BusSubscription,
    GroupSpec,
)


class PythonQueueBus(BaseDataBus):
    """Queues in the owner's memory, handed out over one Unix socket per consumer."""

    def __init__(self, request: BusRequest) -> None:
        """Create the counter page, listen, and start the I/O thread.

        Raises:
            BusError: a request that cannot be met.
        """
        super().__init__()
        options = request.options
        if not isinstance(options, MpQueueOptions):
            options = MpQueueOptions(**options.model_dump())
        if min(request.shards, request.capacity_packets, request.capacity_bytes) < 1:
            raise BusError("a bus needs at least 1 shard, 1 packet and 1 byte of capacity")
        self._request = request
        self._options = options
        self._token = secrets.token_hex(32)
        try:
            self._broker = Broker(request)
        except OSError as error:
            raise BusError(f"no memory for the bus: {error}; lower bus.capacity_bytes") from error
        try:
            self._loop = IoLoop(self._broker, self._token)
        except OSError as error:
            self._broker.close()
            raise BusError(f"cannot listen for consumers: {error}") from error
        self._connector = Connector(
            self._loop.address,
            self._token,
            options.prefetch,
            options.connect_timeout_s,
        )
        self._pid = os.getpid()
        self._closed = False
        close_in_children(self)

    def producer(self, shard: int = 0) -> QueueProducer:
        self._check()
        self._broker.take_shard(shard)
        return QueueProducer(
            self._broker,
            self._broker.arenas[shard],
            self._loop.wake,
            shard,
            self._request.source,
            with_checksum=self._request.checksum,
            max_payload_bytes=min(MAX_PAYLOAD_BYTES, self._request.capacity_bytes),
        )

    def intern(self, name: str) -> int:
        self._check()
        return self._broker.intern(name)

    def name_of(self, name_id: int) -> str:
        return self._broker.name_of(name_id)

    def handle(self) -> BusHandle:
        self._check()
        params = {
            "address": self._loop.address,
            "token": self._token,
            "prefetch": self._options.prefetch,
            "connect_timeout_s": self._options.connect_timeout_s,
        }
        return BusHandle("mp_queue", params, (self._broker.page.reader_fd,))

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        self._check()
        return self._connector.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        self._check_pid()
        return self._broker.account()

    def fill_ratio(self) -> float:
        return self._broker.fill_ratio()

    def reap(self, pid: int) -> int:
        self._check()
        return self._loop.reap(pid)

    def retire(self, group: str) -> None:
        self._check()
        self._broker.retire(group)
        self._loop.wake()  # a far producer may have room now

    def finish(self) -> None:
        self._check()
        self._broker.finish()
        self._loop.wake()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return  # the parent's; `after_fork_in_child` closed the descriptors
        self._broker.finish()
        self._connector.close()
        self._loop.stop()
        self._broker.close()

    def after_fork_in_child(self) -> None:
        """Close inherited sockets, so that consumers see this process's death as end of file."""
        self._loop.abandon()
        self._connector.abandon()

    def _check(self) -> None:
        self._check_pid()
        if self._closed:
            raise BusError("this bus is closed; build a new one")

    def _check_pid(self) -> None:
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's bus; attach by its handle")
