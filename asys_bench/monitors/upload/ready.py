"""Which files of a run can be sent, in units that a reader gets whole or not at all.

- A closed shard and its sidecar. They never change, and stay in the copy when the run deletes its own.
- A checkpoint's folder. It never changes; one that the run has removed leaves the copy too.
- Each other file by itself, as it is now: run.json, config.yaml, metrics.csv, evaluations, logs. They
  follow the run.

Left out are shards that are being written, what has a hidden or a temporary name, and what an earlier
repair cut off.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    CONFIG_FILE,
    DELETED_SUFFIX,
    EXPORTER_FILE,
    LATEST,
    READERS_DIR,
    RUN_FILE,
    SHARD_SUFFIX,
    SIDECAR_SUFFIX,
    checkpoint_order,
)
from asys_bench.system.files.below import EntryKind, scan, scan_if_there

LINES = (".csv", ".log", ".jsonl")
"""Files that are appended to in whole lines."""
TAIL_BYTES = 64 << 10
_TEMPORARY = (".tmp", ".partial", ".part")
_FIRST = (RUN_FILE, CONFIG_FILE)
MAX_DEPTH = 15


class Kind(IntEnum):
    """In the order in which units are sent."""

    FIRST = 0
    """What makes a folder a run."""
    SHARD = 1
    CHECKPOINT = 2
    DOCUMENT = 3


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the run. data: what is sent in place of its bytes."""

    name: str
    path: Path
    bytes: int
    modified_ns: int
    data: builtins.bytes | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that appear in the copy together. name: of its first file, or of the folder."""

    kind: Kind
    name: str
    files: tuple[LocalFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def fixed(self) -> bool:
        """Its files never change."""
        return self.kind in (Kind.SHARD, Kind.CHECKPOINT)


@dataclass(frozen=True, slots=True)
class Ready:
    """open_shards: names of those that are being written, or whose writer was killed."""

    units: tuple[Unit, ...]
    open_shards: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """`latest` of a folder of checkpoints -> the checkpoint."""


def find_ready(run_dir: Path, stored: Iterable[str] = ()) -> Ready:
    """What can be sent of the run in `run_dir`, oldest first within its kind.

    stored: names that the copy has. Records of deletions are sent without the shards among them,
        because a reader of the copy has those.

    Raises:
        OSError: the folder is gone, or cannot be listed.
    """
    return _Search(run_dir, frozenset(stored)).found()


def is_shard(name: str) -> bool:
    """Whether a file of the copy is a shard, which stays when the run deletes its own."""
    return name.startswith(f"{ARCHIVE_DIR}/") and name.endswith(SHARD_SUFFIX)


def sidecar_of(name: str) -> str:
    """The name of a shard's sidecar."""
    return name.removesuffix(SHARD_SUFFIX) + SIDECAR_SUFFIX


class _Search:
    def __init__(self, run_dir: Path, stored: frozenset[str]) -> None:
        self._root, self._stored = run_dir, stored
        self._units: list[Unit] = []
        self._open_shards: list[str] = []
        self._links: dict[str, str] = {}

    def found(self) -> Ready:
        self._folder(self._root, 0)
        units = tuple(sorted(self._units, key=_order))
        return Ready(units, tuple(self._open_shards), self._links)

    def _folder(self, folder: Path, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        look = scan if folder == self._root else scan_if_there
        entries = {
            entry.path.name: entry for entry in look(folder, below=self._root)
            if not entry.path.name.startswith(".") and not entry.path.name.endswith(_TEMPORARY)
        }  # fmt: skip
        for name, (path, kind) in entries.items():
            if kind is EntryKind.FOLDER:
                if checkpoint_order(name) is not None:
                    self._checkpoint(path)
                elif name != READERS_DIR:
                    self._folder(path, depth + 1)
            elif kind is EntryKind.FILE:
                self._file(path, entries)
            elif kind is EntryKind.LINK and name == LATEST:
                with suppress(OSError):
                    target = os.readlink(path)
                    if target in entries:
                        self._links[self._name(path)] = target

    def _file(self, path: Path, beside: Mapping[str, object]) -> None:
        name = self._name(path)
        if name == EXPORTER_FILE or ".torn" in path.name:
            return
        if name.startswith(f"{ARCHIVE_DIR}/"):
            if path.suffix == SHARD_SUFFIX:
                sidecar = path.with_suffix(SIDECAR_SUFFIX)
                if sidecar.name in beside:
                    self._add(Kind.SHARD, name, (path, sidecar))
                else:
                    self._open_shards.append(name)
                return
            if path.suffix == SIDECAR_SUFFIX and "/" in name.removeprefix(f"{ARCHIVE_DIR}/"):
                return  # sent with its shard; one without has lost it
            if name.endswith(DELETED_SUFFIX):
                self._record(path, name)
                return
        self._add(Kind.FIRST if name in _FIRST else Kind.DOCUMENT, name, (path,))

    def _checkpoint(self, folder: Path) -> None:
        """Every file of the folder, those in folders below it too."""
        files: list[Path] = []
        waiting = [folder]
        while waiting:
            for path, kind in scan_if_there(waiting.pop(), below=self._root):
                if kind is EntryKind.FOLDER:
                    waiting.append(path)
                elif kind is EntryKind.FILE and not path.name.startswith("."):
                    files.append(path)
        if files:
            self._add(Kind.CHECKPOINT, self._name(folder), sorted(files))

    def _record(self, path: Path, name: str) -> None:
        """A record of deletions, without what the copy has."""
        try:
            data, status = path.read_bytes(), path.stat()
        except OSError:
            return
        lines = [line for line in data.splitlines(keepends=True) if not self._is_stored(line)]
        kept = b"".join(lines)
        file = LocalFile(name, path, len(kept), status.st_mtime_ns, kept)
        self._units.append(Unit(Kind.DOCUMENT, name, (file,)))

    def _is_stored(self, line: bytes) -> bool:
        with suppress(ValueError, TypeError, KeyError):
            return f"{ARCHIVE_DIR}/{json.loads(line)['shard']}" in self._stored
        return False

    def _add(self, kind: Kind, name: str, paths: Iterable[Path]) -> None:
        try:
            files = tuple(_local(path, self._name(path)) for path in paths)
        except OSError:
            return  # deleted since the folder was listed
        self._units.append(Unit(kind, name, files))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _order(unit: Unit) -> tuple[int, int, str]:
    return unit.kind, min(file.modified_ns for file in unit.files), unit.name


def _local(path: Path, name: str) -> LocalFile:
    status = path.lstat()
    return LocalFile(name, path, status.st_size, status.st_mtime_ns)


def whole_lines(fd: int, size: int) -> int:
    """Bytes up to the last end of a line; `size` where there is none near its end."""
    start = max(0, size - TAIL_BYTES)
    at = os.pread(fd, size - start, start).rfind(b"\n")
    return size if at < 0 else start + at + 1
