"""SAELens's folder: `cfg.json` and `sae_weights.safetensors`, read from anyone and written strictly.

Read off sae-lens 6.54. Reading brings what SAELens computes at run time into the weights, so that
what comes out is an SAE of raw rows, float32 (`SAEWeights`):

    apply_b_dec_to_input: false                 b_enc += b_dec W_enc       (autoencoders)
    rescale_acts_by_decoder_norm: true          W_enc, b_enc *= ||W_dec||, W_dec /= ||W_dec||
    normalize_activations: expected_average_... its factor s, from activation_scaler.json:
                                                W_enc *= s, W_dec /= s, b_dec /= s
    batchtopk, matryoshka_batchtopk             jumprelu with the one threshold of `topk_threshold`

What depends on each row (layer_norm, constant_norm_rescale) or on shape (hook_z) is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from asys_bench.sae.checkpoint.native_format import CFG_FILE, FORMAT_VERSION, WEIGHTS_FILE, load_sae
from asys_bench.sae.exchange.weights import TENSORS, ExchangeError, SAEWeights
from asys_bench.system.files.below import is_file

SCALER_FILE = "activation_scaler.json"
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
_REFOLD = "fold it in SAELens (SAETrainer.fit does at its end) and save again"


def read_saelens(folder: Path | str) -> SAEWeights:
    """The SAE in a SAELens folder, ours or anyone's.

    Raises:
        CheckpointError: a file is missing, damaged or inconsistent.
        ExchangeError: it computes something that weights alone cannot express.
    """
    folder = Path(folder)
    cfg_path = folder / CFG_FILE
    cfg = read_json(cfg_path)
    tensors = {
        name: tensor.to(torch.float32)
        for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()
    }
    metadata = cfg.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    architecture = str(cfg.get("architecture"))
    _refuse_run_time_parts(folder, cfg)
    threshold: float | None = None
    if architecture in _BATCH_TOPK:
        if "topk_threshold" not in tensors:
            raise CheckpointError(folder / WEIGHTS_FILE, "tensor 'topk_threshold' is missing")
        if tensors["topk_threshold"].numel() != 1:
            raise CheckpointError(folder / WEIGHTS_FILE, "tensor 'topk_threshold' is not a number")
        threshold = float(tensors.pop("topk_threshold"))
        metadata = {"training_architecture": architecture, **metadata}
        architecture = "standard"  # all but the choice of features, which comes last
    if architecture == "asys_crosscoder":
        raise ExchangeError(
            str(cfg_path),
            "it is a crosscoder, and no other library has a format for one",
            "read it with asys_bench.sae.load_sae; its two files are documented there",
        )
    if architecture not in TENSORS:
        raise ExchangeError(
            str(cfg_path),
            f"architecture {architecture!r} is not supported",
            f"supported: {', '.join((*TENSORS, *_BATCH_TOPK))}",
        )
    k, widths = _training_details(cfg_path, cfg, metadata)
    weights = SAEWeights(architecture, tensors, k, widths, metadata)
    problem = weights.problem()
    if problem is not None:
        raise CheckpointError(cfg_path, problem)
    factor = _input_factor(folder, cfg, weights)
    if factor != 1.0:
        weights = _folded(weights, factor)
    if cfg.get("rescale_acts_by_decoder_norm", False):
        weights = weights.scaled_features(weights.decoder_norm_F.clamp_min(1e-8))
        if threshold is not None:
            threshold /= factor  # it is in units of pre x ||W_dec||
    if not weights.transcodes and not cfg.get("apply_b_dec_to_input", True):
        weights = _centred(weights)
    return weights if threshold is None else _with_one_threshold(weights, threshold)


def write_saelens(weights: SAEWeights, folder: Path) -> None:
    """Write both files into the existing `folder`.

    Raises:
        CheckpointError: a metadata value is not finite.
    """
    own: dict[str, Any] = {}
    if weights.architecture == "topk":
        own = {"k": weights.k, "rescale_acts_by_decoder_norm": False}
    elif weights.transcodes:
        own = {"d_out": weights.d_out}
    cfg = {
        "architecture": weights.architecture,
        "d_in": weights.d_in,
        "d_sae": weights.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not weights.transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **own,
        "metadata": {
            "sae_lens_training_version": None,
            **weights.metadata,
            "sae_lens_version": FORMAT_VERSION,
        },
    }
    write_tensors(folder / WEIGHTS_FILE, dict(weights.tensors))
    write_json(folder / CFG_FILE, cfg)


def import_saelens(folder: Path | str) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Any SAELens folder as one of our SAEs (of raw rows), with its metadata.

    Transcoders of any kind become skip transcoders (a threshold or skip that is not there is 0).

    Raises:
        CheckpointError, ExchangeError: as `read_saelens`.
    """
    return as_sae(read_saelens(folder), Path(folder))


