"""Pinned shards: those that no budget deletes.

A shard with a regular file `<shard>.pin` beside it (`archive-0-0-3.pin` for `archive-0-0-3.arrows`) stays,
whatever its age, and counts towards the budget. `pin` takes the archive's lock, so that a shard is either
pinned or was deleted before; a file that is made by hand is seen at the next deletion. A pin can keep
what is there, and nothing else: it names no other file, and what it says is not read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from asys_bench.contracts.run_files import ARCHIVE_DIR, SHARD_SUFFIX
from asys_bench.sinks.archive.deletions import LOCK_WAIT_S, deciding, read_deletions
from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar
from asys_bench.system.files.below import EntryKind, open_or_create, remove, scan

PIN_SUFFIX = ".pin"


def pin_of(shard: Path) -> Path:
    """The file that keeps `shard` from being deleted."""
    return shard.with_suffix(PIN_SUFFIX)


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard of an archive. `name` is relative to the archive's folder; `sidecar` None: not closed."""

    name: str
    path: Path
    bytes: int
    pinned: bool
    sidecar: Sidecar | None


def stored_shards(run_dir: Path) -> list[StoredShard]:
    """Every shard of a run that is not on record as deleted, by name.

    Raises:
        OSError: there is no archive, or it leads out of the run.
    """
    archive, gone = run_dir / ARCHIVE_DIR, read_deletions(run_dir)
    found = []
    for folder, kind in scan(archive, below=run_dir):
        entries = scan(folder, below=run_dir) if kind is EntryKind.FOLDER else []
        files = {path for path, inner in entries if inner is EntryKind.FILE}
        for path in sorted(files):
            name = path.relative_to(archive).as_posix()
            if path.suffix != SHARD_SUFFIX or ShardName.parse(path.name) is None or name in gone:
                continue
            try:
                sidecar = Sidecar.read(path)
            except ArchiveError:
                sidecar = None
            try:
                size = path.lstat().st_size
            except FileNotFoundError:
                continue
            found.append(StoredShard(name, path, size, pin_of(path) in files, sidecar))
    return found


def pin(run_dir: Path, names: Sequence[str], *, pinned: bool = True) -> list[StoredShard]:
    """Pin shards, or let them go again; those that fit one of `names` (relative to the archive's folder,
    or globs such as `policy.mlp/*`).

    Raises:
        OSError: as `stored_shards`, a pin cannot be written, or somebody holds the archive's lock.
    """
    archive = run_dir / ARCHIVE_DIR
    scan(archive, below=run_dir)  # it is there, and no link
    with deciding(archive) as mine:
        if not mine:
            raise OSError(f"{archive}: a worker has been deleting for {LOCK_WAIT_S:g} s; try again")
        found = [
            one
            for one in stored_shards(run_dir)
            if any(one.name == name or fnmatchcase(one.name, name) for name in names)
        ]
        for one in found:
            if pinned:
                os.close(open_or_create(pin_of(one.path), below=run_dir))
            else:
                remove(pin_of(one.path), below=run_dir)
    return found
