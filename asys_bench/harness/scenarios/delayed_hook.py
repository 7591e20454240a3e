"""delayed_hook: a hook of known cost with a known delay in it. `asys-bench selftest` must find it.

The hook sums its module's output; the delay is a share of what that sum takes, calibrated in each
round, so that a 5 % slower hook is a 5 % slower hook on any machine.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioOptions,
    ScenarioPlugin,
)


class DelayedOptions(ScenarioOptions):
    """`params` of delayed_hook."""

    delay_ratio: float = Field(
        default=0.0, ge=0, le=10, description="delay over the hook's own time"
    )
    values: int = Field(default=1 << 18, ge=1, description="float32 values that the hook sums")


def run(context: RoundContext) -> None:
    """Time `samples` calls of the hook, with its delay."""
    options = context.options
    assert isinstance(options, DelayedOptions)
    torch.set_num_threads(1)
    module = torch.nn.Identity()
    tensor = torch.rand(options.values, generator=torch.Generator().manual_seed(context.seed))
    clock = time.perf_counter_ns
    own = [0]
    delay_ns = 0

    def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        started = clock()
        output.sum()
        until = clock() + delay_ns
        while delay_ns and clock() < until:
            pass
        own[0] = clock() - started

    module.register_forward_hook(hook)

    def call() -> int:
        module(tensor)
        return own[0]

    latency, slowdown = context.recorder("hook_latency_ms"), context.recorder("hook_slowdown")
    context.warm_up(lambda: sum(call() for _ in range(20)) / 1e9)
    delay_ns = int(statistics.median(call() for _ in range(101)) * options.delay_ratio)
    with context.timed():
        for _ in range(context.samples):
            spent = call()
            latency.record(spent)
            slowdown.record(spent)


plugin = ScenarioPlugin(
    name="delayed_hook",
    summary="a hook with a known delay in it, for the bench's own selftest",
    options=DelayedOptions,
    takes="nothing",
    metrics={
        "hook_latency_ms": MetricSpec("lower", MetricKind.SAMPLES, "one hook call, delay included"),
        "hook_slowdown": MetricSpec(
            "lower", MetricKind.SAMPLES, "hook call against the reference", relative_only=True
        ),
    },
    run=run,
)
