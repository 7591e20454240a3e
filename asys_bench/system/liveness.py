"""Is that process alive? Asked of the kernel by pidfd, never guessed from a timeout.

A zombie answers ``kill(pid, 0)`` and a reused pid answers for a stranger; a pidfd does neither.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import time

from asys_bench.system.descriptor import Descriptor
from asys_bench.system.process import is_same_start, start_in, start_time, stat_fields

PR_SET_PDEATHSIG = 1
BLIND_WAIT_S = 0.05
"""Interval of the checks of a process that no descriptor is left for."""


def is_running(pid: int, started: int) -> bool:
    """Whether `pid` is the process that `start_time` said `started` of, and has not exited."""
    fields = stat_fields(pid)
    return fields[:1] not in ([], [b"Z"], [b"X"]) and is_same_start(start_in(fields), started)


def is_stopped(pid: int) -> bool:
    """Whether `pid` was stopped by a signal (SIGSTOP, Ctrl-Z); a debugger's hold does not count."""
    return stat_fields(pid)[:1] == [b"T"]


def scheduled_ns(thread: int) -> tuple[int, int]:
    """Nanoseconds for which a thread ran, and for which it was ready to run and others ran
    (/proc/thread/schedstat); 0 when it is gone or the kernel does not tell."""
    try:
        with open(f"/proc/{thread}/schedstat", "rb") as file:
            ran, waited, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return ran, waited


def waited_for_cpu_ns(pid: int) -> int:
    """The second of `scheduled_ns` of the main thread of `pid`."""
    return scheduled_ns(pid)[1]


def has_in_environment(pid: int, entry: str) -> bool:
    """Whether `pid` was started with `entry` ("NAME=value") in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return entry.encode() in file.read().split(b"\0")
    except OSError:
        return False


def all_pids() -> list[int]:
    """Every process of this machine that can be seen; under another root there may be no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def signal_on_parent_death(sig: int) -> None:
    """Have the kernel send `sig` to this process when the thread that started it ends (prctl(2)).

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class ProcessHandle:
    """A process that cannot be confused with a later one of the same pid.

    Its pidfd may be closed by this process at any time (see `Descriptor`); it is then opened again.
    """

    def __init__(self, pid: int, started: int | None = None) -> None:
        """`started`: what `start_time` said of it; None takes whatever has the pid now.

        Raises:
            ProcessLookupError: it is gone (or the pid is someone else's by now).
            OSError: no descriptor is left.
        """
        self.pid = pid
        self._closed = False
        self._descriptor = Descriptor(os.pidfd_open(pid))
        found = start_time(pid)
        if started is not None and not is_same_start(found, started):
            self._descriptor.close()
            raise ProcessLookupError(f"pid {pid} is not the process that was asked for")
        self.started = found

    @property
    def fd(self) -> int:
        """Readable once it has exited. Raises OSError as `__init__`, or after `close`."""
        if not self._descriptor.held:
            if self._closed:
                raise OSError(errno.EBADF, "this handle was closed")
            fresh = Descriptor(os.pidfd_open(self.pid))
            if start_time(self.pid) != self.started:
                fresh.close()
                raise ProcessLookupError(f"pid {self.pid} is somebody else's by now")
            self._descriptor = fresh
        return self._descriptor.number

    def alive(self) -> bool:
        return not self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """True once it has exited."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            try:
                poller = select.poll()
                poller.register(self.fd, select.POLLIN)
            except ProcessLookupError:
                return True
            except OSError:  # no descriptor is to be had
                if not is_running(self.pid, self.started):
                    return True
                if left_s <= 0.0:
                    return False
                time.sleep(min(BLIND_WAIT_S, left_s))
                continue
            events = poller.poll(None if timeout_s == float("inf") else left_s * 1000)
            # Whatever it said, it said it of another file if the number was lost meanwhile.
            if not events:
                return False
            if events[0][1] & select.POLLIN and self._descriptor.held:
                return True

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send `sig`; a process that is already gone is fine.

        Raises:
            PermissionError: it belongs to another user (this process has changed its own).
        """
        try:
            signal.pidfd_send_signal(self.fd, sig)
        except ProcessLookupError:
            return

    def reap(self) -> int | None:
        """Wait for a child that has exited; its exit code, negative for a signal.

        None where nobody can tell: the kernel or another thread of this process has waited for it.
        """
        try:
            found = os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG)
        except OSError:
            return None
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def close(self) -> None:
        self._closed = True
        self._descriptor.close()
