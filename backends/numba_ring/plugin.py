"""Plugin `numba_ring`: importing this does not import numba; using it does."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec

from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusCapabilities,
    BusClient,
    BusHandle,
    BusPlugin,
    BusRequest,
)

MACHINES = ("x86_64", "aarch64")


def unavailable() -> str | None:
    """Why this backend cannot run here, with the fix; None when it can."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        here = f"{sys.platform} on {platform.machine()}"
        return f"needs Linux on {' or '.join(MACHINES)}, this is {here}; use bus.backend=mp_queue"
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'asys-i[numba]', or use bus.backend=cpp_spmc or mp_queue"
    return None


def _build(request: BusRequest) -> BaseDataBus:
    from asys_bench.backends.numba_ring.bus import NumbaRingBus

    return NumbaRingBus(request)


def _attach(handle: BusHandle) -> BusClient:
    from asys_bench.backends.numba_ring.bus import NumbaRingClient

    return NumbaRingClient.attach(handle)


plugin = BusPlugin(
    name="numba_ring",
    summary="the ring of cpp_spmc, compiled by numba: for machines without a C++ compiler",
    capabilities=BusCapabilities(
        zero_copy=True,
        shares_layout_with=("cpp_spmc",),
        max_payload_bytes=(1 << 32) - 1,
        shares_producers=True,
    ),
    options=RingOptions,
    build=_build,
    attach=_attach,
    unavailable=unavailable,
    metrics={
        "throughput_gbps": "higher",
        "packets_per_s": "higher",
        "latency_p50_us": "lower",
        "latency_p99_us": "lower",
    },
)
