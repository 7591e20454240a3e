"""Versioned checkpoint folders of one hook, of which a reader finds a complete one at any moment.

    <folder>/step_000001234/      complete, never changed after it got this name
    <folder>/step_000001234.1/    written again at the same step
    <folder>/latest -> step_...   relative symlink, replaced atomically
    <folder>/.tmp-XXXXXXXX/       being written; a leftover of a killed writer is removed

Order of a write: the files and their manifest get a temporary folder, are fsynced with it, renamed,
the parent fsynced, `latest` swung, and only then older ones removed. One writer per folder. A kill at any
point leaves the older ones; without fsync a power cut may not.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from asys_bench.sae.checkpoint_files import CheckpointError
from asys_bench.sae.manifest import seal
from asys_bench.storage import make_private_folder, sync_folder, sync_tree
from asys_bench.storage.below import EntryKind, scan_if_there
from asys_bench.storage.private import FOLDER_MODE

LATEST = "latest"
_TEMPORARY = ".tmp-"
_NAME = re.compile(r"step_(\d{9,})(?:\.(\d+))?")


class CheckpointStore:
    """The checkpoints under `folder`; other files there are left alone.

    sync: what `write` returned survives a power cut.
    """

    def __init__(self, folder: Path, keep_last: int = 2, *, sync: bool = True) -> None:
        self.folder, self._keep_last, self._sync = Path(folder), keep_last, sync

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
        make_private_folder(self.folder)
        for leftover in self.folder.glob(_TEMPORARY + "*"):
            _remove(leftover)
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
        for old in self.checkpoints()[self._keep_last :]:
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        return target

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

    def checkpoints(self) -> list[Path]:
        """Every complete checkpoint, newest first."""
        try:
            entries = scan_if_there(self.folder)
        except OSError:
            return []
        matches = ((_NAME.fullmatch(entry.path.name), entry) for entry in entries)
        ranked = [
            (int(match[1]), int(match[2] or 0), entry.path)
            for match, entry in matches
            if match is not None and entry.kind is EntryKind.FOLDER
        ]
        return [path for _, _, path in sorted(ranked, reverse=True)]

    def _free_name(self, step: int) -> Path:
        target, again = self.folder / f"step_{step:09d}", 0
        while target.exists():
            again += 1
            target = self.folder / f"step_{step:09d}.{again}"
        return target

    def point_latest_at(self, target: Path) -> None:
        """Swing `latest` to the checkpoint `target`, atomically."""
        link = self.folder / f"{_TEMPORARY}{LATEST}"
        link.symlink_to(target.name)
        os.replace(link, self.folder / LATEST)
        if self._sync:
            sync_folder(self.folder)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
