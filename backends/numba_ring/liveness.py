"""Is that process dead? The kernel's answer (pidfd), never a timeout and never kill(pid, 0).

A zombie answers that, and so does a later process of the same pid. Identities are those of
`cpp_spmc/segment/liveness.hpp`: start time:32 | pid:22 | generation:10.
"""

from __future__ import annotations

import errno
import os
import select
import threading

from asys_bench.backends.numba_ring.core.layout import GENERATION_MASK
from asys_bench.system.descriptor import Descriptor
from asys_bench.system.process import is_same_start, start_time

_PID_MASK = 0x3FFFFF


def make_identity(pid: int, start_time: int) -> int:
    return (start_time & 0xFFFFFFFF) << 32 | (pid & _PID_MASK) << 10


def identity_pid(identity: int) -> int:
    return (identity >> 10) & _PID_MASK


def identity_generation(identity: int) -> int:
    return identity & GENERATION_MASK


def identity_of(word: int) -> int:
    """The process that a word of the owner table names, without the generation."""
    return word & ~GENERATION_MASK


def own_identity() -> int:
    return make_identity(os.getpid(), start_time(os.getpid()))


class ProcessWatch:
    """Watches one process through a pidfd, which stays right when the pid is reused. It is opened with
    the first question: only readers ask, so a host that pushes has none that it could close."""

    def __init__(self, identity: int) -> None:
        self._identity = identity
        self._pidfd: Descriptor | None = None
        self._gone = False
        self._opening = threading.Lock()

    def dead(self) -> bool:
        if self._gone:
            return True
        with self._opening:
            if self._pidfd is None and not self._open():
                return self._gone
        pidfd = self._pidfd
        if pidfd is not None and pidfd.held:
            poll = select.poll()  # a new one: threads share this watch, but may not share a poll
            poll.register(pidfd.last_number, select.POLLIN)
            # Readable once it has terminated, zombie or not.
            self._gone = any(event & select.POLLIN for _, event in poll.poll(0)) and pidfd.held
        return self._gone

    def close(self) -> None:
        if self._pidfd is not None:
            self._pidfd.close()

    def __del__(self) -> None:
        self.close()

    def _open(self) -> bool:
        pid = identity_pid(self._identity)
        try:
            self._pidfd = Descriptor(os.pidfd_open(pid))
        except OSError as error:
            # Anything but ESRCH (EMFILE, EPERM): unknown counts as alive.
            self._gone = error.errno == errno.ESRCH
            return False
        # The pidfd may already name a later process of the same pid: the start time tells.
        start = start_time(pid)
        # The identity holds it modulo 2^32.
        apart = ((start - (self._identity >> 32) + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        self._gone = start != 0 and not is_same_start(start, start - apart)
        return not self._gone


def is_dead(identity: int) -> bool:
    watch = ProcessWatch(identity)
    try:
        return watch.dead()
    finally:
        watch.close()
