"""The watchdog: a process of its own that starts, watches and restarts the workers.

``python -m asys_bench.pipeline.watchdog`` with a `LaunchSpec` as JSON on standard input.

- Workers come from a fork server with torch preloaded, so a restart takes a fraction of a second.
- Death is seen through pidfds at once. A hang is a heartbeat older than `heartbeat_timeout_s`; the
  worker (SIGSTOPped ones too) is killed first, its death confirmed, and only then are its claims
  taken back from the bus.
- The watchdog doubts itself: when its own tick came late it gives every worker a fresh timeout.
- A worker that dies too often is quarantined, with a log line that says so; the run goes on.
- A restarted watchdog adopts the workers that are still alive.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asys_bench.config.watchdog import WatchdogConfig
from asys_bench.contracts.launch import LaunchSpec, WorkerSpec
from asys_bench.contracts.stats import RunState, Slot, SlotField, StatsPage, WorkerState
from asys_bench.pipeline.liveness import ProcessHandle, start_time
from asys_bench.pipeline.resource_manager.apply import settle
from asys_bench.pipeline.resource_manager.plan import WATCHDOG, Placement
from asys_bench.pipeline.restart import RestartBudget
from asys_bench.pipeline.worker import DUMP_SIGNAL, HOST_DEATH_GRACE_S, PassedFds, worker_main

if TYPE_CHECKING:
    from asys_bench.contracts.bus import BusClient

log = logging.getLogger("asys_bench.watchdog")

PRELOAD = ("torch", "asys_bench.pipeline.worker", "asys_bench.pipeline.decoding")
DUMP_S = 0.1
"""Time for a hung worker to write its stacks."""
LATE_START_S = 2.0
"""With less drain time left than this, a dead worker is not started again."""


class _Supervised:
    """One worker as the watchdog sees it."""

    def __init__(self, spec: WorkerSpec, slot: Slot, budget: RestartBudget) -> None:
        self.spec, self.slot, self.budget = spec, slot, budget
        self.handle: ProcessHandle | None = None
        self.process: Any = None
        self.start_at: float | None = time.monotonic()
        self.grace_until = 0.0

    @property
    def finished(self) -> bool:
        return self.slot.state in (WorkerState.DONE, WorkerState.QUARANTINED)


class WatchdogProcess:
    """The supervising loop; see the module docstring."""

    def __init__(self, launch: LaunchSpec, page: StatsPage) -> None:
        self._launch, self._page = launch, page
        self._launch_json = json.dumps(launch.to_dict())
        self._config = config = WatchdogConfig.model_validate(launch.watchdog)
        self._slot = page.slot("watchdog")
        self._context = multiprocessing.get_context("forkserver")
        self._client: BusClient | None = None
        self._host = ProcessHandle(launch.host_pid)
        self._workers = [
            _Supervised(spec, page.slot(spec.name), RestartBudget(config))
            for spec in launch.workers
        ]

    def run(self) -> None:
        """Supervise until every worker has finished and the run has stopped."""
        self._slot.set(SlotField.PID, os.getpid())
        self._slot.set(SlotField.PROCESS_START, start_time(os.getpid()))
        self._slot.beat()
        self._slot.state = WorkerState.READY
        self._adopt()
        self._start_fork_server()
        last_tick = time.monotonic()
        while True:
            now = time.monotonic()
            if now - last_tick > self._config.tick_s + self._config.heartbeat_timeout_s / 2:
                log.warning(
                    "my own tick was %.1f s late: every worker gets a new timeout", now - last_tick
                )
                for worker in self._workers:
                    worker.grace_until = now + self._config.heartbeat_timeout_s
            last_tick = now
            self._slot.beat()
            self._watch_host()
            for worker in self._workers:
                self._supervise(worker, time.monotonic())
            if self._all_done():
                break
            self._wait()
        self._slot.state = WorkerState.DONE

    def _adopt(self) -> None:
        for worker in self._workers:
            pid = worker.slot.get(SlotField.PID)
            if not pid:
                continue
            worker.start_at = None
            try:
                worker.handle = ProcessHandle(pid, worker.slot.get(SlotField.PROCESS_START))
                log.info("adopted %s (pid %d)", worker.spec.name, pid)
            except ProcessLookupError:
                self._died(worker, "died while no watchdog was there")

    def _start_fork_server(self) -> None:
        preload = {*PRELOAD}.union(*(spec.preload for spec in self._launch.workers))
        self._context.set_forkserver_preload(sorted(preload))
        forkserver.ensure_running()

    def _watch_host(self) -> None:
        if self._page.run_state is RunState.STOPPED or self._host.alive():
            return
        if self._page.run_state is not RunState.DRAINING:
            log.error("the host (pid %d) is gone: workers drain and leave", self._host.pid)
            self._page.drain_deadline_ns = time.monotonic_ns() + int(HOST_DEATH_GRACE_S * 1e9)
            self._page.run_state = RunState.DRAINING

    def _time_left_s(self) -> float:
        deadline = self._page.drain_deadline_ns
        return (deadline - time.monotonic_ns()) / 1e9 if deadline else float("inf")

    def _supervise(self, worker: _Supervised, now: float) -> None:
        if worker.handle is None:
            if worker.start_at is not None and now >= worker.start_at and not worker.finished:
                self._start(worker)
            return
        if not worker.handle.alive():
            self._reap(worker)
            return
        if self._time_left_s() < 0 and worker.spec.role == "sink":
            log.error("%s did not leave before the drain deadline: killed", worker.spec.name)
            self._kill(worker)
            return
        if now < worker.grace_until:
            return
        age = (time.monotonic_ns() - worker.slot.get(SlotField.HEARTBEAT_NS)) / 1e9
        ready = worker.slot.state is WorkerState.READY
        limit = self._config.heartbeat_timeout_s if ready else self._config.startup_timeout_s
        if age > limit:
            log.error(
                "%s hangs: no heartbeat for %.1f s; killed (where it was: logs/%s.log)",
                worker.spec.name,
                age,
                worker.spec.name,
            )
            worker.handle.kill(DUMP_SIGNAL)
            worker.handle.wait(DUMP_S)
            self._kill(worker)

    def _start(self, worker: _Supervised) -> None:
        worker.start_at = None
        if self._time_left_s() < LATE_START_S:
            return
        worker.slot.beat()
        worker.slot.state = WorkerState.STARTING
        started = time.monotonic()
        process = self._context.Process(
            target=worker_main,
            args=(self._launch_json, json.dumps(asdict(worker.spec)), PassedFds(self._launch.fds)),
            name=worker.spec.name,
            daemon=True,
        )
        process.start()
        assert process.pid is not None
        worker.process = process
        try:
            worker.handle = ProcessHandle(process.pid)
        except ProcessLookupError:
            self._died(worker, "died at once")
            return
        worker.slot.set(SlotField.PID, process.pid)
        worker.slot.set(SlotField.PROCESS_START, worker.handle.started)
        log.info(
            "started %s (pid %d, %.3f s)", worker.spec.name, process.pid, time.monotonic() - started
        )

    def _kill(self, worker: _Supervised) -> None:
        assert worker.handle is not None
        worker.handle.kill()
        if worker.handle.wait(5.0):
            self._reap(worker)

    def _reap(self, worker: _Supervised) -> None:
        """The worker's death is confirmed: take back its claims, then decide what comes next."""
        assert worker.handle is not None
        pid = worker.handle.pid
        worker.handle.close()
        worker.handle = None
        code = None
        if worker.process is not None:
            worker.process.join(0.5)
            code = worker.process.exitcode
        worker.slot.set(SlotField.EXIT_CODE, code if code is not None else -1)
        if worker.spec.role == "sink":
            taken = self._bus_client().reap(pid)
            if taken:
                log.info("took %d packets back from %s", taken, worker.spec.name)
        if worker.slot.state is WorkerState.DONE:
            log.info("%s finished", worker.spec.name)
            return
        signalled = code is not None and code < 0
        how = f"signal {signal.Signals(-code).name}" if signalled and code else f"exit code {code}"
        self._died(worker, how)

    def _died(self, worker: _Supervised, how: str) -> None:
        slot = worker.slot
        slot.set(SlotField.DOWN_SINCE_NS, time.monotonic_ns())
        enabled = self._config.enabled
        delay = worker.budget.next_delay_s(time.monotonic()) if enabled else None
        if delay is None:
            slot.state = WorkerState.QUARANTINED
            self._retire_group_of(worker)
            log.error(
                "%s died again (%s): %d deaths within %.0f s, quarantined. "
                "See logs/%s.log, fix the cause and start the run again",
                worker.spec.name,
                how,
                self._config.restart_limit + 1,
                self._config.restart_window_s,
                worker.spec.name,
            )
            return
        slot.state = WorkerState.FAILED
        slot.set(SlotField.RESTARTS, slot.get(SlotField.RESTARTS) + 1)
        slot.set(SlotField.INCARNATION, slot.get(SlotField.INCARNATION) + 1)
        worker.start_at = time.monotonic() + delay
        log.warning("%s died (%s); starts again in %.2f s", worker.spec.name, how, delay)

    def _retire_group_of(self, worker: _Supervised) -> None:
        """When nobody is left to read a group, it must not fill the bus for the others."""
        group = worker.spec.group
        if not group or any(
            other.spec.group == group and other.slot.state is not WorkerState.QUARANTINED
            for other in self._workers
        ):
            return
        try:
            self._bus_client().retire(group)
        except Exception as error:  # noqa: BLE001 - the bus may be gone with the host
            log.warning("group %s could not be retired: %s", group, error)
            return
        log.error("nobody reads group %s any more: it no longer holds up the others", group)

    def _bus_client(self) -> BusClient:
        if self._client is None:
            from asys_bench.pipeline.attachment import attach_bus

            # Attaching may close or map the descriptors: workers still need the originals.
            fds = tuple(os.dup(fd) for fd in self._launch.fds[1:])
            self._client = attach_bus(self._launch, fds)
        return self._client

    def _all_done(self) -> bool:
        draining = self._page.run_state in (RunState.DRAINING, RunState.STOPPED)
        if not draining:
            return False
        sinks = [w for w in self._workers if w.spec.role == "sink"]
        given_up = self._time_left_s() < LATE_START_S
        if all(w.finished or (w.handle is None and given_up) for w in sinks):
            self._page.run_state = RunState.STOPPED
            monitors = [w for w in self._workers if w.spec.role == "monitor"]
            return all(w.finished or w.handle is None for w in monitors)
        return False

    def _wait(self) -> None:
        """Sleep for one tick, or until a worker or the host dies."""
        poller = select.poll()
        for worker in self._workers:
            if worker.handle is not None:
                poller.register(worker.handle.fd, select.POLLIN)
        if self._page.run_state is RunState.RUNNING:
            poller.register(self._host.fd, select.POLLIN)
        draining = self._page.run_state in (RunState.DRAINING, RunState.STOPPED)
        poller.poll((0.02 if draining else self._config.tick_s) * 1000)


def main() -> None:
    """Read the launch specification from standard input and supervise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    launch = LaunchSpec.from_dict(json.load(sys.stdin))
    logging.basicConfig(
        filename=Path(launch.run_dir) / "logs" / "watchdog.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    page = StatsPage.attach(os.dup(launch.fds[0]))
    for problem in settle(Placement.from_dict(launch.placements.get(WATCHDOG, {}))):
        log.warning("%s", problem)
    try:
        WatchdogProcess(launch, page).run()
    except Exception:
        log.exception("the watchdog failed")
        raise


if __name__ == "__main__":
    main()
