"""A lock of the kernel on an open file (flock): it ends when the descriptor is closed or its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from asys_bench.system.files.below import open_or_create

YOUNG_S = 60.0
"""The process that made a folder has its lock by then."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def take_lock(
    fd: int, kind: int = fcntl.LOCK_EX, *, without: Callable[[], object] = lambda: None
) -> bool:
    """Take it without waiting; False: another one has it.

    kind: `fcntl.LOCK_EX` or `LOCK_SH`. without: called where the file system has no locks; everybody gets
    it there.

    Raises:
        OSError: as flock(2) for any other reason.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        without()
    return True


def remove_unheld(folders: Iterable[Path], lock_name: str, *, below: Path) -> None:
    """Remove the folders of processes that were killed: nobody holds the lock `lock_name` inside.

    A folder that changed within YOUNG_S stays: its process may be about to take the lock. All stay where
    the file system has no locks.
    """
    for folder in folders:
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue
            fd = open_or_create(folder / lock_name, below=below)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)
