"""The host's side of supervision: start the watchdog, watch *it*, end everything.

The host owns one child, the watchdog; the watchdog owns the workers. A thread that sleeps in the
kernel notices the watchdog's death, or that its heartbeat stopped, kills what is left of it and
starts another, which adopts the workers still alive. Like the watchdog it checks its own lateness: when
it was late (the host was stopped, or held the interpreter), the watchdog gets a new timeout.
A watchdog that dies too often is given up (`watchdog.restart_limit`): its slot says quarantined, which
monitors report, and host and workers go on without one.

The process is the host's: it may ignore SIGCHLD or wait for every child, close every descriptor, remove
its working directory, change its user or its root. So a pidfd tells whether the watchdog lives, and its
slot whether it ended in order; `wait` is never asked. The watchdog has copies of the descriptors, which are
taken back from it when they are lost. `end` does what this process is still allowed to do and logs what
it is not. Workers and watchdog do the rest: they read in the stats page that they must leave.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from asys_bench.config.sections.run import WatchdogConfig
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.run_files import LOGS_DIR, log_file
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.placement.apply import thread_environment
from asys_bench.placement.plan import WATCHDOG, Placement
from asys_bench.system.descriptor import Descriptor
from asys_bench.system.files.atomic import open_private, private_memfd
from asys_bench.system.liveness import ProcessHandle, is_running
from asys_bench.system.process_usage import OutOfMemoryKills
from asys_bench.system.standard_fds import standard_fds_taken
from asys_bench.workers.process_group import ProcessGroups
from asys_bench.workers.restart import OwnLateness, RestartBudget, Silence
from asys_bench.workers.worker_log import messages_of, why_it_ended

log = logging.getLogger(__name__)

CHECK_S = 0.5
"""Time between two checks of the watchdog's heartbeat, at most."""
STDERR = 2
END_S = 5.0
"""`Supervisor.end` takes no longer, whatever cannot be ended."""


class SupervisorError(RuntimeError):
    """The workers did not become ready; the message names them, their last messages and their logs."""


