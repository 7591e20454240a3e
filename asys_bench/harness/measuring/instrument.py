"""The instrument's own floor: what cannot be resolved, measured before anything else.

A target whose limit lies below the floor of its metric is refused: it would judge the stopwatch.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, PacketMeta
from asys_bench.contracts.scenario import NANOSECONDS, unit_of
from asys_bench.harness.results.result import Floor, Instrument

READINGS = 20_000
PUSHES = 2_000


def measure_instrument() -> Instrument:
    """Timer cost and the floors of the push and hook metrics. Takes about 20 ms."""
    cost_ns, resolution_ns = _timer()
    return Instrument(
        timer="perf_counter_ns",
        timer_cost_ns=cost_ns,
        timer_resolution_ns=resolution_ns,
        floors=[
            _floor("push_latency_us", _null_push_ns(), f"null backend, p50 of {PUSHES} pushes"),
            _floor("hook_latency_ms", _empty_hook_ns(), f"two empty hooks, p50 of {PUSHES} calls"),
            _floor("one_way_latency_us", cost_ns, "one reading of the clock"),
        ],
    )


def _floor(metric: str, nanoseconds: float, source: str) -> Floor:
    unit = unit_of(metric)
    return Floor(metric=metric, value=nanoseconds * NANOSECONDS[unit], unit=unit, source=source)


def _timer() -> tuple[float, float]:
    clock = time.perf_counter_ns
    readings = np.array([clock() for _ in range(READINGS)])
    steps = np.diff(readings)
    rising = steps[steps > 0]
    return float(np.median(steps)), float(rising.min()) if len(rising) else 0.0


def _null_push_ns() -> float:
    with create_data_bus(BusConfig(backend="null"), [GroupSpec("floor")]) as bus:
        producer = bus.producer(0)
        payload = np.zeros(4096, np.uint8)
        meta = PacketMeta(0, 0, DTYPE_CODE[torch.uint8], (4096,))
        clock = time.perf_counter_ns
        durations = []
        for _ in range(PUSHES):
            before = clock()
            producer.try_push(meta, payload)
            durations.append(clock() - before)
    return statistics.median(durations)


def _empty_hook_ns() -> float:
    """What two hooks that only read the clock measure of each other."""
    module, clock = torch.nn.Identity(), time.perf_counter_ns
    before, durations = [0], []

    def first(*_: object) -> None:
        before[0] = clock()

    def second(*_: object) -> None:
        durations.append(clock() - before[0])

    module.register_forward_hook(first)
    module.register_forward_hook(second)
    tensor = torch.zeros(1)
    for _ in range(PUSHES):
        module(tensor)
    return statistics.median(durations)
