"""Activations can hold what a model was trained on: files 0600, folders 0700, whatever the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def open_private(path: Path, flags: int) -> int:
    """`os.open` with close-on-exec and no link followed; a file of ours gets mode 0600, also one that
    was there.

    Raises:
        OSError: as os.open.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != FILE_MODE and status.st_uid == os.geteuid():
            os.fchmod(fd, FILE_MODE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def private_memfd(name: str, flags: int) -> int:
    """`os.memfd_create`, mode 0600: it starts as 0777, and /proc/<pid>/fd opens it by its mode."""
    fd = os.memfd_create(name, flags)
    os.fchmod(fd, FILE_MODE)
    return fd


def make_private_folder(path: Path) -> None:
    """Make `path` (mode 0700) and what is missing above it; one that is there stays as it is.

    Raises:
        OSError: as mkdir.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            try:
                folder.mkdir(FOLDER_MODE)
            except FileExistsError:
                continue
            folder.chmod(FOLDER_MODE)  # a umask may have taken bits away
