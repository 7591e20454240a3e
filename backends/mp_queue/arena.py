"""One shard's memory: a ring of frames, taken and prefaulted at start.

Only the shard's producer places frames; slots are freed from the oldest on, as soon as no group
holds them. The mapping is shared (not copy-on-write), so that a host that forks does not pay a page
fault per push afterwards. Nobody else has a name or descriptor for it, unless it is `shared` with the
shard's producer in another process, which then keeps the same record of it (`far_ledger.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
from collections import deque

import numpy as np

from asys_bench.backends.mp_queue.wire import padded
from asys_bench.contracts.packet import HEADER_BYTES
from asys_bench.system.descriptor import Descriptor, map_shared
from asys_bench.system.files.atomic import private_memfd

NO_ROOM = -1
_POPULATE_WRITE = 23  # madvise: fill the page tables
MAX_PAYLOAD_BYTES = 1 << 30


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

    def __init__(
        self,
        capacity_packets: int,
        capacity_bytes: int,
        *,
        shared: bool = False,
        of: int | None = None,
    ) -> None:
        """Map `capacity_bytes` plus room for the headers of `capacity_packets`.

        shared: another process may map it, through `fd`. of: map the shared one behind this descriptor
        (which is not consumed).

        Raises:
            OSError: no memory or descriptors, or `of` is smaller than that.
        """
        self.capacity_packets = capacity_packets
        self.size = padded(capacity_bytes) + capacity_packets * padded(HEADER_BYTES + 1)
        self._memory = Descriptor(_memory(self.size)) if shared else None
        self.freed = 0
        """Slots freed since `take_freed` (under the bus lock)."""
        flags = mmap.MAP_SHARED
        if sys.platform == "linux":
            flags |= mmap.MAP_POPULATE
        try:
            if of is not None and os.fstat(of).st_size < self.size:
                raise OSError("the shared arena is smaller than its owner says")
            if self._memory is not None or of is not None:
                self._map = map_shared(self.fd if of is None else of, self.size)
                self._prefault()
            else:
                self._map = mmap.mmap(-1, self.size, flags=flags)
        except (OSError, ValueError) as error:
            self._close_fd()
            raise OSError(f"the arena cannot be mapped: {error}") from error
        self.view = memoryview(self._map)
        self.array = np.frombuffer(self._map, np.uint8)
        self.slots: deque[Slot] = deque()
        self._head = 0

    @property
    def shared(self) -> bool:
        """Another process may have the producer of this shard."""
        return self._memory is not None

    @property
    def fd(self) -> int:
        """Of a `shared` arena, for passing on. Raises OSError: this process has closed it."""
        assert self._memory is not None
        return self._memory.number

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
            self.freed += 1

    def take_freed(self) -> int:
        """How many slots were freed since the last call (under the bus lock)."""
        count, self.freed = self.freed, 0
        return count

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
        self._close_fd()

    def abandon(self) -> None:
        """In a forked child: an inherited descriptor is of no use."""
        self._close_fd()

    def _close_fd(self) -> None:
        if self._memory is not None:
            self._memory.close()

    def _prefault(self) -> None:
        with contextlib.suppress(OSError):  # an older kernel: first touches fault instead
            self._map.madvise(_POPULATE_WRITE)


def _memory(nbytes: int) -> int:
    """A descriptor of `nbytes` of memory, reserved and sealed against a change of its size."""
    fd = private_memfd("asys-mp-queue-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd
