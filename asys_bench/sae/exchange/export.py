"""Exporting: which SAEs a path means, and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import LATEST, SAE_DIR
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore
from asys_bench.sae.checkpoint.native_format import CFG_FILE
from asys_bench.sae.exchange.formats import Format
from asys_bench.sae.exchange.saelens import read_saelens
from asys_bench.sae.exchange.weights import ExchangeError, SAEWeights
from asys_bench.system.files import sync_folder, sync_tree
from asys_bench.system.files.below import EntryKind, is_file, is_folder, scan_if_there

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class ExportedSAE:
    """One SAE that was written."""

    hook: str
    architecture: str
    """As it was trained."""
    source: Path
    folder: Path
    outlier_norm: float | None = None
    """The SAE leaves rows of a larger norm alone; what opens the folder has to be told."""


def shelf(path: Path) -> Path:
    """Where the SAEs of a run, or of a folder of SAEs, lie."""
    return path / SAE_DIR if is_folder(path / SAE_DIR) else path


def find_saes(path: Path | str) -> list[Path]:
    """The SAE folders (with a cfg.json) that `path` means.

    path: an SAE folder, a checkpoint store (its newest complete one is taken), a folder of stores
        (one per hook), or a run, whose `sae/` is such a folder.

    Raises:
        ExchangeError: there is none.
    """
    path = Path(path)
    if is_file(path / CFG_FILE):
        return [path]
    newest = CheckpointStore(path).latest()
    if newest is not None:
        return [newest]
    parent = shelf(path)
    found = []
    try:
        entries = scan_if_there(parent)
    except OSError as error:
        raise ExchangeError(
            str(parent), f"cannot be listed: {error}", "name one checkpoint"
        ) from None
    for folder, kind in entries:
        if folder.name.startswith(".") or kind is not EntryKind.FOLDER:
            continue
        sae = folder if is_file(folder / CFG_FILE) else CheckpointStore(folder).latest()
        if sae is not None:
            found.append(sae)
    if not found:
        raise ExchangeError(
            str(path),
            "no SAE is there: neither cfg.json, nor checkpoints, nor a folder of them",
            "name a run, its `sae` folder, or one checkpoint",
        )
    return found


def stored_name(source: Path, weights: SAEWeights) -> str:
    """How the SAE in `source` is called: as the folder of its checkpoint store (a run's is named after the
    hook), else after its hook, else as its folder."""
    stored = source.name.startswith("step_") or source.name == LATEST
    return source.parent.name if stored else file_slug(weights.hook_name or source.name)


def export(source: Path, format_: Format, out: Path, *, overwrite: bool = False) -> ExportedSAE:
    """Write the SAE in `source` to `out/<name>/`, which appears complete or not at all.

    name: `stored_name`.

    Raises:
        CheckpointError: the SAE cannot be read, or the disk refuses.
        ExchangeError: the format cannot express it, or the target exists and `overwrite` is False.
    """
    weights = read_saelens(source)
    name = stored_name(source, weights)
    target = out / name
    if target.exists() and not overwrite:
        raise ExchangeError(str(target), "exists", "choose another --out, or add --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=out))
        try:
            temporary.chmod(0o755)
            format_.write(weights, temporary)
            sync_tree(temporary)
            _put(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(out)
    except OSError as error:
        raise CheckpointError(target, f"not written: {error}") from error
    return ExportedSAE(
        weights.hook_name or name, weights.trained_as, source, target, weights.outlier_norm
    )


def _put(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an old target is moved away first and removed after."""
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
    target.rename(old / "old")
    try:
        temporary.rename(target)
    except OSError:
        (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
