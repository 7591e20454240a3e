"""Putting a plan into force on the calling process. Nothing here raises: what failed is returned."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from asys_bench.config.sections.resources import IoPriority
from asys_bench.placement.numa import NumaError, prefer_node
from asys_bench.placement.plan import Placement
from asys_bench.system.cpu_lists import format_cpus
from asys_bench.system.priority import yield_to_others

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_IO_CLASS = {IoPriority.LOW: (2, 7), IoPriority.IDLE: (3, None)}
"""(class, level) of ioprio_set(2): 2 is best effort, 3 is idle."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment for processes whose libraries size their thread pools when they are imported."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


def pin(cpus: Iterable[int]) -> list[str]:
    """Confine every thread of this process, those it has and those they start."""
    wanted = frozenset(cpus)
    if not wanted:
        return []
    # Threads may start while we go through them; they inherit, so a second pass finds the last ones.
    done: set[int] = set()
    for _ in range(3):
        try:
            fresh = [int(name) for name in os.listdir("/proc/self/task") if int(name) not in done]
        except OSError as error:  # under another root there may be no /proc
            return [f"CPUs {format_cpus(wanted)} cannot be had: {error.strerror}"]
        for thread in fresh:
            done.add(thread)
            try:
                os.sched_setaffinity(thread, wanted)
            except ProcessLookupError:
                continue
            except OSError as error:
                return [f"CPUs {format_cpus(wanted)} cannot be had: {error.strerror}"]
        if not fresh:
            break
    return []


class HostPin:
    """The calling process confined to `cpus` until `release`; no CPUs leave it alone."""

    def __init__(self, cpus: Iterable[int]) -> None:
        wanted = frozenset(cpus)
        self._before = current_cpus() if wanted else frozenset[int]()
        self.problems = pin(wanted)
        """What could not be done, one line each."""

    def release(self) -> None:
        """Give the process its CPUs back. Idempotent."""
        before, self._before = self._before, frozenset()
        pin(before)


def settle(
    placement: Placement,
    niceness: int | None = None,
    io: IoPriority = IoPriority.NORMAL,
    *,
    idle: bool = False,
) -> list[str]:
    """Bring the calling (worker) process to its place and priority.

    niceness, idle: see `yield_to_others`; without either the priority stays as it is.

    Returns what could not be done, one line each.
    """
    problems = pin(placement.cpus)
    if placement.node is not None:
        try:
            prefer_node(placement.node)
        except NumaError as error:
            problems.append(error.strerror or str(error))
    if niceness is not None or idle:
        problems += yield_to_others(niceness, idle=idle)
    if io in _IO_CLASS:
        try:
            psutil.Process().ionice(*_IO_CLASS[io])
        except (OSError, psutil.Error, ValueError) as error:
            problems.append(f"I/O priority {io} not set: {error}")
    return problems


def current_cpus(pid: int = 0) -> frozenset[int]:
    """The affinity mask of a process's main thread; empty when it is gone."""
    try:
        return frozenset(os.sched_getaffinity(pid))
    except OSError:
        return frozenset()


def threads_of(pid: int) -> list[int]:
    """Thread ids of a process; empty when it is gone."""
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
