"""CPU time and memory of a process, from proc(5): tens of microseconds, so that it can be asked often;
and whether the kernel has ended processes for want of memory."""

from __future__ import annotations

import os
import signal

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_usage(pid: int) -> tuple[float, int] | None:
    """(CPU seconds of all its threads, resident bytes); None when it is gone.

    Resident memory includes shared pages: the bus's count in every process that touched them.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None


def own_memory_bytes() -> int:
    """What this process alone has in memory (RssAnon of proc(5)): no shared pages, no files. 0: not known."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


class OutOfMemoryKills:
    """Tells whether the kernel's OOM killer has ended a process since this object was made.

    The count (`oom_kill` in /proc/vmstat, Linux 4.13) is the machine's, so it is evidence and no proof:
    another cgroup's process may have been the one.
    """

    def __init__(self) -> None:
        self._before = _oom_kills()

    def explain(self, sig: int | None) -> str:
        """What to say of a process that ended by signal `sig` (None: nobody knows how); "" when the
        OOM killer, which sends SIGKILL, cannot have been it. The next death is told apart from this one."""
        now = _oom_kills()
        if sig not in (None, signal.SIGKILL) or now <= self._before:
            return ""
        self._before = now
        return (
            "; the kernel has ended a process for want of memory meanwhile: give the run more "
            "(the limit of its cgroup or container), or make bus, d_sae or workers smaller"
        )


def _oom_kills() -> int:
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
