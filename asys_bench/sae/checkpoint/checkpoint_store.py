"""Versioned checkpoint folders of one hook, of which a reader finds a complete one at any moment.

    <folder>/step_000001234/      complete, never changed after it got this name
    <folder>/step_000001234.1/    written again at the same step
    <folder>/latest -> step_...   relative symlink, replaced atomically
    <folder>/.tmp-XXXXXXXX/       being written, or removed; a leftover of a killed writer is removed

Order of a write: the files and their manifest get a temporary folder, are fsynced with it, renamed,
the parent fsynced, `latest` swung, and only then older ones removed. One writer per folder. A kill at any
point leaves the older ones; without fsync a power cut may not.

What else lies there is input (`system.files.below`): no link is followed, neither to read nor to write.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.manifest import seal
from asys_bench.system.files import sync_folder, sync_tree
from asys_bench.system.files.below import EntryKind, make_folders, remove, scan, scan_if_there
from asys_bench.system.files.private import FOLDER_MODE

LATEST = "latest"
_TEMPORARY = ".tmp-"
_NAME = re.compile(r"step_(\d{9,})(?:\.(\d+))?")


class CheckpointStore:
    """The checkpoints under `folder`; other files there are left alone.

    sync: what `write` returned survives a power cut. below: a folder above, from which only real folders
    may lead to `folder`; without it `folder` itself may be reached by links.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        *,
        sync: bool = True,
        below: Path | None = None,
    ) -> None:
        self.folder, self._keep_last, self._sync = Path(folder), keep_last, sync
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
            if entry.path.name.startswith(_TEMPORARY):
                remove(entry.path, below=self._below)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        try:
            temporary.chmod(FOLDER_MODE)
            fill(temporary)
            seal(temporary)
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
        going = old.with_name(f"{_TEMPORARY}{old.name}")
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
        return stale + upto[max(1, self._keep_last) :]

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
            if _NAME.fullmatch(entry.path.name):
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
        entries = scan_if_there(self.folder, below=self._below)
        matches = ((_NAME.fullmatch(entry.path.name), entry) for entry in entries)
        ranked = [
            (int(match[1]), int(match[2] or 0), entry.path)
            for match, entry in matches
            if match is not None and entry.kind is EntryKind.FOLDER
        ]
        return [path for _, _, path in sorted(ranked, reverse=True)]

    def _free_name(self, step: int) -> Path:
        target, again = self.folder / f"step_{step:09d}", 0
        while os.path.lexists(target):
            again += 1
            target = self.folder / f"step_{step:09d}.{again}"
        return target

    def point_latest_at(self, target: Path) -> None:
        """Swing `latest` to the checkpoint `target`, atomically. Raises OSError."""
        link, latest = self.folder / f"{_TEMPORARY}{LATEST}", self.folder / LATEST
        link.symlink_to(target.name)
        if not latest.is_symlink():  # a folder, in a copy that followed links
            remove(latest, below=self.folder)
        os.replace(link, latest)
        if self._sync:
            sync_folder(self.folder)
