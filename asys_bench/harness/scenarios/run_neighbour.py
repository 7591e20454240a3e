"""run_neighbour: how much slower somebody else's task gets beside a whole run, pinned or not.

The run (host, trainer, archiver, watchdog) is the production pipeline, confined as its `resources`
say; the task is a fixed piece of computing in this process. The kernel is asked where every process
of the run may be, and each that is elsewhere than the run's plan.json says is counted. Compare with
the reference ``params: {load: false}``.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioPlugin,
)
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.scenarios.beside_run import running
from asys_bench.harness.scenarios.neighbour import TASK_METRICS, TaskOptions, time_tasks
from asys_bench.placement.manager import read_plan, readings_of
from asys_bench.placement.readback import differences


class RunNeighbourOptions(TaskOptions):
    """`params` of run_neighbour."""

    task_cpu: int | None = Field(
        default=None, ge=0, description="run the task on this CPU; null: where the scheduler likes"
    )


def run(context: RoundContext) -> None:
    """Start the run, wait until every consumer has packets, time `samples` tasks, end the run."""
    options = context.options
    assert isinstance(options, RunNeighbourOptions)
    usable = os.sched_getaffinity(0)
    if options.task_cpu is not None and options.task_cpu not in usable:
        raise ScenarioError(f"task_cpu {options.task_cpu} is not one of {sorted(usable)}")
    with running(context) if options.load else nullcontext() as beside:
        if options.task_cpu is not None:
            os.sched_setaffinity(0, {options.task_cpu})
        try:
            time_tasks(context, options.working_set_kib)
        finally:
            os.sched_setaffinity(0, usable)
        if beside is not None:
            _count_misplaced(context, beside)


def _count_misplaced(context: RoundContext, beside: ObservedRun) -> None:
    if beside.live is None:
        return
    readings = readings_of(beside.live.page)
    plan, _ = read_plan(beside.run_dir)
    found = differences(plan, readings)
    for difference in found:
        print(f"misplaced: {difference}")
    pinned = [name for name in readings if plan.placement(name).cpus]
    context.count("misplaced", len(found), len(pinned))


plugin = ScenarioPlugin(
    name="run_neighbour",
    summary="slowdown of somebody else's task beside a whole run, and whether its plan is in force",
    options=RunNeighbourOptions,
    takes="pipeline",
    metrics={
        **TASK_METRICS,
        "misplaced": MetricSpec(
            "lower",
            MetricKind.COUNT,
            "processes and threads that the kernel allows elsewhere than the plan",
        ),
    },
    run=run,
)
