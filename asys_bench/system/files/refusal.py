"""Why a disk takes no more bytes, as a name to count by. These pass, so a writer waits for them."""

from __future__ import annotations

import errno

REASONS = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "quota",
    errno.EIO: "io_error",
    errno.EROFS: "read_only",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
}
WORDS = {
    "disk_full": "disk full",
    "quota": "disk quota used up",
    "io_error": "the device reports an error",
    "read_only": "the file system has become read-only",
    "descriptors": "too many open files",
}
"""The reasons as people say them."""


def reason_of(error: OSError) -> str | None:
    """The name of a refusal that may pass; None for an error that waiting does not mend."""
    return REASONS.get(error.errno or 0)
