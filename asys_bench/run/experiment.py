"""`ExperimentPipeline`: a configured host under observation, from setup to shutdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.points.untrained_networks import unwrap
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config import MasterConfig, dump_yaml
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.host import BaseHost, HostError, HostResult
from asys_bench.contracts.stats import StatsPage
from asys_bench.placement.manager import ResourceManager
from asys_bench.run.late_clock import LateStepClock
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession


@dataclass(frozen=True)
class RunOutcome:
    """A finished run. `page` is readable until `ExperimentPipeline.close`."""

    run_dir: RunDir
    host: HostResult | None
    """None when the host raised."""
    account: BusAccount | None
    """None without hooks."""
    orderly: bool
    """Every worker drained, wrote and left in order."""
    page: StatsPage
    watchdog_restarts: int

    @property
    def imbalances(self) -> dict[str, int]:
        """Group -> packets unaccounted for; empty when the accounting identity holds."""
        if self.account is None:
            return {}
        found = {group.group: self.account.imbalance(group) for group in self.account.groups}
        return {name: off for name, off in found.items() if off}


class ExperimentPipeline:
    """setup -> run -> shutdown -> close. Production runs and benchmarks use this very class.

    terminal: a monitor may draw on standard output.
    config_text: what to keep as the run's config.yaml; None dumps `config`.
    announce: called with the new run directory before any worker starts.
    """

    def __init__(
        self,
        config: MasterConfig,
        *,
        terminal: bool = False,
        config_text: str | None = None,
        announce: Callable[[Path], None] | None = None,
    ) -> None:
        self.config = config
        self._terminal = terminal
        self._config_text = config_text or dump_yaml(config)
        self._announce = announce
        self._host: BaseHost | None = None
        self._session: ObservationSession | None = None
        self._result: HostResult | None = None
        self._late_clock: LateStepClock | None = None
        self._stop_requested = False
        self._resources: ResourceManager | None = None
        self.run_dir: RunDir | None = None

    @property
    def session(self) -> ObservationSession:
        if self._session is None:
            raise RuntimeError("setup() has not run")
        return self._session

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
        if config.resources.host_threads is not None:
            torch.set_num_threads(config.resources.host_threads)
        self._resources = ResourceManager(config, torch.get_num_threads())
        self._resources.pin_host()  # before the model is built: its memory lands beside its CPUs
        self._host = plugin.build(config.host.plugin_options(), config.run.seed)
        model = self._host.build()
        self.run_dir = RunDir.create(config.run.dir, config.run.name)
        self.run_dir.write_text("config.yaml", self._config_text)
        for name, document in self._host.documents().items():
            self.run_dir.write_json(name, dict(document))
        if self._announce is not None:
            self._announce(self.run_dir.path)
        if model is None:
            self._late_clock = LateStepClock(config.hooks, self._observe)
        else:
            self._observe(model)

    def _observe(self, model: torch.nn.Module, config: MasterConfig | None = None) -> StepClock:
        assert self._host is not None
        assert self.run_dir is not None
        session = ObservationSession(
            config or self.config,
            unwrap(model),
            self.run_dir,
            step_unit=self._host.step_unit,
            terminal=self._terminal,
            resources=self._resources,
            root=model,
            one_call_per_step=self._host.one_call_per_step,
            on_misfit=self.request_stop,
        )
        session.start()
        self._session = session
        session.clock.should_stop = self._stop_requested
        return session.clock

    def run(self) -> HostResult:
        """The host's own loop; blocks until it ends or `request_stop` was called."""
        if self._host is None:
            raise RuntimeError("setup() has not run")
        if self._late_clock is None:
            self._result = self._host.run(self.session.clock)
            return self._result
        try:
            self._result = self._host.run(self._late_clock)
        finally:
            self._late_clock.end()
            if self._session is None:  # it ended without a model: an empty run, but one with an end
                nothing: dict[str, Any] = {"hooks": (), "sinks": {}, "monitors": {}}
                self._observe(torch.nn.Module(), self.config.model_copy(update=nothing))
        return self._result

    def request_stop(self) -> None:
        """Ask the host to leave its loop at the next step; safe in a signal handler.

        It may raise KeyboardInterrupt, into a host that cannot be asked.
        """
        self._stop_requested = True
        if self._late_clock is not None:
            self._late_clock.should_stop = True
        if self._session is not None:
            self._session.clock.should_stop = True
        if self._host is not None:
            self._host.request_stop()

    def shutdown(self) -> RunOutcome:
        """Detach, drain, flush, join: at most `run.drain_timeout_s` and about a second."""
        result = self._result
        figures = None
        if result is not None:
            figures = {
                "steps": result.steps,
                "seconds": result.seconds,
                "stopped_early": result.stopped_early,
                **result.figures,
            }
        end = self.session.stop(figures)
        assert self.run_dir is not None
        return RunOutcome(
            self.run_dir, result, end.account, end.orderly, self.session.page, end.watchdog_restarts
        )

    def abort(self) -> None:
        """End every worker at once, without draining."""
        if self._session is not None:
            self._session.abort()

    def close(self) -> None:
        """Release memory, descriptors and the host's environments. Idempotent."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._host is not None:
            self._host.close()
            self._host = None
        if self._resources is not None:
            self._resources.release()
