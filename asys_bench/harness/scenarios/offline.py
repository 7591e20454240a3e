"""offline: how much a bus moves when the producer never waits for anything but room.

The clock runs from the first push until every consumer has verified every byte. A full bus is
waited for (`push` with a timeout), so a throughput is never bought with drops.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field

from asys_bench.contracts.bus import Delivery
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.consumers import ConsumerSpec
from asys_bench.harness.measuring.transport import Transport, TransportSpec, transport
from asys_bench.harness.scenarios import groups


class TransportOptions(ScenarioOptions):
    """What every scenario over a bus can be told: the bus, its readers and the payload."""

    payload_bytes: int = Field(default=65536, ge=16, le=1 << 30, description="bytes per packet")
    groups: int = Field(default=1, ge=1, le=16, description="consumer groups; each sees everything")
    members: int = Field(default=1, ge=1, le=16, description="processes sharing a group's packets")
    delivery: Delivery = Field(default=Delivery.AT_MOST_ONCE, description="of every group")
    max_packets: int = Field(default=256, ge=1, le=65536, description="most packets of one lease")
    capacity_packets: int = Field(default=4096, ge=1, description="of the bus")
    capacity_mib: int = Field(default=64, ge=1, description="of the bus, MiB")
    checksum: bool = Field(default=False, description="the bus's own CRC-32C")
    bus: dict[str, Any] = Field(default_factory=dict, description="the backend's own options")

    def transport(self, most_packets: int, latency_from: int = -1) -> TransportSpec:
        """The transport with `groups` x `members` consumers; the first group tells latencies."""
        consumers = [
            ConsumerSpec(
                f"group-{group}",
                f"reader-{group}-{member}",
                max_packets=self.max_packets,
                latency_from=latency_from if group == 0 else -1,
            )
            for group in range(self.groups)
            for member in range(self.members)
        ]
        return self.transport_of(consumers, most_packets)

    def transport_of(self, consumers: list[ConsumerSpec], most_packets: int) -> TransportSpec:
        """The transport with these consumers."""
        return TransportSpec(
            payload_bytes=self.payload_bytes,
            most_packets=most_packets,
            consumers=consumers,
            delivery={consumer.group: self.delivery for consumer in consumers},
            capacity_packets=self.capacity_packets,
            capacity_mib=self.capacity_mib,
            checksum=self.checksum,
            options=self.bus,
        )


PUSH_TIMEOUT_S = 10.0
MAX_WARMUP_CHUNKS = 64


class OfflineOptions(TransportOptions):
    """`params` of an offline case."""

    total_mib: float = Field(default=64, gt=0, le=1 << 16, description="MiB moved per timed round")
    batch: int = Field(default=1, ge=1, le=4096, description="packets per push (try_push_many)")
    burst_pairs: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="in place of `total_mib`: so many pairs of bursts of 2 MiB, in turn to a bus with one "
        "group and to one with `groups` beside it in one process, for paired_push_cpu_ratio",
    )


def run(context: RoundContext) -> None:
    """Warm up in chunks of a sixteenth, then move `total_mib` at once."""
    options = context.options
    assert isinstance(options, OfflineOptions)
    if options.burst_pairs:
        most = (options.burst_pairs + groups.WARM_UP) * groups.burst_packets(options.payload_bytes)
        alone = options.model_copy(update={"groups": 1}).transport(most)
        groups.compare(context, alone, options.transport(most), options.burst_pairs)
        return
    packets = max(1, int(options.total_mib * (1 << 20) / options.payload_bytes))
    chunk = max(1, packets // 16)
    warmup = chunk * MAX_WARMUP_CHUNKS
    with transport(context, options.transport(packets + warmup)) as moving:

        def warm() -> float:
            if moving.offered + chunk > warmup:
                time.sleep(0.01)  # the tallies are full: let the warm-up's time run out
                return 0.01
            return _move(moving, chunk, options.batch)[0]

        context.warm_up(warm)
        with context.timed():
            seconds, push_cpu_s = _move(moving, packets, options.batch)
        moving.finish(context)
    context.value("throughput_gbps", packets * options.payload_bytes / seconds / 1e9)
    context.value("packets_per_s", packets / seconds)
    context.value("push_cpu_us", 1e6 * push_cpu_s / packets)


def _move(moving: Transport, packets: int, batch: int) -> tuple[float, float]:
    """Seconds from the first push until everything was read, and CPU seconds of the pushes."""
    started, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
    if batch > 1:
        moving.push_batches(packets, batch, PUSH_TIMEOUT_S)
    else:
        for _ in range(packets):
            moving.push(0, PUSH_TIMEOUT_S)
    cpu_ns = time.thread_time_ns() - cpu_ns
    moving.wait_read()
    return max(1, moving.last_read_ns() - started) / 1e9, cpu_ns / 1e9


plugin = ScenarioPlugin(
    name="offline",
    summary="bus throughput: as fast as it goes, every byte verified by every group",
    options=OfflineOptions,
    takes="backend",
    metrics={
        "throughput_gbps": MetricSpec("higher", MetricKind.ROUND, "payload moved to all groups"),
        "packets_per_s": MetricSpec("higher", MetricKind.ROUND, "packets moved to all groups"),
        "push_cpu_us": MetricSpec(
            "lower", MetricKind.ROUND, "CPU time of the pushing thread for one packet"
        ),
        "paired_push_cpu_ratio": MetricSpec(
            "lower", MetricKind.ROUND, "CPU time of a burst with all groups over one with one group"
        ),
    },
    run=run,
)
