"""The host's side of supervision: start the watchdog, watch *it*, end everything.

The host owns one child, the watchdog; the watchdog owns the workers. A thread that sleeps in the
kernel notices the watchdog's death, or that its heartbeat stopped, kills what is left of it and
starts another, which adopts the workers still alive. Like the watchdog it doubts itself first: when
it came late itself (the host was stopped, or held the interpreter), the watchdog gets a new timeout.
A watchdog that dies too often is given up (`watchdog.restart_limit`): its slot says quarantined, which
monitors report, and host and workers go on without one.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from asys_bench.config.watchdog import WatchdogConfig
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.pipeline.doubt import SelfDoubt
from asys_bench.pipeline.liveness import ProcessHandle, start_time
from asys_bench.pipeline.process_group import ProcessGroups
from asys_bench.pipeline.resource_manager.apply import thread_environment
from asys_bench.pipeline.resource_manager.plan import WATCHDOG, Placement
from asys_bench.pipeline.restart import RestartBudget
from asys_bench.pipeline.standard_fds import standard_fds_taken
from asys_bench.pipeline.worker_words import epitaph, log_of, words_of
from asys_bench.storage import open_private

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Time between two looks at the watchdog's heartbeat, at most."""


class SupervisorError(RuntimeError):
    """The workers did not become ready; the message names them, their last words and their logs."""


