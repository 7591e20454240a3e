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

One copy holds one run: its id and the time at which it began are in the manifest. One folder of the run
writes to it (`store.claims`): a folder that was brought back from the copy has a later term, and whoever
finds that in the manifest sends nothing more. Before it is replaced, the manifest must still be the one
that was read or written last, so that two processes of one folder stop instead of undoing each other's
work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from asys_bench.config.document import run_config_data
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.run_files import (
    DELETED_SUFFIX,
    RUN_FILE,
    STATE_DIR,
    RunFileError,
    attempts_in,
    began_unix_ns,
    read_run_file,
)
from asys_bench.monitors.upload.covered import Covered, archivers_in
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
from asys_bench.store.claims import (
    BEAT_S,
    CopyInUseError,
    Hold,
    claims_in,
    forget_earlier,
    hold_of,
    holder_of,
    next_claim,
    take_over,
    write_claim,
    write_hold,
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
from asys_bench.system.files.below import MAX_DOCUMENT_BYTES, open_file, parse_json

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


class RunIsElsewhereError(StoreTakenError):
    """Another folder of the run has the copy, for good: this one's files stay where they are."""


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
    should_stop: asked between two units. alive: called whenever something has moved. account: the bus's
    counters, while there is one.
    """

    def __init__(
        self,
        run_dir: Path,
        store: ObjectStore,
        *,
        delete_after_s: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None,
        account: Callable[[], BusAccount] | None = None,
    ) -> None:
        self.run_dir, self.store = run_dir, store
        self.progress = Progress()
        self._delete_after_s = delete_after_s
        self._should_stop, self._say_alive = should_stop, alive
        self._writer = secrets.token_hex(8)
        self._manifest: Manifest | None = None
        self._files: dict[str, Stored] = {}
        """What the next manifest names."""
        self._links: dict[str, str] = {}
        self._deletions: StoredDeletions | None = None
        config = run_config_data(run_dir)  # without one nobody knows what archives
        self._covered = Covered(run_dir, archivers_in(config), account if config else None)
        self._hold: Hold | None = None
        self._run: tuple[str, int] = ("", 0)
        self._committed_at = self._beat_at = float("-inf")

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
        self._run = (mine.run_id, began)
        found = self._read_manifest()
        if found is not None and (found.run_id, found.began_unix_ns) != (mine.run_id, began):
            raise StoreTakenError(self._taken_by(found, mine))
        self._hold = self._held(found)
        self._manifest, self._files = found or mine, dict((found or mine).files)
        self._links = dict(self._manifest.links)
        self._covered.newest = self._covered.newest or self._manifest.covered
        if self._manifest.term != self._hold.claim.term:
            self._commit()
            forget_earlier(self.store, self._hold.claim)
        if self._delete_after_s is not None:
            from asys_bench.monitors.upload.deleting import StoredDeletions  # it needs torch

            attempt = max(0, len(attempts_in(self.run_dir)) - 1)
            self._deletions = StoredDeletions(self.run_dir, attempt, self._alive)
        self._sweep()

    def _held(self, found: Manifest | None) -> Hold:
        """This folder's hold on the copy; the first time it is taken.

        Raises:
            RunIsElsewhereError: another folder has it, and is at work, or further than this one.
        """
        place, term = str(self.store.location), found.term if found is not None else 0
        hold = hold_of(self.run_dir, place)
        if hold is None:
            if found is not None and self._is_behind(found):
                raise RunIsElsewhereError(self._elsewhere("has more attempts there than here"))
            hold = Hold(next_claim(self.store, term))
            write_hold(self.run_dir, place, hold)  # before the claim: a killed process has it again
        if term > hold.claim.term:
            raise RunIsElsewhereError(self._elsewhere(self._who_has(term)))
        if term < hold.claim.term:
            try:
                take_over(self.store, hold.claim)
            except CopyInUseError as error:
                raise RunIsElsewhereError(self._elsewhere(str(error))) from None
        self._beat_at = time.monotonic()
        write_claim(self.store, hold.claim)
        return hold

    def _is_behind(self, found: Manifest) -> bool:
        """Whether the copy has attempts that this folder knows nothing of."""
        stored = found.files.get(RUN_FILE)
        if stored is None:
            return False
        try:
            document = parse_json(self.store.get(stored.object, MAX_DOCUMENT_BYTES))
            attempts = document["attempts"]
        except (ValueError, KeyError, TypeError):
            return False
        return isinstance(attempts, list) and len(attempts) > len(attempts_in(self.run_dir))

    def _who_has(self, term: int) -> str:
        claims = [claim for claim in claims_in(self.store) if claim.term >= term]
        who = f" ({holder_of(self.store, claims[0])})" if claims else ""
        return f"the run goes on elsewhere{who}"

    def _elsewhere(self, why: str) -> str:
        return (
            f"{self.store.location}: {why}; nothing more of {self.run_dir} is sent there, and what was not "
            f"sent stays in that folder (asys-run upload {self.run_dir} --uri ... sends it to another place)"
        )

    def _alive(self) -> None:
        """Something has moved; now and then the claim says so as well."""
        self._say_alive()
        if self._hold is not None and time.monotonic() - self._beat_at > BEAT_S:
            self._beat_at = time.monotonic()
            with suppress(StoreError):  # what it beats for will say it
                write_claim(self.store, self._hold.claim)

    def _release(self) -> None:
        """The run has ended and the copy has all of it: whoever goes on with it need not wait."""
        assert self._hold is not None
        if self._beat_at == float("inf"):
            return
        self._beat_at = float("inf")
        with suppress(StoreError):
            write_claim(self.store, self._hold.claim, released=True)

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
        self._alive()
        ready = find_ready(self.run_dir, self._files)
        due = [unit for unit in ready.units if self._is_due(unit, final)]
        left = self._count_left(ready, due)
        first = {unit.name for unit in due if unit.kind is Kind.FIRST}
        for unit in due:
            if self._should_stop() or (unit.kind is not Kind.FIRST and first & left.keys()):
                break  # a shard must not be there before the attempt that it is of
            if not self._send_unit(unit, final):
                continue
            left.pop(unit.name, None)
            self._say_left(left)
            if time.monotonic() - self._committed_at > COMMIT_S:
                self._commit()
        done = not left and not any(self._is_due(unit, final) for unit in due)
        complete = final and done and not ready.open_shards and self._has_ended()
        self._covered.look(ready, self._files, ended=complete)
        self._follow(ready)
        assert self._manifest is not None
        links = {**self._left_links(), **ready.links}
        self._links = {
            link: target for link, target in links.items() if self._has_folder(link, target)
        }
        before = self._manifest
        now = (before.files, before.links, before.covered, before.complete)
        if (self._files, self._links, self._covered.newest, complete) != now:
            self._commit(complete)
        self._delete_sent(ready)
        if complete:
            self._release()
        return done

    def _left_links(self) -> dict[str, str]:
        """Links of the copy to checkpoints of which none was brought here."""
        assert self._manifest is not None
        assert self._hold is not None
        left = {name.rpartition("/")[0] for name in self._hold.left}
        of = self._manifest.links.items()
        return {link: to for link, to in of if f"{link.rpartition('/')[0]}/{to}" in left}

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
        missed = sum(data.count(b"\n") for data in records)
        if missed and not self.progress.missed_shards:
            log.warning(
                "%d shards were deleted here (max_gib and its like) before they were sent: %s does not have "
                "them, nor, most likely, others after them. Limits do not wait for a store; a larger one "
                "gives it time",
                missed,
                self.store.location,
            )
        self.progress.missed_shards = missed
        self.progress.open_shards = len(ready.open_shards)
        return left

    def _say_left(self, left: dict[str, int]) -> None:
        self.progress.pending_files, self.progress.pending_bytes = len(left), sum(left.values())

    def _is_due(self, unit: Unit, final: bool) -> bool:
        changed = [file for file in unit.files if not self._has(file)]
        if not changed or unit.fixed or final or unit.kind is Kind.FIRST:
            return bool(changed)
        before = self._files.get(unit.name)
        if before is None:
            return True
        size = unit.bytes
        appended = not unit.name.startswith(f"{STATE_DIR}/")  # there, hosts keep files of their own
        if appended and size > LARGE_BYTES and before.bytes <= size:
            return size >= GROWN * before.bytes
        return time.time_ns() - before.stored_ns > DOCUMENT_S * 1e9

    def _has(self, file: LocalFile) -> bool:
        stored = self._files.get(file.name)
        return stored is not None and (stored.bytes, stored.modified_ns) == (
            file.bytes,
            file.modified_ns,
        )

    def _send_unit(self, unit: Unit, final: bool) -> bool:
        """Its files in the next manifest, all of them or none (False)."""
        sent: dict[str, Stored] = {}
        try:
            for file in unit.files:
                if not self._has(file):
                    sent[file.name] = self._send_file(unit, file, final)
        except _LocalError as error:
            log.info("%s is left for later: %s", unit.name, error)
            return False
        self._files.update(sent)
        self.progress.files += len(sent)
        return True

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
        assert self._hold is not None
        shards = {name for name in self._files if is_shard(name)}
        kept = here | shards | {sidecar_of(name) for name in shards} | self._hold.left
        states = tuple(f"{name}/" for name in self._covered.keeps(self._files))
        for name in self._files.keys() - kept:
            if name.startswith(states):
                continue
            if not os.path.lexists(self.run_dir / name):
                del self._files[name]

    def _commit(self, complete: bool = False) -> None:
        """Replace the manifest; then delete what the one before it had given up."""
        assert self._manifest is not None
        assert self._hold is not None
        now, term = self._read_manifest(), self._hold.claim.term
        if now is not None and now.writer != self._writer and now != self._manifest:
            if (now.run_id, now.began_unix_ns) == self._run and now.term < term:
                self._adopt(now)
            else:
                self._manifest = None
                if now.term > term:
                    raise RunIsElsewhereError(self._elsewhere(self._who_has(now.term)))
                raise StoreTakenError(
                    f"{self.store.location}: another process sends to it (manifest {now.generation} of the "
                    f"run {now.run_id!r})"
                )
        before = self._manifest if now is None else now
        following = before.following(
            self._writer, self._files, term, complete, self._links, self._covered.newest
        )
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

    def _adopt(self, now: Manifest) -> None:
        """Shards in the manifest of a folder that had not heard yet that this one has the copy."""
        for name, stored in now.files.items():
            if is_shard(name) and sidecar_of(name) in now.files:
                self._files.setdefault(name, stored)
                self._files.setdefault(sidecar_of(name), now.files[sidecar_of(name)])

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
