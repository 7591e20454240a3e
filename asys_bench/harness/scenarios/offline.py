"""offline: how much a bus moves when the producer never waits for anything but room.

The clock runs from the first push until every consumer has verified every byte. A full bus is
waited for (`push` with a timeout), so a throughput is never bought with drops.
"""

from __future__ import annotations

import time

from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.transport import Transport, transport
from asys_bench.harness.scenarios.transport_options import TransportOptions

PUSH_TIMEOUT_S = 10.0
MAX_WARMUP_CHUNKS = 64


class OfflineOptions(TransportOptions):
    """`params` of an offline case."""

    total_mib: float = Field(default=64, gt=0, le=1 << 16, description="MiB moved per timed round")
    batch: int = Field(default=1, ge=1, le=4096, description="packets per push (try_push_many)")


def run(context: RoundContext) -> None:
    """Warm up in chunks of a sixteenth, then move `total_mib` at once."""
    options = context.options
    assert isinstance(options, OfflineOptions)
    packets = max(1, int(options.total_mib * (1 << 20) / options.payload_bytes))
    chunk = max(1, packets // 16)
    warmup = chunk * MAX_WARMUP_CHUNKS
    with transport(context, options.transport(packets + warmup)) as moving:

        def warm() -> float:
            if moving.offered + chunk > warmup:
                time.sleep(0.01)  # the tallies are full: let the warm-up's time run out
                return 0.01
            return _move(moving, chunk, options.batch)

        context.warm_up(warm)
        with context.timed():
            seconds = _move(moving, packets, options.batch)
        moving.finish(context)
    context.value("throughput_gbps", packets * options.payload_bytes / seconds / 1e9)
    context.value("packets_per_s", packets / seconds)


def _move(moving: Transport, packets: int, batch: int) -> float:
    """Seconds from the first push until everything was read."""
    started = time.monotonic_ns()
    if batch > 1:
        moving.push_batches(packets, batch, PUSH_TIMEOUT_S)
    else:
        for _ in range(packets):
            moving.push(0, PUSH_TIMEOUT_S)
    moving.wait_read()
    return max(1, moving.last_read_ns() - started) / 1e9


plugin = ScenarioPlugin(
    name="offline",
    summary="bus throughput: as fast as it goes, every byte verified by every group",
    options=OfflineOptions,
    takes="backend",
    metrics={
        "throughput_gbps": MetricSpec("higher", MetricKind.ROUND, "payload moved to all groups"),
        "packets_per_s": MetricSpec("higher", MetricKind.ROUND, "packets moved to all groups"),
    },
    run=run,
)
