"""What further groups of readers cost the producer, over one group of them, in one process.

Two buses lie side by side, one with a single group and one with several, each group with a reader of its
own that verifies every byte. Bursts are pushed to them in turn (one, many, many, one, ...), the next as
soon as the last was read, so that every burst finds its readers asleep and its bus empty. Two processes
side by side differ in how the cores lie and in how far readers lag, which changes where a frame lands, by
more than a group costs.
"""

from __future__ import annotations

import math
import time
from statistics import median

from asys_bench.contracts.scenario import RoundContext, ScenarioError
from asys_bench.harness.judging.stats import hodges_lehmann
from asys_bench.harness.measuring.transport import Transport, TransportSpec, transports

WARM_UP = 8
"""Pairs of bursts before anything counts."""
BURST_BYTES = 2 << 20
"""Half of the memory that the ring uses again and again while its readers keep up."""


def burst_packets(payload_bytes: int) -> int:
    return max(1, BURST_BYTES // payload_bytes)


def compare(context: RoundContext, one: TransportSpec, many: TransportSpec, pairs: int) -> None:
    """Bursts in turn; the account and every byte are checked in all groups of both buses."""
    packets = burst_packets(one.payload_bytes)
    with transports(context, [one, many]) as sides:
        for number in range(WARM_UP):
            _pair(sides, number, packets)
        with context.timed():
            found = [_pair(sides, number, packets) for number in range(pairs)]
        for side in sides:
            side.finish(context)
    ratio = hodges_lehmann([math.log(several / single) for single, several in found])
    context.value("paired_push_cpu_ratio", math.exp(ratio))
    context.value("push_cpu_us", median(several for _, several in found) / packets / 1e3)


def _pair(sides: list[Transport], number: int, packets: int) -> tuple[int, int]:
    """Nanoseconds of CPU time of a burst to either bus, in the order whose turn it is."""
    first = number % 2
    spent = {side: _burst(sides[side], packets) for side in (first, 1 - first)}
    return spent[0], spent[1]


def _burst(moving: Transport, packets: int) -> int:
    before = time.thread_time_ns()
    for _ in range(packets):
        if not moving.push(0):
            raise ScenarioError(f"a burst of {BURST_BYTES} bytes does not fit the bus")
    spent = time.thread_time_ns() - before
    moving.wait_read()
    return max(1, spent)
