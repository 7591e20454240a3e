"""What the path keeps on one device: a side stream, a buffer for encoded packets, events."""

from __future__ import annotations

from collections import deque

import torch

from asys_bench.capture.gpu.runtime import DeviceEvent, DeviceRuntime

ALIGNMENT = 256
"""Bytes; what the CUDA allocator itself gives, so that vector loads and any dtype view are legal."""


class FifoArena:
    """Where the next packet goes in memory of a fixed size, [0, capacity); the oldest is freed first.

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


class SideStream:
    """The stream of one device that carries packets beside the host's work, its buffer and its events.

    The streamer's lock guards all of it.

    buffer_bytes: device memory, taken here and kept until this object is dropped.
    """

    def __init__(self, runtime: DeviceRuntime, device: torch.device, buffer_bytes: int) -> None:
        self.device = device
        self.stream = runtime.side_stream(device)
        self.buffer = runtime.buffer(buffer_bytes, device, self.stream)
        self.arena = FifoArena(buffer_bytes)
        self.handover = runtime.event()
        """Marks the host's stream behind the encoder, for the side stream. One event is enough: a wait
        keeps the mark that the event had when the wait was queued."""
        self._runtime = runtime
        self._idle_events: list[DeviceEvent] = []

    def take_event(self) -> DeviceEvent:
        return self._idle_events.pop() if self._idle_events else self._runtime.event()

    def give_event(self, event: DeviceEvent) -> None:
        """`event` is over and nobody waits for it any more."""
        self._idle_events.append(event)

    def block(self, offset: int, nbytes: int) -> torch.Tensor:
        return self.buffer[offset : offset + nbytes]
