"""Entry point of the memcpy backend."""

from __future__ import annotations

from asys_bench.backends.memcpy.bus import MAX_PAYLOAD_BYTES, MemcpyBus, attach
from asys_bench.contracts.bus import BusCapabilities, BusOptions, BusPlugin


class MemcpyOptions(BusOptions):
    """The backend has no options of its own."""


plugin = BusPlugin(
    name="memcpy",
    summary="One copy, read in place in the same process: what a copy costs at the least",
    capabilities=BusCapabilities(
        cross_process=False,
        zero_copy=True,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        survives_consumer_kill=False,
    ),
    options=MemcpyOptions,
    build=MemcpyBus,
    attach=attach,
    metrics={"push_latency_us": "lower", "throughput_gbps": "higher"},
)
