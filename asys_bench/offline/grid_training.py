"""Training one SAE of a grid, in this process: what both ways of running a grid call."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asys_bench.offline.grid import Task
from asys_bench.offline.grid_results import FAILED, GridResult
from asys_bench.offline.hook_training import HookTraining
from asys_bench.sae import CheckpointError, RunningMetrics
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.training.device import DeviceMemoryError, DeviceUnavailableError, open_device
from asys_bench.sinks.archive import Archive, ArchiveError

FAILURES = (ArchiveError, CheckpointError, DeviceMemoryError, DeviceUnavailableError, ExchangeError,
            ValueError)  # fmt: skip
"""What a training may end with; every other error is a fault of ours."""


def train_task(
    archive: Archive,
    task: Task,
    out: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[RunningMetrics], None] = lambda _: None,
) -> GridResult:
    """Train to the end, or until `should_stop`; goes on from its newest checkpoint. Whatever `FAILURES`
    it ends with is in the result."""
    began, plan = time.monotonic(), task.point.plan
    task.job.config.apply_threads()
    about: dict[str, Any] = {"threads": task.job.config.work_threads, "node": socket.gethostname()}
    try:
        device = _device(plan.device)
        about["device"] = device.name
        result = HookTraining(
            archive,
            task.job,
            out / task.folder,
            epochs=plan.epochs,
            seed=plan.seed,
            model_name=archive.run_dir.resolve().name,
            start_from=plan.start_of(task.job.label),
            device=device,
            should_stop=should_stop,
            on_progress=on_progress,
        ).run()
    except FAILURES as error:
        about["wall_s"] = time.monotonic() - began
        return GridResult.without(task, FAILED, str(error), **about)
    about["wall_s"] = time.monotonic() - began
    return GridResult.of(task, result, **about)


_device = functools.cache(open_device)
"""A process has one of each name."""
