"""When a process is silent for too long, and when a dead one may start again: capped exponential
backoff within a budget."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.stats import Slot, SlotField, WorkerState
from asys_bench.system.liveness import ProcessHandle, waited_for_cpu_ns


class RestartBudget:
    """At most `restart_limit` restarts in any `restart_window_s`."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._restarts: deque[float] = deque()

    def next_delay_s(self, now_s: float) -> float | None:
        """Seconds to wait before the next start; None when the budget is used up (quarantine).

        now_s: seconds on any monotonic clock. The delay doubles with each restart that is still
        inside the window.
        """
        while self._restarts and now_s - self._restarts[0] > self._config.restart_window_s:
            self._restarts.popleft()
        used = len(self._restarts)
        if used >= self._config.restart_limit:
            return None
        self._restarts.append(now_s)
        return self._config.backoff_s(used)


class OwnLateness:
    """Detects that the watcher itself was late. Times are seconds on any monotonic clock.

    After a suspended machine, a frozen container or a starved process, every heartbeat is old: the
    others could not beat, and the watcher could not check.
    """

    def __init__(self, interval_s: float, timeout_s: float, now_s: float) -> None:
        """interval_s: between two checks. timeout_s: how long the watched may be silent."""
        self._interval_s, self._timeout_s = interval_s, timeout_s
        self._last_s = now_s
        self._judges_from_s = now_s

    def tick(self, now_s: float) -> float:
        """A check begins. Returns how late it is, in seconds, when that is too late to judge by, else 0.
        The watched then have a whole new timeout."""
        gap_s = now_s - self._last_s
        self._last_s = now_s
        if gap_s <= self._interval_s + self._timeout_s / 2:
            return 0.0
        self._judges_from_s = now_s + self._timeout_s
        return gap_s

    def can_judge(self, now_s: float) -> bool:
        """Whether silence means anything at this time."""
        return now_s >= self._judges_from_s


class Silence:
    """How long a process has not been heard, by the heartbeat in its slot. One that waits for a CPU
    cannot be heard; a restart would give it none."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._pid = self._beat_ns = self._waited_ns = 0

    def measure(self, pid: int, now_ns: int) -> tuple[float, float]:
        """Seconds since its last heartbeat in which it could have given one, and those in which it
        waited for a CPU instead (counted from the first check after the heartbeat on).

        pid: of the process that the slot belongs to. now_ns: on this process's monotonic clock.
        """
        beat_ns, waited_ns = self._slot.get(SlotField.HEARTBEAT_NS), waited_for_cpu_ns(pid)
        if (pid, beat_ns) != (self._pid, self._beat_ns):
            self._pid, self._beat_ns, self._waited_ns = pid, beat_ns, waited_ns
        starved_s = max(0, waited_ns - self._waited_ns) / 1e9
        return self._slot.silence_s(now_ns) - starved_s, starved_s


class Supervised:
    """One worker as the watchdog sees it: its slot, its process (`handle`, from its start on) and what
    is due for it."""

    def __init__(self, spec: WorkerSpec, slot: Slot, budget: RestartBudget) -> None:
        self.spec, self.slot, self.budget = spec, slot, budget
        self.handle: ProcessHandle | None = None
        self.process: Any = None
        self.start_at: float | None = time.monotonic()
        self.starting: Future[None] | None = None
        self.started_at = 0.0
        self.killed = False
        self.starves = False
        self._silence = Silence(slot)

    def silence_s(self, now_ns: int) -> tuple[float, float]:
        """`Silence.measure` of its process, which is there."""
        assert self.handle is not None
        return self._silence.measure(self.handle.pid, now_ns)

    @property
    def finished(self) -> bool:
        return self.slot.state in (WorkerState.DONE, WorkerState.QUARANTINED)
