"""dictionary_learning: `trainer_0/{config.json, ae.pt}`, as `load_dictionary` reads it.

    standard, decoder rows of unit norm   AutoEncoder
    standard otherwise                    JumpReluAutoEncoder with thresholds of 0, which is ReLU:
                                          AutoEncoder's loader would change the activations' units
    topk                                  AutoEncoderTopK
    jumprelu, one threshold, k known      BatchTopKSAE (MatryoshkaBatchTopKSAE where the group
                                          widths are known): what those are once trained
    jumprelu otherwise                    JumpReluAutoEncoder
    gated                                 GatedAutoEncoder

Reading takes the same classes (a threshold below 0 is not set: ReLU decides alone). Read off
dictionary-learning 0.1.0. JumpReluAutoEncoder does not centre its input: b_enc - b_dec W_enc
stands for that.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_json, write_json
from asys_bench.sae.checkpoint.native_format import OUTLIER_NORM
from asys_bench.sae.exchange.weights import ExchangeError, SAEWeights
from asys_bench.system.files.below import open_file

FOLDER = "trainer_0"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "ae.pt"
StateDict = dict[str, torch.Tensor]


def write_dictionary_learning(weights: SAEWeights, folder: Path) -> None:
    """Write `trainer_0/` into the existing `folder`.

    Raises:
        ExchangeError: the package has no such architecture.
    """
    if weights.transcodes:
        raise ExchangeError(
            f"{weights.architecture} of {weights.hook_name or folder.name!r}",
            "dictionary_learning has no transcoders",
            "export it as saelens or sparsify",
        )
    dict_class, state = _state_of(weights)
    target = folder / FOLDER
    target.mkdir()
    # Their reader is torch.load, which takes plain tensors without running a pickle's code.
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, target / WEIGHTS_FILE)
    write_json(target / CONFIG_FILE, _config(weights, dict_class))


def _state_of(weights: SAEWeights) -> tuple[str, StateDict]:
    """(class name, state dict) of the dictionary that computes the same."""
    source = weights.tensors
    linear = {
        "encoder.weight": source["W_enc"].t(),
        "decoder.weight": source["W_dec"].t(),
    }
    if weights.architecture == "gated":
        own = ("decoder_bias", "b_dec"), ("gate_bias", "b_gate"), ("mag_bias", "b_mag")
        renamed = {theirs: source[ours] for theirs, ours in own}
        return "GatedAutoEncoder", {**linear, **renamed, "r_mag": source["r_mag"]}
    if weights.architecture == "standard" and _has_unit_norms(weights):
        return "AutoEncoder", {
            **linear,
            "encoder.bias": source["b_enc"],
            "bias": source["b_dec"],
        }
    if weights.architecture == "topk":
        return "AutoEncoderTopK", {**linear, **_biases(source), **_choice(weights, -1.0)}
    threshold = weights.threshold
    if threshold is None or weights.k is None:
        shift_F = source["b_dec"].double() @ source["W_enc"].double()
        return "JumpReluAutoEncoder", {
            "W_enc": source["W_enc"],
            "b_enc": (source["b_enc"].double() - shift_F).float(),
            "W_dec": source["W_dec"],
            "b_dec": source["b_dec"],
            "threshold": source.get("threshold", torch.zeros(weights.d_sae)),
        }
    if weights.widths:
        edges = torch.tensor([0, *weights.widths])
        return "MatryoshkaBatchTopKSAE", {
            **{name: source[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")},
            **_choice(weights, threshold),
            "group_sizes": edges.diff(),
        }
    return "BatchTopKSAE", {**linear, **_biases(source), **_choice(weights, threshold)}


def _has_unit_norms(weights: SAEWeights) -> bool:
    norm_F = weights.decoder_norm_F
    return torch.allclose(norm_F, torch.ones_like(norm_F))


def _biases(source: Any) -> StateDict:
    return {"encoder.bias": source["b_enc"], "b_dec": source["b_dec"]}


def _choice(weights: SAEWeights, threshold: float) -> StateDict:
    """k (int32) and threshold (float32; negative: not set) as scalars."""
    return {
        "k": torch.tensor(weights.k, dtype=torch.int),
        "threshold": torch.tensor(threshold, dtype=torch.float32),
    }


def _config(weights: SAEWeights, dict_class: str) -> dict[str, Any]:
    metadata, hook = weights.metadata, weights.hook_name
    layer = re.search(r"(?:^|\.)(\d+)(?:\.|$)", hook)
    trainer: dict[str, Any] = {
        "trainer_class": "asys_i.SAETrainer",
        "dict_class": dict_class,
        "activation_dim": weights.d_in,
        "dict_size": weights.d_sae,
        "layer": int(layer[1]) if layer else 0,
        "lm_name": str(metadata.get("model_name") or ""),
        "submodule_name": hook or None,
        "steps": metadata.get("training_steps"),
        "wandb_name": dict_class,
        "device": "cpu",
    }
    if dict_class not in ("AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder"):
        trainer["k"] = weights.k
    if weights.outlier_norm is not None:
        trainer[OUTLIER_NORM] = weights.outlier_norm
    if weights.widths:
        trainer["group_sizes"] = torch.tensor([0, *weights.widths]).diff().tolist()
    return {
        "trainer": trainer,
        "buffer": {
            "d_submodule": weights.d_in,
            "io": "in" if hook.endswith(":input") else "out",
            "ctx_len": metadata.get("context_size") or 1,
        },
    }


def read_dictionary_learning(folder: Path) -> SAEWeights:
    """The dictionary in `folder` or its `trainer_0/`.

    Raises:
        CheckpointError: a file is missing, damaged or inconsistent.
        ExchangeError: its class is none of those above.
    """
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    trainer = read_json(folder / CONFIG_FILE).get("trainer")
    if not isinstance(trainer, dict):
        raise CheckpointError(folder / CONFIG_FILE, "field 'trainer' is missing")
    path = folder / WEIGHTS_FILE
    dict_class = str(trainer.get("dict_class"))
    reader = _READERS.get(dict_class)
    if reader is None:
        raise ExchangeError(
            str(folder), f"dict_class {dict_class!r}", f"supported: {', '.join(_READERS)}"
        )
    metadata = {
        "hook_name": trainer.get("submodule_name") or "",
        "model_name": trainer.get("lm_name") or "",
        **({OUTLIER_NORM: trainer[OUTLIER_NORM]} if OUTLIER_NORM in trainer else {}),
    }
    try:
        weights = reader(_tensors_of(path), trainer, metadata)
    except KeyError as error:
        raise CheckpointError(path, f"tensor {error} of a {dict_class} is missing") from None
    problem = weights.problem()
    if problem is not None:
        raise CheckpointError(path, problem)
    return weights


def _tensors_of(path: Path) -> StateDict:
    """Its tensors as float32; weights_only admits plain tensors and runs no pickle's code."""
    try:
        _check_size(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor.detach().float() for name, tensor in dict(found).items()}
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, AttributeError,
            TypeError, zipfile.BadZipFile, MemoryError) as error:  # fmt: skip
        raise CheckpointError(path, f"cannot be read: {error}") from error