def as_sae(weights: SAEWeights, source: Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """`weights` as one of our SAEs, with their metadata; `source` is named in errors.

    Raises:
        CheckpointError: the weights do not make an SAE.
    """
    if weights.transcodes:
        weights = _as_skip_transcoder(weights)
    with tempfile.TemporaryDirectory(prefix="asys-sae-") as canonical:
        write_saelens(weights, Path(canonical))
        try:
            return load_sae(Path(canonical))
        except CheckpointError as error:
            raise CheckpointError(source / error.path.name, error.reason) from None


def _training_details(
    path: Path, cfg: Mapping[str, Any], metadata: Mapping[str, Any]
) -> tuple[int | None, tuple[int, ...]]:
    """(k, Matryoshka widths) from where SAELens and we leave them.

    Raises:
        CheckpointError: the widths are no list of whole numbers.
    """
    details = metadata.get("training_architecture_details")
    details = details if isinstance(details, dict) else {}
    k = cfg.get("k", details.get("k"))
    widths = cfg.get("matryoshka_widths", details.get("matryoshka_widths"))
    widths = widths if isinstance(widths, list) else []
    if not all(isinstance(width, int) and not isinstance(width, bool) for width in widths):
        raise CheckpointError(path, f"matryoshka_widths are {widths!r}")
    known = isinstance(k, int | float) and not isinstance(k, bool) and 0.5 <= k < 1 << 31
    return round(k) if known else None, tuple(widths)


def _refuse_run_time_parts(folder: Path, cfg: Mapping[str, Any]) -> None:
    normalize = cfg.get("normalize_activations", "none")
    if normalize not in ("none", "expected_average_only_in"):
        raise ExchangeError(
            str(folder), f"normalize_activations {normalize!r} is computed from each row", _REFOLD
        )
    reshape = cfg.get("reshape_activations", "none")
    if reshape != "none":
        raise ExchangeError(
            str(folder),
            f"reshape_activations {reshape!r} depends on the rows' shape",
            "hook the flattened activations instead",
        )


def _input_factor(folder: Path, cfg: Mapping[str, Any], weights: SAEWeights) -> float:
    """The scale s that SAELens multiplies raw rows by; 1 for none."""
    if cfg.get("normalize_activations", "none") == "none":
        return 1.0
    path = folder / SCALER_FILE
    if weights.transcodes or not is_file(path):
        raise ExchangeError(
            str(folder), f"its input scale is not there ({SCALER_FILE} is missing)", _REFOLD
        )
    factor = read_json(path).get("scaling_factor")
    if factor is None:
        return 1.0  # SAELens has folded it already
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor > 0:
        raise CheckpointError(path, f"scaling_factor {factor!r} is not a positive number")
    return float(factor)


def _folded(weights: SAEWeights, factor: float) -> SAEWeights:
    scaled = dict(weights.tensors)
    scaled["W_enc"] = scaled["W_enc"] * factor
    scaled["W_dec"] = scaled["W_dec"] / factor
    scaled["b_dec"] = scaled["b_dec"] / factor
    return replace(weights, tensors=scaled)


def _with_one_threshold(weights: SAEWeights, threshold: float) -> SAEWeights:
    threshold_F = torch.full_like(weights.tensors["b_enc"], threshold)
    tensors = {**weights.tensors, "threshold": threshold_F}
    return replace(weights, architecture="jumprelu", tensors=tensors)


def _as_skip_transcoder(weights: SAEWeights) -> SAEWeights:
    W_dec_FD = weights.tensors["W_dec"]
    nothing = {
        "threshold": torch.zeros(weights.d_sae),
        "W_skip": W_dec_FD.new_zeros(weights.d_out, weights.d_in),
    }
    tensors = {**nothing, **weights.tensors}
    return replace(weights, architecture="jumprelu_skip_transcoder", tensors=tensors)


def _centred(weights: SAEWeights) -> SAEWeights:
    """x W + b = (x - b_dec) W + (b + b_dec W); the sum in float64, for b_dec may be large."""
    shifted = dict(weights.tensors)
    shift_F = (shifted["b_dec"].double() @ shifted["W_enc"].double()).float()
    if weights.architecture == "gated":
        shifted["b_gate"] = shifted["b_gate"] + shift_F
        shifted["b_mag"] = shifted["b_mag"] + shift_F * shifted["r_mag"].exp()
    else:
        shifted["b_enc"] = shifted["b_enc"] + shift_F
    return replace(weights, tensors=shifted)
