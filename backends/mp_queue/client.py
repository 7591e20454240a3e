"""A process's attachment to a bus that another process owns."""

from __future__ import annotations

import os
import weakref
from typing import Self

from asys_bench.backends.mp_queue.arena import MAX_PAYLOAD_BYTES
from asys_bench.backends.mp_queue.channel import Channel, close_in_children
from asys_bench.backends.mp_queue.counters import CounterReader
from asys_bench.backends.mp_queue.far_ledger import FarLedger
from asys_bench.backends.mp_queue.producer import QueueProducer
from asys_bench.backends.mp_queue.subscription import QueueSubscription
from asys_bench.backends.mp_queue.wire import Frame, Hello
from asys_bench.contracts.bus import (
    AttachedProducer,
    BusAccount,
    BusClient,
    BusError,
    BusHandle,
    BusSubscription,
    GroupSpec,
)


class QueueAttachedProducer(QueueProducer, AttachedProducer):
    """The writer of one shard in a process that does not own the bus, over a `FarLedger`."""

    def __init__(self, ledger: FarLedger, shard: int, source: int) -> None:
        self._far = ledger
        super().__init__(
            ledger,
            ledger.arena,
            _nobody,
            shard,
            source,
            with_checksum=ledger.checksum,
            max_payload_bytes=min(MAX_PAYLOAD_BYTES, ledger.capacity_bytes),
        )

    def fill_ratio(self) -> float:
        if self._far.finished:
            return 0.0
        self._far.catch_up()
        return self._arena.fill_ratio()

    def close(self) -> None:
        self._far.close()


def _nobody() -> None:
    """The owner's I/O thread is woken by the message itself."""


class Connector:
    """Where the owner listens and how to be let in; makes subscriptions."""

    def __init__(self, address: str, token: str, prefetch: bool, timeout_s: float) -> None:
        self._address = address
        self._token = token
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._subscriptions: weakref.WeakSet[QueueSubscription] = weakref.WeakSet()
        self._producers: weakref.WeakSet[QueueAttachedProducer] = weakref.WeakSet()

    def subscribe(self, group: str, member: str, spec: GroupSpec | None) -> QueueSubscription:
        """A new member. Raises BusError when the owner is gone or refuses."""
        hello = Hello(group, member, spec)

        def connect() -> Channel:
            return Channel(self._address, self._token, hello, self._timeout_s)

        subscription = QueueSubscription(group, member, connect, prefetch=self._prefetch)
        self._subscriptions.add(subscription)
        return subscription

    def retire(self, group: str) -> None:
        """Join just to say that nobody else will. Raises BusError when the owner is gone."""
        hello = Hello(group, "retirer", None)
        channel = Channel(self._address, self._token, hello, self._timeout_s)
        channel.send(Frame.RETIRE)
        channel.send(Frame.BYE)
        channel.close()

    def attach_producer(self, shard: int, source: int) -> QueueAttachedProducer:
        """Take a shard's producer. Raises BusError when the owner is gone or refuses."""
        ledger = FarLedger(self._address, self._token, shard, self._timeout_s)
        producer = QueueAttachedProducer(ledger, shard, source)
        self._producers.add(producer)
        return producer

    def close(self) -> None:
        """Leave every group."""
        for producer in list(self._producers):
            producer.close()
        for subscription in list(self._subscriptions):
            subscription.close()

    def abandon(self) -> None:
        """In a forked child."""
        for subscription in list(self._subscriptions):
            subscription.abandon()


class QueueClient(BusClient):
    """Attached by a handle: subscribes, reads the account and the names."""

    def __init__(self, page: CounterReader, connector: Connector) -> None:
        self._page = page
        self._connector = connector
        self._pid = os.getpid()
        self._closed = False
        close_in_children(self)

    @classmethod
    def attach(cls, handle: BusHandle) -> Self:
        """Attach to the bus behind `handle`; its descriptor is not consumed.

        Raises:
            BusError: it is no handle of this backend.
        """
        try:
            if handle.backend != "mp_queue" or len(handle.fds) != 1:
                raise BusError(f"not an mp_queue handle: {handle.backend}, {len(handle.fds)} fds")
            connector = Connector(
                str(handle.params["address"]),
                str(handle.params["token"]),
                bool(handle.params["prefetch"]),
                float(handle.params["connect_timeout_s"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BusError(f"the handle's params are incomplete: {error!r}") from error
        return cls(CounterReader(handle.fds[0]), connector)

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        self._check()
        return self._connector.subscribe(group, member, spec)

    def attach_producer(self, shard: int, source: int) -> AttachedProducer:
        self._check()
        return self._connector.attach_producer(shard, source)

    def retire(self, group: str) -> None:
        self._check()
        self._connector.retire(group)

    def account(self) -> BusAccount:
        self._check()
        return self._page.account()

    def name_of(self, name_id: int) -> str:
        self._check()
        return self._page.name_of(name_id)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connector.close()
            self._page.close()

    def after_fork_in_child(self) -> None:
        """Close inherited channels: an open copy would hide this reader's death from the owner."""
        self._connector.abandon()

    def _check(self) -> None:
        if self._closed:
            raise BusError("this client is closed; attach again")
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's client; attach by the handle")
