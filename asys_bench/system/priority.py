"""Giving way to the host. Imports nothing: who is to give way calls it before anything that takes time."""

from __future__ import annotations

import os


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
