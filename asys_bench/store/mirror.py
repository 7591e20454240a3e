"""A copy in a store as a folder of this machine, whose files come when they are opened.

`open_copy(uri)` gives the folder. Its folders and links are made at once, from the manifest; a file is
fetched when a reader opens it (`system.files.sources`), compared with the size and SHA-256 of the
manifest, and only then put in its place. So every reader of runs reads copies, under the same bounds.
Of shards, no more than MOST_BYTES stay: the oldest make room.

    <cache>/<token>/.lock         held while the process lives; whoever comes later removes what nobody holds
    <cache>/<token>/copy.json     the URI and the manifest, for processes that this one starts
    <cache>/<token>/incoming/     what is being fetched
    <cache>/<token>/<run id>/     the folder

A client of an object store does not survive a fork: a forked child (a worker of a DataLoader) fetches
through a process of its own.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import ARCHIVE_DIR, CONFIG_FILE, RUN_FILE, SHARD_SUFFIX
from asys_bench.store.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestError,
    Stored,
    read_manifest,
)
from asys_bench.store.objects import ObjectStore, Reason, StoreError, patiently
from asys_bench.store.uri import is_uri, parse_uri, without_secrets
from asys_bench.system.files.atomic import FILE_MODE, FOLDER_MODE, make_private_folder
from asys_bench.system.files.below import open_or_create, read_file
from asys_bench.system.files.locks import remove_unheld
from asys_bench.system.files.sources import mount, unmount

MOST_BYTES = 4 << 30
"""Of shards that stay on this machine."""
PATIENCE_S = 30.0
"""A store that refuses is asked again for so long."""
STATE = "copy.json"
_LOCK, _INCOMING = ".lock", "incoming"


class CopyError(OSError):
    """There is no copy of a run, or it cannot be had; says which and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def cache_folder() -> Path:
    """Where copies lie while they are read. Raises CopyError: the user has no home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise CopyError(f"no folder for what is fetched ({error}): set XDG_CACHE_HOME") from None
    return Path(base) / "asys-i" / "copies"


_open: dict[str, Mirror] = {}


def local_folder(place: str | os.PathLike[str]) -> Path:
    """The folder that `place` means: itself, or of a copy's URI, one whose files come when they are
    opened. Within a process the same for the same URI, as the copy was when it was opened first.

    Raises:
        CopyError: it is a URI and there is no copy, or it cannot be read.
    """
    text = os.fspath(place)
    if not is_uri(text):
        return Path(text)
    known = _open.get(text)
    if known is None or not known.is_there:
        known = _open[text] = Mirror.open(text)
    return known.folder


def beside_copy(folder: Path, name: str) -> Path:
    """Where a command writes what it makes of a copy, whose folder takes no files: here, named after it."""
    return Path(f"{file_slug(folder.name)}-{name}")


def remount(folder: Path) -> None:
    """In a process that was given the folder of a copy by another: files come here too. Nothing for any
    other."""
    with suppress(ValueError, OSError, ManifestError):
        token = folder.relative_to(cache_folder()).parts[0]
        if not any(one.folder == folder for one in _open.values()):
            mirror = Mirror.of(cache_folder() / token)
            _open[f"{mirror.uri}#{token}"] = mirror


class Mirror:
    """One copy; `folder` is mounted."""

    def __init__(self, home: Path, uri: str, manifest: Manifest) -> None:
        self._home, self.uri, self._manifest = home, uri, manifest
        self.folder = home / manifest.run_id
        self._store: ObjectStore | None = None
        self._store_pid = 0
        self._lock: Any = None
        mount(self.folder, self)

    @classmethod
    def open(cls, uri: str) -> Self:
        """Of a copy that is in its store. Raises CopyError."""
        try:
            store = ObjectStore(parse_uri(uri))
            manifest = manifest_of(store)
        except (ValueError, StoreError) as error:
            raise CopyError(f"{without_secrets(uri)}: {_reason(error)}") from None
        try:
            home, lock = _new_home()
            mirror = cls(home, uri, manifest)
            mirror._lock, mirror._store, mirror._store_pid = lock, store, os.getpid()
            mirror._write_state()
            mirror._make_folders()
        except OSError as error:
            raise CopyError(
                f"{uri}: cannot be fetched: {error} (XDG_CACHE_HOME names another folder)"
            ) from None
        atexit.register(mirror.close)
        for name in (RUN_FILE, CONFIG_FILE):
            if name in manifest.files:
                mirror.bring(mirror.folder / name)
        return mirror

    @classmethod
    def of(cls, home: Path) -> Self:
        """Of one that another process has opened. Raises OSError, ValueError."""
        state = json.loads(read_file(home / STATE, 2 * MAX_MANIFEST_BYTES, below=home))
        return cls(home, str(state["uri"]), read_manifest(state["manifest"].encode()))

    def close(self) -> None:
        """Remove the folder; a forked child leaves it. Idempotent."""
        unmount(self.folder)
        if os.getpid() == self._store_pid and self._lock is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    @property
    def is_there(self) -> bool:
        return self.folder.is_dir()

    def _write_state(self) -> None:
        state = {"uri": self.uri, "manifest": self._manifest.to_bytes().decode()}
        partial = self._home / f".{secrets.token_hex(4)}"
        partial.write_text(json.dumps(state))
        partial.replace(self._home / STATE)

    def _make_folders(self) -> None:
        manifest = self._manifest
        (self._home / _INCOMING).mkdir(FOLDER_MODE, exist_ok=True)
        self.folder.mkdir(FOLDER_MODE, exist_ok=True)
        for folder in sorted({name.rpartition("/")[0] for name in manifest.files} - {""}):
            (self.folder / folder).mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        for link, target in manifest.links.items():
            path = self.folder / link
            if (path.parent / target).is_dir() and not os.path.lexists(path):
                path.symlink_to(target)

    # What `system.files.below` asks.

    def files(self, folder: Path) -> list[Path]:
        inside = folder.relative_to(self.folder).as_posix()
        start = "" if inside == "." else f"{inside}/"
        return [
            self.folder / name for name in self._manifest.files
            if name.startswith(start) and "/" not in name[len(start) :]
        ]  # fmt: skip

    def has(self, path: Path) -> bool:
        return self._name(path) in self._manifest.files

    def bring(self, path: Path) -> None:
        name = self._name(path)
        if self._store_pid not in (0, os.getpid()):
            self._bring_elsewhere(name)
            return
        try:
            self._fetch(name)
        except StoreError as error:
            if error.reason not in (Reason.MISSING, Reason.CHANGED):
                raise CopyError(str(error)) from None
            self._bring_newer(name, error)

    def _bring_newer(self, name: str, first: StoreError) -> None:
        """The copy has changed since it was opened: there is another version, or none."""
        try:
            now = manifest_of(self._client())
            stored = now.files.get(name)
            if stored is None or stored == self._manifest.files[name]:
                raise CopyError(str(first))
            self._manifest = now
            self._write_state()
            self._make_folders()
            self._fetch(name)
        except StoreError as error:
            raise CopyError(f"{self.uri}: {_reason(error)}") from None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _client(self) -> ObjectStore:
        if self._store is None:
            self._store, self._store_pid = ObjectStore(parse_uri(self.uri)), os.getpid()
        return self._store

    def _fetch(self, name: str) -> None:
        """One process at a time: who waited for another finds the file. Raises StoreError, OSError."""
        stored, path = self._manifest.files[name], self.folder / name
        partial = self._home / _INCOMING / secrets.token_hex(8)
        lock = open_or_create(
            self._home / _INCOMING / f"{hashlib.sha256(name.encode()).hexdigest()}.lock",
            below=self._home,
        )
        try:
            with suppress(OSError):  # a file system without locks: fetched once more at worst
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(path):
                return
            self._make_room(stored.bytes, name)
            patiently(lambda: download(self._client(), stored, partial), PATIENCE_S)
            os.utime(partial, ns=(stored.modified_ns, stored.modified_ns))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            os.close(lock)

    def _make_room(self, wanted: int, name: str) -> None:
        """Delete shards that were fetched longest ago; whoever has one open reads on."""
        if not name.startswith(f"{ARCHIVE_DIR}/"):
            return
        there = []
        for path in (self.folder / ARCHIVE_DIR).glob(f"*/*{SHARD_SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                there.append((status.st_ctime_ns, status.st_size, path))
        held = sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if held + wanted <= MOST_BYTES:
                break
            path.unlink(missing_ok=True)
            held -= size

    def _bring_elsewhere(self, name: str) -> None:
        command = [sys.executable, "-P", "-m", "asys_bench.store.mirror", str(self._home), name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode and not os.path.lexists(self.folder / name):
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise CopyError(said[-1] if said else f"{self.uri}/{name} cannot be fetched")


def download(
    store: ObjectStore, stored: Stored, target: Path, alive: Callable[[], None] = lambda: None
) -> None:
    """The object, whole and as the manifest says; `alive` is called whenever something has come.

    Raises:
        StoreError: it is another, or the store refuses; part of it may be in `target`. OSError.
    """
    digest, size = hashlib.sha256(), 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        for piece in store.pieces(stored.object):
            size += len(piece)
            if size > stored.bytes:
                break
            digest.update(piece)
            file.write(piece)
            alive()
    if (size, digest.hexdigest()) != (stored.bytes, stored.sha256):
        raise StoreError(
            f"{store.location}/{stored.object}",
            Reason.CHANGED,
            f"{size} bytes, and its manifest says {stored.bytes}"
            if size != stored.bytes
            else "another SHA-256 than its manifest says",
        )


def manifest_of(store: ObjectStore) -> Manifest:
    """Raises StoreError, ValueError."""
    return read_manifest(patiently(lambda: store.get(MANIFEST, MAX_MANIFEST_BYTES), PATIENCE_S))


def _reason(error: Exception) -> str:
    if isinstance(error, StoreError) and error.reason is Reason.MISSING:
        return f"no {MANIFEST} there: it is no copy of a run (one that `storage.uri` or asys-run upload made)"
    return f"{MANIFEST} {error}" if isinstance(error, ManifestError) else str(error)


def _new_home() -> tuple[Path, int]:
    """A folder of this process and the descriptor that holds it; those that nobody holds go. Raises
    OSError."""
    cache = cache_folder()
    make_private_folder(cache)
    remove_unheld(cache.iterdir(), _LOCK, below=cache)
    home = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=cache))
    fd = open_or_create(home / _LOCK, below=home)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return home, fd


if __name__ == "__main__":
    try:
        _mirror = Mirror.of(Path(sys.argv[1]))
        _mirror.bring(_mirror.folder / sys.argv[2])
    except (OSError, ValueError) as _error:
        sys.exit(str(_error))
