"""Host memory that the GPU can write to by itself, and what it costs when it cannot."""

from __future__ import annotations

import logging
import mmap
import time
from dataclasses import dataclass
from typing import Any

import torch

from asys_bench.capture.gpu.runtime import DeviceRuntime, PinError, copy_bytes

log = logging.getLogger(__name__)

PROBE_BYTES = 8 << 20
PROBE_ROUNDS = 3


class PinnedRegion:
    """Anonymous memory, taken in full at start and registered with the driver.

    When registering fails the region works all the same, as pageable memory: `pinned` is False,
    `failure` says why, and copies into it must not be issued by the host's thread, because the
    driver makes the caller wait for them.
    """

    def __init__(self, runtime: DeviceRuntime, nbytes: int) -> None:
        self._runtime = runtime
        # Shared, not private: after a fork (data loaders) a private page that is written would be
        # copied to a new address while the GPU went on writing to the old one.
        self._mapping = mmap.mmap(-1, nbytes)
        self.bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self.failure: str | None = None
        self._registered = False
        try:
            runtime.register(self.bytes.data_ptr(), nbytes)
            self._registered = True
        except PinError as error:
            self.failure = str(error)
            self.bytes.zero_()  # registering would have faulted the pages in; now we do

    @property
    def pinned(self) -> bool:
        return self._registered

    def close(self) -> None:
        """Unregister. Idempotent; no copy into the region may be in flight."""
        if not self._registered:
            return
        self._registered = False
        try:
            self._runtime.unregister(self.bytes.data_ptr())
        except PinError as error:
            log.warning("staging memory stays page-locked until the process ends: %s", error)


@dataclass(frozen=True, slots=True)
class CopyBandwidth:
    """GB/s (10**9 bytes) from the device to host memory; None where it was not measured."""

    pinned_gbps: float | None
    pageable_gbps: float


def measure_bandwidth(
    runtime: DeviceRuntime, stream: Any, source: torch.Tensor, region: PinnedRegion
) -> CopyBandwidth:
    """Copy up to 8 MiB to the region and to pageable memory, best of three each; milliseconds.

    It waits for the side stream, so it belongs to the set-up, before anything is hooked.
    source: uint8 memory of the device.
    """
    nbytes = min(PROBE_BYTES, source.numel(), region.bytes.numel())
    if region.pinned:
        pinned = _gbps(runtime, stream, source[:nbytes], region.bytes[:nbytes])
        pageable = torch.zeros(nbytes, dtype=torch.uint8)
        return CopyBandwidth(pinned, _gbps(runtime, stream, source[:nbytes], pageable))
    return CopyBandwidth(None, _gbps(runtime, stream, source[:nbytes], region.bytes[:nbytes]))


def _gbps(runtime: DeviceRuntime, stream: Any, source: torch.Tensor, target: torch.Tensor) -> float:
    best = float("inf")
    event = runtime.event()
    for _ in range(PROBE_ROUNDS):
        started = time.perf_counter_ns()
        runtime.run(stream, copy_bytes, target, source)
        event.record(stream)
        event.synchronize()
        best = min(best, time.perf_counter_ns() - started)
    return source.numel() / best


def warn_unpinned(region: PinnedRegion, bandwidth: CopyBandwidth, device: str) -> None:
    """One line with the reason, the cost and the fix."""
    log.warning(
        "staging memory (%d MiB) could not be page-locked: %s. Copies from %s then run at %.2f GB/s "
        "instead of the bus's full speed and keep the commit thread waiting (the host never waits: "
        "packets are dropped instead). Fix: raise the limit on locked memory (ulimit -l unlimited, "
        "docker run --ulimit memlock=-1), or lower device.staging_mib",
        region.bytes.numel() >> 20,
        region.failure,
        device,
        bandwidth.pageable_gbps,
    )
