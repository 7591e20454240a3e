"""Reading in place: leases view the arena itself."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asys_bench.backends.mp_queue.arena import Arena, Slot
from asys_bench.backends.mp_queue.broker import Broker, Group
from asys_bench.contracts.bus import BusError, BusSubscription, Lease
from asys_bench.contracts.packet import HEADER_BYTES, ActivationPacket, set_payload

_RECHECK_S = 0.05


class Bell:
    """Wakes waiting consumers; a ring between looking and waiting is not lost."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.rings = 0

    def ring(self) -> None:
        with self._condition:
            self.rings += 1
            self._condition.notify_all()

    def wait(self, since: int, timeout_s: float) -> None:
        """Until a ring after the count `since`, or the timeout."""
        with self._condition:
            if self.rings == since:
                self._condition.wait(min(timeout_s, _RECHECK_S))


class MemcpyLease(Lease):
    """Views of slots. Each is made from an array of its own, whose life shows whether views live.

    After `give_back` the views must not be read any more (the memory may be used again).
    """

    def __init__(
        self, subscription: MemcpySubscription, slots: list[Slot], arenas: list[Arena]
    ) -> None:
        self._subscription = subscription
        self._slots = slots
        self._arenas = arenas
        self._outcome: int | None = None
        self._owners = [self._own(slot) for slot in slots]
        packets = []
        for slot, owner in zip(slots, self._owners, strict=True):
            view = arenas[slot.shard].view
            packets.append(ActivationPacket.from_parts(view, owner.data, slot.offset))
        self._packets = tuple(packets)

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return self._packets

    def release(self) -> int:
        if self._outcome is None:
            self._release_views()
            self._outcome = self._subscription.settle(self, delivered=True)
        return self._outcome

    def give_back(self) -> None:
        if self._outcome is None:
            self._subscription.settle(self, delivered=False)
            self._outcome = 0

    def _own(self, slot: Slot) -> npt.NDArray[np.uint8]:
        start = slot.offset + HEADER_BYTES
        return self._arenas[slot.shard].array[start : start + slot.nbytes]

    def _release_views(self) -> None:
        """Release our views; put them back and raise BufferError while any other view lives."""
        if not self._slots:
            return
        watches = [weakref.ref(owner) for owner in self._owners]
        for packet in self._packets:
            with contextlib.suppress(BufferError):
                packet.payload.release()
        self._owners.clear()
        if all(watch() is None for watch in watches):
            return
        for slot, packet, watch in zip(self._slots, self._packets, watches, strict=True):
            owner = watch()
            self._owners.append(self._own(slot) if owner is None else owner)
            set_payload(packet, self._owners[-1].data)
        raise BufferError(
            f"a view of a payload of this lease ({len(self._packets)} packets) is still alive; "
            "drop every array, tensor and memoryview of it (or copy) and call release() again"
        )


class EmptyLease(Lease):
    """What a pull returns when nothing came."""

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return ()

    def release(self) -> int:
        return 0

    def give_back(self) -> None:
        return None


class MemcpySubscription(BusSubscription):
    """One member; a thread of the owner process."""

    def __init__(self, group: str, member: str, broker: Broker, joined: Group, bell: Bell) -> None:
        self.group = group
        self.member = member
        self._broker = broker
        self._joined = joined
        self._bell = bell
        self._claims: dict[MemcpyLease, list[Slot]] = {}
        self._closed = False
        self._pid = os.getpid()

    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease:
        if self._closed:
            raise BusError(f"member {self.member!r} of {self.group!r} has left; subscribe again")
        if os.getpid() != self._pid:
            raise BusError("a forked child cannot use its parent's subscription")
        most = max(1, max_packets)
        least = max(1, min(min_packets, most))
        deadline = time.monotonic() + timeout_s
        while True:
            rings = self._bell.rings
            left_s = deadline - time.monotonic()
            slots = self._broker.take(self._joined, most, least if left_s > 0 else 0)
            if slots:
                lease = MemcpyLease(self, slots, self._broker.arenas)
                self._claims[lease] = slots
                return lease
            if left_s <= 0 or self.ended:
                return EmptyLease()
            self._bell.wait(rings, left_s)

    @property
    def ended(self) -> bool:
        return self._closed or self._broker.exhausted(self._joined)

    def settle(self, lease: MemcpyLease, *, delivered: bool) -> int:
        """Acknowledge or return the claim of `lease`; how many packets were delivered."""
        slots = self._claims.pop(lease, None)
        if slots is None:
            return 0
        if delivered:
            self._broker.acknowledge(self._joined, slots)
        else:
            self._broker.take_back(self._joined, slots, seen=True)
        self._bell.ring()
        return len(slots) if delivered else 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        for slots in self._claims.values():
            self._broker.take_back(self._joined, slots, seen=True)
        self._claims.clear()
        self._broker.leave(self._joined)
        self._bell.ring()
