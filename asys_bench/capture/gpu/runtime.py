"""What the device path needs of a GPU runtime, and no more.

Everything that touches a stream, an event or page-locked memory goes through `DeviceRuntime`, so the
same code runs over CUDA (`cuda_runtime.CudaRuntime`) and over a simulated device whose operations
complete late and in any legal order (tests/unit/capture/gpu). There is on purpose no way to synchronise
a stream: only an event can be waited for, and only the committer and the set-up do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class PinError(RuntimeError):
    """Memory could not be registered with the driver; says why."""


class DeviceStream(Protocol):
    """A queue of operations on one device, executed in order."""

    def wait_event(self, event: Any, /) -> None:
        """Operations queued here from now on start after `event` completed; returns at once."""


class DeviceEvent(Protocol):
    """A mark in a stream. Recording it again moves it; waits already queued keep the old mark."""

    def record(self, stream: Any, /) -> None: ...

    def query(self) -> bool:
        """Whether everything before the mark is done. An error of the device may surface here."""

    def synchronize(self) -> None:
        """Block this thread until then. An error of the device may surface here."""


class DeviceRuntime(Protocol):
    """Streams, events and memory of the devices of one kind."""

    def name(self, device: torch.device) -> str:
        """What the device calls itself."""

    def current_stream(self, device: torch.device) -> DeviceStream:
        """The stream that the calling thread issues its work to."""

    def side_stream(self, device: torch.device) -> DeviceStream:
        """A new stream of the lowest priority that waits for no other implicitly."""

    def event(self) -> DeviceEvent: ...

    def capturing(self, device: torch.device) -> bool:
        """Whether the current stream is being captured into a graph (nothing may join it)."""

    def run(self, stream: Any, work: Callable[..., object], *operands: Any) -> None:
        """Issue the operations of ``work(*operands)`` to `stream`; returns without waiting.

        `operands` are not kept: who issues work keeps its tensors alive until an event says so.
        """

    def run_inline(self, device: torch.device, work: Callable[..., object], *operands: Any) -> None:
        """The same on the host's own current stream of `device`: between the host's operations."""

    def buffer(self, nbytes: int, device: torch.device, stream: Any) -> torch.Tensor:
        """uint8[nbytes] of device memory that belongs to `stream`."""

    def register(self, address: int, nbytes: int) -> None:
        """Page-lock host memory for every device.

        Raises:
            PinError: the driver refused; no error is left behind for the host's next call.
        """

    def unregister(self, address: int) -> None:
        """Undo `register`; no copy may be in flight."""

    def enter_commit_thread(self) -> None:
        """Called once on the thread that will wait for events."""


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Asynchronous copy of the bytes of `source` (any dtype, contiguous) to `target` (uint8)."""
    target.view(source.dtype).copy_(source, non_blocking=True)
