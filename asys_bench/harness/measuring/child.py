"""How a process that runs a round ends: by its pidfd, and by its exit code where that can be had."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from asys_bench.system.liveness import ProcessHandle


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """code: exit code, or minus the signal; None where nobody can tell (the kernel or another thread of
    this process has waited for it), and after a timeout.
    """

    pid: int
    code: int | None
    timed_out: bool = False


def keep_exit_codes() -> None:
    """Of this process's children, whatever its parent ignores or blocks: that is inherited.

    With SIGCHLD ignored the kernel reaps children by itself. `waitpid` then fails, and `subprocess`
    reports 0 for one that crashed. For programs of ours only: a host's signals are the host's.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def await_end(pid: int, timeout_s: float) -> ProcessEnd:
    """Wait for a child that leads a process group of its own; then end what is left of the group."""
    handle: ProcessHandle | None = None
    ended = False
    try:
        handle = ProcessHandle(pid)
        ended = handle.wait(timeout_s)
    except ProcessLookupError:  # it has ended, and the kernel has reaped it
        ended = True
    finally:  # also when Ctrl-C comes
        end_group(pid)
        code = None
        if handle is not None:
            handle.kill()  # a fork that has not come to be a leader yet
            handle.wait(float("inf"))
            code = handle.reap()
            handle.close()
    return ProcessEnd(pid, code if ended else None, timed_out=not ended)


def end_group(leader: int) -> None:
    """SIGKILL what is left of a process group."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
