"""closed: what a hook and everything behind it costs a model that really waits for it.

The pipeline is built by `ExperimentPipeline`, as `asys-run` builds it. A hook's latency is what lies
between two hooks of ours on either side of it, so it holds all that the host sees of it. Calls that
the sampler left out are not counted: they would make a congested pipeline look fast.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field

from asys_bench.capture.points.hookpoints import HookPoint
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    Recorder,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.scenarios.alternation import Alternation, signal_workers
from asys_bench.harness.scenarios.beside_run import add_account, master_config
from asys_bench.run.experiment import ExperimentPipeline
from asys_bench.run.session import ObservationSession


class ClosedOptions(ScenarioOptions):
    """`params` of a closed case."""

    warmup_steps: int = Field(default=50, ge=0, description="host steps before anything counts")
    max_s: float = Field(default=20, gt=0, le=600, description="longest timed part, in seconds")
    host_cpu: int | None = Field(
        default=None, ge=0, description="run the host's thread on this CPU, once workers are up"
    )
    workers: Literal["running", "stopped", "killed"] = Field(
        default="running",
        description="what happens to every sink's worker after the warm-up: SIGSTOP or SIGKILL",
    )
    hook: Literal["product", "memcpy"] = Field(
        default="product",
        description="memcpy: a plain copy of the tensor into rotating memory of the bus's size "
        "stands where the product's hook would; what any hook that copies must cost",
    )
    time_hooks: bool = Field(
        default=True,
        description="hook_latency_ms is wanted; the two hooks that time each of the product's cost "
        "the host a few microseconds more, so a case about the host's speed says false",
    )
    alternate_steps: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="end the observation and take it up again every so many host steps (hooks off "
        "and on, running workers stopped and continued) and report paired_slowdown_ratio, "
        "paired_p99_ratio and paired_rate_ratio; 0: it stays on. The host must not be compiled, and "
        "that many steps take well under watchdog.heartbeat_timeout_s",
    )


class _HostWatch:
    """Counts the host's steps, times them, and asks it to stop when there is enough."""

    def __init__(
        self, pipeline: ExperimentPipeline, context: RoundContext, options: ClosedOptions
    ) -> None:
        self.step_ms = context.recorder("step_ms")
        self.slowdown = context.recorder("model_slowdown")
        self.hook_ms = context.recorder("hook_latency_ms")
        self.counting = False
        self.alternation = None
        if options.alternate_steps:
            workers_run = options.workers == "running"
            self.alternation = Alternation(
                pipeline.session, options.alternate_steps, workers_run=workers_run
            )
        self._pipeline, self._options, self._samples = pipeline, options, context.samples
        self._steps = 0
        self._last_ns = 0
        self._deadline = float("inf")
        clock = pipeline.session.clock
        self._own_step: Callable[[int], None] = clock.step
        setattr(clock, "step", self.step)  # noqa: B010 - an instance's own method, on purpose

    def step(self, n: int = 1) -> None:
        """In place of the clock's `step`: one host step has passed."""
        now = time.perf_counter_ns()
        if self.counting:
            self.step_ms.record(now - self._last_ns)
            self.slowdown.record(now - self._last_ns)
            if self.alternation is not None:
                self.alternation.add(now - self._last_ns)
            done = self._steps - self._options.warmup_steps
            if done >= self._samples or time.monotonic() > self._deadline:
                self._pipeline.request_stop()
        self._own_step(n)
        self._steps += 1
        if not self.counting and self._steps >= self._options.warmup_steps:
            self.counting = True
            if self.alternation is not None:
                self.alternation.begin()
            self._deadline = time.monotonic() + self._options.max_s
            if self._options.workers != "running":
                signal_workers(
                    self._pipeline.session,
                    signal.SIGSTOP if self._options.workers == "stopped" else signal.SIGKILL,
                )
        self._last_ns = time.perf_counter_ns()


