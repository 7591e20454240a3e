"""What an archive may take: `max_gib`, `max_age_s` and `min_free_gib`. The oldest closed shards go first.

The limits are one sink's, over all its workers and over all attempts of the run; shards of earlier
attempts are the oldest. Whoever closes a shard decides, with the archive's lock held: it makes room
first and closes then, so that closed shards never take more than the budget. A worker that cannot have
the lock (its holder is stopped) closes all the same and decides at its next look.

How old a shard is: by its packets' times, which are the host's monotonic clock with the offset to wall
time that its attempt began with. So a wall clock that is stepped while the run goes on ages nothing;
between two attempts the wall clock counts.

Deleting does not free what a reader has open. So each look takes what it deletes for freed, and the
next one, at least `LOOK_S` later, asks the file system again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from asys_bench.contracts.run_files import ARCHIVE_DIR, SHARD_SUFFIX
from asys_bench.sinks.archive.deletions import (
    LOCK_WAIT_S,
    Deleted,
    Reason,
    Record,
    deciding,
)
from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.pins import pin_of
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar
from asys_bench.system.files.below import EntryKind, is_file, make_folders, scan

log = logging.getLogger(__name__)
LOOK_S = 1.0
"""Seconds between two looks at ages and free space."""
BUSY_S = 10.0
"""The lock is not waited for again for so long, once its holder has kept it for LOCK_WAIT_S."""
SIDECAR_BYTES = 4096
"""Room that is made for a sidecar; one of a few streams has half a KiB."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sink's closed shards; None: no such limit."""

    most_bytes: int | None = None
    max_age_s: float | None = None
    min_free_bytes: int | None = None

    def __bool__(self) -> bool:
        return (self.most_bytes, self.max_age_s, self.min_free_bytes) != (None, None, None)


@dataclass(frozen=True, slots=True)
class _Closed:
    """A closed shard. `last_ns` None: its newest packet's time is not known."""

    path: Path
    bytes: int
    order: tuple[int, int, int, int, str]
    last_ns: int | None


def sink_of(worker: str) -> str:
    """The sink that a worker is of: `archive` for `archive-0`."""
    sink, _, number = worker.rpartition("-")
    return sink if sink and number.isdecimal() else worker


