"""One observation of one model: bus, stats page, workers and hooks, from start to drained end.

`ExperimentPipeline` wraps it around a host; `observe()` around somebody else's training script.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.bus import BaseDataBus, BusAccount
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.pipeline.assembly import build_preprocessor, create_data_bus, plan_workers
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.hooker import ActivationHooker
from asys_bench.pipeline.hookpoints import resolve
from asys_bench.pipeline.liveness import start_time
from asys_bench.pipeline.rundir import RunDir, environment
from asys_bench.pipeline.supervisor import Supervisor
from asys_bench.pipeline.trainer_manager import SAETrainerManager

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionEnd:
    """How an observation ended."""

    orderly: bool
    """Every worker drained, wrote and left before the deadline."""
    account: BusAccount | None
    watchdog_restarts: int


class ObservationSession:
    """Starts everything around `model`; see the module docstring.

    terminal: a monitor may draw on standard output.
    """

    def __init__(
        self,
        config: MasterConfig,
        model: torch.nn.Module,
        run_dir: RunDir,
        *,
        step_unit: str = "step",
        terminal: bool = False,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.step_unit = step_unit
        self.points = resolve(model, config.hooks)
        kernels = [build_preprocessor(point.config) for point in self.points]
        names = [point.name for point in self.points]
        groups, workers = plan_workers(config, names)
        self.page = StatsPage.create(["host", "watchdog", *(worker.name for worker in workers)])
        self.trainers = SAETrainerManager(self.page, workers, groups, names)
        self.bus: BaseDataBus | None = None
        self.hooker: ActivationHooker | None = None
        self._supervisor: Supervisor | None = None
        self._account: BusAccount | None = None
        self._started_unix_ns = time.time_ns()
        self.clock = StepClock(self.page.slot("host"))
        try:
            if self.points:
                self.bus = create_data_bus(
                    config.bus, groups, profile=config.run_profile, names=names
                )
                self.hooker = ActivationHooker(
                    self.bus,
                    self.points,
                    kernels,
                    self.page.slot("host"),
                    self.clock,
                    on_full=config.bus.on_full,
                    block_timeout_s=config.bus.block_timeout_s,
                    seeds=[
                        self._sampler_seed(point.name, point.config.sampling.seed)
                        for point in self.points
                    ],
                )
                handle = self.bus.handle()
                # The fork server imports the bus once, so that no restart waits for it.
                bus_module = type(self.bus).__module__
                workers = [replace(w, preload=(*w.preload, bus_module)) for w in workers]
                launch = LaunchSpec(
                    run_id=run_dir.run_id,
                    run_dir=str(run_dir.path),
                    seed=config.run.seed,
                    step_unit=step_unit,
                    terminal=terminal,
                    host_pid=os.getpid(),
                    bus=handle.to_dict(),
                    fds=(self.page.fd, *handle.fds),
                    workers=tuple(workers),
                    watchdog=config.watchdog.model_dump(mode="json"),
                    config=config.to_plain(),
                )
                self._supervisor = Supervisor(launch, self.page)
        except BaseException:
            self._release()
            raise

    def _sampler_seed(self, hook: str, configured: int | None) -> int:
        return (
            configured
            if configured is not None
            else self.config.run.seed ^ zlib.crc32(hook.encode())
        )

    def start(self) -> None:
        """Start the workers, wait until they consume, then attach the hooks.

        Raises:
            SupervisorError: a worker did not come up; everything was ended.
        """
        slot = self.page.slot("host")
        slot.set(SlotField.PID, os.getpid())
        slot.set(SlotField.PROCESS_START, start_time(os.getpid()))
        slot.state = WorkerState.READY
        slot.beat()
        self._write_run_json(None)
        if self._supervisor is not None and self.hooker is not None:
            try:
                self._supervisor.start()
                self._supervisor.wait_ready(self.config.watchdog.startup_timeout_s)
            except BaseException:
                self._supervisor.end()
                raise
            self.hooker.attach()
        self.page.run_state = RunState.RUNNING

    def stop(self, result: dict[str, Any] | None = None) -> SessionEnd:
        """Detach, drain, join; idempotent. Takes at most `drain_timeout_s` and about a second."""
        orderly = True
        restarts = 0
        if self.hooker is not None:
            self.hooker.detach()
        if self.bus is not None:
            self.bus.finish()
        self.page.slot("host").state = WorkerState.DONE
        if self._supervisor is not None:
            orderly = self._supervisor.drain(self.config.run.drain_timeout_s)
            restarts = self._supervisor.watchdog_restarts
        if self.bus is not None:
            self._account = self.bus.account()
        self._write_run_json(result or {})
        return SessionEnd(orderly, self._account, restarts)

    def abort(self) -> None:
        """End everything at once (second Ctrl-C): no draining."""
        if self.hooker is not None:
            self.hooker.detach()
        if self._supervisor is not None:
            self._supervisor.end()

    def close(self) -> None:
        """Release shared memory and descriptors; call after `stop` once nothing reads the page."""
        self._release()

    def _release(self) -> None:
        if self.bus is not None:
            self.bus.close()
            self.bus = None
        self.page.close()

    def _write_run_json(self, result: dict[str, Any] | None) -> None:
        self.run_dir.write_json(
            "run.json",
            {
                "schema": "asys.run/1",
                "run_id": self.run_dir.run_id,
                "started_unix_ns": self._started_unix_ns,
                "host_pid": os.getpid(),
                "stats_page": f"/proc/{os.getpid()}/fd/{self.page.fd}",
                "step_unit": self.step_unit,
                "hooks": [point.name for point in self.points],
                "environment": environment(),
                "result": result,
            },
        )
