"""A lock of the kernel on an open file (flock): it ends when the descriptor is closed or its holder dies."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable

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