class Budget:
    """Keeps the closed shards of the sink of `worker` within `limits`.

    members: workers of the sink, this one included; alone it knows of every shard that is closed.
    clock: now, in nanoseconds, as packets' times count them. publish: called with what this worker
    deleted in this attempt for a reason, whenever that changes.
    """

    def __init__(
        self,
        run_dir: Path,
        worker: str,
        limits: Limits,
        *,
        members: int,
        attempt: int,
        clock: Callable[[], int],
        heartbeat: Callable[[], None],
        publish: Callable[[str, Deleted], None],
    ) -> None:
        self.limits = limits
        self._run_dir, self._archive = run_dir, run_dir / ARCHIVE_DIR
        self._sink, self._heartbeat, self._clock = sink_of(worker), heartbeat, clock
        self._publish = publish
        self._record = Record(self._archive, worker, attempt)
        self._known: dict[Path, _Closed] = {}
        self._held = 0
        self._next_try = self._busy_until = 0.0
        self._alone, self._looked = members == 1, False
        self._oldest_ns: int | None = None
        """Time of the oldest shard that may go, as far as is known."""
        self._owed = False
        self._said: set[str] = set()

    def resume(self) -> None:
        """Finish what an earlier incarnation recorded; call it before its shards are taken over."""
        make_folders(self._archive, below=self._run_dir)
        self._record.resume(self._heartbeat)
        self._publish_all()

    def adopt(self) -> None:
        """Delete what is to go now; the first time when earlier incarnations' shards are closed."""
        with self._deciding():
            pass

    @contextmanager
    def closing(self, shard: Path, nbytes: int) -> Iterator[None]:
        """While `shard`, of `nbytes`, is closed: there is room for it."""
        limit = self.limits.most_bytes
        with self._deciding(nbytes + SIDECAR_BYTES) if limit is not None else nullcontext():
            yield
            if (one := self._closed(shard)) is not None:
                self._known[shard] = one
                self._oldest_ns = min(filter(None, (self._oldest_ns, one.last_ns)), default=None)
        if limit is not None and self._held > limit:  # pinned shards left no room for it
            self.adopt()

    def look(self) -> None:
        """Delete what has become too old, and the oldest where the disk has become too full. Call it about
        every `LOOK_S`; it is cheap when nothing is to be done."""
        age = self.limits.max_age_s
        expired = (
            age is not None
            and self._oldest_ns is not None
            and self._clock() - self._oldest_ns > age * 1e9
        )
        if expired or self._owed or self._missing_bytes() > 0:
            self.adopt()

    def keep_free(self) -> None:
        """Call it before rows are written.

        Raises:
            OSError: ENOSPC: less than `min_free_gib` is free, and no shard may be deleted.
        """
        if (missing := self._missing_bytes()) <= 0:
            return
        if time.monotonic() >= self._next_try:
            self.adopt()
            if (missing := self._missing_bytes()) <= 0:
                return
            self._next_try = time.monotonic() + LOOK_S
        raise OSError(
            errno.ENOSPC,
            f"min_free_gib: {missing / GIB:.3g} GiB more would have to be free than closed shards gave",
        )

    @contextmanager
    def _deciding(self, adding: int = 0) -> Iterator[None]:
        with ExitStack() as stack:
            self._owed = True
            # One that is stopped may have the lock: it is not waited for at every shard.
            wait_s = LOCK_WAIT_S if time.monotonic() >= self._busy_until else 0.0
            try:
                if stack.enter_context(deciding(self._archive, self._heartbeat, wait_s)):
                    self._record.catch_up()
                    self._decide(adding)
                    self._owed = False
                else:
                    self._busy_until = time.monotonic() + BUSY_S
            except OSError as error:
                self._say_once("decide", f"what is to be deleted cannot be decided: {error}")
            yield

    def _decide(self, adding: int) -> None:
        if not self._alone or not self._looked:
            self._look_around()
        closed = sorted(self._known.values(), key=lambda one: one.order)
        held = sum(one.bytes for one in closed) + adding
        missing, pinned = self._missing_bytes(), 0
        now, self._oldest_ns = self._clock(), None
        for one in closed:
            reason = self._reason(one, held, missing, now)
            if reason is not None and is_file(pin_of(one.path), below=self._run_dir):
                pinned += one.bytes
            elif reason is None or not self._delete(one.path, reason):
                if one.last_ns is not None:
                    self._oldest_ns = min(one.last_ns, self._oldest_ns or one.last_ns)
            else:
                del self._known[one.path]
                held -= one.bytes
                missing -= one.bytes
        self._held = held
        limit = self.limits.most_bytes
        if limit is not None and pinned + adding > limit:
            self._say_once(
                "pinned",
                f"{pinned / GIB:.3g} GiB of shards are pinned and max_gib is {limit / GIB:.3g}: new ones "
                "are deleted as they are closed",
            )

    def _reason(self, one: _Closed, held: int, missing: int, now_ns: int) -> Reason | None:
        age, most = self.limits.max_age_s, self.limits.most_bytes
        if age is not None and one.last_ns is not None and now_ns - one.last_ns > age * 1e9:
            return Reason.AGE
        if most is not None and held > most:
            return Reason.BUDGET
        return Reason.FREE_SPACE if missing > 0 else None

    def _missing_bytes(self) -> int:
        """How much less is free than has to be; 0 or less where there is enough."""
        least = self.limits.min_free_bytes
        if least is None:
            return 0
        disk = os.statvfs(self._run_dir)
        return least - disk.f_bavail * disk.f_frsize

    def _look_around(self) -> None:
        """Bring `_known` up to date with the folder."""
        found: dict[Path, _Closed] = {}
        for folder, kind in scan(self._archive, below=self._run_dir):
            if kind is not EntryKind.FOLDER:
                continue
            self._heartbeat()
            entries = scan(folder, below=self._run_dir)
            files = {path for path, inner in entries if inner is EntryKind.FILE}
            for path in files:
                if path.suffix == SHARD_SUFFIX and Sidecar.path_of(path) in files:
                    one = self._known.get(path) or self._closed(path)
                    if one is not None:
                        found[path] = one
        self._known, self._looked = found, True

    def _closed(self, path: Path) -> _Closed | None:
        """None: of another sink, not closed, or gone."""
        name = ShardName.parse(path.name)
        if name is None or sink_of(name.worker) != self._sink:
            return None
        try:
            size = path.lstat().st_size + Sidecar.path_of(path).lstat().st_size
        except FileNotFoundError:
            return None
        try:
            sidecar = Sidecar.read(path)
        except ArchiveError:
            sidecar = None  # it goes first of its attempt
        if sidecar is not None and not sidecar.closed:
            return None
        last_ns = None if sidecar is None else sidecar.last_ns
        seq = -1 if sidecar is None else max((r.last_seq for r in sidecar.ranges), default=-1)
        order = (name.attempt, -1 if last_ns is None else last_ns, seq, name.number, str(path))
        return _Closed(path, size, order, last_ns)

    def _delete(self, path: Path, reason: Reason) -> bool:
        self._heartbeat()
        try:
            if is_file(path, below=self._run_dir):
                self._record.delete(path, reason)
        except OSError as error:
            self._say_once("delete", f"{path} should go and cannot be deleted: {error}")
            return False
        self._publish_all()
        return True

    def _publish_all(self) -> None:
        for reason, total in self._record.totals.items():
            self._publish(reason, total)

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.error("%s", message)
