"""The fork server of a run, watched: dead it is started again, stopped it is killed first.

A start is asked for in a thread that does nothing else, because it waits for the server's answer,
and a stopped server never answers: the watchdog's own loop must not wait with it. That thread lives
as long as the watchdog does, so the server, its child, gets SIGKILL exactly when the watchdog dies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver, process, resource_tracker, util
from typing import Any

from asys_bench.system.liveness import ProcessHandle, is_stopped
from asys_bench.workers.process_group import VARIABLE, folder_prefix, remove_folders

log = logging.getLogger("asys_bench.watchdog")

GUARD = "asys_bench.workers.fork_server_guard"
PARENT_VARIABLE = "ASYS_FORK_SERVER_PARENT"
NICENESS_VARIABLE = "ASYS_FORK_SERVER_NICENESS"


class ForkServer:
    """Starts worker processes. `context` makes the process objects to start."""

    def __init__(
        self,
        preload: Iterable[str],
        stopped_timeout_s: float,
        niceness: int | None = None,
        folder: str | None = None,
    ) -> None:
        """stopped_timeout_s: how long a server may be stopped (SIGSTOP) before it is killed.

        niceness: of the server and so of what it starts; its imports take seconds of a CPU, which
        a restart must not take from the host. None: as this process.

        folder: for the server's socket where there is no folder for temporary files.
        """
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([GUARD, *sorted(set(preload) - {GUARD})])
        # Before Python 3.11.1 it would listen on an abstract socket, where any user of the machine may
        # have it start processes of this user (CVE-2022-42919).
        vars(util)["abstract_sockets_supported"] = False
        self._folder = folder
        self._stopped_timeout_s = stopped_timeout_s
        self._stopped_since: float | None = None
        self._handle: ProcessHandle | None = None
        self._socket: int | None = None
        self._ensuring: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "asys-starter")
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        os.environ.pop(NICENESS_VARIABLE, None)
        if niceness is not None:
            os.environ[NICENESS_VARIABLE] = str(niceness)

    @property
    def pid(self) -> int:
        """0 while there is none."""
        found: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        return found or 0

    @property
    def fd(self) -> int | None:
        """Readable once the server is dead; None while there is none."""
        return self._handle.fd if self._handle is not None else None

    def ensure(self) -> None:
        """See to it that a server runs; it imports what is preloaded meanwhile. Does not wait."""
        if self._ensuring is None or self._ensuring.done():
            self._ensuring = self._thread.submit(self._ensure)

    def start(self, process: Any) -> Future[None]:
        """Start `process`, a process object of `context`; done when it has a pid (or failed)."""
        return self._thread.submit(self._start, process)

    def _start(self, process: Any) -> None:
        self._ensure()
        process.start()

    def _ensure(self) -> None:
        """Have a server run. Its socket has a name until this process holds it open, and none from then
        on: nothing lies in the folder when every process is killed, and nobody else can connect.

        Raises:
            OSError: the server cannot be started.
        """
        folder = self._new_folder()
        server: Any = forkserver._forkserver
        try:
            within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # The kernel takes 107 bytes of a socket's path, and the folder may lie deep.
                near = f"/proc/self/fd/{within}"
                process.current_process()._config["tempdir"] = near  # type: ignore[attr-defined]
                forkserver.ensure_running()
                address = server._forkserver_address
                if address.startswith(near):  # a new one
                    held = os.open(address, os.O_PATH | os.O_CLOEXEC)
                    server._forkserver_address = f"/proc/self/fd/{held}"
                    self._close_socket()
                    self._socket = held
            finally:
                os.close(within)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _new_folder(self) -> str:
        mark = os.environ.get(VARIABLE, "")
        if mark:  # what a watchdog has left that was killed in the middle of this
            remove_folders(mark, self._folder)
        try:
            return tempfile.mkdtemp(prefix=folder_prefix(mark))
        except OSError:
            if self._folder is not None:
                # torch._dynamo makes this one in TMPDIR when it is imported
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", self._folder)
            return tempfile.mkdtemp(prefix=f".{folder_prefix(mark)}", dir=self._folder)

    def _close_socket(self) -> None:
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None

    def watch(self, now: float) -> None:
        """Look after the server; `now` on the monotonic clock, in seconds."""
        if self._handle is not None and not self._handle.alive():
            log.warning("the fork server (pid %d) died: starting another", self._handle.pid)
            self._handle.close()
            self._handle = None
            self.ensure()
        pid = self.pid
        if self._handle is None and pid and (self._ensuring is None or self._ensuring.done()):
            try:
                self._handle = ProcessHandle(pid)
            except ProcessLookupError:
                self.ensure()
        if self._handle is None or not is_stopped(self._handle.pid):
            self._stopped_since = None
            return
        self._stopped_since = self._stopped_since or now
        if now - self._stopped_since > self._stopped_timeout_s:
            self.kill("is stopped")

    def kill(self, why: str) -> None:
        """SIGKILL the server: whoever waits for it gets an error, and `watch` starts another."""
        pid = self.pid
        if pid:
            log.error("the fork server (pid %d) %s: killed", pid, why)
            _kill_child(pid)

    def end(self) -> None:
        """Leave nothing behind: neither the server nor the resource tracker, stopped ones included."""
        tracker: int | None = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
        for pid in (self.pid, tracker or 0):
            if pid:
                _kill_child(pid)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _kill_child(pid: int) -> None:
    """SIGKILL to a child that has not been waited for, so that the pid is still its own."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
