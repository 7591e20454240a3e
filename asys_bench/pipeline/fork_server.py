"""The fork server of a run, watched: dead it is started again, stopped it is killed first.

A start is asked for in a thread that does nothing else, because it waits for the server's answer,
and a stopped server never answers: the watchdog's own loop must not wait with it. That thread lives
as long as the watchdog does, so the server, its child, gets SIGKILL exactly when the watchdog dies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver, process, resource_tracker, util
from typing import Any

from asys_bench.pipeline.liveness import ProcessHandle, is_stopped

log = logging.getLogger("asys_bench.watchdog")

GUARD = "asys_bench.pipeline.fork_server_guard"
PARENT_VARIABLE = "ASYS_FORK_SERVER_PARENT"
NICENESS_VARIABLE = "ASYS_FORK_SERVER_NICENESS"
_SOCKET_PATH_BYTES, _SOCKET_NAME_BYTES = 107, len("/listener-12345678")


class ForkServer:
    """Starts worker processes. `context` makes the process objects to start."""

    def __init__(
        self,
        preload: Iterable[str],
        stopped_timeout_s: float,
        niceness: int | None = None,
        folder: str = "",
    ) -> None:
        """stopped_timeout_s: how long a server may be stopped (SIGSTOP) before it is killed.

        niceness: of the server and so of what it starts; its imports take seconds of a CPU, which
        a restart must not take from the host. None: as this process.

        folder: for the server's socket, private and removed by somebody else; one that multiprocessing
        makes stays behind when this process is killed.
        """
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([GUARD, *sorted(set(preload) - {GUARD})])
        # Before Python 3.11.1 it would listen on an abstract socket, where any user of the machine may
        # have it start processes of this user (CVE-2022-42919).
        vars(util)["abstract_sockets_supported"] = False
        if folder:
            process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]
        _shorten_socket_path()
        self._stopped_timeout_s = stopped_timeout_s
        self._stopped_since: float | None = None
        self._handle: ProcessHandle | None = None
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
            self._ensuring = self._thread.submit(forkserver.ensure_running)

    def start(self, process: Any) -> Future[None]:
        """Start `process`, a process object of `context`; done when it has a pid (or failed)."""
        return self._thread.submit(process.start)

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


def _shorten_socket_path() -> None:
    """The server listens on a socket in the temporary folder, and the kernel takes 107 bytes of its
    path. Through a descriptor of the folder the path is short, however deep the folder lies. Only this
    process connects, so that nobody else needs to know it.

    Raises:
        OSError: there is no folder for temporary files.
    """
    folder: str = util.get_temp_dir()
    if len(os.fsencode(folder)) + _SOCKET_NAME_BYTES <= _SOCKET_PATH_BYTES:
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    process.current_process()._config["tempdir"] = f"/proc/self/fd/{fd}"  # type: ignore[attr-defined]


def _kill_child(pid: int) -> None:
    """SIGKILL to a child that has not been waited for, so that the pid is still its own."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
