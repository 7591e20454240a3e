"""Shared memory that needs no descriptor once it is mapped."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import numpy as np

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
    return int(np.frombuffer(mapping, np.uint8).__array_interface__["data"][0])
