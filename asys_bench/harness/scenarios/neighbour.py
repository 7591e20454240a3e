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

from pydantic import Field

from asys_bench.contracts.scenario import (
    RoundContext,
    ScenarioError,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.transport import transport
from asys_bench.harness.scenarios.neighbour_task import TASK_METRICS, TaskOptions, time_tasks
from asys_bench.harness.scenarios.transport_options import TransportOptions


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