class Supervisor:
    """Starts and ends the worker side of a run."""

    def __init__(self, launch: LaunchSpec, page: StatsPage) -> None:
        self._launch, self._page = launch, page
        self._config = WatchdogConfig.model_validate(launch.watchdog)
        self._slot = page.slot("watchdog")
        self._budget = RestartBudget(self._config)
        self._groups = ProcessGroups(launch.run_id)
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned_at = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.watchdog_restarts = 0

    @property
    def workers(self) -> list[str]:
        """Names of the worker processes."""
        return [spec.name for spec in self._launch.workers]

    def start(self) -> None:
        """Start the watchdog, which starts the workers."""
        (Path(self._launch.run_dir) / "logs").mkdir(mode=0o700, exist_ok=True)
        self._spawn()
        self._thread = threading.Thread(target=self._watch, name="asys-supervisor", daemon=True)
        self._thread.start()

    def _spawn(self) -> None:
        self._spawned_at = time.monotonic()
        log_file = Path(self._launch.run_dir) / "logs" / "watchdog.log"
        with (
            standard_fds_taken(),
            os.fdopen(
                open_private(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab"
            ) as errors,
            open(os.memfd_create("asys-launch", os.MFD_CLOEXEC), "w+b") as launch,
        ):
            # In memory, not in a pipe: nobody may wait for a watchdog that was stopped or killed.
            launch.write(json.dumps(self._launch.to_dict()).encode())
            launch.seek(0)
            # -P keeps the working directory off sys.path; a session of its own keeps Ctrl-C away.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asys_bench.pipeline.watchdog"],
                stdin=launch,
                stderr=errors,
                pass_fds=self._launch.fds,
                env={
                    **os.environ,
                    **thread_environment(self._worker_threads()),
                    **self._groups.environment,
                },
                start_new_session=True,
            )
        self._groups.add(self._process.pid)
        self._pin(self._process.pid)

    def _pin(self, pid: int) -> None:
        """Put a new watchdog on its CPUs now: it has the host's until it has imported everything."""
        placement = Placement.from_dict(self._launch.placements.get(WATCHDOG, {}))
        if placement.cpus:
            with suppress(OSError):  # it is gone, or says itself what it cannot have
                os.sched_setaffinity(pid, placement.cpus)

    def _worker_threads(self) -> int:
        return max((spec.threads for spec in self._launch.workers), default=1)

    def _watch(self) -> None:
        while True:
            process = self._process
            assert process is not None
            self._until_dead(process)
            with self._lock:
                if self._stopping.is_set() or process.returncode == 0:
                    return
            delay = self._budget.next_delay_s(time.monotonic())
            if delay is None:
                self._slot.state = WorkerState.QUARANTINED
                log.error(
                    "the watchdog died %d times within %.0f s: workers go on without one, and one "
                    "that dies is not started again. See logs/watchdog.log in the run directory",
                    self._config.restart_limit + 1,
                    self._config.restart_window_s,
                )
                return
            self._slot.state = WorkerState.FAILED
            self._slot.set(SlotField.RESTARTS, self._slot.get(SlotField.RESTARTS) + 1)
            if self._stopping.wait(delay):
                return
            with self._lock:
                if self._stopping.is_set():
                    return
                self.watchdog_restarts += 1
                log.warning("the watchdog died (%s): starting another", process.returncode)
                try:
                    self._spawn()
                except OSError as error:
                    self._slot.state = WorkerState.QUARANTINED
                    log.error("the watchdog cannot be started again: %s", error)
                    return

    def _until_dead(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the watchdog's end; SIGKILL it when it hangs (SIGSTOPped ones too)."""
        timeout_s = self._config.heartbeat_timeout_s
        look_s = min(LOOK_S, timeout_s / 4)
        doubt = SelfDoubt(look_s, timeout_s, time.monotonic())
        try:
            handle = ProcessHandle(process.pid)
        except OSError:  # dead and waited for, or no descriptor is left: then its death must do
            process.wait()
            return
        while not handle.wait(look_s):
            now = time.monotonic()
            doubt.look(now)
            ready = (
                self._slot.get(SlotField.PID) == process.pid
                and self._slot.state is not WorkerState.STARTING
            )
            since = self._slot.get(SlotField.HEARTBEAT_NS) / 1e9 if ready else self._spawned_at
            limit = timeout_s if ready else self._config.startup_timeout_s
            if now - since > limit and doubt.trusts(now):
                log.error("the watchdog hangs (no heartbeat for %.1f s): killed", now - since)
                handle.kill()
        handle.close()
        process.wait()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every worker consumes.

        Raises:
            SupervisorError: one did not within `timeout_s`, or was quarantined.
        """
        deadline = time.monotonic() + timeout_s
        waiting = [spec.name for spec in self._launch.workers]
        while waiting:
            for name in list(waiting):
                state = self._page.slot(name).state
                if state in (WorkerState.READY, WorkerState.DONE):
                    waiting.remove(name)
                elif state is WorkerState.QUARANTINED:
                    raise SupervisorError(self._explain([name], "keeps dying at its start"))
            if waiting and self._slot.state is WorkerState.QUARANTINED:
                raise SupervisorError(self._explain_watchdog())
            if waiting and time.monotonic() > deadline:
                raise SupervisorError(self._explain(waiting, f"not ready after {timeout_s:g} s"))
            time.sleep(0.01)

    def _explain_watchdog(self) -> str:
        run_dir = Path(self._launch.run_dir)
        words = words_of(run_dir, "watchdog")
        said = words[-1] if words else "it said nothing"
        return f"the watchdog keeps dying: {said} (log: {log_of(run_dir, 'watchdog')})"

    def _explain(self, names: list[str], what: str) -> str:
        run_dir = Path(self._launch.run_dir)
        return "; ".join(f"{name}: {what}: {epitaph(run_dir, name)}" for name in names)

    def drain(self, timeout_s: float) -> bool:
        """Tell workers to finish what is there; True when all left in order before the deadline."""
        self._page.drain_deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        self._page.run_state = RunState.DRAINING
        deadline = time.monotonic() + timeout_s + 1.0
        while (process := self._process) is not None and time.monotonic() < deadline:
            if process.poll() == 0:
                break
            if self._slot.state is WorkerState.QUARANTINED and self._settle_alone():
                break
            time.sleep(0.01)
        self.end()
        return all(
            self._page.slot(spec.name).state is WorkerState.DONE for spec in self._launch.workers
        )

    def _settle_alone(self) -> bool:
        """In place of a watchdog that was given up; True once everybody has left."""
        running = {
            spec.name: spec.role
            for spec in self._launch.workers
            if start_time(pid := self._page.slot(spec.name).get(SlotField.PID))
            == self._page.slot(spec.name).get(SlotField.PROCESS_START)
            and pid
        }
        if "sink" not in running.values():
            self._page.run_state = RunState.STOPPED
        return not running

    def end(self) -> None:
        """SIGKILL whatever is left, each by pid and start time, and reap. Idempotent."""
        with self._lock:
            self._stopping.set()
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        for spec in self._launch.workers:
            slot = self._page.slot(spec.name)
            pid, started = slot.get(SlotField.PID), slot.get(SlotField.PROCESS_START)
            if not pid or pid == os.getpid():
                continue
            try:
                handle = ProcessHandle(pid, started)
            except (ProcessLookupError, OSError):
                continue
            handle.kill()
            handle.wait(2.0)
            handle.close()
        self._groups.end()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._page.run_state = RunState.STOPPED
