"""neighbour: how much slower somebody else's task gets while our bus and its readers work beside it.

The task is a fixed piece of computing in this process; the load is a producer and its consumers in
processes of their own. Compare with the reference ``params: {load: false}``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback

import numpy as np
from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.transport import transport
from asys_bench.harness.scenarios.offline import TransportOptions

# Somebody else's work: a fixed piece of computing, as the neighbour scenarios time it.

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


class NeighbourOptions(TaskOptions, TransportOptions):
    """`params` of neighbour."""

    pinned: bool = Field(
        default=True, description="the task on the first usable CPU, our processes on the others"
    )
    rate_per_s: float = Field(default=200, gt=0, description="packets per second of the load")


def run(context: RoundContext) -> None:
    """Start the load, wait until it runs, time `samples` tasks, end the load."""
    options = context.options
    assert isinstance(options, NeighbourOptions)
    cpus = sorted(os.sched_getaffinity(0))
    child = _start_load(context, options, cpus) if options.load else 0
    if options.pinned:
        os.sched_setaffinity(0, cpus[:1])
    try:
        time_tasks(context, options.working_set_kib)
    finally:
        if child:
            _end_load(child)


def _start_load(context: RoundContext, options: NeighbourOptions, cpus: list[int]) -> int:
    """Fork the load; its pid, once packets flow."""
    near, far = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(near)
        code = 1
        try:
            if options.pinned and len(cpus) > 1:
                os.sched_setaffinity(0, cpus[1:])
            _load(context, options, far)
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not return into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(far)
    ready = os.read(near, 1)
    os.close(near)
    if ready != b"y":
        os.waitpid(child, 0)
        raise ScenarioError("the load did not start; see the log")
    return child


def _load(context: RoundContext, options: NeighbourOptions, ready: int) -> None:
    """Push at a constant rate until SIGTERM, then drain and check; a fault ends it with an error."""
    stop = [False]
    signal.signal(signal.SIGTERM, lambda *_: stop.__setitem__(0, True))
    most = int(options.rate_per_s * 120)
    with transport(context, options.transport(most)) as moving:
        told, due = False, time.monotonic()
        while not stop[0] and moving.offered < most:
            moving.push(0)
            if not told and moving.offered >= 10:
                os.write(ready, b"y")
                told = True
            due += 1 / options.rate_per_s
            time.sleep(max(0.0, due - time.monotonic()))
        moving.finish(context)
    if context.integrity.faults:
        raise ScenarioError(", ".join(context.integrity.faults))


def _end_load(child: int) -> None:
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise ScenarioError(f"the load ended with {code}; see the log")


plugin = ScenarioPlugin(
    name="neighbour",
    summary="slowdown of somebody else's task beside our processes, pinned apart or not",
    options=NeighbourOptions,
    takes="backend",
    metrics=TASK_METRICS,
    run=run,
)
