"""Whether a model's weights are those that a run observed; by their folder, else by their digest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asys_bench.config.document import host_options
from asys_bench.contracts.host import HostError
from asys_bench.contracts.run_files import HOST_DIR, WEIGHTS_FILE
from asys_bench.hosts.model_folder import digest_told, model_folder, model_name, weights_digest
from asys_bench.rundir.evaluation import kept_weights
from asys_bench.system.files.below import read_json


@dataclass(frozen=True)
class Known:
    """about: which weights these are. warning: why they may not be the run's; "": they are."""

    about: str
    warning: str


def compare(run_dir: Path, config: Mapping[str, Any], model: str, gguf_file: str | None) -> Known:
    """Of the model that was loaded from `model`; files are read whole. config: the run's."""
    folder = _folder(model, gguf_file)
    digest = weights_digest(folder) if folder is not None else None
    about = model_name(model, gguf_file) + digest_told(digest)
    kept = kept_weights(run_dir)
    if kept is not None and kept.folder is not None:
        step = _kept_step(run_dir, folder)
        if step is not None:
            about = f"weights that the run kept at host step {step:,}, {about}"
        newest = f"the newest that the run kept (host step {int(kept.about.get('host_step', 0)):,})"
        return Known(about, _differ(folder, digest, kept.folder.resolve(), newest))
    kind, told = host_options(config)
    if kind != "transformers" or not told:
        return Known(about, "the run does not say which weights it observed: these may be others")
    if told.get("task") == "train":
        why = "the run trained its model and kept no weights: these are not the ones that its SAEs saw last"
        return Known(about, why)
    packed = str(told["gguf_file"]) if told.get("gguf_file") else None
    named = str(told.get("model", ""))
    if (named, packed) == (model, gguf_file):
        return Known(about, "")
    observed = _folder(named, packed)
    if observed is None:
        why = f"the run observed {model_name(named, packed)}, which is not here to be compared"
        return Known(about, why)
    return Known(
        about,
        _differ(folder, digest, observed, f"{model_name(named, packed)}, which the run observed"),
    )


def _differ(folder: Path | None, digest: str | None, observed: Path, called: str) -> str:
    if folder == observed:
        return ""
    other = weights_digest(observed)
    if digest is not None and digest == other:
        return ""
    return f"these are not the weights of {called}{digest_told(other)}: features may fire otherwise"


def _folder(model: str, gguf_file: str | None) -> Path | None:
    try:
        return model_folder(model, gguf_file)
    except (HostError, ImportError, OSError, ValueError):
        return None


def _kept_step(run_dir: Path, folder: Path | None) -> int | None:
    """The host step of weights that lie in the run's folder."""
    if folder is None or folder.parent != (run_dir / HOST_DIR).resolve():
        return None
    with suppress(OSError, ValueError, LookupError, TypeError):
        return int(read_json(folder / WEIGHTS_FILE)["host_step"])
    return None
