"""The host's side of supervision: start the watchdog, watch *it*, end everything.

The host owns one child, the watchdog; the watchdog owns the workers. A thread that sleeps in the
kernel notices the watchdog's death and starts another, which adopts the workers still alive.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.pipeline.liveness import ProcessHandle
from asys_bench.pipeline.resource_manager.apply import thread_environment

log = logging.getLogger(__name__)

WATCHDOG_RESTARTS = 10


class SupervisorError(RuntimeError):
    """The workers did not become ready; the message names them and their log files."""


class Supervisor:
    """Starts and ends the worker side of a run."""

    def __init__(self, launch: LaunchSpec, page: StatsPage) -> None:
        self._launch, self._page = launch, page
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.watchdog_restarts = 0

    def start(self) -> None:
        """Start the watchdog, which starts the workers."""
        (Path(self._launch.run_dir) / "logs").mkdir(mode=0o700, exist_ok=True)
        self._spawn()
        self._thread = threading.Thread(target=self._watch, name="asys-supervisor", daemon=True)
        self._thread.start()

    def _spawn(self) -> None:
        with open(Path(self._launch.run_dir) / "logs" / "watchdog.log", "ab") as errors:
            # -P keeps the working directory off sys.path; a session of its own keeps Ctrl-C away.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asys_bench.pipeline.watchdog"],
                stdin=subprocess.PIPE,
                stderr=errors,
                pass_fds=self._launch.fds,
                env={**os.environ, **thread_environment(self._worker_threads())},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(json.dumps(self._launch.to_dict()).encode())

    def _worker_threads(self) -> int:
        return max((spec.threads for spec in self._launch.workers), default=1)

    def _watch(self) -> None:
        while True:
            process = self._process
            assert process is not None
            process.wait()
            with self._lock:
                if self._stopping.is_set() or process.returncode == 0:
                    return
                if self.watchdog_restarts >= WATCHDOG_RESTARTS:
                    log.error(
                        "the watchdog died %d times: workers go on without one", WATCHDOG_RESTARTS
                    )
                    return
                self.watchdog_restarts += 1
                log.warning("the watchdog died (%d): starting another", process.returncode)
                try:
                    self._spawn()
                except OSError as error:
                    log.error("the watchdog cannot be started again: %s", error)
                    return

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
            if waiting and time.monotonic() > deadline:
                raise SupervisorError(self._explain(waiting, f"not ready after {timeout_s:g} s"))
            time.sleep(0.01)

    def _explain(self, names: list[str], what: str) -> str:
        logs = ", ".join(str(Path(self._launch.run_dir) / "logs" / f"{name}.log") for name in names)
        return f"{', '.join(names)}: {what}; see {logs}"

    def drain(self, timeout_s: float) -> bool:
        """Tell workers to finish what is there; True when all left in order before the deadline."""
        self._page.drain_deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        self._page.run_state = RunState.DRAINING
        deadline = time.monotonic() + timeout_s + 1.0
        process = self._process
        while process is not None and time.monotonic() < deadline:
            process = self._process
            if process is not None and process.poll() == 0:
                break
            time.sleep(0.01)
        self.end()
        return all(
            self._page.slot(spec.name).state is WorkerState.DONE for spec in self._launch.workers
        )

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
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._page.run_state = RunState.STOPPED
