"""One worker as the watchdog sees it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.stats import Slot, SlotField, WorkerState
from asys_bench.system.liveness import ProcessHandle, waited_for_cpu_ns
from asys_bench.workers.restart import RestartBudget


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
        self.starves = False
        self._beat_ns = self._waited_ns = 0

    def silence_s(self, now_ns: int) -> tuple[float, float]:
        """Seconds since its last heartbeat in which it could have given one, and those in which it
        waited for a CPU instead (seen from the first look after the heartbeat on)."""
        assert self.handle is not None
        beat_ns = self.slot.get(SlotField.HEARTBEAT_NS)
        waited_ns = waited_for_cpu_ns(self.handle.pid)
        if beat_ns != self._beat_ns:
            self._beat_ns, self._waited_ns = beat_ns, waited_ns
        starved_s = max(0, waited_ns - self._waited_ns) / 1e9
        return self.slot.silence_s(now_ns) - starved_s, starved_s

    @property
    def finished(self) -> bool:
        return self.slot.state in (WorkerState.DONE, WorkerState.QUARANTINED)
