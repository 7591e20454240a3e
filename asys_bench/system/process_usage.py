"""CPU time and memory of a process, from proc(5): tens of microseconds, so that it can be asked often."""

from __future__ import annotations

import os

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
