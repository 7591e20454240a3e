"""Where the next packet goes in a fixed piece of memory whose packets are freed in order."""

from __future__ import annotations

from collections import deque

ALIGNMENT = 256
"""Bytes; what the CUDA allocator itself gives, so that vector loads and any dtype view are legal."""


class FifoArena:
    """Offsets in [0, capacity); blocks are freed oldest first. Bounded: it never grows.

    capacity: bytes; a multiple of `ALIGNMENT`.
    """

    def __init__(self, capacity: int) -> None:
        if capacity <= 0 or capacity % ALIGNMENT:
            raise ValueError(f"an arena of {capacity} bytes is not a multiple of {ALIGNMENT}")
        self.capacity = capacity
        self._blocks: deque[tuple[int, int]] = deque()  # (start, end), oldest first

    def allocate(self, nbytes: int) -> int | None:
        """The offset of `nbytes` free bytes, or None. An empty block takes room too."""
        need = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        start = self._place(need)
        if start is not None:
            self._blocks.append((start, start + need))
        return start

    def _place(self, need: int) -> int | None:
        if not self._blocks:
            return 0 if need <= self.capacity else None
        oldest, end = self._blocks[0][0], self._blocks[-1][1]
        if end <= oldest:  # wrapped: only the gap between newest and oldest is free
            return end if oldest - end >= need else None
        if self.capacity - end >= need:
            return end
        return 0 if oldest >= need else None

    def free_through(self, start: int) -> None:
        """Free the block at `start` and every older one."""
        while self._blocks.popleft()[0] != start:
            pass

    def undo_newest(self) -> None:
        """Take back the last `allocate`; nothing may have been issued to its bytes."""
        self._blocks.pop()

    @property
    def used(self) -> int:
        """Bytes from the oldest block to the newest, with what a wrap left unused between them."""
        if not self._blocks:
            return 0
        oldest, end = self._blocks[0][0], self._blocks[-1][1]
        return end - oldest if end > oldest else self.capacity - oldest + end
