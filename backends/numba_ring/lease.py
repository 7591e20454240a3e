"""A batch of claimed packets, in the producer's memory.

Its payloads are slices of one memoryview over one numpy array (the "owner"). Whatever is made from a
payload (slices, arrays, tensors) keeps that owner alive, also where it is a sibling of the memoryview
and no export of it. So: close our memoryviews, then see whether the owner is gone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asys_bench.backends.numba_ring.core.consumer_core import CLAIM_WORDS
from asys_bench.backends.numba_ring.segment import Segment
from asys_bench.backends.ring_client import forks
from asys_bench.contracts.bus import BusError, Lease
from asys_bench.contracts.packet import HEADER_BYTES, ActivationPacket, set_payload

_Owner = weakref.ref[npt.NDArray[Any]]
_SPARES = 8
_ROWS = 64


class ClaimBuffer:
    """Where compiled code writes `capacity` claims, a few words each (see `consumer_core`)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._records = np.empty((capacity, CLAIM_WORDS), np.int64)
        self.address = int(self._records.__array_interface__["data"][0])

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """(seq, word, payload offset, payload bytes, shard) of the first `count` claims."""
        return self._records[:count]


class ClaimBuffers:
    """Buffers that are reused from lease to lease."""

    def __init__(self) -> None:
        self._spares: list[ClaimBuffer] = []

    def take(self, capacity: int) -> ClaimBuffer:
        if self._spares and capacity <= _ROWS:
            return self._spares.pop()
        return ClaimBuffer(max(capacity, _ROWS))

    def give(self, buffer: ClaimBuffer) -> None:
        if len(self._spares) < _SPARES and buffer.capacity == _ROWS:
            self._spares.append(buffer)


class Claimant(Protocol):
    """The member that pulled a lease."""

    segment: Segment
    generation: int

    def settle(self, claims: ClaimBuffer, count: int, *, delivered: bool) -> int:
        """Release or give back what a lease holds; how many packets that was true for."""


class RingLease(Lease):
    """Claimed packets; their payloads are views of the shared arena."""

    def __init__(self, subscription: Claimant, claims: ClaimBuffer, count: int) -> None:
        self._subscription = subscription
        self._claims = claims
        self._count = count
        self._packets: tuple[ActivationPacket, ...] | None = None
        self._owner: _Owner | None = None
        self._root: memoryview | None = None
        self._delivered = 0
        self._open = True

    def __len__(self) -> int:
        return self._count

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        if self._packets is None:
            self._must_be_open()
            self._packets = self._build()
        return self._packets

    def release(self) -> int:
        if self._open:
            if self._subscription.generation != forks.generation:
                raise forks.refuse()
            self._close_views()
            self._delivered = self._subscription.settle(self._claims, self._count, delivered=True)
            self._open = False
        return self._delivered

    def give_back(self) -> None:
        if not self._open:
            return
        for packet in self._packets or ():
            with contextlib.suppress(BufferError):  # a traceback may hold arrays; they are invalid
                packet.payload.release()
        self._open = False
        if self._subscription.generation == forks.generation:
            self._subscription.settle(self._claims, self._count, delivered=False)

    def __del__(self) -> None:
        # Dropped without a release: the reader gave up, unless views are alive. Then the packets stay
        # claimed until the subscription closes, because handing them on would allow their reuse.
        if getattr(self, "_open", False) and self._count:
            with contextlib.suppress(BufferError):
                self._close_views()
                self.give_back()

    def _build(self) -> tuple[ActivationPacket, ...]:
        arena = self._subscription.segment.payloads
        root = self._open_root()
        from_parts = ActivationPacket.from_parts
        packets = []
        for seq, _, start, nbytes, shard in self._claims.rows(self._count).tolist():
            if start < 0:
                raise BusError(
                    f"packet {seq} of shard {shard} points outside its arena: the segment is damaged"
                )
            packets.append(from_parts(arena, root[start : start + nbytes], start - HEADER_BYTES))
        return tuple(packets)

    def _open_root(self) -> memoryview:
        """All arenas through an owner of this lease's own.

        The owner's base is a memoryview: numpy bases a view of an array on that array's base, where
        the base is an array, and the owner would not see it.
        """
        arena = self._subscription.segment.payloads
        owner = np.frombuffer(arena, np.uint8)
        self._owner = weakref.ref(owner)
        self._root = owner.data
        return self._root

    def _close_views(self) -> None:
        """Close our payload views; put them back and raise BufferError while any other view lives."""
        alive = False
        if self._packets is not None and self._root is not None and self._owner is not None:
            for packet in self._packets:
                try:
                    packet.payload.release()
                except BufferError:
                    alive = True
            self._root.release()
            alive = alive or self._owner() is not None
        if alive:
            self._restore_views()
            raise BufferError(
                f"views of this lease's payloads ({self._count} packets) are alive (arrays, tensors, "
                "slices): drop or copy them, then release again"
            )
        self._root = None

    def _restore_views(self) -> None:
        if self._packets is None or self._owner is None:
            return
        owner = self._owner()
        root = self._open_root() if owner is None else owner.data
        self._root = root
        for packet, row in zip(self._packets, self._claims.rows(self._count).tolist(), strict=True):
            set_payload(packet, root[row[2] : row[2] + row[3]])

    def _must_be_open(self) -> None:
        if not self._open:
            raise BusError("the lease was released: its payloads are gone")
