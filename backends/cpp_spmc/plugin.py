"""Plugin `cpp_spmc`: importing this needs no compiled module; using it does."""

from __future__ import annotations

from asys_bench.backends.cpp_spmc.bus import CppShardedSPMCBus, CppSpmcClient
from asys_bench.backends.cpp_spmc.native import unavailable
from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import BusCapabilities, BusPlugin

plugin = BusPlugin(
    name="cpp_spmc",
    summary="lock-free sharded SPMC ring in shared memory, in C++: zero-copy leases, survives kills",
    capabilities=BusCapabilities(
        zero_copy=True,
        shares_layout_with=("numba_ring",),
        max_payload_bytes=(1 << 32) - 1,
        shares_producers=True,
    ),
    options=RingOptions,
    build=CppShardedSPMCBus,
    attach=CppSpmcClient.attach,
    unavailable=unavailable,
    metrics={
        "throughput_gbps": "higher",
        "packets_per_s": "higher",
        "latency_p50_us": "lower",
        "latency_p99_us": "lower",
    },
)
