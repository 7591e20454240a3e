"""The watchdog: a process of its own that starts, watches and restarts the workers.

``python -m asys_bench.workers.watchdog`` with a `LaunchSpec` as JSON on standard input.

- Workers come from a fork server with torch preloaded, so a restart takes a fraction of a second.
  The server is watched as well, and nothing here waits for it (`fork_server`).
- Death is seen through pidfds at once. A hang is a heartbeat older than `heartbeat_timeout_s`, without
  the time for which the worker waited for a CPU; it (SIGSTOPped ones too) is killed first, its death
  confirmed, and only then are its claims taken back from the bus. Host and workers may be on other
  clocks than this process (time namespaces): only times of one clock are compared.
- The watchdog checks its own lateness: after a late tick every worker gets a new timeout.
- A worker that dies too often is quarantined, with a line in the log; the run goes on.
- A restarted watchdog adopts the workers that are still alive. A worker whose start it never heard
  of finds that its slot belongs to another launch, and leaves.
- It is itself watched, by the host (`supervisor`), and continues (SIGCONT) when the host dies.
- Workers that nobody has pinned it keeps off the CPU of a busy host (`placement.host_cpus`).
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.run_files import log_file
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.placement.apply import settle
from asys_bench.placement.host_cpus import KeepClear
from asys_bench.placement.plan import WATCHDOG, Placement
from asys_bench.system.liveness import ProcessHandle, signal_on_parent_death
from asys_bench.system.process import own_clock
from asys_bench.system.process_usage import OutOfMemoryKills
from asys_bench.workers.fork_server import ForkServer
from asys_bench.workers.restart import OwnLateness, RestartBudget, Supervised
from asys_bench.workers.run_lock import join_work
from asys_bench.workers.worker import DUMP_SIGNAL, HOST_DEATH_GRACE_S, PassedFds, worker_main
from asys_bench.workers.worker_log import why_it_ended

if TYPE_CHECKING:
    from asys_bench.contracts.bus import BusClient

log = logging.getLogger("asys_bench.watchdog")

PRELOAD = ("torch", "asys_bench.workers.worker", "asys_bench.sinks.decoding")
DUMP_S = 0.1
"""Time for a hung worker to write its stacks."""
LATE_START_S = 2.0
"""With less drain time left than this, a dead worker is not started again."""
LAST_TICK_S = 0.4
"""A monitor may write its last line this long past the drain deadline."""


class WatchdogProcess:
    """The supervising loop; see the module docstring."""

    def __init__(self, launch: LaunchSpec, page: StatsPage) -> None:
        self._launch, self._page = launch, page
        self._launch_json = json.dumps(launch.to_dict())
        self._config = config = WatchdogConfig.model_validate(launch.config["watchdog"])
        self._slot = page.slot("watchdog")
        preload = {*PRELOAD}.union(*(spec.preload for spec in launch.workers))
        least = min(launch.workers, key=lambda spec: spec.nice, default=None)
        niceness = launch.niceness_of(least) if least is not None else None
        self._fork_server = ForkServer(
            preload, config.heartbeat_timeout_s, niceness, launch.run_dir
        )
        self._out_of_memory = OutOfMemoryKills()
        self._client: BusClient | None = None
        self._own = self._new_lateness()
        self._host = ProcessHandle(launch.host_pid)
        self._clear = None if launch.shards > 1 or _pins(launch) else KeepClear(launch.host_pid)
        """None: somebody has pinned, or several hosts are busy on this machine."""
        self._workers = [
            Supervised(spec, page.slot(spec.name), RestartBudget(config)) for spec in launch.workers
        ]

    def run(self) -> None:
        """Supervise until every worker has finished and the run has stopped."""
        self._slot.occupy()
        self._slot.state = WorkerState.STARTING
        self._fork_server.ensure()
        self._warm_up()  # while the fork server imports the same
        self._adopt()
        self._slot.beat()
        self._slot.state = WorkerState.READY
        self._own = self._new_lateness()  # getting ready took its time
        while True:
            now = time.monotonic()
            if late_s := self._own.tick(now):
                log.warning("my own tick was %.1f s late: every worker gets a new timeout", late_s)
            self._slot.beat()
            self._watch_host()
            self._fork_server.watch(now)
            for worker in self._workers:
                self._supervise(worker, time.monotonic())
            self._keep_clear()
            if self._all_done():
                break
            self._wait()
        self._fork_server.end()
        self._slot.state = WorkerState.DONE

    def _new_lateness(self) -> OwnLateness:
        config = self._config
        return OwnLateness(config.tick_s, config.heartbeat_timeout_s, time.monotonic())

    def _warm_up(self) -> None:
        """Attach to the bus now: the import would come between a death and its successor."""
        try:
            self._bus_client()
        except Exception as error:  # noqa: BLE001 - it is asked again when a worker dies
            log.warning("the bus cannot be attached to: %s", error)

    def _adopt(self) -> None:
        for worker in self._workers:
            pid = worker.slot.get(SlotField.PID)
            if not pid or worker.finished:
                continue
            worker.start_at = None
            try:
                worker.handle = ProcessHandle(pid, worker.slot.get(SlotField.PROCESS_START))
                if self._clear is not None:
                    self._clear.adopt(pid)
                log.info("adopted %s (pid %d)", worker.spec.name, pid)
            except ProcessLookupError:
                self._take_back(worker, pid)
                self._died(worker, "died while no watchdog was there")

    def _watch_host(self) -> None:
        if self._page.run_state is RunState.STOPPED or self._host.alive():
            return
        if self._page.run_state is not RunState.DRAINING:
            log.error(
                "the host (pid %d) is gone: workers drain and leave%s",
                self._host.pid,
                self._out_of_memory.explain(None),
            )
            self._page.drain_left_s = HOST_DEATH_GRACE_S
            self._page.run_state = RunState.DRAINING

    def _keep_clear(self) -> None:
        """Off the host's CPU, this process as well, until the host has ended and they drain."""
        if self._clear is None or self._page.run_state is RunState.STARTING:
            return
        pids = [os.getpid(), *(one.handle.pid for one in self._workers if one.handle is not None)]
        if self._page.run_state is RunState.RUNNING:
            self._clear.confine(pids)
        else:
            self._clear.release(pids)
            self._clear = None

    def _supervise(self, worker: Supervised, now: float) -> None:
        if worker.starting is not None:
            self._await_start(worker, now)
            return
        if worker.handle is None:
            if worker.start_at is not None and now >= worker.start_at and not worker.finished:
                self._start(worker)
            return
        if not worker.handle.alive():
            self._reap(worker)
            return
        if worker.killed:
            return  # its death comes as soon as the kernel is done with it
        if self._page.drain_left_s < (0.0 if worker.spec.role == "sink" else -LAST_TICK_S):
            log.error("%s did not leave before the drain deadline: killed", worker.spec.name)
            self._kill(worker)
            return
        if not self._own.can_judge(now):
            return
        age, starved = worker.silence_s(time.monotonic_ns())
        ready = worker.slot.state is WorkerState.READY
        limit = self._config.heartbeat_timeout_s if ready else self._config.startup_timeout_s
        starves = age + starved > limit
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
        elif starves and not worker.starves:
            log.warning(
                "%s starves: no heartbeat for %.1f s, of which it waited %.1f s for a CPU; not "
                "restarted, since that gives it none",
                worker.spec.name,
                age + starved,
                starved,
            )
        worker.starves = starves

    def _start(self, worker: Supervised) -> None:
        worker.start_at = None
        if self._page.drain_left_s < LATE_START_S:
            return
        worker.started_at = time.monotonic()
        launch_id = time.monotonic_ns()
        worker.slot.set(SlotField.CLOCK, own_clock())
        worker.slot.beat()
        worker.slot.state = WorkerState.STARTING
        worker.slot.set(SlotField.LAUNCH, launch_id)
        worker.process = self._fork_server.context.Process(
            target=worker_main,
            args=(
                self._launch_json,
                json.dumps(asdict(worker.spec)),
                launch_id,
                PassedFds(self._launch.fds),
            ),
            name=worker.spec.name,
            daemon=True,
        )
        worker.starting = self._fork_server.start(worker.process)

    def _await_start(self, worker: Supervised, now: float) -> None:
        assert worker.starting is not None
        took = now - worker.started_at
        if not worker.starting.done():
            if took > self._config.startup_timeout_s:
                self._fork_server.kill(f"did not start {worker.spec.name} in {took:.1f} s")
                worker.started_at = now
            return
        error = worker.starting.exception()
        worker.starting = None
        if error is not None:
            worker.process = None
            self._died(worker, f"the fork server failed: {error!r}")
            return
        try:
            worker.handle = ProcessHandle(pid := worker.process.pid)
        except ProcessLookupError:
            self._died(worker, "died at once")
            return
        worker.killed = False
        worker.slot.set(SlotField.PID, pid)
        worker.slot.set(SlotField.PROCESS_START, worker.handle.started)
        log.info("started %s (pid %d, %.3f s)", worker.spec.name, pid, took)

    def _kill(self, worker: Supervised) -> None:
        assert worker.handle is not None
        worker.handle.kill()
        worker.killed = True

    def _reap(self, worker: Supervised) -> None:
        """The worker's death is confirmed: take back its claims, then decide what comes next."""
        assert worker.handle is not None
        pid = worker.handle.pid
        worker.handle.close()
        worker.handle = None
        code = None
        if worker.process is not None:
            worker.process.join(0.5)
            code = worker.process.exitcode
            worker.process = None
        worker.slot.set(SlotField.EXIT_CODE, code if code is not None else -1)
        self._take_back(worker, pid)
        if worker.slot.state is WorkerState.DONE:
            log.info("%s finished", worker.spec.name)
            return
        signalled = code is not None and code < 0
        how = f"signal {signal.Signals(-code).name}" if signalled and code else f"exit code {code}"
        oom = "" if worker.killed else self._out_of_memory.explain(-code if code else None)
        self._died(worker, how + oom)

    def _take_back(self, worker: Supervised, pid: int) -> None:
        """Reclaim from the bus what the dead process `pid` held."""
        if worker.spec.role != "sink":
            return
        try:
            taken = self._bus_client().reap(pid)
        except Exception as error:  # noqa: BLE001 - the bus may be gone with the host
            log.warning("what %s held could not be taken back: %s", worker.spec.name, error)
            return
        if taken:
            log.info("took %d packets back from %s", taken, worker.spec.name)

    def _died(self, worker: Supervised, how: str) -> None:
        slot = worker.slot
        slot.set(SlotField.DOWN_SINCE_NS, time.monotonic_ns())
        enabled = self._config.enabled
        delay = worker.budget.next_delay_s(time.monotonic()) if enabled else None
        if delay is None:
            slot.state = WorkerState.QUARANTINED
            self._retire_group_of(worker)
            log.error(
                "%s died again (%s): %d deaths within %.0f s, quarantined. "
                "It said: %s. Fix the cause and start the run again",
                worker.spec.name,
                how,
                self._config.restart_limit + 1,
                self._config.restart_window_s,
                why_it_ended(Path(self._launch.run_dir), worker.spec.name),
            )
            return
        slot.state = WorkerState.FAILED
        slot.set(SlotField.RESTARTS, slot.get(SlotField.RESTARTS) + 1)
        slot.set(SlotField.INCARNATION, slot.get(SlotField.INCARNATION) + 1)
        worker.start_at = time.monotonic() + delay
        log.warning("%s died (%s); starts again in %.2f s", worker.spec.name, how, delay)

    def _retire_group_of(self, worker: Supervised) -> None:
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
            from asys_bench.workers.shard_bus import attach_bus

            # Attaching may close or map the descriptors: workers still need the originals.
            fds = tuple(os.dup(fd) for fd in self._launch.fds[1:])
            self._client = attach_bus(self._launch, fds)
        return self._client

    def _all_done(self) -> bool:
        draining = self._page.run_state in (RunState.DRAINING, RunState.STOPPED)
        if not draining:
            return False
        sinks = [w for w in self._workers if w.spec.role == "sink"]
        given_up = self._page.drain_left_s < LATE_START_S
        gone = (w.handle is None and w.starting is None for w in sinks)
        if all(w.finished or (absent and given_up) for w, absent in zip(sinks, gone, strict=True)):
            self._page.run_state = RunState.STOPPED
            monitors = [w for w in self._workers if w.spec.role == "monitor"]
            return all(w.finished or (w.handle is None and w.starting is None) for w in monitors)
        return False

    def _wait(self) -> None:
        """Sleep for one tick, or until a worker or the host dies."""
        poller = select.poll()
        for worker in self._workers:
            if worker.handle is not None:
                poller.register(worker.handle.fd, select.POLLIN)
        if self._fork_server.fd is not None:
            poller.register(self._fork_server.fd, select.POLLIN)
        if self._page.run_state is RunState.RUNNING:
            poller.register(self._host.fd, select.POLLIN)
        draining = self._page.run_state in (RunState.DRAINING, RunState.STOPPED)
        soon = draining or any(worker.starting is not None for worker in self._workers)
        poller.poll((0.02 if soon else self._config.tick_s) * 1000)