class Supervisor:
    """Starts and ends the worker side of a run."""

    def __init__(self, launch: LaunchSpec, page: StatsPage, config: WatchdogConfig) -> None:
        self._launch, self._page, self._config = launch, page, config
        self._slot = page.slot("watchdog")
        self._budget = RestartBudget(self._config)
        self._out_of_memory = OutOfMemoryKills()
        self._groups = ProcessGroups(launch.run_id)
        self._watchdog: ProcessHandle | None = None
        self._shared = [Descriptor.copy_of(fd) for fd in launch.fds]
        self._passed = launch.fds
        """Numbers of `_shared` when the last watchdog was started: it has them under these."""
        self._python_path = absolute_python_path()
        self._working_dir = _working_dir()
        self._spawned_at = 0.0
        # `end` may interrupt itself, in a signal handler: a lock that its thread may take twice, and no
        # threading.Event, which has a lock that it may not.
        self._lock = threading.RLock()
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._said_lost = False
        self.watchdog_restarts = 0

    @property
    def workers(self) -> list[str]:
        """Names of the worker processes."""
        return [spec.name for spec in self._launch.workers]

    def start(self) -> None:
        """Start the watchdog, which starts the workers. Raises OSError: it cannot be."""
        (Path(self._launch.run_dir) / LOGS_DIR).mkdir(mode=0o700, exist_ok=True)
        self._spawn()
        self._thread = threading.Thread(target=self._watch, name="asys-supervisor", daemon=True)
        self._thread.start()

    @property
    def fds(self) -> tuple[int, ...]:
        """Stats page and bus handle, as `LaunchSpec.fds`, where other processes find them.

        Raises:
            OSError: this process has closed them.
        """
        return tuple(descriptor.number for descriptor in self._shared)

    def _spawn(self) -> None:
        """Raises OSError: no process, descriptor, executable or log file is to be had."""
        self._spawned_at = time.monotonic()
        self._passed = self.fds
        path = log_file(Path(self._launch.run_dir), WATCHDOG)
        launched = replace(
            self._launch,
            fds=self._passed,
            working_dir=self._working_dir,
        )
        with (
            standard_fds_taken(),
            os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as errors,
            open(private_memfd("asys-launch", os.MFD_CLOEXEC), "w+b") as launch,
        ):
            # In memory, not in a pipe: nobody may wait for a watchdog that was stopped or killed.
            launch.write(json.dumps(launched.to_dict()).encode())
            launch.seek(0)
            # -P keeps the working directory off sys.path; a session of its own keeps Ctrl-C away.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asys_bench.workers.watchdog"],
                stdin=launch,
                # A script's own lines go to standard output, perhaps in pieces (python -u).
                stdout=None if self._launch.terminal else STDERR,
                stderr=errors,
                pass_fds=self._passed,
                cwd="/",  # the host's may be gone
                env={
                    **os.environ,
                    **self._python_path,
                    **thread_environment(self._worker_threads()),
                    **self._groups.environment,
                },
                start_new_session=True,
            )
        # From here on only the pidfd stands for it: Popen would wait for a pid that the host may have
        # waited for already, and take the answer (no such child) for an orderly end.
        process.returncode = 0
        self._groups.add(process.pid)
        try:
            self._watchdog = ProcessHandle(process.pid)
        except ProcessLookupError:  # it died at once, and the kernel or the host has reaped it
            self._watchdog = None
        self._pin(process.pid)

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
            self._until_dead()
            watchdog = self._watchdog
            code = watchdog.reap() if watchdog is not None else None
            with self._lock:
                self._watchdog = None
                if watchdog is not None:
                    watchdog.close()
                if self._stopping or self._slot.state is WorkerState.DONE:
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
            with suppress(queue.Empty):
                self._wake.get(timeout=delay)
            with self._lock:
                if self._stopping:
                    return
                self.watchdog_restarts += 1
                how = "nobody knows how" if code is None else str(code)
                log.warning(
                    "the watchdog died (%s%s): starting another",
                    how,
                    self._out_of_memory.explain(None if code is None else -code),
                )
                try:
                    self._spawn()
                except OSError as error:
                    self._slot.state = WorkerState.QUARANTINED
                    log.error("the watchdog cannot be started again: %s", error)
                    return

    def _until_dead(self) -> None:
        """Wait for the watchdog's end; SIGKILL it when it hangs (SIGSTOPped ones too)."""
        handle = self._watchdog
        if handle is None:
            return
        timeout_s = self._config.heartbeat_timeout_s
        check_s = min(CHECK_S, timeout_s / 4)
        own = OwnLateness(check_s, timeout_s, time.monotonic())
        silence = Silence(self._slot)
        while not handle.wait(check_s):
            now = time.monotonic()
            own.tick(now)
            self._take_back_descriptors(handle.pid)
            ready = (
                self._slot.get(SlotField.PID) == handle.pid
                and self._slot.state is not WorkerState.STARTING
            )
            unheard_s, _ = silence.measure(handle.pid, time.monotonic_ns())
            silent_s = unheard_s if ready else now - self._spawned_at
            limit = timeout_s if ready else self._config.startup_timeout_s
            if silent_s > limit and own.can_judge(now):
                log.error("the watchdog hangs (no heartbeat for %.1f s): killed", silent_s)
                if not _killed(handle):
                    log.error("the watchdog (pid %d) is another user's now: not killed", handle.pid)
                    self._spawned_at = now
                    handle.wait(timeout_s)

    def _take_back_descriptors(self, pid: int) -> None:
        """What the host has closed, the watchdog still has: the next one must inherit it."""
        for descriptor, number in zip(self._shared, self._passed, strict=True):
            if not descriptor.held and not descriptor.restore(f"/proc/{pid}/fd/{number}"):
                if not self._said_lost:
                    log.warning(
                        "this process closed the descriptors of its run, and they cannot be had back: "
                        "a watchdog that dies is not started again"
                    )
                self._said_lost = True

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
        messages = messages_of(run_dir, WATCHDOG)
        last = messages[-1] if messages else "it said nothing"
        return f"the watchdog keeps dying: {last} (log: {log_file(run_dir, WATCHDOG)})"

    def _explain(self, names: list[str], what: str) -> str:
        run_dir = Path(self._launch.run_dir)
        return "; ".join(f"{name}: {what}: {why_it_ended(run_dir, name)}" for name in names)

    def drain(self, timeout_s: float) -> bool:
        """Tell workers to finish what is there; True when all left in order before the deadline."""
        end = time.monotonic() + timeout_s
        self._page.drain_left_s = timeout_s
        self._page.run_state = RunState.DRAINING
        thread = self._thread
        while thread is not None and (left_s := end - time.monotonic()) > -1.0:
            self._page.drain_left_s = left_s
            if self._slot.state is WorkerState.QUARANTINED:
                if self._settle_alone():
                    break
            elif not thread.is_alive():  # it has seen the watchdog end in order
                break
            time.sleep(0.01)
        self.end()
        return all(
            self._page.slot(spec.name).state is WorkerState.DONE for spec in self._launch.workers
        )

    def _settle_alone(self) -> bool:
        """In place of a watchdog that was given up; True once everybody has left."""
        running = self._running()
        if not any(spec.role == "sink" and spec.name in running for spec in self._launch.workers):
            self._page.run_state = RunState.STOPPED
        return not running

    def _running(self) -> dict[str, int]:
        """Name -> pid of the workers that are there, by what their slots and /proc say."""
        found: dict[str, int] = {}
        for spec in self._launch.workers:
            slot = self._page.slot(spec.name)
            pid, started = slot.get(SlotField.PID), slot.get(SlotField.PROCESS_START)
            if pid and pid != os.getpid() and is_running(pid, started):
                found[spec.name] = pid
        return found

    def end(self) -> None:
        """SIGKILL whatever is left, each by pid and start time, and reap. Idempotent; at most `END_S`.

        For a signal handler too, which may interrupt this very method.
        """
        deadline = time.monotonic() + END_S
        with self._lock:
            self._stopping = True
            self._wake.put(None)
            refused = self._watchdog is not None and not _killed(self._watchdog)
        if self._thread is None:
            return
        self._join(END_S / 4 if not refused else 0.0)
        refused = self._end_workers(deadline) or refused
        self._page.drain_left_s = 0.0
        self._page.run_state = RunState.STOPPED
        if refused:  # they read there that they must leave, and the watchdog kills who does not
            self._join(deadline - time.monotonic())
            while self._running() and time.monotonic() < deadline:
                time.sleep(0.01)
        left = {*self._groups.end(deadline), *self._running().values()}
        self._groups.remove_folders(self._launch.run_dir)
        if left:
            log.warning("still there, and not to be ended by this process: %s", sorted(left))
        self._join(deadline - time.monotonic())

    def close(self) -> None:
        """Let go of the descriptors. Idempotent."""
        for descriptor in self._shared:
            descriptor.close()

    def _end_workers(self, deadline: float) -> bool:
        """True: one is another user's now."""
        refused = False
        for spec in self._launch.workers:
            slot = self._page.slot(spec.name)
            pid, started = slot.get(SlotField.PID), slot.get(SlotField.PROCESS_START)
            if not pid or pid == os.getpid():
                continue
            try:
                handle = ProcessHandle(pid, started)
            except OSError:
                continue
            if _killed(handle):
                handle.wait(max(0.0, min(2.0, deadline - time.monotonic())))
            else:
                refused = True
            handle.close()
        return refused

    def _join(self, timeout_s: float) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout_s))


def _killed(handle: ProcessHandle) -> bool:
    """False: it is another user's, since this process has changed its own."""
    try:
        handle.kill()
    except OSError:
        return False
    return True


def _working_dir() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def absolute_python_path() -> dict[str, str]:
    """PYTHONPATH for a child with another working directory; empty where it needs no change."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if all(os.path.isabs(entry) for entry in entries):
        return {}
    try:
        absolute = [os.path.abspath(entry) for entry in entries if entry]
    except OSError:  # the working directory is gone, and with it what lay below
        absolute = [entry for entry in entries if os.path.isabs(entry)]
    return {"PYTHONPATH": os.pathsep.join(absolute)} if any(entries) else {}
