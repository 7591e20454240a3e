"""Keeping workers off the CPUs of a busy host where nobody has pinned them.

The scheduler puts a worker that wakes beside a host that never sleeps as readily as beside another worker:
of PPO on two cores that took 2.5 % of its time. So whoever watches the workers asks now and then which
threads of the host run or want to run nearly all the time, and confines the workers to the other CPUs while
there are some. A host that leaves none, or that sleeps in between, is the scheduler's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic_ns

from asys_bench.placement.apply import threads_of
from asys_bench.system.liveness import scheduled_ns
from asys_bench.system.process import stat_fields

BUSY = 0.9
"""A thread that runs or waits for a CPU for this share of the time, at least, never sleeps."""
SLACK = 0.25
"""CPUs that the host's other threads may want beside the busy ones, as its supervisor does."""
LOOK_NS = 1_000_000_000
"""Time between two looks at what the threads want."""
_PROCESSOR = 36
"""Of `stat_fields` (proc(5): field 39)."""


class HostCpus:
    """The CPUs on which the busy threads of process `pid` are, of `among` CPUs that it may use."""

    def __init__(self, pid: int, among: int) -> None:
        self._pid, self._among = pid, among
        self._wanted_ns: dict[int, int] = {}
        self._looked_ns = 0
        self._busy: list[int] = []

    def now(self) -> frozenset[int]:
        """Empty: no thread is busy, they leave no CPU free, or the kernel does not say."""
        now = monotonic_ns()
        if now - self._looked_ns >= LOOK_NS:
            self._busy = self._look(now)
        found: set[int] = set()
        for thread in self._busy:
            with suppress(IndexError):  # it is gone
                found.add(int(stat_fields(thread)[_PROCESSOR]))
        return frozenset(found)

    def _look(self, now: int) -> list[int]:
        """Threads that were busy since the last look."""
        before, since = self._wanted_ns, now - self._looked_ns
        self._wanted_ns, self._looked_ns = self._read(), now
        shares = {
            thread: (wanted - before[thread]) / since
            for thread, wanted in self._wanted_ns.items()
            if thread in before
        }
        busy = [thread for thread, share in shares.items() if share >= BUSY]
        rest = sum(share for share in shares.values() if share < BUSY)
        return busy if len(busy) + max(0.0, rest - SLACK) <= self._among - 1 else []

    def _read(self) -> dict[int, int]:
        """Thread -> ns that it ran or waited for a CPU."""
        return {thread: sum(scheduled_ns(thread)) for thread in threads_of(self._pid)}


class KeepClear:
    """Confines processes to the CPUs of the calling one that a busy host leaves free.

    host_pid: the observed process, whose CPUs are the caller's as well. Threads that somebody else has put
    elsewhere meanwhile stay there.
    """

    def __init__(self, host_pid: int) -> None:
        self._all = frozenset(os.sched_getaffinity(0))
        self._host = HostCpus(host_pid, len(self._all))
        self._given: dict[int, frozenset[int]] = {}
        """Thread -> where it was put last."""
        self._ours = {self._all}
        """All of these: a thread that is new has one of its creator."""

    def adopt(self, pid: int) -> None:
        """Let a process that another caller may have confined run anywhere."""
        for thread in threads_of(pid):
            with suppress(OSError):
                os.sched_setaffinity(thread, self._all)

    def confine(self, pids: Iterable[int]) -> frozenset[int]:
        """Put every thread of `pids` on the CPUs that are free now, and return those."""
        return self._put(pids, self._all - self._host.now() or self._all)

    def release(self, pids: Iterable[int]) -> None:
        """Let them run anywhere."""
        self._put(pids, self._all)

    def _put(self, pids: Iterable[int], cpus: frozenset[int]) -> frozenset[int]:
        given: dict[int, frozenset[int]] = {}
        for thread in (thread for pid in pids for thread in threads_of(pid)):
            with suppress(OSError):  # it is gone, or not ours to move
                now = frozenset(os.sched_getaffinity(thread))
                last = self._given.get(thread, now if now in self._ours else self._all)
                if now == last != cpus:
                    os.sched_setaffinity(thread, cpus)
                given[thread] = cpus if now == last else last
        self._given = given
        self._ours.add(cpus)
        return cpus
