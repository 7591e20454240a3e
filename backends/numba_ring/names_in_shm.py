"""Segments published as /dev/shm/asys-<name>, private to this user; the rules of `cpp_spmc`.

Everybody who lives holds a shared lock on the file, so an exclusive lock that succeeds means that it
was left behind by dead processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from asys_bench.contracts.bus import BusError

DIRECTORY = Path("/dev/shm")


def path_of(name: str) -> Path:
    if not 0 < len(name) <= 100 or "/" in name or name[0] == ".":
        raise BusError(f"bus name {name!r} must be 1..100 characters without '/' or a leading '.'")
    return DIRECTORY / f"asys-{name}"


def open_unnamed() -> int:
    """A file that has no name yet: it appears complete or not at all."""
    return os.open(DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def publish(name: str, fd: int) -> None:
    """Give the file its name, in place of one that dead processes left.

    Raises:
        BusError: the name is in use.
    """
    path = path_of(name)
    fcntl.flock(fd, fcntl.LOCK_SH)
    directory = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(3):
            try:
                # With a directory descriptor Python follows the link to the file without a name.
                os.link(
                    f"/proc/self/fd/{fd}", path.name, src_dir_fd=directory, dst_dir_fd=directory
                )
                return
            except FileExistsError:
                if not _remove_leftover(path):
                    break
            except OSError as error:
                raise BusError(
                    f"cannot publish {path}: {error.strerror}; choose another bus name"
                ) from error
    finally:
        os.close(directory)
    raise BusError(
        f"a bus named {name} exists and is in use ({path}); choose another name or stop its processes"
    )


def open_named(name: str) -> int:
    """The file behind `name`, with a shared lock on it.

    Raises:
        BusError: none, not private to this user, or left behind (it is removed).
    """
    path = path_of(name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BusError(
            f"cannot open bus {name} at {path}: {error.strerror}; is its host running?"
        ) from error
    try:
        status = os.fstat(fd)
        private = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o600
        if not stat.S_ISREG(status.st_mode) or not private:
            raise BusError(f"{path} is not a private file of this user (0600): refusing to attach")
        if _lock(fd, fcntl.LOCK_EX):
            path.unlink(missing_ok=True)
            raise BusError(f"bus {name} was left behind by dead processes; it is removed now")
        if not _lock(fd, fcntl.LOCK_SH):
            raise BusError(f"bus {name} is being removed; start it again")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unlink(name: str, fd: int) -> None:
    """Remove `name` if it still is the file behind `fd`."""
    path = path_of(name)
    with contextlib.suppress(OSError):
        if path.stat().st_ino == os.fstat(fd).st_ino:
            path.unlink()


def _remove_leftover(path: Path) -> bool:
    try:
        old = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not _lock(old, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(old)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
