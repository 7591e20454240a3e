"""The one way of opening a file of a run: a run's folder is input, and anybody may have written it.

Whatever is opened, listed, removed or renamed lies below a folder that the caller trusts, and the way
there leads through real folders: the kernel resolves one name at a time (`openat`, O_NOFOLLOW), so that a
symbolic link ends in an error and never outside. A file is looked at (O_PATH) before it is opened, so that
a FIFO does not block and a device is not touched. What is read whole is bounded in size, and JSON in depth.

Every failure is an OSError or a ValueError. `UnsafeFileError` is an OSError.

NOT COVERED: whoever may write to the folder *while* a repair is at work can still exchange a file for
another of the same folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from asys_bench.system.files.atomic import FILE_MODE, FOLDER_MODE, make_private_folder
from asys_bench.system.files.sources import source_of

MAX_DOCUMENT_BYTES = 8 << 20
"""Of a JSON document: `[],[],...` takes 24 times its size in memory."""
MAX_MODEL_BYTES = 256 << 10
"""Of one that a pydantic model reads: a field that does not belong there costs 2.5 KB to be said."""
MAX_DEPTH = 64
"""Nesting of a JSON document."""
MAX_LINE_BYTES = 1 << 20
MAX_ENTRIES = 100_000
"""Names in one folder, or in one tree."""
MAX_TREE_DEPTH = 16
SPARSE_BYTES, SPARSE_SHARE = 1 << 30, 0.1
"""A file of more than SPARSE_BYTES with less than SPARSE_SHARE of them on the disk holds holes; no writer
of ours makes holes."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafeFileError(OSError):
    """It is no regular file below its folder, or larger than what is read of such a file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


class EntryKind(StrEnum):
    """What a name in a folder stands for; links are not followed."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    FIFO = "FIFO"
    SOCKET = "socket"
    DEVICE = "device"

    @classmethod
    def of(cls, mode: int) -> EntryKind:
        """The kind of an `st_mode`."""
        return _KINDS.get(stat.S_IFMT(mode), cls.DEVICE)


_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.FOLDER,
    stat.S_IFLNK: EntryKind.LINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
}


class Entry(NamedTuple):
    """A name in a folder."""

    path: Path
    kind: EntryKind


BRINGS = 3
"""Another process may make room between the bringing of a file and its opening."""


def open_file(path: Path, flags: int = os.O_RDONLY, *, below: Path | None = None) -> int:
    """A descriptor of the existing regular file `path`, which lies below the folder `below` (its own
    folder without).

    Raises:
        UnsafeFileError: it is something else, a link is on the way, or it is a file of holes.
        OSError: as os.open.
    """
    for _ in range(BRINGS):
        try:
            return _open_file(path, flags, below)
        except FileNotFoundError:
            source = source_of(path)
            if source is None or not source.has(path):
                raise
            source.bring(path)
    return _open_file(path, flags, below)


