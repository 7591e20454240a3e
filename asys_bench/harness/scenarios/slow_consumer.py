"""slow_consumer: one group sleeps after every batch until the bus is full; what does the host feel?

The bus drops rather than wait, and counts it; `push_latency_us` must not move.
"""

from __future__ import annotations

import time

from pydantic import Field

from asys_bench.contracts.scenario import MetricKind, MetricSpec, RoundContext, ScenarioPlugin
from asys_bench.harness.measuring.consumers import ConsumerSpec
from asys_bench.harness.measuring.transport import transport
from asys_bench.harness.scenarios.offline import TransportOptions


class SlowOptions(TransportOptions):
    """`params` of slow_consumer."""

    payload_bytes: int = Field(default=4096, ge=16, le=1 << 30, description="bytes per packet")
    capacity_packets: int = Field(default=128, ge=1, description="of the bus; small, so it fills")
    max_packets: int = Field(default=16, ge=1, le=65536, description="most packets of one lease")
    delay_ms: float = Field(default=20, ge=0, description="sleep of the slow group after a batch")
    gap_us: float = Field(default=200, ge=0, description="between two pushes")


def run(context: RoundContext) -> None:
    """Push `samples` packets, one every `gap_us`, to a quick and a slow group."""
    options = context.options
    assert isinstance(options, SlowOptions)
    consumers = [
        ConsumerSpec("quick", "quick-0", options.max_packets, latency_from=0),
        ConsumerSpec("slow", "slow-0", options.max_packets, batch_delay_s=options.delay_ms / 1e3),
    ]
    push = context.recorder("push_latency_us")
    clock = time.monotonic_ns
    with transport(context, options.transport_of(consumers, context.samples)) as moving:
        with context.timed():
            due = clock()
            for _ in range(context.samples):
                due += int(options.gap_us * 1e3)
                while clock() < due:
                    pass
                before = clock()
                moving.push(due)
                push.record(clock() - before)
        moving.finish(context, timeout_s=30.0)
        context.recorder("quick_latency_us").extend(moving.consumers[0].tally.latencies_ns())


plugin = ScenarioPlugin(
    name="slow_consumer",
    summary="the host's push while one group does not keep up and the bus is full",
    options=SlowOptions,
    takes="backend",
    metrics={
        "push_latency_us": MetricSpec("lower", MetricKind.SAMPLES, "one call of try_push"),
        "quick_latency_us": MetricSpec("lower", MetricKind.SAMPLES, "one way, to the quick group"),
    },
    run=run,
)
