"""Versioned checkpoint folders of one hook, of which a reader finds a complete one at any moment.

    <folder>/step_000001234/      complete, never changed after it got this name
    <folder>/step_000001234.1/    written again at the same step
    <folder>/latest -> step_...   relative symlink, replaced atomically
    <folder>/.tmp-XXXXXXXX/       being written, or removed; a leftover of a killed writer is removed

Order of a write: the files and their manifest get a temporary folder, are fsynced with it, renamed,
the parent fsynced, `latest` swung, and only then older ones removed. One writer per folder. A kill at any
point leaves the older ones; without fsync a power cut may not. With `keep_every` a manifest says which
checkpoint it is of, so that every N-th is kept, whichever process wrote those before.

What else lies there is input (`system.files.below`): no link is followed, neither to read nor to write.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import LATEST, SAE_DIR, checkpoint_order
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_json, write_json
from asys_bench.system.files import file_crc32c, sync_folder, sync_tree
from asys_bench.system.files.atomic import FOLDER_MODE
from asys_bench.system.files.below import (
    MAX_MODEL_BYTES,
    EntryKind,
    is_file,
    make_folders,
    real_folder,
    remove,
    scan,
    scan_if_there,
)
from asys_bench.system.files.sources import bring

# `manifest.json` in a checkpoint: the size and CRC-32C of its files, so that bit rot is found.
#
# A safetensors file has no checksum of its own: a flipped weight loads as a slightly wrong SAE. This guards
# against accidents, not against people: who can change a file can change its checksum.

MANIFEST_FILE = "manifest.json"
FORMAT = "asys.checkpoint/1"


class SealedFile(BaseModel, extra="forbid", frozen=True):
    """One file as it was written."""

    bytes: int = Field(ge=0)
    crc32c: int = Field(ge=0, lt=1 << 32)


class Manifest(BaseModel, extra="forbid", frozen=True):
    """The file as a model: name -> what it held."""

    format: str = Field(FORMAT, pattern=f"^{FORMAT}$")
    files: dict[str, SealedFile]
    number: int | None = Field(None, ge=1, lt=1 << 53)
    """Which checkpoint of its folder it is, from 1; None: it was not counted."""


def seal(folder: Path, number: int | None = None) -> None:
    """Write the manifest of the files in `folder`.

    Raises:
        OSError: the disk refused.
    """
    files = {
        path.name: SealedFile(bytes=path.stat().st_size, crc32c=file_crc32c(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = Manifest(files=files, number=number)
    write_json(folder / MANIFEST_FILE, manifest.model_dump(exclude_none=True))


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate(read_json(path, MAX_MODEL_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(path, f"{first['loc']}: {first['msg']}") from None


def number_of(folder: Path) -> int | None:
    """Which checkpoint it is, from 1; None where its manifest does not say."""
    try:
        return _read_manifest(folder / MANIFEST_FILE).number
    except (CheckpointError, OSError):
        return None


def check_seal(folder: Path) -> bool:
    """Whether there is a manifest. Then every file that it names is as it was written.

    Raises:
        CheckpointError: a file is missing or differs, or the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        bring(folder)
    except OSError as error:
        raise CheckpointError(folder, f"cannot be read: {error}") from error
    if not os.path.lexists(path):
        return False
    manifest = _read_manifest(path)
    for name, sealed in manifest.files.items():
        file = folder / name
        if "/" in name or not is_file(file):
            raise CheckpointError(file, "is missing; the manifest names it")
        try:
            size = file.stat().st_size
            if size != sealed.bytes:
                raise CheckpointError(file, f"has {size} bytes, was written with {sealed.bytes}")
            checksum = file_crc32c(file)
        except OSError as error:
            raise CheckpointError(file, f"cannot be read: {error}") from error
        if checksum != sealed.crc32c:
            raise CheckpointError(file, "its bytes do not match the crc32c of the manifest")
    return True


def latest_checkpoint(run_dir: Path, label: str) -> Path | None:
    """The newest checkpoint of the SAE `label` (a hook, `<hook>#<variant>`, `<input>-><output>`) of a run;
    None where it has none.

    Raises:
        OSError: it cannot be read, or a link is on the way.
    """
    try:
        return CheckpointStore(real_folder(run_dir, SAE_DIR, file_slug(label))).latest()
    except FileNotFoundError:
        return None


TEMPORARY = ".tmp-"


