"""Which output tokens a feature promotes and suppresses: its decoder row through final norm and unembedding.

Direct logit attribution: `W_U (g * d)` for a decoder row d, the final norm's gain g and the unembedding W_U,
without the norm's division by a row's size (which scales all tokens alike) and without what later layers make
of d. It is about hooks whose rows have the width of the residual stream. The two tensors are read from the
model's own safetensors files, and nothing else of them: no model is loaded, nothing is unpacked or fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from asys_bench.config.document import host_options
from asys_bench.contracts.host import HostError
from asys_bench.contracts.run_files import HOST_DIR, WEIGHTS_FILE
from asys_bench.hosts.model_folder import SINGLE, model_folder, weight_files
from asys_bench.system.files.below import EntryKind, is_file, read_json, scan_if_there

UNEMBEDDINGS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    *("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"),
    *("gpt_neox.embed_in.weight", "model.decoder.embed_tokens.weight"),
)
"""An unembedding that is tied to them is not written a second time."""
NORMS = (
    *("model.norm.weight", "transformer.ln_f.weight", "ln_f.weight"),
    *("gpt_neox.final_layer_norm.weight", "model.decoder.final_layer_norm.weight"),
)
SHOWN = 10


class NoLogitsError(ValueError):
    """The model's files give no unembedding for this hook; says why."""


@dataclass(frozen=True)
class Unembedding:
    """weight [V, D], gain [D] (ones where there is no final norm), and which weights these are."""

    weight_VD: torch.Tensor
    gain_D: torch.Tensor
    about: str

    def attribution(self, decoder_D: torch.Tensor) -> torch.Tensor:
        """float32[V] of a decoder row, [..., V] of several. Raises NoLogitsError: another width."""
        width = self.weight_VD.shape[1]
        if decoder_D.shape[-1] != width:
            raise NoLogitsError(
                f"the hook's rows have {decoder_D.shape[-1]} values, the residual stream has {width}"
            )
        return (self.gain_D * decoder_D).to(self.weight_VD.dtype) @ self.weight_VD.T


def read_unembedding(run_dir: Path, config: Mapping[str, Any]) -> Unembedding:
    """Of the model that a run's host observed, with the weights that the host kept last, if it kept any.

    Raises:
        NoLogitsError: the host is no Hugging Face model, or its files are not here.
    """
    folder, about = _kept(run_dir) or _named(config)
    files = weight_files(folder)
    if not files:
        raise NoLogitsError(f"{folder} has no safetensors files")
    try:
        weight = _first(files, UNEMBEDDINGS)
        weight = _first(files, EMBEDDINGS) if weight is None else weight
        gain = _first(files, NORMS)
    except (OSError, SafetensorError) as error:
        raise NoLogitsError(f"{folder} cannot be read: {error}") from error
    if weight is None or weight.ndim != 2:
        raise NoLogitsError(f"{folder}: its files hold no unembedding by a known name")
    width = weight.shape[1]
    if gain is None or gain.shape != (width,):
        gain, about = torch.ones(width), f"{about}, without a final norm"
    return Unembedding(weight.float(), gain.float(), about)


def promoted(
    logits_V: torch.Tensor, vocabulary: Mapping[int, str]
) -> dict[str, list[dict[str, Any]]]:
    """The tokens with the largest and the smallest attribution."""
    count = min(SHOWN, len(logits_V))

    def told(values: torch.Tensor, ids: torch.Tensor) -> list[dict[str, Any]]:
        return [
            {"token": vocabulary.get(int(i), f"<{int(i)}>"), "value": float(f"{float(v):.3g}")}
            for v, i in zip(values, ids, strict=True)
        ]

    return {
        "promoted": told(*logits_V.topk(count)),
        "suppressed": told(*logits_V.topk(count, largest=False)),
    }


def _kept(run_dir: Path) -> tuple[Path, str] | None:
    """The newest weights that the host kept (`host.keep_weights`)."""
    newest: tuple[int, Path] | None = None
    try:
        entries = scan_if_there(run_dir / HOST_DIR, below=run_dir)
        for path, kind in entries:
            files = (path / WEIGHTS_FILE, path / SINGLE)
            if kind is EntryKind.FOLDER and all(is_file(f, below=run_dir) for f in files):
                step = int(read_json(path / WEIGHTS_FILE, below=run_dir)["host_step"])
                newest = max(newest or (-1, path), (step, path))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return None if newest is None else (newest[1], f"weights kept at host step {newest[0]:,}")


def _named(config: Mapping[str, Any]) -> tuple[Path, str]:
    kind, told = host_options(config)
    if kind != "transformers" or not told:
        raise NoLogitsError(
            f"the host is {kind or 'not known'}; output tokens are shown of a host "
            "`transformers`, or of one that keeps its weights (host.keep_weights)"
        )
    model, packed = str(told.get("model", "")), told.get("gguf_file")
    try:
        folder = model_folder(model, str(packed) if packed else None)
    except (HostError, ImportError) as error:
        raise NoLogitsError(str(error)) from error
    if folder is None:
        raise NoLogitsError(f"the files of {model} are not on this machine")
    trained = " it began with" if told.get("task") == "train" else ""
    return folder, f"{Path(model).name}: the weights{trained}"


def _first(files: Sequence[Path], names: Sequence[str]) -> torch.Tensor | None:
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            there = set(tensors.keys())
            for name in names:
                if name in there:
                    found: torch.Tensor = tensors.get_tensor(name)
                    return found
    return None
