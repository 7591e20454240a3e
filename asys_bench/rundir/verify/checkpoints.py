"""SAE checkpoints: checksums, tensors and shapes, optimizer and RNG state, the SAELens folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from asys_bench.contracts.run_files import LATEST
from asys_bench.rundir.verify.finding import Finding, State
from asys_bench.sae import CheckpointError, CheckpointStore, SAETrainer
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointVersionError
from asys_bench.sae.checkpoint.checkpoint_store import check_seal
from asys_bench.sae.checkpoint.native_format import load_sae
from asys_bench.sae.checkpoint.trainer_state import read_state
from asys_bench.system.files.below import EntryKind, remove, rename, scan_if_there

ASIDE = ".damaged"
"""Suffix of a checkpoint that a repair set aside: no reader takes it for one."""


class CheckpointCheck:
    """The checkpoints of one run, or of one training from its archive, in the folder `name`."""

    def __init__(self, run_dir: Path, name: str, *, live: bool, repair: bool) -> None:
        self._run_dir, self._root = run_dir, run_dir / name
        self._live, self._repair = live, repair

    def findings(self) -> Iterator[Finding]:
        """Every checkpoint, oldest first, with what else lies beside them.

        Raises:
            OSError: the folder is a link, or holds too much.
        """
        for folder, kind in scan_if_there(self._root, below=self._run_dir):
            if kind is EntryKind.FOLDER:
                yield from self._of_hook(folder)
            else:
                yield Finding(self._name(folder), "other", State.FOREIGN, "no folder of a hook")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._run_dir).as_posix()

    def _of_hook(self, folder: Path) -> Iterator[Finding]:
        store = CheckpointStore(folder)
        good: list[Path] = []
        complete = store.checkpoints()
        for path in reversed(complete):
            found = self._checkpoint(path)
            if found is None:
                continue
            if found.state is State.OK:
                good.append(path)
            elif self._repair and not self._live:
                found = self._set_aside(path, found)
            yield found
        for path, _ in scan_if_there(folder, below=self._run_dir):
            if path in complete:
                continue
            if path.name == LATEST:
                yield from self._latest(store, path, good)
            elif path.name.startswith(".tmp-"):
                yield self._unfinished(path)
            elif path.name.endswith(ASIDE):
                yield Finding(
                    self._name(path), "other", State.OK, "a damaged checkpoint, set aside"
                )
            elif os.path.lexists(path):
                yield Finding(self._name(path), "other", State.FOREIGN, "no checkpoint")

    def _checkpoint(self, path: Path) -> Finding | None:
        """None when the trainer removed it meanwhile, as it does with old ones."""
        name = self._name(path)
        resumable = "optimizer and RNG state"
        try:
            sealed = check_seal(path)
            sae, _ = load_sae(path)
            try:
                SAETrainer(read_state(path).config).restore(path)
            except CheckpointVersionError as error:
                resumable = f"no training goes on from it here ({error.reason})"
        except CheckpointError as error:
            if not path.exists():
                return None
            detail = f"{error.path.name}: {error.reason.splitlines()[0]}"
            return Finding(name, "checkpoint", State.DAMAGED, detail)
        detail = f"{sae.name} {sae.d_in} -> {sae.d_sae}, {resumable}"
        if not sealed:
            detail += "; no manifest (an older version wrote it), so weights are not checksummed"
        return Finding(name, "checkpoint", State.OK, detail)

    def _set_aside(self, path: Path, found: Finding) -> Finding:
        aside, number = path.with_name(path.name + ASIDE), 0
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.{number}{ASIDE}")
        try:
            rename(path, aside.name, below=self._run_dir)
        except OSError as error:
            return _repaired(found, f"not repaired: {error}")
        return _repaired(found, f"set aside as {aside.name}")

    def _latest(self, store: CheckpointStore, link: Path, good: list[Path]) -> Iterator[Finding]:
        try:
            if link.parent / os.readlink(link) in store.checkpoints():
                return
        except FileNotFoundError:
            if self._live:
                return  # it was swung between two readings
        except OSError:
            pass  # no link at all
        found = Finding(self._name(link), "checkpoint", State.DAMAGED, "points at no checkpoint")
        if self._repair and not self._live:
            if good:
                try:
                    store.point_latest_at(good[-1])
                except OSError as error:
                    found = _repaired(found, f"not repaired: {error}")
                else:
                    found = _repaired(found, f"points at {good[-1].name} now")
            elif link.is_symlink():
                link.unlink()
                found = _repaired(found, "removed: there is no whole checkpoint")
        yield found

    def _unfinished(self, path: Path) -> Finding:
        name = self._name(path)
        if self._live:
            return Finding(name, "checkpoint", State.BEING_WRITTEN)
        done = None
        if self._repair:
            try:
                remove(path, below=self._run_dir)
                done = "removed"
            except OSError as error:
                done = f"not removed: {error}"
        detail = "an unfinished checkpoint of a killed trainer"
        return Finding(name, "checkpoint", State.LEFTOVER, detail, repair=done)


def _repaired(found: Finding, what: str) -> Finding:
    return Finding(**{**found.to_plain(), "repair": what})
