"""What the path keeps on one device: a side stream, a buffer for encoded packets, events."""

from __future__ import annotations

import torch

from asys_bench.capture.gpu.fifo_arena import FifoArena
from asys_bench.capture.gpu.runtime import DeviceEvent, DeviceRuntime


class Lane:
    """One device. The streamer's lock guards all of it.

    buffer_bytes: device memory, taken here and kept until the lane is dropped.
    """

    def __init__(self, runtime: DeviceRuntime, device: torch.device, buffer_bytes: int) -> None:
        self.device = device
        self.side = runtime.side_stream(device)
        self.buffer = runtime.buffer(buffer_bytes, device, self.side)
        self.arena = FifoArena(buffer_bytes)
        self.handover = runtime.event()
        """Marks the host's stream (or, encoding there, the encoder's end) for the side stream. One is
        enough: a wait keeps the mark that the event had when the wait was queued."""
        self._runtime = runtime
        self._idle_events: list[DeviceEvent] = []

    def take_event(self) -> DeviceEvent:
        return self._idle_events.pop() if self._idle_events else self._runtime.event()

    def give_event(self, event: DeviceEvent) -> None:
        """`event` is over and nobody waits for it any more."""
        self._idle_events.append(event)

    def block(self, offset: int, nbytes: int) -> torch.Tensor:
        return self.buffer[offset : offset + nbytes]