def _check_size(path: Path) -> None:
    """Raises OSError or ValueError: it is no regular file, or a ZIP file that unpacks to far more."""
    with os.fdopen(open_file(path), "rb") as file:
        if not zipfile.is_zipfile(file):
            return
        packed = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * packed:  # torch.save does not compress
        raise ValueError(f"{packed} bytes that unpack to {unpacked}")


def _linear(found: StateDict, bias: str) -> StateDict:
    return {
        "W_enc": found["encoder.weight"].t().contiguous(),
        "W_dec": found["decoder.weight"].t().contiguous(),
        "b_dec": found[bias],
    }


def _read_standard(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    tensors = {**_linear(found, "bias"), "b_enc": found["encoder.bias"]}
    return SAEWeights("standard", tensors, metadata=metadata)


def _read_gated(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    own = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    biases = {ours: found[theirs] for ours, theirs in own.items()}
    return SAEWeights("gated", {**_linear(found, "decoder_bias"), **biases}, metadata=metadata)


def _read_topk(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    tensors = {**_linear(found, "b_dec"), "b_enc": found["encoder.bias"]}
    return SAEWeights("topk", tensors, _k_of(found, trainer), metadata=metadata)


def _read_batchtopk(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    tensors = {**_linear(found, "b_dec"), "b_enc": found["encoder.bias"]}
    metadata = {"training_architecture": "batchtopk", **metadata}
    return _one_threshold(tensors, found, (), trainer, metadata)


def _read_matryoshka(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    tensors = {name: found[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    widths = tuple(int(width) for width in found["group_sizes"].cumsum(0).tolist())
    metadata = {"training_architecture": "matryoshka_batchtopk", **metadata}
    return _one_threshold(tensors, found, widths, trainer, metadata)


def _one_threshold(
    tensors: StateDict, found: StateDict, widths: tuple[int, ...], trainer: Any, metadata: Any
) -> SAEWeights:
    threshold = max(0.0, float(found["threshold"]))
    tensors["threshold"] = torch.full_like(tensors["b_enc"], threshold)
    return SAEWeights("jumprelu", tensors, _k_of(found, trainer), widths, metadata)


def _read_jumprelu(found: StateDict, trainer: Any, metadata: Any) -> SAEWeights:
    tensors = {name: found[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    shift_F = tensors["b_dec"].double() @ tensors["W_enc"].double()
    tensors["b_enc"] = (tensors["b_enc"].double() + shift_F).float()
    tensors["threshold"] = tensors["threshold"].clamp_min(0.0)
    return SAEWeights("jumprelu", tensors, metadata=metadata)


def _k_of(found: StateDict, trainer: Any) -> int:
    return int(found["k"]) if "k" in found else int(trainer["k"])


_READERS: Mapping[str, Callable[[StateDict, Any, Any], SAEWeights]] = {
    "AutoEncoder": _read_standard,
    "GatedAutoEncoder": _read_gated,
    "AutoEncoderTopK": _read_topk,
    "BatchTopKSAE": _read_batchtopk,
    "MatryoshkaBatchTopKSAE": _read_matryoshka,
    "JumpReluAutoEncoder": _read_jumprelu,
}
