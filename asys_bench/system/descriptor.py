"""File descriptors of ours in a process that belongs to its user.

The host may close any descriptor (daemonising closes all above 2) and open files of its own under the
same numbers. So ours have high numbers, which few programs touch, and each remembers what it was opened
on: before a use or a close the kernel is asked whether the number still means that. A number that does
not is forgotten and left alone. Between the question and the use lie microseconds; nothing closes them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import socket
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

FIRST_NUMBER = 512
"""Lowest number of a descriptor of ours, where the limit of open files allows it."""
_UNKNOWN, _REAPED = "?", "Pid:\t-1"
"""The kernel does not say what it is; it is the pidfd of a process that is gone altogether."""


class Descriptor:
    """One descriptor; `number` is checked, `close` touches nobody else's."""

    __slots__ = ("_identity", "_number")

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, which gets another number."""
        self._number = moved_high(fd)
        self._identity = identity_of(self._number)

    @classmethod
    def copy_of(cls, fd: int) -> Descriptor:
        """Of the same open file. Raises OSError: `fd` is not open, or no descriptor is left."""
        return cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))

    @property
    def held(self) -> bool:
        """The number still means what it was opened on."""
        return self._number >= 0 and _means(self._number, self._identity)

    @property
    def number(self) -> int:
        """Raises OSError (EBADF): it was closed, or the number is somebody else's by now."""
        if not self.held:
            raise OSError(errno.EBADF, "this process closed a descriptor of A-Sys-I")
        return self._number

    @property
    def last_number(self) -> int:
        """The number that it had or has; -1 once closed. To be compared, not used."""
        return self._number

    def restore(self, path: str) -> bool:
        """Take it back from `path` (another process's /proc/<pid>/fd/<n>), under the old number if that
        is free. False: what lies there is something else, or cannot be opened."""
        for flags in (os.O_RDWR, os.O_RDONLY):
            with suppress(OSError):
                fd = os.open(path, flags | os.O_CLOEXEC)
                break
        else:
            return False
        try:
            if self._number < 0 or not _means(fd, self._identity):
                return False
            self._number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, self._number))
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def close(self) -> bool:
        """Close it if it is still ours. Idempotent; False: it was gone already."""
        held, number, self._number = self.held, self._number, -1
        if held:
            with suppress(OSError):
                os.close(number)
        return held


class HeldSocket:
    """A socket of ours. `sock` is checked; a number that was lost is never closed, by garbage
    collection neither."""

    __slots__ = ("_identity", "_sock", "number")

    def __init__(self, sock: socket.socket) -> None:
        """Takes over `sock`, which must not be used any more."""
        timeout = sock.gettimeout()
        self._sock = socket.socket(fileno=moved_high(sock.detach()))
        self._sock.settimeout(timeout)
        self.number = self._sock.fileno()
        self._identity = identity_of(self.number)

    @property
    def held(self) -> bool:
        return self._sock.fileno() >= 0 and _means(self.number, self._identity)

    @property
    def sock(self) -> socket.socket:
        """Raises OSError (EBADF): see `Descriptor.number`."""
        if not self.held:
            raise OSError(errno.EBADF, "this process closed a socket of A-Sys-I")
        return self._sock

    def close(self) -> None:
        """Idempotent."""
        if not self.held:
            self._sock.detach()
        with suppress(OSError):
            self._sock.close()

    def __del__(self) -> None:
        if hasattr(self, "_identity"):
            self.close()


def moved_high(fd: int) -> int:
    """`fd` under a number from `FIRST_NUMBER` on; under a lower one, or as it was, if it must be."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for lowest in (FIRST_NUMBER, limit // 2):
        if fd >= lowest > 0:
            return fd
        with suppress(OSError):  # past the limit, or none is left
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
            os.close(fd)
            return high
    return fd


def identity_of(fd: int) -> tuple[int, int, str]:
    """What an open descriptor means: device, inode and, where inodes are shared (pidfds before Linux
    6.9), what the kernel says about it. Raises OSError: it is not open."""
    status = os.fstat(fd)
    shared = status.st_dev == _shared_device()
    return status.st_dev, status.st_ino, _described(fd) if shared else ""


def _means(fd: int, identity: tuple[int, int, str]) -> bool:
    try:
        now = identity_of(fd)
    except OSError:
        return False
    if identity[2] == _UNKNOWN:
        return False
    return now == identity or (now[:2] == identity[:2] and now[2].endswith(_REAPED))


@cache
def _shared_device() -> int:
    """Of the file system whose files without a name all have one inode."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _described(fd: int) -> str:
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return _UNKNOWN
    return " ".join([kind, *(line for line in lines if line.startswith("Pid:"))])


# Shared memory that needs no descriptor once it is mapped.

_FIXED = 0x10
_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_FAILED = ctypes.c_void_p(-1).value


def map_shared(fd: int, nbytes: int, *, writable: bool = True, offset: int = 0) -> mmap.mmap:
    """`mmap.mmap` of `nbytes` of the file behind `fd`, which may be closed afterwards.

    `mmap.mmap(fd, ...)` keeps a descriptor of its own, under a low number, and closes that number with
    the mapping, whatever it means by then. So the pages are laid over an anonymous mapping instead.

    Raises:
        OSError: the file is shorter, or cannot be mapped.
    """
    if os.fstat(fd).st_size < offset + nbytes:
        raise OSError(f"{nbytes} bytes at {offset} lie past the end of the file")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    space = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=protection)
    flags = mmap.MAP_SHARED | _FIXED
    if _libc.mmap(address_of(space), nbytes, protection, flags, fd, offset) == _FAILED:
        number = ctypes.get_errno()
        space.close()
        raise OSError(number, os.strerror(number))
    return space


def address_of(mapping: mmap.mmap) -> int:
    """Where it lies in this process."""
    import numpy as np  # every command imports this module, and most need no array

    return int(np.frombuffer(mapping, np.uint8).__array_interface__["data"][0])
