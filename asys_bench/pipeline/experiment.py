"""`ExperimentPipeline`: a configured host under observation, from setup to shutdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from asys_bench.config import MasterConfig, dump_yaml
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.host import BaseHost, HostError, HostResult
from asys_bench.contracts.stats import StatsPage
from asys_bench.pipeline.rundir import RunDir
from asys_bench.pipeline.session import ObservationSession


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
        self._stop_requested = False
        self.run_dir: RunDir | None = None

    @property
    def session(self) -> ObservationSession:
        if self._session is None:
            raise RuntimeError("setup() has not run")
        return self._session

    def setup(self) -> None:
        """Build the host, the bus and the workers; attach the hooks.

        Raises:
            HostError, HookError, AssemblyError, BusError, SupervisorError: with setting and fix.
        """
        config = self.config
        plugin = config.host.plugin()
        reason = plugin.unavailable()
        if reason is not None:
            raise HostError(f"host.kind {plugin.name!r} cannot run here: {reason}")
        if config.resources.host_threads is not None:
            torch.set_num_threads(config.resources.host_threads)
        self._host = plugin.build(config.host.plugin_options(), config.run.seed)
        model = self._host.build()
        self.run_dir = RunDir.create(config.run.dir, config.run.name)
        (self.run_dir.path / "config.yaml").write_text(self._config_text)
        if self._announce is not None:
            self._announce(self.run_dir.path)
        self._session = ObservationSession(
            config,
            model,
            self.run_dir,
            step_unit=self._host.step_unit,
            terminal=self._terminal,
        )
        self._session.start()
        self._session.clock.should_stop = self._stop_requested

    def run(self) -> HostResult:
        """The host's own loop; blocks until it ends or `request_stop` was called."""
        if self._host is None:
            raise RuntimeError("setup() has not run")
        self._result = self._host.run(self.session.clock)
        return self._result

    def request_stop(self) -> None:
        """Ask the host to leave its loop at the next step; safe in a signal handler."""
        self._stop_requested = True
        if self._session is not None:
            self._session.clock.should_stop = True

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
