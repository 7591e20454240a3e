"""Entry point of the mp_queue backend."""

from __future__ import annotations

import socket

from asys_bench.backends.mp_queue.arena import MAX_PAYLOAD_BYTES
from asys_bench.backends.mp_queue.bus import PythonQueueBus
from asys_bench.backends.mp_queue.client import QueueClient
from asys_bench.backends.mp_queue.config import MpQueueOptions
from asys_bench.contracts.bus import BusCapabilities, BusPlugin


def _unavailable() -> str | None:
    if not hasattr(socket, "AF_UNIX"):
        return "this Python has no Unix sockets; run on Linux or macOS"
    return None


plugin = BusPlugin(
    name="mp_queue",
    summary="Pure-Python queues over one Unix socket per consumer: runs anywhere, copies twice",
    capabilities=BusCapabilities(max_payload_bytes=MAX_PAYLOAD_BYTES, shares_producers=True),
    options=MpQueueOptions,
    build=PythonQueueBus,
    attach=QueueClient.attach,
    unavailable=_unavailable,
    metrics={
        "push_latency_us": "lower",
        "throughput_packets_per_s": "higher",
        "throughput_gbps": "higher",
        "one_way_latency_us": "lower",
    },
)
