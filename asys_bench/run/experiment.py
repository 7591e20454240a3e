"""`ExperimentPipeline`: runs a configured host through the life of a run, from setup to shutdown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.tags.clock import StepClock
from asys_bench.config import MasterConfig
from asys_bench.config.problems import Origin
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.host import BaseHost, Fed, Feed, HostError, HostResult
from asys_bench.contracts.run_files import STATE_DIR
from asys_bench.contracts.stats import Slot
from asys_bench.run.attempts import NOTHING_BEFORE, AttemptEnd
from asys_bench.run.host_checkpoints import HostCheckpoints
from asys_bench.run.lifecycle import RunLifecycle, RunOutcome, misfit
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.run.weights import KeptWeights, forget_after, host_clock, live_interval_s
from asys_bench.system.files.below import make_folders

log = logging.getLogger(__name__)


class ExperimentPipeline:
    """setup -> run -> shutdown -> close. Production runs and benchmarks use this very class.

    terminal: a monitor may draw on standard output.
    provenance: origins of the configuration's values, for config.yaml; None leaves them out.
    announce: called with the new run directory before any worker starts.
    on_eye: called with the address of the eyepiece (`run.eye`) in a thread; None: there is to be none.
    """

    def __init__(
        self,
        config: MasterConfig,
        *,
        terminal: bool = False,
        provenance: Mapping[str, Origin] | None = None,
        announce: Callable[[Path], None] | None = None,
        on_eye: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.life = RunLifecycle(config, provenance, terminal=terminal)
        self._announce, self._on_eye = announce, on_eye
        self._host: BaseHost | None = None
        self._result: HostResult | None = None
        self._late_clock: LateStepClock | None = None
        self._checkpoints: HostCheckpoints | None = None
        self._stop_requested = False

    @property
    def session(self) -> ObservationSession:
        session = self.life.session
        if not isinstance(session, ObservationSession):
            raise RuntimeError("setup() has not run")
        return session

    @property
    def run_dir(self) -> RunDir | None:
        """None before `setup` has made it."""
        return self.life.run_dir

    def setup(self) -> None:
        """Build the host, the bus and the workers; attach the hooks.

        A host whose model comes later (a script) is only prepared; the rest follows in `run`.

        Raises:
            HostError, HookError, AssemblyError, BusError, ResourceError, SupervisorError: with
                setting and fix.
        """
        config = self.config
        plugin = config.host.plugin()
        reason = plugin.unavailable()
        if reason is not None:
            raise HostError(f"host.kind {plugin.name!r} cannot run here: {reason}")
        self.life.place()
        self._host = plugin.build(config.host.plugin_options(), config.run.seed)
        model = self._host.build()
        run_dir = self.life.create(self._host.documents())
        if self._announce is not None:
            self._announce(run_dir.path)
        self._checkpoints = HostCheckpoints(config, self._host, run_dir, self.life.counted)
        if run_dir.attempt and (found := self._checkpoints.resume()) is not None:
            self.life.go_on(*found)
            forget_after(run_dir.path, found[0])
        elif run_dir.attempt and not plugin.feeds:
            log.warning("%s goes on and its host begins anew", run_dir.path)
        if not plugin.feeds:  # it keeps what it goes on from by itself
            self._checkpoints.attach()
            if not self._host.can_be_saved and self._checkpoints.wanted:
                self._tell_host(run_dir)
        if model is None:
            self._late_clock = LateStepClock(
                config.hooks, self._start_late, self._start_fed, run_dir.path
            )
        else:
            self._start(model)

    def _tell_host(self, run_dir: RunDir) -> None:
        """A host that saves itself hears where, and how far earlier attempts came."""
        assert self._host is not None
        folder = run_dir.path / STATE_DIR
        make_folders(folder, below=run_dir.path)
        steps = [int(one["last_step"]) for one in run_dir.earlier if one.get("last_step")]
        self._host.goes_on(folder, max(steps, default=0), self._begins_at)

    def _begins_at(self, step: int) -> None:
        if isinstance(self.life.session, ObservationSession):
            self.life.session.begins_at(step)
        else:  # its model is not there yet
            self.life.go_on(step)

    def _start(self, model: torch.nn.Module) -> StepClock:
        assert self._host is not None
        clock = self.life.start(
            model,
            self._host.step_unit,
            one_call_per_step=self._host.one_call_per_step,
            on_misfit=self.request_stop,
            on_eye=self._on_eye,
        )
        clock.should_stop = self._stop_requested
        if self._checkpoints is not None:
            self._checkpoints.should_stop = lambda: clock.should_stop
        return clock

    def _start_late(self, model: torch.nn.Module, called: bool) -> StepClock:
        clock = self._start(model)
        self.life.count(called=called)
        return clock

    def _start_fed(self, feed: Feed) -> tuple[StepClock, Fed, Slot]:
        # Its packets carry numbers of where they come from, which go on by themselves.
        self.life.go_on(self.life.steps, NOTHING_BEFORE)
        clock = self.life.start(
            None,
            feed.step_unit,
            feed=feed,
            on_misfit=self.request_stop,
            on_eye=self._on_eye,
        )
        clock.should_stop = self._stop_requested
        bus = self.session.bus
        if bus is None:
            raise HostError("there is nothing to feed: no stream was named")
        size = self.config.bus
        fed = Fed(bus, size.capacity_bytes, size.capacity_packets)
        return clock, fed, self.session.page.slot("host")

    def run(self) -> HostResult:
        """The host's own loop; blocks until it ends or `request_stop` was called."""
        if self._host is None:
            raise RuntimeError("setup() has not run")
        if self._late_clock is None:
            return self._run_host(self._host)
        try:
            self._result = self._host.run(self._late_clock)
        finally:
            self.life.end_counting()
            if self.life.session is None:  # an empty run, but one with an end
                self.life.start_without_model(self._host.step_unit)
        return self._result

    def _run_host(self, host: BaseHost) -> HostResult:
        """The loop of a host whose model was there at the start."""
        clock, config = self.session.clock, self.config
        every_s = live_interval_s(config)
        wanted = config.host.keep_weights or every_s is not None
        kept: KeptWeights | None = None
        if wanted and config.host.plugin_options().trains and self.run_dir is not None:
            kept = KeptWeights(host, self.run_dir.path)
        try:
            self._result = host.run(host_clock(clock, kept, every_s))
        finally:
            if kept is not None:
                kept.keep(clock.host_step, clock.weights_version)
        if self._checkpoints is not None and host.is_saved:
            self._checkpoints.end(clock.host_step)
        return self._result

    def request_stop(self) -> None:
        """Ask the host to leave its loop at the next step; safe in a signal handler.

        It may raise KeyboardInterrupt, into a host that cannot be asked.
        """
        self._stop_requested = True
        if self._late_clock is not None:
            self._late_clock.should_stop = True
        if self.life.session is not None:
            self.life.session.clock.should_stop = True
        if self._host is not None:
            self._host.request_stop()

    def shutdown(self, *, preempted: bool = False, within_s: float | None = None) -> RunOutcome:
        """Detach, drain, flush, join: at most `within_s` (`run.drain_timeout_s` without) and about a
        second.

        preempted: the host was asked to stop by whoever takes the machine away.
        """
        return self.life.stop(self._result, self._end(preempted), within_s)

    def _end(self, preempted: bool) -> AttemptEnd:
        result = self._result
        if result is not None and not result.stopped_early:
            return AttemptEnd.FINISHED
        if preempted:
            return AttemptEnd.PREEMPTED
        return AttemptEnd.STOPPED if result is not None else AttemptEnd.FAILED

    def abort(self) -> None:
        """End every worker at once, without draining."""
        self.life.abort()

    def close(self) -> None:
        """Release memory, descriptors and the host's environments. Idempotent."""
        self.life.close()
        if self._host is not None:
            self._host.close()
            self._host = None


