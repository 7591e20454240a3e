"""The capture port: a backend's compiled shortcut from a hook to the bus.

A packet through a port is the packet that the general path would have sent; what a port does not know
it hands back untouched (`tests/unit/backends/test_cpp_spmc_capture.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class CapturePort(Protocol):
    """A backend's shortcut for the commonest hook call; `BusProducer.capture_port` makes it.

    It takes a plain contiguous CPU tensor of at most about a mebibyte as it is (encoding "identity"),
    pushes it without waiting, and keeps the hook's counters and latency histogram itself.
    """

    def __call__(
        self,
        tensor: torch.Tensor,
        host_step: int,
        weights_version: int,
        call_index: int,
        microbatch: int,
        token_position: int,
        sampling_rate: float,
        /,
    ) -> int:
        """PORT_ACCEPTED, PORT_REFUSED (counted on the bus and for the hook), or PORT_NOT_MINE:
        nothing was done or counted, the general path must take this call."""

    def close(self) -> None:
        """Let go of the stats page; from then on every call is PORT_NOT_MINE. Idempotent."""


PORT_ACCEPTED, PORT_REFUSED, PORT_NOT_MINE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class PortCells:
    """Where a port counts: cells of the hook's slot of the stats page."""

    cells: memoryview
    """int64, writable."""
    calls: int
    captured: int
    dropped: int
    nbytes: int
    latency: int
    """First cell of a histogram (nanoseconds)."""
