"""`SAETrainerManager`: the trainer workers of a session, who has which hook, and restart on demand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.contracts.stats import SlotField, StatsPage, WorkerState
from asys_bench.registry import registry
from asys_bench.system.liveness import ProcessHandle
from asys_bench.workers.supervisor import SupervisorError


class SAETrainerManager:
    """A view of the stats page; the watchdog is what starts processes."""

    def __init__(
        self,
        page: StatsPage,
        workers: Sequence[WorkerSpec],
        groups: Sequence[GroupSpec],
        hooks: Sequence[str],
    ) -> None:
        self._page = page
        by_group = {group.name: group.hooks or tuple(hooks) for group in groups}
        self._hooks = {w.name: by_group[w.group] for w in workers if _trains(w)}

    @property
    def hooks(self) -> Mapping[str, tuple[str, ...]]:
        """Worker name -> the hooks whose SAEs it trains."""
        return dict(self._hooks)

    def state(self, worker: str) -> WorkerState:
        """Raises KeyError for a name that is no trainer."""
        self._hooks[worker]
        return self._page.slot(worker).state

    def restart_worker(self, worker: str, timeout_s: float = 10.0) -> int:
        """Kill a trainer; the watchdog starts it again and it resumes from its checkpoint.

        It counts against the restart budget. Returns the new process id.

        Raises:
            KeyError: no trainer of that name.
            SupervisorError: it was not consuming again within `timeout_s`.
        """
        self._hooks[worker]
        slot = self._page.slot(worker)
        incarnation = slot.get(SlotField.INCARNATION)
        try:
            handle = ProcessHandle(slot.get(SlotField.PID), slot.get(SlotField.PROCESS_START))
        except ProcessLookupError:
            handle = None  # it died by itself: wait for the successor
        if handle is not None:
            handle.kill()
            handle.close()
        deadline = time.monotonic() + timeout_s
        while slot.get(SlotField.INCARNATION) == incarnation or slot.state is not WorkerState.READY:
            if slot.state is WorkerState.QUARANTINED or time.monotonic() > deadline:
                raise SupervisorError(
                    f"{worker} is {slot.state.name.lower()} {timeout_s:g} s after its restart"
                )
            time.sleep(0.01)
        return slot.get(SlotField.PID)


def _trains(worker: WorkerSpec) -> bool:
    if worker.role != "sink":
        return False
    return registry("sink").get(worker.plugin, SinkPlugin).trains_saes