class LateStepClock:
    """The clock of a host that has no model yet. Implements `contracts.host.LateClock`.

    begin: starts the run of a model and returns its clock; told whether the model's first forward call
    is under way. begin_fed: starts the run of a host that pushes packets itself.
    """

    def __init__(
        self,
        hooks: Sequence[HookConfig],
        begin: Callable[[torch.nn.Module, bool], StepClock],
        begin_fed: Callable[[Feed], tuple[StepClock, Fed, Slot]] | None = None,
        run_dir: Path = Path(),
    ) -> None:
        self._hooks, self.run_dir = hooks, run_dir
        self._begin, self._begin_fed = begin, begin_fed
        self._slot: Slot | None = None
        self._clock: StepClock | None = None
        self.should_stop = False

    @property
    def steps_made(self) -> int:
        return self._clock.steps_made if self._clock is not None else 0

    def misfit(self, model: torch.nn.Module) -> str | None:
        """See `LateClock.misfit`."""
        return misfit(model, self._hooks)

    def observe(self, model: torch.nn.Module, *, called: bool = False) -> None:
        """See `LateClock.observe`; a second call is an error of the host's."""
        if self._clock is not None:
            raise RuntimeError("a model is observed already: a run observes one")
        self._clock = self._begin(model, called)

    def feed(self, feed: Feed) -> Fed:
        """See `LateClock.feed`; a second call is an error of the host's."""
        if self._clock is not None or self._begin_fed is None:
            raise RuntimeError("the run has begun already")
        self._clock, fed, self._slot = self._begin_fed(feed)
        return fed

    def metrics(self) -> Slot:
        """See `LateClock.metrics`."""
        if self._slot is None:
            raise RuntimeError("the run has not begun")
        return self._slot

    def step_to(self, host_step: int) -> None:
        if self._clock is not None:
            self._clock.step_to(host_step)

    def end(self) -> None:
        """The host has ended, and with it the last step. Idempotent."""
        if self._clock is not None:
            self._clock.end_counting()

    def step(self, n: int = 1) -> None:
        if self._clock is not None:
            self._clock.step(n)

    def weights_updated(self) -> None:
        if self._clock is not None:
            self._clock.weights_updated()

    def report(self, name: str, value: float) -> None:
        if self._clock is not None:
            self._clock.report(name, value)

    @property
    def label_horizon(self) -> int:
        return self._clock.label_horizon if self._clock is not None else 0

    def label(
        self,
        *,
        step: int | Sequence[int] | None = None,
        microbatch: int | None = None,
        **labels: Any,
    ) -> None:
        if self._clock is not None:
            self._clock.label(step=step, microbatch=microbatch, **labels)
