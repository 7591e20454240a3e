"""Which process has a pid, which clock does it read, and how does it give way to the host?

A time namespace (time_namespaces(7)) has a CLOCK_MONOTONIC and a CLOCK_BOOTTIME of its own, hours or days
away from the others'. A process that calls `unshare(CLONE_NEWTIME)` keeps its clocks and its children get
the new ones. Start times in /proc/<pid>/stat are shifted to the clock of whoever reads them.
"""

from __future__ import annotations

import os

REFERENCE_PID = 1
_ROUNDING = 2
"""Ticks by which two readers of one process may differ: its time and the reference's are rounded."""
_LEAST_START = _ROUNDING + 1
"""`start_time` of a process as old as the reference: never 0, which is "gone"."""
_WRAPPED = 2**64 // 10**7 + 1
"""Proc(5) gives 2**64 ns more to who started before the reader's clock was 0; here in ticks of 10 ms."""


def stat_fields(pid: int) -> list[bytes]:
    """What proc(5) says of `pid` from its state (field 3) on, after its name; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Clock ticks from the start of process 1 to that of `pid`; 0 when it is gone.

    Readers of two time namespaces find the same, give or take the ticks that are lost in rounding
    (`is_same_start`). Where /proc hides process 1 from this user it counts from boot, as proc(5) does.
    """
    return start_in(stat_fields(pid))


def start_in(fields: list[bytes]) -> int:
    """`start_time` of the process that `stat_fields` gave `fields` of."""
    ticks = _ticks_since_boot(fields)
    if ticks is None:
        return 0
    return ticks - (_ticks_since_boot(stat_fields(REFERENCE_PID)) or 0) + _LEAST_START


def _ticks_since_boot(fields: list[bytes]) -> int | None:
    """Field 22 of proc(5), on this process's clock; None when there is no such process."""
    if not fields:
        return None
    ticks = int(fields[19])
    return ticks - _WRAPPED if ticks > _WRAPPED // 2 else ticks


def is_same_start(found: int, started: int) -> bool:
    """Whether two answers of `start_time`, maybe from two time namespaces, are of one process."""
    return found != 0 and started != 0 and abs(found - started) <= _ROUNDING


def own_clock() -> int:
    """Names the CLOCK_MONOTONIC that this process reads: equal numbers are equal clocks.

    0 where that cannot be told (no /proc), which is equal to none.
    """
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except FileNotFoundError:  # a kernel without time namespaces has one clock
        return int(os.path.isdir("/proc/self/ns"))
    except OSError:
        return 0


def yield_to_others(niceness: int | None, *, idle: bool = False) -> list[str]:
    """Raise the calling process to `niceness` (-20..19; one that is higher stays, None changes none).

    When it wakes up it also waits for the end of the time slice that runs (SCHED_BATCH), since that
    is as likely the host's as any.

    idle: take only what nobody else wants (SCHED_IDLE). To the scheduler a CPU that runs nothing
    else is free, so whatever wakes up goes there before it goes to a busy host's.

    Returns what could not be done, one line each.
    """
    problems = []
    try:
        if niceness is not None and os.getpriority(os.PRIO_PROCESS, 0) < niceness:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
    except OSError as error:
        problems.append(f"niceness not raised to {niceness}: {error.strerror}")
    try:
        policy = os.SCHED_IDLE if idle else os.SCHED_BATCH
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError as error:
        problems.append(f"still interrupts others when it wakes: {error.strerror}")
    return problems
