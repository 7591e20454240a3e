"""Putting a plan into force on the calling process. Nothing here raises: what failed is returned."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from asys_bench.config.sections.resources import IoPriority
from asys_bench.placement.plan import Placement
from asys_bench.system.cpu_lists import format_cpus
from asys_bench.system.process import yield_to_others

# Memory policy of the calling thread: set_mempolicy(2) and get_mempolicy(2), which libc lacks.
#
# The policy is MPOL_PREFERRED: pages come from the node while it has any. MPOL_BIND was rejected: when
# the node is full it ends the process by the OOM killer while other nodes have memory to spare.

MPOL_DEFAULT, MPOL_PREFERRED = 0, 1
_GENERIC = (237, 236)
_NUMBERS = {
    "x86_64": (238, 239),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": (261, 260),
}
"""machine -> (set_mempolicy, get_mempolicy)."""
_BITS = 1024
_WORD = 8 * ctypes.sizeof(ctypes.c_ulong)
_Mask = ctypes.c_ulong * (_BITS // _WORD)


class NumaError(OSError):
    """The kernel refused; the message says what it means here."""


def prefer_node(node: int | None) -> None:
    """Take this thread's new pages from `node` first; None returns to the default policy.

    Raises:
        NumaError: unknown node, a sandbox forbids it, or the kernel has no NUMA support.
    """
    if node is None:
        _set(MPOL_DEFAULT, None)
        return
    if not 0 <= node < _BITS:
        raise NumaError(errno.EINVAL, f"node {node} is not in 0..{_BITS - 1}")
    mask = _Mask()
    mask[node // _WORD] = 1 << (node % _WORD)
    _set(MPOL_PREFERRED, mask)


def policy() -> tuple[int, tuple[int, ...]]:
    """(mode, nodes) of this thread.

    Raises:
        NumaError: as `prefer_node`.
    """
    mode, mask = ctypes.c_int(), _Mask()
    arguments = (ctypes.byref(mode), mask, ctypes.c_ulong(_BITS), None, ctypes.c_ulong(0))
    _call(1, *arguments)
    nodes = tuple(n for n in range(_BITS) if mask[n // _WORD] >> (n % _WORD) & 1)
    return mode.value, nodes


@contextmanager
def preferring(node: int | None) -> Iterator[str | None]:
    """Within the block this thread's new pages come from `node`; afterwards its policy is as before.

    Yields why it could not be done, or None. Never raises by itself.
    """
    problem = None
    before: tuple[int, tuple[int, ...]] | None = None
    if node is not None:
        try:
            before = policy()
            prefer_node(node)
        except NumaError as error:
            problem, before = str(error), None
    try:
        yield problem
    finally:
        if before is not None:
            mode, nodes = before
            mask = _Mask()
            for found in nodes:
                mask[found // _WORD] |= 1 << (found % _WORD)
            _set(mode, mask if nodes else None)


def _set(mode: int, mask: ctypes.Array[ctypes.c_ulong] | None) -> None:
    # The kernel counts one bit less than it is told (get_nodes), as libnuma allows for.
    size = ctypes.c_ulong(_BITS + 1 if mask is not None else 0)
    _call(0, ctypes.c_int(mode), mask, size)


def _call(which: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        known = ", ".join(sorted(_NUMBERS))
        raise NumaError(
            errno.ENOSYS, f"memory policies are not known on {platform.machine()}; known: {known}"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(numbers[which]), *arguments) == 0:
        return
    code = ctypes.get_errno()
    meaning = {
        errno.EPERM: "a sandbox forbids it (docker: --cap-add SYS_NICE)",
        errno.ENOSYS: "this kernel has no NUMA support",
        errno.EINVAL: "the node is offline or outside this process's cpuset",
    }.get(code, os.strerror(code))
    raise NumaError(code, f"memory policy not changed: {meaning}")


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_IO_CLASS = {IoPriority.LOW: (2, 7), IoPriority.IDLE: (3, None)}
"""(class, level) of ioprio_set(2): 2 is best effort, 3 is idle."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment for processes whose libraries size their thread pools when they are imported."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


def use_torch_threads(threads: int | None = None) -> None:
    """torch's threads of this process; None: half as many as it has CPUs. Beside a live run a team of one a
    CPU would wait for the thread that has no core."""
    import torch

    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // 2))


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
