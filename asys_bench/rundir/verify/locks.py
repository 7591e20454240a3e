"""Who holds a file's lock, without touching the lock: a probe by locking could win against its writer."""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = Path("/proc/locks")


def locked_files() -> frozenset[tuple[int, int, int]]:
    """(major, minor, inode) of every file that some process holds a flock on."""
    found = set()
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        words = line.split()
        if "FLOCK" not in words[1:3] or "->" in words:
            continue
        device = words[-3].split(":")
        try:
            found.add((int(device[0], 16), int(device[1], 16), int(device[2])))
        except (ValueError, IndexError):
            continue
    return frozenset(found)


def is_locked(path: Path) -> bool:
    """Whether a live process has `path` locked, as the writer of a shard has."""
    try:
        status = path.lstat()
    except OSError:
        return False
    key = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    return key in locked_files()
