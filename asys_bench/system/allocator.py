"""Memory that a worker frees stays with it.

glibc gives every freed block of megabytes back to the kernel and faults it in again, zeroed, a
millisecond later: a quarter of the time of a training step at batches of 4096. Process-wide, so only
the owner of a worker process calls this.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MMAP_FROM_BYTES = 32 << 20
"""Largest value that glibc accepts; larger blocks come from mmap as before."""
TRIM_FROM_BYTES = 512 << 20


def keep_freed_memory() -> bool:
    """Raise malloc's thresholds; False where the C library has no mallopt (musl, macOS)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, TRIM_FROM_BYTES))


def return_freed_memory() -> None:
    """Give freed memory back to the kernel now (glibc's malloc_trim); nothing where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
