"""Is that process dead? The kernel's answer (pidfd), never a timeout and never kill(pid, 0).

A zombie answers that, and so does a later process of the same pid. Identities are those of
`cpp_spmc/liveness.hpp`: start time:32 | pid:22 | generation:10.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path

from asys_bench.backends.numba_ring.layout import GENERATION_MASK
from asys_bench.system.descriptor import Descriptor

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


def process_start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat (clock ticks since boot), or 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0
    fields = text[text.rfind(")") + 2 :].split()  # comm may hold spaces and ')'
    return int(fields[19]) if len(fields) > 19 else 0


def own_identity() -> int:
    return make_identity(os.getpid(), process_start_time(os.getpid()))


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
        start = process_start_time(pid)
        self._gone = start != 0 and make_identity(pid, start) != identity_of(self._identity)
        return not self._gone


def is_dead(identity: int) -> bool:
    watch = ProcessWatch(identity)
    try:
        return watch.dead()
    finally:
        watch.close()
