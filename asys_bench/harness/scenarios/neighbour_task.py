"""Somebody else's work: a fixed piece of computing, as the neighbour scenarios time it."""

from __future__ import annotations

import time

import numpy as np
from pydantic import Field

from asys_bench.contracts.scenario import MetricKind, MetricSpec, RoundContext, ScenarioOptions

TASK_METRICS = {
    "task_ms": MetricSpec("lower", MetricKind.SAMPLES, "one task of fixed size"),
    "task_slowdown": MetricSpec(
        "lower", MetricKind.SAMPLES, "task against the reference", relative_only=True
    ),
}


class TaskOptions(ScenarioOptions):
    """The part of `params` that is about the task."""

    load: bool = Field(default=True, description="false: the task alone, as a reference")
    working_set_kib: int = Field(default=1024, ge=4, description="of the task: three such arrays")


def time_tasks(context: RoundContext, working_set_kib: int) -> None:
    """Warm up and time `samples` tasks in this process, as `task_ms` and `task_slowdown`."""
    size = working_set_kib * 128
    a, b, c = (np.random.default_rng(context.seed).random(size) for _ in range(3))
    task, slowdown = context.recorder("task_ms"), context.recorder("task_slowdown")
    clock = time.perf_counter_ns

    def one() -> int:
        started = clock()
        np.multiply(a, b, out=c)
        np.sqrt(c, out=c)
        np.add(c, a, out=c)
        return clock() - started

    context.warm_up(lambda: sum(one() for _ in range(20)) / 1e9)
    with context.timed():
        for _ in range(context.samples):
            spent = one()
            task.record(spent)
            slowdown.record(spent)
