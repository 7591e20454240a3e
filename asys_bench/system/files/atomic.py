"""Replacing a file whole: a reader finds the old one or the new one, never a part.

The new bytes go to `.<name>.<random>.tmp` beside it, are synced if asked, and are renamed over; then
the folder is synced, because a rename is a change of the folder.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

# Activations can hold what a model was trained on: files 0600, folders 0700, whatever the umask.

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


def replace_file(
    path: Path, data: bytes | Sequence[bytes | memoryview], *, sync: bool, private: bool = True
) -> None:
    """Put `data`, or buffers that follow each other, under `path`.

    sync: it also survives a power cut.
    private: mode 0600; otherwise what the umask leaves, for what holds no activations.

    Raises:
        OSError: the disk refused; the old file is as it was and nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = open_private(partial, flags) if private else os.open(partial, flags | os.O_CLOEXEC, 0o666)
    try:
        try:
            for part in (data,) if isinstance(data, bytes) else data:
                left = memoryview(part)
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


class Fsync(StrEnum):
    """`run.fsync`: when written bytes are forced to the device.

    A killed process loses nothing by `never`: the kernel has the bytes. Only a power cut or a crash of
    the machine tells the policies apart, and there a rename without fsync may leave an empty file under
    the final name; so the default syncs what cannot be made again.

    never: nothing is forced. Files are whole after a kill of any process, not after a power cut.
    checkpoint: SAE checkpoints and archive shards, once, before they get their final names.
    always: also every record batch of the archive before its packets are acknowledged.
    """

    NEVER = "never"
    CHECKPOINT = "checkpoint"
    ALWAYS = "always"

    @property
    def shard_policy(self) -> str:
        """The archiver's word for it."""
        return {Fsync.NEVER: "never", Fsync.CHECKPOINT: "shard", Fsync.ALWAYS: "batch"}[self]


# Why a disk takes no more bytes, as a name to count by. These pass, so a writer waits for them.

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
