"""Who is at work on a run's folder: locks of the kernel, which end with their holder however it ends.

    .host.lock      held by the host alone, from the folder's making to its end; its text says who that is
    .workers.lock   shared by watchdog and workers: they write for some seconds after their host's death

A host takes the first, then waits until nobody holds the second. A watchdog or worker that finds the
second taken belongs to a host that is gone, and leaves.

Locks are of open files (flock), so that a SIGKILL ends them and nothing has to be cleaned up. On a file
system without locks two processes cannot be told apart; the log says so.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from asys_bench.contracts.run_files import HOST_LOCK, WORKERS_LOCK
from asys_bench.system.descriptor import Descriptor
from asys_bench.system.files.below import open_or_create, parse_json, read_file
from asys_bench.system.files.locks import take_lock
from asys_bench.system.process import start_time

log = logging.getLogger(__name__)
WORKERS_GONE_S = 12.0
"""Longest wait for the workers of a host that is gone; they take `HOST_DEATH_GRACE_S`."""
_MOST_BYTES = 4096


class RunBusyError(RuntimeError):
    """Another process is at work on the run; says which."""


class RunLock:
    """A host's hold on a run's folder, until `release` or its death."""

    def __init__(self, run_dir: Path, wait_s: float = WORKERS_GONE_S) -> None:
        """Take it.

        wait_s: how long workers of an earlier host may take to leave.

        Raises:
            RunBusyError: another host has it, or workers do not leave.
            OSError: the folder cannot be written.
        """
        path = run_dir / HOST_LOCK
        self._descriptor = Descriptor(open_or_create(path, below=run_dir))
        try:
            if not _lock(self._descriptor.number, fcntl.LOCK_EX):
                raise RunBusyError(f"{run_dir} is in use: {_holder(run_dir)}")
            _wait_for_workers(run_dir, wait_s)
            fd = self._descriptor.number
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_about_me()).encode(), 0)
        except BaseException:
            self._descriptor.close()
            raise
        _held.add(self)

    def release(self) -> None:
        """Idempotent."""
        _held.discard(self)
        self._descriptor.close()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child would keep the lock of a parent that was killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)


def join_work(run_dir: Path) -> int | None:
    """Watchdog and workers hold the descriptor for their life; None: another host has taken the run.

    Raises:
        OSError: the folder is gone.
    """
    fd = open_or_create(run_dir / WORKERS_LOCK, below=run_dir)
    if _lock(fd, fcntl.LOCK_SH):
        return fd
    os.close(fd)
    return None


def _wait_for_workers(run_dir: Path, wait_s: float) -> None:
    fd = open_or_create(run_dir / WORKERS_LOCK, below=run_dir)
    deadline = time.monotonic() + wait_s
    try:
        while not _lock(fd, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise RunBusyError(
                    f"{run_dir} is in use: its host is gone, but workers of it have not left within "
                    f"{wait_s:g} s"
                )
            time.sleep(0.02)
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    said = "this file system has no locks: two processes on one run are not told apart"
    return take_lock(fd, kind, without=lambda: log.warning(said))


def _about_me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "pid": pid,
        "start": start_time(pid),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _holder(run_dir: Path) -> str:
    """Who has the lock, in words."""
    holder: Any = None
    with suppress(OSError, ValueError):
        holder = parse_json(read_file(run_dir / HOST_LOCK, _MOST_BYTES, below=run_dir))
    if not isinstance(holder, dict):
        return "by a process that has not said who it is yet"
    said = {name: str(holder.get(name))[:80] for name in ("pid", "start", "host", "since")}
    return f"by pid {said['pid']} (start {said['start']}) on {said['host']}, since {said['since']}"
