"""The three calls into libcuda that torch does not offer.

The driver API is used where the run-time API has a trap: a `cudaHostRegister` that fails leaves its
error latched in the calling thread, and the host's next kernel launch, which checks
`cudaGetLastError`, would raise it. Driver calls return their error and keep nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any

from asys_bench.capture.gpu.runtime import PinError

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
