"""Replacing a file whole: a reader finds the old one or the new one, never a part.

The new bytes go to `.<name>.<random>.tmp` beside it, are synced if asked, and are renamed over; then
the folder is synced, because a rename is a change of the folder.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from asys_bench.system.files.private import open_private


def replace_file(path: Path, data: bytes, *, sync: bool) -> None:
    """Put `data` under `path`, mode 0600.

    sync: it also survives a power cut.

    Raises:
        OSError: the disk refused; the old file is as it was and nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = open_private(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the bytes of `path` are on the device."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Make the names in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Wait until every file under `folder`, and the names of all, are on the device."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside a folder before itself
        if path.is_symlink():
            continue
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync_file(path)
    sync_folder(folder)
