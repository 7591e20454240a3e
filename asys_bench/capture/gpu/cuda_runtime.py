"""`DeviceRuntime` over torch.cuda, and the three calls into libcuda that torch does not offer.

The driver API is used where the run-time API has a trap: a `cudaHostRegister` that fails leaves its
error latched in the calling thread, and the host's next kernel launch, which checks
`cudaGetLastError`, would raise it. Driver calls return their error and keep nothing.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import torch

from asys_bench.capture.gpu.runtime import DeviceEvent, DeviceStream, PinError

PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: page-locked for every context
THREAD_LOCAL_CAPTURE = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
SUCCESS = 0


class CudaDriver:
    """libcuda.so.1, loaded when first needed. `load` stands in for it in tests."""

    def __init__(self, load: Any = ctypes.CDLL) -> None:
        self._load = load
        self._library: Any = None

    @property
    def library(self) -> Any:
        """Raises OSError when there is no CUDA driver (none installed, or another vendor's GPU)."""
        if self._library is None:
            self._library = self._load("libcuda.so.1")
        return self._library

    def register(self, address: int, nbytes: int) -> None:
        """Page-lock `nbytes` at `address`. Needs a context on this thread.

        Raises:
            PinError: no driver, or it refused.
        """
        try:
            status = self.library.cuMemHostRegister_v2(
                ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(PORTABLE)
            )
        except (OSError, AttributeError) as error:
            raise PinError(f"the CUDA driver library is not usable: {error}") from error
        if status != SUCCESS:
            raise PinError(f"cuMemHostRegister of {nbytes} bytes: {self.error_name(status)}")

    def unregister(self, address: int) -> None:
        """Undo `register`.

        Raises:
            PinError: the driver refused (the context is gone).
        """
        status = self.library.cuMemHostUnregister(ctypes.c_void_p(address))
        if status != SUCCESS:
            raise PinError(f"cuMemHostUnregister: {self.error_name(status)}")

    def allow_calls_during_capture(self) -> bool:
        """Let this thread query events while another one captures a graph. False: not possible.

        In the default mode a query here would invalidate the host's capture (as the watchdog of
        torch's NCCL backend did until it changed its mode the same way).
        """
        try:
            mode = ctypes.c_int(THREAD_LOCAL_CAPTURE)
            status = self.library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        except (OSError, AttributeError):
            return False
        return bool(status == SUCCESS)

    def error_name(self, status: int) -> str:
        """`CUDA_ERROR_OUT_OF_MEMORY (2)` and the like."""
        text = ctypes.c_char_p()
        self.library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        name = text.value.decode() if text.value else "unknown error"
        return f"{name} ({status})"


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
