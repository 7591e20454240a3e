"""Sending a run's files to its copy, so that a kill at any point leaves the copy whole and loses
nothing here.

ORDER, for each unit of files (`ready`)
1. PUT. Its objects are written; nobody knows of them yet.
2. READ BACK. Each is read again and compared with the file, byte by byte.
3. MANIFEST. They are named in the next manifest, which replaces the one before as a whole.
4. DELETE. What no manifest names any more goes, one manifest later. With `delete_after_s`, closed
   shards of the run go here: recorded first (`sinks.archive.deletions`), then deleted.

The manifest is all that is remembered: whoever comes after a kill reads it, and sends what it does not
name. A file is known again by its size and time, else by its SHA-256.

One copy holds one run: its id and the time at which it began are in the manifest. Before it is
replaced, the manifest must still be the one that was read or written last, so that two processes that
send one run stop instead of undoing each other's work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from asys_bench.contracts.run_files import (
    DELETED_SUFFIX,
    RUN_FILE,
    RunFileError,
    attempts_in,
    began_unix_ns,
    read_run_file,
)
from asys_bench.monitors.upload.ready import (
    LINES,
    Kind,
    LocalFile,
    Ready,
    Unit,
    find_ready,
    is_shard,
    sidecar_of,
    whole_lines,
)
from asys_bench.store.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    VERSIONS,
    Manifest,
    ManifestError,
    Stored,
    read_manifest,
)
from asys_bench.store.objects import PIECE_BYTES, ObjectStore, Reason, StoreError
from asys_bench.system.files.below import open_file

if TYPE_CHECKING:
    from asys_bench.monitors.upload.deleting import StoredDeletions

log = logging.getLogger(__name__)
COMMIT_S = 10.0
"""Longest time that what was read back waits for its manifest."""
DOCUMENT_S = 30.0
"""A file that changes is not sent more often."""
LARGE_BYTES, GROWN = 1 << 20, 1.25
"""A larger one is sent again when it has grown by a quarter: all its versions together are five times
its size."""


class StoreTakenError(RuntimeError):
    """The place holds another run, or another process sends to it; says which."""


class _LocalError(Exception):
    """A file here cannot be read, or changed while it was: it is left for later."""


@dataclass
class Progress:
    """What was done, and what is left. Counts of this process; `pending` and `missed` are of the run."""

    files: int = 0
    bytes: int = 0
    errors: Counter[Reason] = field(default_factory=Counter)
    pending_files: int = 0
    pending_bytes: int = 0
    missed_shards: int = 0
    """Deleted here before they were sent."""
    deleted_shards: int = 0
    """Deleted here because the copy has them."""
    open_shards: int = 0


class Uploader:
    """The copy of one run, as its writer.

    delete_after_s: closed shards are deleted here that long after they were read back; None: never.
    should_stop: asked between two units. alive: called whenever something has moved.
    """

    def __init__(
        self,
        run_dir: Path,
        store: ObjectStore,
        *,
        delete_after_s: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_dir, self.store = run_dir, store
        self.progress = Progress()
        self._delete_after_s = delete_after_s
        self._should_stop, self._alive = should_stop, alive
        self._writer = secrets.token_hex(8)
        self._manifest: Manifest | None = None
        self._files: dict[str, Stored] = {}
        """What the next manifest names."""
        self._links: dict[str, str] = {}
        self._deletions: StoredDeletions | None = None
        self._committed_at = 0.0

    def begin(self) -> None:
        """Read the manifest, or write the first one. Idempotent.

        Raises:
            StoreError: the store refuses. StoreTakenError: another run is there.
            RunFileError: this is no run, or it never began.
        """
        if self._manifest is not None:
            return
        document = read_run_file(self.run_dir)
        began = began_unix_ns(document)
        if began is None:
            raise RunFileError(f"{self.run_dir}: {RUN_FILE} does not say when the run began")
        mine = Manifest(document["run_id"], began)
        found = self._read_manifest()
        if found is not None and (found.run_id, found.began_unix_ns) != (mine.run_id, began):
            raise StoreTakenError(self._taken_by(found, mine))
        self._manifest, self._files = found or mine, dict((found or mine).files)
        self._links = dict(self._manifest.links)
        if found is None:
            self._commit()
        if self._delete_after_s is not None:
            from asys_bench.monitors.upload.deleting import StoredDeletions  # it needs torch

            attempt = max(0, len(attempts_in(self.run_dir)) - 1)
            self._deletions = StoredDeletions(self.run_dir, attempt, self._alive)
        self._sweep()

    def _taken_by(self, found: Manifest, mine: Manifest) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.began_unix_ns / 1e9))
        which = (
            "another run of this id" if found.run_id == mine.run_id else f"the run {found.run_id!r}"
        )
        return (
            f"{self.store.location} holds {which}, begun {began}: one place holds one run; "
            "write {run_id} in storage.uri, or name another place"
        )

    def _read_manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.store.get(MANIFEST, MAX_MANIFEST_BYTES))
        except StoreError as error:
            if error.reason is Reason.MISSING:
                return None
            raise
        except ManifestError as error:
            raise StoreTakenError(f"{self.store.location}/{MANIFEST} {error}") from None

    def _sweep(self) -> None:
        """Delete versions that no manifest came to name, of writers that were killed."""
        assert self._manifest is not None
        known = {stored.object for stored in self._files.values()} | set(self._manifest.gone)
        try:
            for key in self.store.keys(VERSIONS):
                if key not in known:
                    self.store.delete(key)
        except StoreError as error:
            log.info("what earlier writers left is not removed: %s", error)

    def send(self, *, final: bool = False) -> bool:
        """Send what there is to send, until `should_stop`; whether the copy then has all of it.

        final: also what has changed just now. A run that has ended is marked as complete where all is sent.

        Raises:
            As `begin`; what was read back until then is named by the next manifest.
        """
        self.begin()
        ready = find_ready(self.run_dir, self._files)
        due = [unit for unit in ready.units if self._is_due(unit, final)]
        left = self._count_left(ready, due)
        for unit in due:
            if self._should_stop():
                break
            self._send_unit(unit, final)
            left.pop(unit.name, None)
            self._say_left(left)
            if time.monotonic() - self._committed_at > COMMIT_S:
                self._commit()
        self._follow(ready)
        done = not left and not any(self._is_due(unit, final) for unit in due)
        complete = final and done and not ready.open_shards and self._has_ended()
        assert self._manifest is not None
        self._links = {
            link: target for link, target in ready.links.items() if self._has_folder(link, target)
        }
        now = (self._manifest.files, self._manifest.links, self._manifest.complete)
        if (self._files, self._links, complete) != now:
            self._commit(complete)
        self._delete_sent(ready)
        return done

    def _has_folder(self, link: str, target: str) -> bool:
        """Whether the checkpoint that a link names is in the copy."""
        inside = f"{link.rpartition('/')[0]}/{target}/"
        return any(name.startswith(inside) for name in self._files)

    def _has_ended(self) -> bool:
        try:
            return read_run_file(self.run_dir).get("result") is not None
        except RunFileError:
            return False

    def _count_left(self, ready: Ready, due: list[Unit]) -> dict[str, int]:
        left = {unit.name: unit.bytes for unit in due}
        self._say_left(left)
        records = (u.files[0].data or b"" for u in ready.units if u.name.endswith(DELETED_SUFFIX))
        self.progress.missed_shards = sum(data.count(b"\n") for data in records)
        self.progress.open_shards = ready.open_shards
        return left

    def _say_left(self, left: dict[str, int]) -> None:
        self.progress.pending_files, self.progress.pending_bytes = len(left), sum(left.values())

    def _is_due(self, unit: Unit, final: bool) -> bool:
        changed = [file for file in unit.files if not self._has(file)]
        if not changed or unit.fixed or final:
            return bool(changed)
        before = self._files.get(unit.name)
        if before is None:
            return True
        size = unit.bytes
        if size > LARGE_BYTES and before.bytes <= size:
            return size >= GROWN * before.bytes
        return time.time_ns() - before.stored_ns > DOCUMENT_S * 1e9

    def _has(self, file: LocalFile) -> bool:
        stored = self._files.get(file.name)
        return stored is not None and (stored.bytes, stored.modified_ns) == (
            file.bytes,
            file.modified_ns,
        )

    def _send_unit(self, unit: Unit, final: bool) -> None:
        """Its files in the next manifest, all of them or none."""
        sent: dict[str, Stored] = {}
        try:
            for file in unit.files:
                if not self._has(file):
                    sent[file.name] = self._send_file(unit, file, final)
        except _LocalError as error:
            log.info("%s is left for later: %s", unit.name, error)
            return
        self._files.update(sent)
        self.progress.files += len(sent)

    def _send_file(self, unit: Unit, file: LocalFile, final: bool) -> Stored:
        before = self._files.get(file.name)
        with _Source(file, self.run_dir, cut=not final and not unit.fixed) as source:
            if before is not None and before.bytes == source.bytes:
                digest = hashlib.sha256()
                for piece in source.pieces():
                    digest.update(piece)
                    self._alive()
                if digest.hexdigest() == before.sha256:
                    return replace(before, modified_ns=source.modified_ns)
            key = file.name
            if before is not None or not unit.fixed:
                key = f"{VERSIONS}/{secrets.token_hex(6)}.{Path(file.name).name[-200:]}"
            return self._put(key, source)

    def _put(self, key: str, source: _Source) -> Stored:
        """Write an object, read it back, and compare it with the file byte by byte."""
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            for piece in source.pieces():
                digest.update(piece)
                self._alive()
                yield piece

        self.store.put(key, pieces())
        found, same = 0, True
        for piece in self.store.pieces(key):
            same = same and source.at(found, len(piece)) == piece
            found += len(piece)
            self._alive()
        source.check_unchanged()
        if found != source.bytes or not same:
            detail = "other bytes" if same is False else f"{found} bytes of {source.bytes}"
            raise StoreError(f"{self.store.location}/{key}", Reason.CHANGED, detail)
        self.progress.bytes += found
        return Stored(key, found, digest.hexdigest(), source.modified_ns, time.time_ns())

    def _follow(self, ready: Ready) -> None:
        """Leave out what the run has removed, but for shards."""
        here = {file.name for unit in ready.units for file in unit.files}
        if not any(unit.kind is Kind.FIRST for unit in ready.units):
            return  # a folder without run.json says nothing of what was removed
        shards = {name for name in self._files if is_shard(name)}
        kept = here | shards | {sidecar_of(name) for name in shards}
        for name in self._files.keys() - kept:
            if not os.path.lexists(self.run_dir / name):
                del self._files[name]

    def _commit(self, complete: bool = False) -> None:
        """Replace the manifest; then delete what the one before it had given up."""
        assert self._manifest is not None
        now = self._read_manifest()
        if now is not None and now.writer != self._writer and now != self._manifest:
            self._manifest = None
            raise StoreTakenError(
                f"{self.store.location}: another process sends to it (manifest {now.generation} of the run "
                f"{now.run_id!r})"
            )
        before = self._manifest if now is None else now
        following = before.following(self._writer, self._files, complete, self._links)
        data = following.to_bytes()
        self.store.put(MANIFEST, [data])
        if self.store.get(MANIFEST, MAX_MANIFEST_BYTES) != data:
            raise StoreError(f"{self.store.location}/{MANIFEST}", Reason.CHANGED)
        self._manifest, self._committed_at = following, time.monotonic()
        self._alive()
        named = {stored.object for stored in self._files.values()}
        for key in before.gone:
            if key not in named:
                self.store.delete(key)
                self._alive()

    def _delete_sent(self, ready: Ready) -> None:
        """Closed shards of the run that the copy has had for long enough."""
        if self._delete_after_s is None:
            return
        assert self._manifest is not None
        assert self._deletions is not None
        for unit in ready.units:
            if unit.kind is not Kind.SHARD or self._deletions.keeps(unit.files[0].path):
                continue
            stored = [self._manifest.files.get(file.name) for file in unit.files]
            if not all(map(self._has, unit.files)) or None in stored:
                continue
            sent = [one for one in stored if one is not None]
            if time.time_ns() - max(one.stored_ns for one in sent) < self._delete_after_s * 1e9:
                continue
            if all(self.store.size(one.object) == one.bytes for one in sent):
                self._delete(unit.files[0])
            self._alive()

    def _delete(self, shard: LocalFile) -> None:
        assert self._deletions is not None
        try:
            self.progress.deleted_shards += self._deletions.delete(shard.path)
        except OSError as error:
            log.warning("%s is in the store and cannot be deleted here: %s", shard.name, error)


class _Source:
    """A file as it is when it is opened; of one that is appended to (`cut`), its whole lines.

    Raises:
        _LocalError: it cannot be read, or did not stay as it was.
    """

    def __init__(self, file: LocalFile, run_dir: Path, *, cut: bool) -> None:
        self._data, self._fd = file.data, -1
        if file.data is not None:
            self.bytes, self.modified_ns = len(file.data), file.modified_ns
            return
        try:
            self._fd = open_file(file.path, below=run_dir)
            self._begin = os.fstat(self._fd)
            self.bytes = self._begin.st_size
            if cut and file.path.suffix in LINES:
                self.bytes = whole_lines(self._fd, self.bytes)
        except OSError as error:
            self.__exit__()
            raise _LocalError(str(error)) from None
        whole = (self.bytes, self._begin.st_mtime_ns) == (file.bytes, file.modified_ns)
        self.modified_ns = file.modified_ns if whole else 0
        """0, which no file has, where the file is more than what is sent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def pieces(self) -> Iterator[bytes]:
        at = 0
        while at < self.bytes:
            piece = self.at(at, PIECE_BYTES)
            if not piece:
                raise _LocalError("it became shorter")
            yield piece
            at += len(piece)
        self.check_unchanged()

    def at(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on."""
        size = min(size, self.bytes - start)
        if self._data is not None:
            return self._data[start : start + size]
        try:
            return os.pread(self._fd, max(0, size), start)
        except OSError as error:
            raise _LocalError(str(error)) from None

    def check_unchanged(self) -> None:
        if self._data is not None:
            return
        begin, now = self._begin, os.fstat(self._fd)
        rewritten = now.st_size == begin.st_size and now.st_mtime_ns != begin.st_mtime_ns
        if now.st_size < self.bytes or rewritten:
            raise _LocalError("it was written to meanwhile")
