"""open_constant, open_poisson, burst: packets at times that were fixed beforehand.

Latency is taken from the *intended* send time, so that a sender that was held up cannot hide what
its packets waited (coordinated omission; Tene, "How NOT to Measure Latency"). A packet that the bus
refuses is a drop and has no latency: gate `dropped_packets` beside any latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from asys_bench.contracts.scenario import MetricKind, MetricSpec, RoundContext, ScenarioPlugin
from asys_bench.harness.measuring.transport import Transport, transport
from asys_bench.harness.scenarios.offline import TransportOptions

SPIN_NS = 150_000
"""Sleep until this long before the intended time, then spin."""
Schedule = npt.NDArray[np.int64]
"""Nanoseconds after the start, rising."""


class OpenOptions(TransportOptions):
    """`params` of open_constant and open_poisson."""

    payload_bytes: int = Field(default=4096, ge=16, le=1 << 30, description="bytes per packet")
    rate_per_s: float = Field(default=1000, gt=0, le=1e7, description="packets per second")


class BurstOptions(TransportOptions):
    """`params` of burst."""

    payload_bytes: int = Field(default=4096, ge=16, le=1 << 30, description="bytes per packet")
    burst_packets: int = Field(default=64, ge=1, description="packets sent back to back")
    period_ms: float = Field(default=20, gt=0, description="from burst to burst")


def constant(options: Any, n: int, rng: np.random.Generator) -> Schedule:
    """Evenly spaced."""
    return np.asarray(np.arange(n) * (1e9 / options.rate_per_s), np.int64)


def poisson(options: Any, n: int, rng: np.random.Generator) -> Schedule:
    """Exponential gaps: independent arrivals."""
    return rng.exponential(1e9 / options.rate_per_s, n).cumsum().astype(np.int64)


def bursts(options: Any, n: int, rng: np.random.Generator) -> Schedule:
    """`burst_packets` at once, every `period_ms`."""
    return np.asarray(
        np.arange(n) // options.burst_packets * int(options.period_ms * 1e6), np.int64
    )


def runner(schedule: Callable[[Any, int, np.random.Generator], Schedule]) -> Callable[..., None]:
    """The scenario with this schedule."""

    def run(context: RoundContext) -> None:
        options = context.options
        assert isinstance(options, TransportOptions)
        rng = np.random.default_rng(context.seed)
        samples = context.samples
        warmup = min(samples, 500)
        times = schedule(options, warmup + samples, rng).tolist()
        push = context.recorder("push_latency_us")
        latency = context.recorder("one_way_latency_us")
        clock = time.monotonic_ns
        with transport(context, options.transport(warmup + samples, warmup)) as moving:
            origin = clock() + 2_000_000
            for offset in times[:warmup]:
                _wait(origin + offset)
                moving.push(origin + offset)
            moving.wait_read()
            before_s = _cpu_s(moving)
            with context.timed():
                # What the noise watch took is not the bus's delay: the timed part starts afresh.
                origin = clock() + 2_000_000 - times[warmup]
                started = clock()
                for offset in times[warmup:]:
                    intended = origin + offset
                    _wait(intended)
                    before = clock()
                    moving.push(intended)
                    push.record(clock() - before)
                moving.wait_read()
                wall_ns = max(1, clock() - started)
                busy_s = _cpu_s(moving) - before_s
            moving.finish(context)
            latency.extend(moving.consumers[0].tally.latencies_ns())
        context.value("consumer_cpu_ratio", busy_s / (wall_ns / 1e9) / len(moving.consumers))

    return run


def _cpu_s(moving: Transport) -> float:
    """CPU seconds of all consumers so far."""
    return sum(consumer.tally.cpu_s for consumer in moving.consumers)


def _wait(until_ns: int) -> None:
    left = until_ns - time.monotonic_ns()
    if left > SPIN_NS:
        time.sleep((left - SPIN_NS) / 1e9)
    while time.monotonic_ns() < until_ns:
        pass


METRICS = {
    "one_way_latency_us": MetricSpec(
        "lower", MetricKind.SAMPLES, "intended send time to verified by the first group"
    ),
    "push_latency_us": MetricSpec("lower", MetricKind.SAMPLES, "one call of try_push"),
    "consumer_cpu_ratio": MetricSpec("lower", MetricKind.ROUND, "share of a core per consumer"),
}


def _plugin(name: str, summary: str, options: Any, schedule: Any) -> ScenarioPlugin:
    return ScenarioPlugin(name, summary, options, "backend", METRICS, runner(schedule))


open_constant = _plugin(
    "open_constant", "one-way latency at a constant rate, open loop", OpenOptions, constant
)
open_poisson = _plugin(
    "open_poisson", "one-way latency under Poisson arrivals, open loop", OpenOptions, poisson
)
burst = _plugin("burst", "one-way latency of bursts, open loop", BurstOptions, bursts)
