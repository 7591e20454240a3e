"""Shards that were deleted: every deletion is on record, with its reason.

PROTOCOL of one deletion, by whoever holds the archive's lock (`deciding`)
1. RECORD. A line in `archive/<worker>.deleted.jsonl` names the shard, its rows and the reason.
2. DELETE. The shard is unlinked, then its sidecar. A reader that has it open reads on.

A worker that is killed between the two leaves a shard that is on record: its successor (or
`asys-run verify --repair`) finishes step 2. Totals are sums over the records, which name each shard
once, so a crash can neither lose a deletion nor count it twice. Where the disk is too full for the line,
the shard goes first and the line follows in its room.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter

from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    ARCHIVE_LOCK_NAME,
    DELETED_FOR,
    DELETED_SUFFIX,
)
from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar
from asys_bench.system.files import reason_of
from asys_bench.system.files.append_file import AppendFile
from asys_bench.system.files.below import (
    open_or_create,
    parse_json,
    remove,
    scan_if_there,
    text_lines,
)
from asys_bench.system.files.locks import take_lock

LOCK_WAIT_S = 2.0
"""Whoever has it longer is stopped or killed: the watchdog's business."""


class Reason(StrEnum):
    """Why a shard was deleted."""

    BUDGET = "budget"
    AGE = "age"
    FREE_SPACE = "free_space"
    STORED = "stored"


def reason_text(reason: str) -> str:
    """A reason in words; one of another version by its name."""
    return DELETED_FOR.get(reason, f"for {reason}")


@dataclass(frozen=True, slots=True)
class Deletion:
    """One line of the record. `shard` is relative to the archive's folder; counts are its sidecar's.
    `attempt` is the one that deleted it."""

    shard: str
    hook: str
    rows: int
    packets: int
    bytes: int
    reason: str = Reason.BUDGET
    attempt: int = 0


_LINE = TypeAdapter(Deletion)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What deletions add up to."""

    shards: int = 0
    rows: int = 0
    packets: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, deletions: Iterable[Deletion]) -> Deleted:
        found = list(deletions)
        return cls(
            len(found),
            sum(one.rows for one in found),
            sum(one.packets for one in found),
            sum(one.bytes for one in found),
        )

    @classmethod
    def by_reason(cls, deletions: Iterable[Deletion]) -> dict[str, Deleted]:
        """Reason -> what was deleted for it."""
        of: dict[str, list[Deletion]] = {}
        for one in deletions:
            of.setdefault(str(one.reason), []).append(one)
        return {reason: cls.of(of[reason]) for reason in sorted(of)}


def read_deletions(run_dir: Path | str) -> dict[str, Deletion]:
    """Shard (relative to the archive's folder) -> its deletion, over all workers of a run.

    A line that cannot be read is left out: its writer was killed, and the shard is still there.
    """
    found: dict[str, Deletion] = {}
    try:
        entries = scan_if_there(Path(run_dir) / ARCHIVE_DIR, below=Path(run_dir))
    except OSError:  # the archive's own reader says so
        return {}
    for path, _ in entries:
        if path.name.endswith(DELETED_SUFFIX):
            found.update(read_record(path))
    return found


def read_record(path: Path) -> dict[str, Deletion]:
    """As `read_deletions`, of one worker's record."""
    found: dict[str, Deletion] = {}
    for line in text_lines(path):
        try:
            one = _LINE.validate_python(parse_json(line))
        except ValueError:
            continue
        if _is_shard(one.shard):
            found[one.shard] = one
    return found


def _is_shard(name: str) -> bool:
    """Whether it is `<hook's folder>/<shard>`: the record is input, and what it names is deleted."""
    folder, _, file = name.partition("/")
    return folder not in ("", ".", "..") and "/" not in file and ShardName.parse(file) is not None


def finish(archive: Path, deletion: Deletion) -> bool:
    """Step 2 for a shard that is on record; False when nothing of it was there any more."""
    shard = archive / deletion.shard
    there = False
    for path in (shard, Sidecar.path_of(shard)):
        if os.path.lexists(path):
            remove(path, below=archive)
            there = True
    return there


class Record:
    """The deletions of one worker in the archive `archive`; call what deletes with the lock held."""

    def __init__(self, archive: Path, worker: str, attempt: int) -> None:
        self._archive, self._attempt = archive, attempt
        self._path = archive / f"{worker}{DELETED_SUFFIX}"
        self._file: AppendFile | None = None
        self._mine: dict[str, Deleted] = {}
        self._unsaid: list[Deletion] = []

    @property
    def totals(self) -> dict[str, Deleted]:
        """Reason -> what this worker deleted in this attempt."""
        return dict(self._mine)

    def resume(self, heartbeat: Callable[[], None]) -> None:
        """Finish what an earlier incarnation recorded; call it before its shards are taken over."""
        recorded = read_record(self._path)
        for deletion in recorded.values():
            heartbeat()
            finish(self._archive, deletion)
        mine = [one for one in recorded.values() if one.attempt == self._attempt]
        self._mine = Deleted.by_reason(mine)

    def catch_up(self) -> None:
        """Record what a full disk had no room for."""
        with suppress(OSError):
            while self._unsaid:
                self._say(self._unsaid[0])
                finish(self._archive, self._unsaid.pop(0))

    def _say(self, deletion: Deletion) -> None:
        if self._file is None:
            self._file = AppendFile(self._path)
        self._file.write(json.dumps(asdict(deletion)) + "\n")

    def delete(self, shard: Path, reason: str) -> None:
        """Both steps for a closed shard.

        Raises:
            OSError: it cannot be recorded, or cannot be deleted.
        """
        name = shard.relative_to(self._archive).as_posix()
        try:
            counts = Sidecar.read(shard)
        except ArchiveError:
            counts = None
        if counts is not None:
            of = (counts.hook, counts.rows, counts.packets, counts.bytes)
        else:
            of = ("", 0, 0, shard.stat().st_size)
        deletion = Deletion(name, *of, str(reason), self._attempt)
        try:
            self._say(deletion)
        except OSError as error:
            if reason_of(error) not in ("disk_full", "quota"):
                raise
            # Its own bytes are the room for the line. Killed here, it is a shard that is missing.
            remove(shard, below=self._archive)
            self._unsaid.append(deletion)
            self.catch_up()
        else:
            finish(self._archive, deletion)
        before = self._mine.get(str(reason), Deleted())
        self._mine[str(reason)] = Deleted(
            before.shards + 1,
            before.rows + deletion.rows,
            before.packets + deletion.packets,
            before.bytes + deletion.bytes,
        )


@contextmanager
def deciding(
    archive: Path, heartbeat: Callable[[], None] = lambda: None, wait_s: float = LOCK_WAIT_S
) -> Iterator[bool]:
    """Be the one who decides what is deleted from `archive`; False: another one is at it all the time.

    The kernel's lock ends with its holder, SIGKILL included. Where a file system has none, everybody
    decides.

    Raises:
        OSError: the folder cannot be written, or the lock is no regular file.
    """
    fd = open_or_create(archive / ARCHIVE_LOCK_NAME, below=archive)
    try:
        until = time.monotonic() + wait_s
        while not (mine := take_lock(fd)) and time.monotonic() < until:
            heartbeat()
            time.sleep(0.005)
        yield mine
    finally:
        os.close(fd)
