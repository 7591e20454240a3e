"""One shard's memory: a ring of frames, taken and prefaulted at start.

Only the shard's producer places frames; slots are freed from the oldest on, as soon as no group
holds them. The mapping is shared (not copy-on-write), so that a host that forks does not pay a page
fault per push afterwards; nobody else has a name or descriptor for it.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections import deque

import numpy as np

from asys_bench.backends.mp_queue.wire import padded
from asys_bench.contracts.packet import HEADER_BYTES

NO_ROOM = -1


class Slot:
    """One frame in the arena; `refs` groups still hold it."""

    __slots__ = ("nbytes", "offset", "order", "refs", "shard", "size")

    def __init__(
        self, order: int, shard: int, offset: int, size: int, nbytes: int, refs: int
    ) -> None:
        self.order = order
        self.shard = shard
        self.offset = offset
        self.size = size
        self.nbytes = nbytes
        self.refs = refs


class Arena:
    """The ring of one shard. The bus lock guards `slots`; `place` needs no lock."""

    def __init__(self, capacity_packets: int, capacity_bytes: int) -> None:
        """Map `capacity_bytes` plus room for the headers of `capacity_packets`. Raises OSError."""
        self.capacity_packets = capacity_packets
        self.size = padded(capacity_bytes) + capacity_packets * padded(HEADER_BYTES + 1)
        flags = mmap.MAP_SHARED
        if sys.platform == "linux":
            flags |= mmap.MAP_POPULATE
        self._map = mmap.mmap(-1, self.size, flags=flags)
        self.view = memoryview(self._map)
        self.array = np.frombuffer(self._map, np.uint8)
        self.slots: deque[Slot] = deque()
        self._head = 0

    def place(self, size: int) -> int:
        """Where a frame of `size` bytes (padded) fits now, or NO_ROOM. Claims nothing yet.

        Slots are freed concurrently, which can only make more room than this sees.
        """
        slots = self.slots
        if len(slots) >= self.capacity_packets:
            return NO_ROOM
        try:
            tail = slots[0].offset
        except IndexError:
            return 0 if size <= self.size else NO_ROOM
        head = self._head
        if head > tail:
            if head + size <= self.size:
                return head
            return 0 if size < tail else NO_ROOM
        return head if head + size < tail else NO_ROOM

    def add(self, slot: Slot) -> None:
        """Claim what `place` found (under the bus lock)."""
        self._head = slot.offset + slot.size
        self.slots.append(slot)

    def free_oldest(self) -> None:
        """Forget slots that nobody holds, oldest first (under the bus lock)."""
        slots = self.slots
        while slots and not slots[0].refs:
            slots.popleft()

    def fill_ratio(self) -> float:
        """0..1, of packets or of bytes, whichever is fuller."""
        slots = self.slots
        try:
            tail = slots[0].offset
        except IndexError:
            return 0.0
        used = self._head - tail if self._head > tail else self.size - tail + self._head
        return max(len(slots) / self.capacity_packets, used / self.size)

    def close(self) -> None:
        """Unmap (later, should a caller still hold a view of a reservation)."""
        self.slots.clear()
        del self.array
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()