class CheckpointStore:
    """The checkpoints under `folder`; other files there are left alone.

    keep_last, keep_every: which ones `write` leaves: the last so many, and every N-th of all.
    sync: what `write` returned survives a power cut. below: a folder above, from which only real folders
    may lead to `folder`; without it `folder` itself may be reached by links.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        *,
        keep_every: int | None = None,
        sync: bool = True,
        below: Path | None = None,
    ) -> None:
        self.folder, self._sync = Path(folder), sync
        self._keep_last, self._keep_every = keep_last, keep_every
        self._below = self.folder if below is None else below

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Add a checkpoint whose files `fill(folder)` writes; returns its folder.

        When `fill` raises, nothing has changed.

        Raises:
            CheckpointError: the disk refused (reason in the message), or `fill` raised one.
        """
        try:
            return self._write(step, fill)
        except OSError as error:
            raise CheckpointError(self.folder, f"not written: {error}") from error

    def _write(self, step: int, fill: Callable[[Path], None]) -> Path:
        make_folders(self.folder, below=self._below)
        for entry in scan(self.folder, below=self._below):
            if entry.path.name.startswith(TEMPORARY):
                remove(entry.path, below=self._below)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
        try:
            temporary.chmod(FOLDER_MODE)
            fill(temporary)
            seal(temporary, self._next_number() if self._keep_every is not None else None)
            if self._sync:
                sync_tree(temporary)
            target = self._free_name(step)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self._sync:
            sync_folder(self.folder)
        self.point_latest_at(target)
        for old in self._replaced_by(target):
            self._remove(old)
        return target

    def _remove(self, old: Path) -> None:
        """Under another name first: a writer that is killed meanwhile leaves no half of a checkpoint."""
        going = old.with_name(f"{TEMPORARY}{old.name}")
        with suppress(OSError):
            old.rename(going)
            shutil.rmtree(going, ignore_errors=True)

    def _replaced_by(self, target: Path) -> list[Path]:
        """What need not be kept beside `target`. Checkpoints of later steps are those that no training
        could go on from: they stay until as many are there as are to be kept."""
        found = self.checkpoints()
        if target not in found:
            return []
        later, upto = found[: found.index(target)], found[found.index(target) :]
        stale = later if len(upto) >= self._keep_last else []
        return stale + [old for old in upto[max(1, self._keep_last) :] if not self._is_kept(old)]

    def _next_number(self) -> int:
        found = self.checkpoints()
        newest = number_of(self.latest() or found[0]) if found else None
        return 1 + (len(found) if newest is None else newest)

    def _is_kept(self, checkpoint: Path) -> bool:
        if self._keep_every is None:
            return False
        number = number_of(checkpoint)
        return number is not None and number % self._keep_every == 0

    def holds(self, step: int) -> bool:
        """Whether there is a complete one of this step."""
        return any(found == step for found, _, _ in self._ranked())

    def remove_after(self, step: int) -> None:
        """Remove those of later steps: they are made again. Raises OSError."""
        for found, _, path in self._ranked():
            if found > step:
                self._remove(path)
        left = self.checkpoints()
        if left:
            self.point_latest_at(left[0])

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        found = self.checkpoints()
        try:
            named = self.folder / (self.folder / LATEST).readlink().name
        except OSError:
            named = None
        if named in found:
            return named
        return found[0] if found else None

    def candidates(self) -> list[Path]:
        """Every complete checkpoint, the one to go on from first.

        Raises:
            CheckpointError: the folder cannot be read, or is none; or only names of checkpoints are there.
        """
        try:
            found = self._scan()
            entries = [] if found else scan_if_there(self.folder, below=self._below)
        except OSError as error:
            raise CheckpointError(self.folder, error.strerror or str(error)) from error
        for entry in reversed(entries):
            if checkpoint_order(entry.path.name) is not None:
                raise CheckpointError(entry.path, f"is a {entry.kind}, not a folder")
        latest = self.latest()
        return sorted(found, key=lambda path: path != latest)

    def checkpoints(self) -> list[Path]:
        """Every complete checkpoint, newest first; none where the folder cannot be read."""
        try:
            return self._scan()
        except OSError:
            return []

    def _scan(self) -> list[Path]:
        return [path for _, _, path in self._ranked()]

    def _ranked(self) -> list[tuple[int, int, Path]]:
        """(step, how often it was written again, folder), newest first."""
        ranked = [
            (*order, path) for path, kind in scan_if_there(self.folder, below=self._below)
            if kind is EntryKind.FOLDER and (order := checkpoint_order(path.name)) is not None
        ]  # fmt: skip
        return sorted(ranked, reverse=True)

    def _free_name(self, step: int) -> Path:
        target, again = self.folder / f"step_{step:09d}", 0
        while os.path.lexists(target):
            again += 1
            target = self.folder / f"step_{step:09d}.{again}"
        return target

    def point_latest_at(self, target: Path) -> None:
        """Swing `latest` to the checkpoint `target`, atomically. Raises OSError."""
        link, latest = self.folder / f"{TEMPORARY}{LATEST}", self.folder / LATEST
        link.symlink_to(target.name)
        if not latest.is_symlink():  # a folder, in a copy that followed links
            remove(latest, below=self.folder)
        os.replace(link, latest)
        if self._sync:
            sync_folder(self.folder)
