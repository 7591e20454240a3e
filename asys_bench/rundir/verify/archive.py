"""The archive's shards: stream, schema, sidecar, keys, tails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    ARCHIVE_LOCK_NAME,
    DELETED_SUFFIX,
    SHARD_SUFFIX,
)
from asys_bench.rundir.verify.finding import Finding, State
from asys_bench.sinks.archive import ArchiveError, Deleted, ShardGoneError, repair_shard
from asys_bench.sinks.archive.deletions import (
    Deletion,
    finish,
    read_deletions,
    read_record,
    reason_text,
)
from asys_bench.sinks.archive.frames import Frames
from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.pins import PIN_SUFFIX
from asys_bench.sinks.archive.read import (
    DAMAGE,
    ShardReport,
    open_shard,
    read_rows,
    read_schema,
    schema_run,
)
from asys_bench.sinks.archive.reader import SeenRows
from asys_bench.sinks.archive.sidecar import Sidecar, UnknownEncodingError
from asys_bench.sinks.archive.verify import check_shard
from asys_bench.system.files.below import EntryKind, is_file, remove, walk

LOCKS = Path("/proc/locks")


def locked_files() -> frozenset[tuple[int, int, int]]:
    """(major, minor, inode) of every file that some process holds a flock on.

    It reads the kernel's list: a probe that locks could win against the file's writer.
    """
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


class ArchiveCheck:
    """Checks shards of one run one after the other, remembering the rows that were seen."""

    def __init__(self, run_dir: Path, run_id: str, *, repair: bool, keep_torn: bool) -> None:
        self._run_dir, self._run_id = run_dir, run_id
        self._repair, self._keep_torn = repair, keep_torn
        self._seen: dict[str, SeenRows] = {}
        self._deletions: dict[str, Deletion] = {}

    def findings(self) -> Iterator[Finding]:
        """Every file under `archive/`, hook by hook in the order of their names.

        Raises:
            OSError: it is a link, or too large a tree.
        """
        folder = self._run_dir / ARCHIVE_DIR
        entries = list(walk(folder, below=self._run_dir))
        # After the entries: a shard that is deleted meanwhile is on record before it is gone.
        self._deletions = read_deletions(self._run_dir)
        for path, kind in entries:
            shard = path.with_suffix(SHARD_SUFFIX) if path.suffix == ".json" else path
            deletion = self._deletions.get(shard.relative_to(folder).as_posix())
            if kind is not EntryKind.FILE:
                yield Finding(self._name(path), "other", State.FOREIGN, f"a {kind}; left alone")
            elif deletion is not None:
                if (over := self._recorded(path, folder, deletion)) is not None:
                    yield over
            elif path.suffix == SHARD_SUFFIX and not path.name.startswith("."):
                try:
                    yield self._shard(path)
                except ShardGoneError:
                    continue  # deleted since the folder was listed
            elif (found := self._beside(path)) is not None:
                yield found

    def _name(self, path: Path) -> str:
        return path.relative_to(self._run_dir).as_posix()

    def _recorded(self, path: Path, folder: Path, deletion: Deletion) -> Finding | None:
        """A file of a shard that is on record as deleted; None when it is gone by now."""
        if not path.exists():
            return None
        detail = "on record as deleted; its worker was killed before it deleted it"
        done = None
        if self._repair:
            finish(folder, deletion)
            done = "deleted"
        return Finding(self._name(path), "shard", State.LEFTOVER, detail, repair=done)

    def _beside(self, path: Path) -> Finding | None:
        """A file that is no shard; None for the sidecar of one, which is checked with it."""
        name = self._name(path)
        if path.name.startswith(".") and path.name.endswith(".tmp"):
            if is_locked(path):
                return Finding(name, "shard", State.BEING_WRITTEN, "its first batch is on its way")
            done = None
            if self._repair:
                remove(path, below=self._run_dir)
                done = "removed"
            return Finding(name, "shard", State.LEFTOVER, "never held a whole batch", repair=done)
        if path.name.endswith(DELETED_SUFFIX):
            return Finding(name, "log", State.OK, _deleted(read_record(path).values()))
        if path.name == ARCHIVE_LOCK_NAME:
            return Finding(name, "other", State.OK)
        if path.suffix == PIN_SUFFIX and ShardName.parse(path.with_suffix(SHARD_SUFFIX).name):
            if path.with_suffix(SHARD_SUFFIX).exists():
                return Finding(name, "other", State.OK, "its shard is pinned: never deleted")
            if self._repair:
                remove(path, below=self._run_dir)
            done = "removed" if self._repair else None
            return Finding(
                name, "other", State.LEFTOVER, "the pin of a shard that is gone", repair=done
            )
        if ".arrows.torn" in path.name:
            detail = "what an earlier repair cut off; kept until you delete it"
            return Finding(name, "other", State.OK, detail)
        if path.suffix == ".json" and ShardName.parse(path.with_suffix(SHARD_SUFFIX).name):
            if is_file(path.with_suffix(SHARD_SUFFIX)):
                return None
            return Finding(
                name, "shard", State.DAMAGED, "its shard is missing", lost_rows=_rows_said(path)
            )
        return Finding(name, "other", State.FOREIGN, "no file of an archive")

    def _shard(self, path: Path) -> Finding:
        live = is_locked(path)
        found = self._judge(path, live)
        if live and found.state is not State.BEING_WRITTEN and not is_locked(path):
            found = self._judge(path, False)  # it was closed in the meantime
        open_ = found.state is State.OK and not is_file(path.with_suffix(".json"))
        wanted = found.state in (State.TORN, State.DAMAGED) or open_
        if self._repair and wanted and not live:
            return self._mend(path, found)
        return found

    def _judge(self, path: Path, live: bool) -> Finding:
        name = self._name(path)
        twice = 0

        def count(batch: Any) -> None:
            nonlocal twice
            twice += self._count_twice(batch)

        try:
            stranger = _stranger(path, self._run_id)
            if stranger:
                return Finding(name, "shard", State.FOREIGN, stranger)
            found = check_shard(path, each=count)
        except ArchiveError as error:
            return self._unreadable(path, error)
        if found.damage is not None:
            why = found.damage.removeprefix(f"{path}: ")
            return Finding(name, "shard", State.DAMAGED, why, found.rows, twice, lost_rows=None)
        if live:
            detail = f"{found.batches} batches so far"
            return Finding(name, "shard", State.BEING_WRITTEN, detail, found.rows, twice)
        if found.torn_bytes:
            return Finding(
                name, "shard", State.TORN, "its writer died in its last batch", found.rows, twice,
                found.torn_rows, found.torn_bytes,
            )  # fmt: skip
        detail = "" if found.closed else "whole, but its writer died before it closed it"
        if found.undecoded is not None:
            detail = f"whole, but its rows cannot be read here: {found.undecoded}"
        return Finding(name, "shard", State.OK, detail, found.rows, twice)

    def _unreadable(self, path: Path, error: ArchiveError) -> Finding:
        """Why it cannot be read in full, and how many rows can."""
        name = self._name(path)
        try:
            rows, good_end, frames = _readable(path)
        except ShardGoneError:
            raise
        except ArchiveError as closed:
            return Finding(name, "shard", State.DAMAGED, _where(closed), lost_rows=None)
        if not frames.schema_end and frames.damage is None:
            detail = "torn before its schema ends: it never held a row"
            return Finding(name, "shard", State.TORN, detail, 0, 0, 0, frames.size)
        return Finding(
            name, "shard", State.DAMAGED, _where(error), rows,
            lost_rows=None, lost_bytes=frames.size - good_end,
        )  # fmt: skip

    def _mend(self, path: Path, found: Finding) -> Finding:
        try:
            done = repair_shard(path)
        except (ArchiveError, OSError) as error:
            return _with(found, repair=f"not repaired: {error}")
        return _with(found, repair=self._said(path, done), rows=done.rows)

    def _said(self, path: Path, done: ShardReport) -> str:
        if done.torn_copy is None:
            return "closed" if not done.torn_bytes else f"cut {done.torn_bytes} bytes off"
        kept = f"kept in {done.torn_copy.name}"
        if not self._keep_torn:
            done.torn_copy.unlink(missing_ok=True)
            kept = "discarded"
        if not path.exists():
            return f"held no row; moved away, {kept}"
        return f"cut {done.torn_bytes} bytes off ({kept}) and closed"

    def _count_twice(self, batch: Any) -> int:
        hook = batch.schema.metadata[b"hook"].decode()
        fresh = self._seen.setdefault(hook, SeenRows()).fresh(batch)
        return int(len(fresh) - fresh.sum())


def _deleted(deletions: Iterable[Deletion]) -> str:
    """What one worker deleted, by reason."""
    parts = [
        f"{of.shards} oldest shards ({of.rows} rows of {of.packets} packets) were deleted "
        f"{reason_text(reason)}"
        for reason, of in Deleted.by_reason(deletions).items()
    ]
    return "; ".join(parts)


def _rows_said(sidecar: Path) -> int | None:
    try:
        read = Sidecar.read(sidecar.with_suffix(SHARD_SUFFIX))
    except ArchiveError:
        return None
    return read.rows if read is not None else None


def _where(error: ArchiveError) -> str:
    return error.reason if error.offset is None else f"at byte {error.offset}: {error.reason}"


def _with(found: Finding, *, repair: str, rows: int | None = None) -> Finding:
    plain = {**found.to_plain(), "repair": repair}
    if rows is not None:
        plain["rows"] = rows
    return Finding(**plain)


def _stranger(path: Path, run_id: str) -> str:
    """Why this is a shard of something else; empty when it is one of ours, damaged or not."""
    with open_shard(path) as (fd, frames):
        if not frames.schema_end:
            named = ShardName.parse(path.name) is not None
            return "" if named or not frames.size else "no Arrow stream"
        try:
            schema = read_schema(fd, path, frames)
        except ArchiveError as error:
            return error.reason if error.reason.startswith("format ") else ""
    theirs = schema_run(schema)
    return f"of the run {theirs!r}" if run_id and theirs != run_id else ""


def _readable(path: Path) -> tuple[int, int, Frames]:
    """Rows up to the first bad batch, the byte where it starts, and the frames."""
    with open_shard(path) as (fd, frames):
        if not frames.schema_end:
            return 0, 0, frames
        try:
            schema = read_schema(fd, path, frames)
        except (ArchiveError, *DAMAGE):
            return 0, 0, frames
        rows, end = 0, frames.schema_end
        for frame in frames.batches:
            try:
                for _ in read_rows(fd, path, schema, frame):
                    pass
            except UnknownEncodingError:
                pass  # whole as far as can be told
            except (ArchiveError, pa.ArrowException):
                break
            rows += frame.rows
            end = frame.end
    return rows, end, frames