def _open_file(path: Path, flags: int, below: Path | None) -> int:
    with _parent(path, below) as parent:
        look = _look(path, parent)
    try:
        _must_be(EntryKind.FILE, path, look)
        # The very inode that was looked at, whatever the name has become.
        return os.open(f"/proc/self/fd/{look}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(look)


def open_or_create(path: Path, *, below: Path) -> int:
    """A descriptor to read and write `path`, made (mode 0600, empty) where it is missing.

    Raises:
        UnsafeFileError: as `open_file`. OSError: as os.open.
    """
    while True:
        try:
            return open_file(path, os.O_RDWR, below=below)
        except FileNotFoundError:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with _parent(path, below) as parent:
                try:
                    return os.open(path.name, flags, FILE_MODE, dir_fd=parent)
                except FileExistsError:  # somebody else made it, or it is a link to nowhere
                    if os.path.islink(path):
                        raise


def read_file(path: Path, most_bytes: int, *, below: Path | None = None) -> bytes:
    """The bytes of a regular file.

    Raises:
        UnsafeFileError: as `open_file`, or it has more than `most_bytes`. OSError: as os.open.
    """
    fd = open_file(path, below=below)
    with os.fdopen(fd, "rb") as file:
        data = b""
        if os.fstat(fd).st_size <= most_bytes:
            data = file.read(most_bytes + 1)
            if len(data) <= most_bytes:
                return data
    raise UnsafeFileError(path, f"has more than {most_bytes} bytes, and no such file has")


def read_json(
    path: Path, most_bytes: int = MAX_DOCUMENT_BYTES, *, below: Path | None = None
) -> Any:
    """The JSON document in a regular file of at most `most_bytes`.

    Raises:
        UnsafeFileError, OSError: as `read_file`. ValueError: it is no JSON, no UTF-8, or nested deeper
            than MAX_DEPTH.
    """
    return parse_json(read_file(path, most_bytes, below=below))


def parse_json(data: bytes | str) -> Any:
    """`json.loads` of what a stranger wrote.

    Raises:
        ValueError: it is no JSON, no UTF-8, nested deeper than MAX_DEPTH, or has a whole number that no
            float is near (whoever shows or divides it would raise OverflowError).
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    too_deep = f"nested deeper than {MAX_DEPTH} levels"
    try:
        document = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (list, dict))
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return document
    raise ValueError(too_deep)


def _integer(digits: str) -> int:
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def text_lines(path: Path, *, below: Path | None = None) -> Iterator[str]:
    """The lines of a regular file, with their ends; nothing where it cannot be opened. They stop before
    one of more than MAX_LINE_BYTES."""
    try:
        fd = open_file(path, below=below)
    except OSError:
        return
    with os.fdopen(fd, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                return
            yield line.decode("utf-8", errors="replace")


def real_folder(root: Path, *parts: str) -> Path:
    """`root/parts...`, which is a folder below `root` by real folders only.

    Raises:
        UnsafeFileError: a link or something else is on the way. FileNotFoundError: it is not there.
    """
    folder = root.joinpath(*parts)
    with _folder(folder, root):
        return folder


def scan(folder: Path, *, below: Path | None = None) -> list[Entry]:
    """What `folder` (itself no link, unless it is `below`) holds, sorted by name.

    Raises:
        UnsafeFileError: a link is on the way, or there are more than MAX_ENTRIES names.
        OSError: it is not there or not readable.
    """
    found: list[Entry] = []
    with _folder(folder, below or folder) as look:
        fd = os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as names:
                for name in names:
                    if len(found) == MAX_ENTRIES:
                        raise UnsafeFileError(folder, f"holds more than {MAX_ENTRIES} names")
                    try:
                        mode = name.stat(follow_symlinks=False).st_mode
                    except FileNotFoundError:
                        continue
                    found.append(Entry(folder / name.name, EntryKind.of(mode)))
        finally:
            os.close(fd)
    source = source_of(folder)
    if source is not None:
        here = {entry.path for entry in found}
        found += [Entry(path, EntryKind.FILE) for path in source.files(folder) if path not in here]
    return sorted(found)


def scan_if_there(folder: Path, *, below: Path | None = None) -> list[Entry]:
    """`scan`, or nothing when there is no such folder."""
    try:
        return scan(folder, below=below)
    except FileNotFoundError:
        return []


def walk(folder: Path, *, below: Path | None = None) -> Iterator[Entry]:
    """Everything under `folder` but folders, each folder's names in order; links are not followed.

    Raises:
        UnsafeFileError: as `scan`, for the whole tree, or it is deeper than MAX_TREE_DEPTH.
    """
    root = below or folder
    left = MAX_ENTRIES
    waiting = [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        if depth > MAX_TREE_DEPTH:
            raise UnsafeFileError(here, f"is nested deeper than {MAX_TREE_DEPTH} folders")
        entries = scan_if_there(here, below=root)
        left -= len(entries)
        if left < 0:
            raise UnsafeFileError(folder, f"holds more than {MAX_ENTRIES} names")
        yield from (entry for entry in entries if entry.kind is not EntryKind.FOLDER)
        inner = [entry.path for entry in entries if entry.kind is EntryKind.FOLDER]
        waiting += [(path, depth + 1) for path in reversed(inner)]


def is_file(path: Path, *, below: Path | None = None) -> bool:
    """Whether `path` is a regular file below the folder, reached without a link."""
    source = source_of(path)
    return _is(EntryKind.FILE, path, below) or (source is not None and source.has(path))


def is_folder(path: Path, *, below: Path | None = None) -> bool:
    """Whether `path` is a folder below the folder, reached without a link."""
    return _is(EntryKind.FOLDER, path, below)


def make_folders(folder: Path, *, below: Path) -> None:
    """Make `folder` (mode 0700), and what is missing above it; from `below` on through no link.

    Raises:
        UnsafeFileError: a link or something else is in the way. OSError: as mkdir.
    """
    make_private_folder(below)
    here = below
    for part in folder.relative_to(below).parts:
        here /= part
        with _parent(here, below) as parent:
            try:
                os.mkdir(part, FOLDER_MODE, dir_fd=parent)
            except FileExistsError:
                continue
            os.chmod(part, FOLDER_MODE, dir_fd=parent)  # a umask may have taken bits away
    with _folder(folder, below):
        return


def remove(path: Path, *, below: Path) -> None:
    """Remove a file, a link itself, or a folder with all that it holds; one that is gone is fine.

    Raises:
        UnsafeFileError: a link is on the way there. OSError: it cannot be removed.
    """
    with _parent(path, below) as parent:
        try:
            if stat.S_ISDIR(os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode):
                shutil.rmtree(path.name, dir_fd=parent)  # by descriptors; follows no link
            else:
                os.unlink(path.name, dir_fd=parent)
        except FileNotFoundError:
            return


def rename(path: Path, name: str, *, below: Path) -> Path:
    """Give `path` another name in its folder.

    Raises:
        UnsafeFileError: a link is on the way there. OSError: as os.rename.
    """
    with _parent(path, below) as parent:
        os.rename(path.name, name, src_dir_fd=parent, dst_dir_fd=parent)
    return path.with_name(name)


def _is(kind: EntryKind, path: Path, below: Path | None) -> bool:
    try:
        with _parent(path, below) as parent:
            mode = os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return False
    return EntryKind.of(mode) is kind


def _look(path: Path, parent: int) -> int:
    try:
        return os.open(path.name, _LOOK, dir_fd=parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _must_be(kind: EntryKind, path: Path, look: int) -> None:
    status = os.fstat(look)
    found = EntryKind.of(status.st_mode)
    if found is not kind:
        raise UnsafeFileError(path, f"is a {found}, not a {kind} (links are not followed)")
    on_disk = 512 * status.st_blocks
    if status.st_size > SPARSE_BYTES and on_disk < SPARSE_SHARE * status.st_size:
        raise UnsafeFileError(
            path, f"is a file of holes: {status.st_size} bytes, {on_disk} of them on the disk"
        )


@contextmanager
def _parent(path: Path, below: Path | None) -> Iterator[int]:
    if path.name in ("", ".", ".."):
        raise UnsafeFileError(path, "names no file")
    with _folder(path.parent, below or path.parent) as fd:
        yield fd


@contextmanager
def _folder(folder: Path, root: Path) -> Iterator[int]:
    """An O_PATH descriptor of `folder`, one name at a time from `root`, which may be reached by links."""
    try:
        parts = folder.relative_to(root).parts
    except ValueError:
        raise UnsafeFileError(folder, f"is not below {root}") from None
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = root
        for part in parts:
            here /= part
            if part == "..":
                raise UnsafeFileError(folder, "leads upwards")
            inner = _look(here, fd)
            os.close(fd)
            fd = inner
            _must_be(EntryKind.FOLDER, here, fd)
        yield fd
    finally:
        os.close(fd)
