"""Is that process alive? Asked of the kernel by pidfd, never guessed from a timeout.

A zombie answers ``kill(pid, 0)`` and a reused pid answers for a stranger; a pidfd does neither.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal

PR_SET_PDEATHSIG = 1


def stat_fields(pid: int) -> list[bytes]:
    """What proc(5) says of `pid` from its state (field 3) on, after its name; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot (proc(5), field 22); 0 when it is gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Whether `pid` was stopped by a signal (SIGSTOP, Ctrl-Z); a debugger's hold does not count."""
    return stat_fields(pid)[:1] == [b"T"]


def waited_for_cpu_ns(pid: int) -> int:
    """Nanoseconds for which the main thread of `pid` was ready to run and others ran
    (/proc/pid/schedstat, its second field); 0 when it is gone or the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def has_in_environment(pid: int, entry: str) -> bool:
    """Whether `pid` was started with `entry` ("NAME=value") in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return entry.encode() in file.read().split(b"\0")
    except OSError:
        return False


def all_pids() -> list[int]:
    """Every process of this machine that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


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
    """A process that cannot be confused with a later one of the same pid."""

    def __init__(self, pid: int, started: int | None = None) -> None:
        """`started`: what `start_time` said of it; None takes whatever has the pid now.

        Raises:
            ProcessLookupError: it is gone (or the pid is someone else's by now).
        """
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        found = start_time(pid)
        if started is not None and found != started:
            os.close(self.fd)
            raise ProcessLookupError(f"pid {pid} is not the process that was asked for")
        self.started = found

    def alive(self) -> bool:
        return not self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """True once it has exited."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        forever = timeout_s == float("inf")
        return bool(poller.poll(None if forever else max(0.0, timeout_s) * 1000))

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send `sig`; a process that is already gone is fine."""
        try:
            signal.pidfd_send_signal(self.fd, sig)
        except ProcessLookupError:
            return

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
