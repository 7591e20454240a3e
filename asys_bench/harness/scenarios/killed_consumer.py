"""killed_consumer: SIGKILL of one of two readers of a group, mid-stream, under load.

Nothing may be torn. at_least_once loses nothing and repeats at most one lease; at_most_once repeats
nothing and loses at most one lease. `takeover_ms` is the kill to the survivor's next packet.
"""

from __future__ import annotations

import random
import time

from pydantic import Field

from asys_bench.contracts.bus import Delivery
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.consumers import ConsumerSpec
from asys_bench.harness.measuring.transport import Transport, transport
from asys_bench.harness.scenarios.offline import TransportOptions

GROUP = "group-0"
PATIENCE_S = 10.0


class KilledOptions(TransportOptions):
    """`params` of killed_consumer."""

    payload_bytes: int = Field(default=4096, ge=16, le=1 << 30, description="bytes per packet")
    delivery: Delivery = Field(default=Delivery.AT_LEAST_ONCE, description="of the group")
    max_packets: int = Field(default=32, ge=1, le=65536, description="most packets of one lease")
    packets: int = Field(default=4000, ge=200, description="packets per round")


def run(context: RoundContext) -> None:
    """Push, kill one reader at a random packet, reap it as its owner would, go on to the end."""
    options = context.options
    assert isinstance(options, KilledOptions)
    at = random.Random(context.seed).randrange(options.packets // 4, options.packets // 2)
    consumers = [ConsumerSpec(GROUP, f"reader-{i}", options.max_packets) for i in range(2)]
    with transport(context, options.transport_of(consumers, options.packets)) as moving:
        with context.timed():
            while moving.offered < at:
                moving.push(0, PATIENCE_S)
            context.recorder("takeover_ms").extend([_kill(moving, options.packets)])
            while moving.offered < options.packets:
                moving.push(0, PATIENCE_S)
        victim = moving.consumers[0].tally
        moving.finish(context)
        in_hand = options.max_packets
        if options.delivery is Delivery.AT_LEAST_ONCE:
            context.integrity.allowed_duplicated += in_hand
            context.integrity.allowed_reordered += in_hand
        else:
            context.integrity.allowed_lost += in_hand
        context.integrity.delivered += max(0, int(victim.seen.sum()) - victim.delivered)


def _kill(moving: Transport, most: int) -> int:
    """Nanoseconds from the kill to the survivor's next packet; at most `most` packets in all."""
    victim, survivor = moving.consumers
    killed_ns = time.monotonic_ns()
    victim.kill()
    moving.bus.reap(victim.pid)
    deadline = time.monotonic() + PATIENCE_S
    while survivor.tally.last_ns <= killed_ns:
        if moving.offered < most:
            moving.push(0)
        if time.monotonic() > deadline:
            raise ScenarioError(f"the survivor read nothing for {PATIENCE_S:g} s after the kill")
        time.sleep(0.0002)
    return survivor.tally.last_ns - killed_ns


plugin = ScenarioPlugin(
    name="killed_consumer",
    summary="SIGKILL of a reader under load: nothing torn, the other takes over",
    options=KilledOptions,
    takes="backend",
    metrics={"takeover_ms": MetricSpec("lower", MetricKind.SAMPLES, "kill to the next packet")},
    run=run,
)
