"""One member of one group: asks for batches, waits without using CPU, and settles leases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from asys_bench.backends.mp_queue.channel import Channel, OwnerGone
from asys_bench.backends.mp_queue.lease import Batch, EmptyLease, QueueLease
from asys_bench.backends.mp_queue.wire import Frame
from asys_bench.contracts.bus import BusError, BusSubscription, Lease

_ANSWER_S = 0.25
"""How long a CANCEL may go unanswered (a busy or stopped owner) before the pull returns empty."""


class QueueSubscription(BusSubscription):
    """Pull-based: the owner hands out nothing that was not asked for. Not thread-safe."""

    def __init__(
        self, group: str, member: str, connect: Callable[[], Channel], *, prefetch: bool
    ) -> None:
        """`connect` makes a new channel (also after a torn read). Raises BusError as it does."""
        self.group = group
        self.member = member
        self._connect = connect
        self._prefetch = prefetch
        self._channel = connect()
        self._pid = os.getpid()
        self._asked = False
        self._cancelled = False
        self._over = False
        self._closed = False

    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        self._check()
        most = max(1, min(max_packets, 0xFFFFFFFF))
        least = max(1, min(min_packets, most))
        deadline = time.monotonic() + timeout_s
        if self._channel.torn:
            self._reconnect()
        while not self.ended:
            batch = self._next(most, least, deadline)
            if batch is None:
                break
            if len(batch.sizes) > most:  # asked for earlier by a pull that took more
                self._channel.send(Frame.RETURN, value=batch.batch_id)
                continue
            if not batch.sizes:
                if time.monotonic() >= deadline:
                    break
                continue  # the late answer to an earlier CANCEL
            if self._prefetch and len(batch.sizes) == most and not self._over:
                self._ask(most, 1, wait=True)
            return self._lease(batch)
        return EmptyLease()

    @property
    def ended(self) -> bool:
        if self._over or self._closed:
            return True
        channel = self._channel
        if channel.torn or self._asked or channel.mid_batch:
            return False
        try:
            channel.receive(0.0)  # only END or end of file can come unasked
        except OwnerGone:
            self._over = True
        self._over = self._over or channel.ended
        return self._over

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if os.getpid() == self._pid and not self._channel.torn:
            last = self._channel.last_batch - (1 if self._channel.mid_batch else 0)
            self._channel.send(Frame.BYE, value=last)
        self._channel.close()

    def abandon(self) -> None:
        """In a forked child: drop the inherited descriptor, say nothing."""
        self._closed = True
        self._channel.close()

    def _next(self, most: int, least: int, deadline: float) -> Batch | None:
        """One answer of the owner (possibly an empty batch); None: out of time, or over."""
        channel = self._channel
        if not self._asked:
            self._ask(most, least, wait=deadline > time.monotonic())
        try:
            batch = channel.receive(deadline)
            if batch is None and not channel.ended and not channel.mid_batch:
                if not self._cancelled:
                    self._cancelled = True
                    channel.send(Frame.CANCEL)
                batch = channel.receive(time.monotonic() + _ANSWER_S)
        except OwnerGone:
            self._over = True
            batch = channel.salvage()
        self._over = self._over or channel.ended
        if batch is not None or self._over:
            self._asked = False
        return batch

    def _ask(self, most: int, least: int, *, wait: bool) -> None:
        channel = self._channel
        channel.torn = True  # unless both happen: a signal handler may raise in between
        channel.send(Frame.PULL if wait else Frame.PULL_NOW, most, least)
        self._asked, self._cancelled = True, not wait
        channel.torn = False

    def _lease(self, batch: Batch) -> QueueLease:
        channel = self._channel

        def settle(batch_id: int, delivered: bool) -> bool:
            if self._closed or channel is not self._channel:
                return False
            channel.send(Frame.ACK if delivered else Frame.GIVE_BACK, value=batch_id)
            return True  # a dead owner cannot give it to anyone else

        return QueueLease(batch, settle, channel.recycle)

    def _reconnect(self) -> None:
        self._channel.close()
        self._asked = self._cancelled = False
        self._channel = self._connect()

    def _check(self) -> None:
        if self._closed:
            raise BusError(f"member {self.member!r} of {self.group!r} has left; subscribe again")
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's subscription; subscribe anew")
