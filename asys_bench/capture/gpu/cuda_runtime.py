"""`DeviceRuntime` over torch.cuda."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from asys_bench.capture.gpu.driver import CudaDriver
from asys_bench.capture.gpu.runtime import DeviceEvent, DeviceStream

log = logging.getLogger(__name__)

LOWEST_PRIORITY = 0
"""CUDA counts downwards from here. torch's default streams have it too: the side stream never goes
before the host's, and goes after it only where the host uses a stream of higher priority."""


class CudaRuntime:
    """NVIDIA GPUs. `cuda` and `driver` are replaced in tests."""

    def __init__(self, cuda: Any = torch.cuda, driver: CudaDriver | None = None) -> None:
        self._cuda = cuda
        self._driver = driver if driver is not None else CudaDriver()

    def name(self, device: torch.device) -> str:
        return str(self._cuda.get_device_name(device))

    def current_stream(self, device: torch.device) -> DeviceStream:
        stream: DeviceStream = self._cuda.current_stream(device)
        return stream

    def side_stream(self, device: torch.device) -> DeviceStream:
        # torch's pool streams are non-blocking: they do not wait for the legacy default stream.
        stream: DeviceStream = self._cuda.Stream(device=device, priority=LOWEST_PRIORITY)
        return stream

    def event(self) -> DeviceEvent:
        # blocking: whoever synchronises sleeps instead of spinning on a core of the host.
        event: DeviceEvent = self._cuda.Event(blocking=True)
        return event

    def capturing(self, device: torch.device) -> bool:
        if device.index is None or device.index == self._cuda.current_device():
            return bool(self._cuda.is_current_stream_capturing())
        with self._cuda.device(device):
            return bool(self._cuda.is_current_stream_capturing())

    def run(self, stream: Any, work: Callable[..., object], *operands: Any) -> None:
        with self._cuda.stream(stream):
            work(*operands)

    def run_inline(self, device: torch.device, work: Callable[..., object], *operands: Any) -> None:
        if device.index is None or device.index == self._cuda.current_device():
            work(*operands)
        else:
            with self._cuda.device(device):
                work(*operands)

    def buffer(self, nbytes: int, device: torch.device, stream: Any) -> torch.Tensor:
        with self._cuda.stream(stream):
            return torch.empty(nbytes, dtype=torch.uint8, device=device)

    def register(self, address: int, nbytes: int) -> None:
        self._driver.register(address, nbytes)

    def unregister(self, address: int) -> None:
        self._driver.unregister(address)

    def enter_commit_thread(self) -> None:
        if not self._driver.allow_calls_during_capture():
            log.warning(
                "the commit thread could not leave CUDA's global capture mode: a CUDA graph that is "
                "captured while packets are in flight may be invalidated; drain before capturing"
            )
