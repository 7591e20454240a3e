"""One worker as the watchdog sees it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.stats import Slot, WorkerState
from asys_bench.pipeline.liveness import ProcessHandle
from asys_bench.pipeline.restart import RestartBudget


class Supervised:
    """Its slot, its process (`handle`, from its start on) and what is due for it."""

    def __init__(self, spec: WorkerSpec, slot: Slot, budget: RestartBudget) -> None:
        self.spec, self.slot, self.budget = spec, slot, budget
        self.handle: ProcessHandle | None = None
        self.process: Any = None
        self.start_at: float | None = time.monotonic()
        self.starting: Future[None] | None = None
        self.started_at = 0.0
        self.killed = False

    @property
    def finished(self) -> bool:
        return self.slot.state in (WorkerState.DONE, WorkerState.QUARANTINED)