class _Memcpy:
    """Copies a tensor into the next piece of `nbytes` of prefaulted memory, as a ring would."""

    def __init__(self, nbytes: int) -> None:
        self._memory = torch.zeros(nbytes, dtype=torch.uint8)
        self._at = 0

    def __call__(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        nbytes = output.nbytes
        if self._at + nbytes > self._memory.numel():
            self._at = 0
        ctypes.memmove(self._memory.data_ptr() + self._at, output.data_ptr(), nbytes)
        self._at += -(-nbytes // 64) * 64


def _bracket(
    point: HookPoint,
    session: ObservationSession,
    watch: _HostWatch,
    recorder: Recorder,
    stand_in: bool,
) -> None:
    """Hooks of ours right before and right after the product's hook (or its stand-in) on `point`."""
    slot = session.page.slot("host")
    captured = slot.counter("hook_captured", hook=point.name)
    dropped = slot.counter("hook_dropped", hook=point.name)
    state = [0, 0]
    clock = time.perf_counter_ns

    def before(*_: Any) -> None:
        state[1] = captured.value + dropped.value
        state[0] = clock()

    def after(*_: Any) -> None:
        now = clock()
        if watch.counting and (stand_in or captured.value + dropped.value != state[1]):
            recorder.record(now - state[0])

    module = point.module
    if point.kind is Kind.ACTIVATION:
        module.register_forward_hook(before, prepend=True)
        module.register_forward_hook(after)
    elif point.kind is Kind.INPUT:
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_pre_hook(after)


def run(context: RoundContext) -> None:
    """Set up, warm up, time `samples` host steps, drain, check the account."""
    options = context.options
    assert isinstance(options, ClosedOptions)
    pipeline = ExperimentPipeline(master_config(context))
    try:
        pipeline.setup()
        watch = _HostWatch(pipeline, context, options)
        if options.host_cpu is not None:
            os.sched_setaffinity(0, {options.host_cpu})
        stand_in = options.hook == "memcpy"
        if stand_in and pipeline.session.hooker is not None:
            pipeline.session.hooker.detach()
            for point in pipeline.session.points:
                point.module.register_forward_hook(_Memcpy(context.config.bus.capacity_bytes))
        for point in pipeline.session.points if options.time_hooks else ():
            _bracket(point, pipeline.session, watch, watch.hook_ms, stand_in)
        with context.timed():
            started = time.monotonic()
            result = pipeline.run()
            elapsed = time.monotonic() - started
        if watch.alternation is not None:
            watch.alternation.end()
        if options.workers == "stopped":
            pipeline.abort()  # what is stopped cannot drain
        else:
            outcome = pipeline.shutdown()
            add_account(context, outcome, kills=options.workers == "killed")
            if not outcome.orderly:
                raise ScenarioError("not every worker drained in time; see its log")
        context.value("host_steps_per_s", result.steps / max(elapsed, 1e-9))
        if watch.alternation is not None:
            context.value("paired_slowdown_ratio", watch.alternation.slowdown())
            context.value("paired_p99_ratio", watch.alternation.tail())
            context.value("paired_rate_ratio", watch.alternation.rate())
    except BaseException:
        pipeline.abort()
        raise
    finally:
        pipeline.close()


plugin = ScenarioPlugin(
    name="closed",
    summary="hook latency and host slowdown, in the production pipeline, in a closed loop",
    options=ClosedOptions,
    takes="pipeline",
    metrics={
        "hook_latency_ms": MetricSpec("lower", MetricKind.SAMPLES, "one capturing hook call"),
        "step_ms": MetricSpec("lower", MetricKind.SAMPLES, "one host step"),
        "model_slowdown": MetricSpec(
            "lower", MetricKind.SAMPLES, "host step against a reference", relative_only=True
        ),
        "paired_slowdown_ratio": MetricSpec(
            "lower", MetricKind.ROUND, "host step observed over one unobserved, in one process"
        ),
        "paired_p99_ratio": MetricSpec(
            "lower",
            MetricKind.ROUND,
            "p99 of steps observed over that of unobserved, in one process",
        ),
        "paired_rate_ratio": MetricSpec(
            "higher", MetricKind.ROUND, "host steps/s observed over unobserved, in one process"
        ),
        "host_steps_per_s": MetricSpec("higher", MetricKind.ROUND, "host steps, warm-up included"),
    },
    run=run,
)