def _pins(launch: LaunchSpec) -> bool:
    return any(Placement.from_dict(place).cpus for place in launch.placements.values())


def main() -> None:
    """Read the launch specification from standard input and supervise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What a host or its launcher ignores or blocks is inherited. Ignored, SIGCHLD has the kernel reap
    # the fork server, and `wait` fails for good: no worker could be started any more.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal_on_parent_death(signal.SIGCONT)  # stopped, it must still see to it that workers leave
    launch = LaunchSpec.from_dict(json.load(sys.stdin))
    logging.basicConfig(
        filename=log_file(Path(launch.run_dir), WATCHDOG),
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if join_work(Path(launch.run_dir)) is None:
        log.error("another host has taken the run: its watchdog leaves")
        return
    page = StatsPage.attach(os.dup(launch.fds[0]))
    for problem in settle(Placement.from_dict(launch.placements.get(WATCHDOG, {}))):
        log.warning("%s", problem)
    try:
        watchdog = WatchdogProcess(launch, page)
    except ProcessLookupError:  # killed since, by want of memory perhaps; workers see it as well
        log.error("the host (pid %d) was gone before its watchdog was ready", launch.host_pid)
        return
    try:
        watchdog.run()
    except Exception:
        log.exception("the watchdog failed")
        raise


if __name__ == "__main__":
    main()
    logging.shutdown()
    # No destructors of imported libraries: the host waits for this end, half a second of a CPU.
    os._exit(0)
