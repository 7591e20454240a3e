"""The native format: a folder that SAELens's `SAE.load_from_disk` opens.

    cfg.json                architecture, sizes, dtype, metadata
    sae_weights.safetensors exactly the architecture's tensors: W_enc[D,F] W_dec[F,D] b_dec[D], and
                            b_enc[F]; threshold[F] (jumprelu, batchtopk, matryoshka, transcoder);
                            b_gate, b_mag, r_mag[F] instead of b_enc (gated); W_skip[D_out,D]

A crosscoder (architecture `asys_crosscoder`) is ours alone: cfg.json's `hook_widths` are the columns
of each hook in W_enc[D, F] (encoder), W_dec[F, D] and b_dec[D] (a decoder per hook), in the order of
`hook_names` in the metadata; b_enc[F] and threshold[F] as of batchtopk. It takes the raw rows of all
hooks side by side.

metadata.outlier_norm, where there is one: rows of a larger norm pass through unchanged, which
SAELens does not know of. The input scaling is folded in, so the SAE takes raw rows and
`normalize_activations` is "none". Read
off sae-lens 6.54; other files in the folder are ignored by it and by us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.architectures.by_name import BY_SAELENS_NAME, build_sae
from asys_bench.sae.architectures.scaling import RowScaling
from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from asys_bench.sae.config import SAEConfig

CFG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
OUTLIER_NORM = "outlier_norm"
"""Entry of the metadata."""
FORMAT_VERSION = "6.54.12"
"""sae-lens version whose layout is written; below 6.0.0 it would run its old-format converter."""


def save_sae(
    folder: Path,
    sae: SparseAutoencoder,
    scaling: RowScaling,
    metadata: Mapping[str, Any],
    outlier_norm: float = math.inf,
) -> None:
    """Write both files into the existing `folder`; `CheckpointStore.write` makes that atomic.

    metadata: JSON values; `model_name` and `hook_name` are what SAELens shows.
    outlier_norm: raw rows of a larger norm are left alone.

    Raises:
        CheckpointError: a weight (after folding) or a metadata value is not finite.
    """
    raw = sae.folded(scaling)
    write_tensors(folder / WEIGHTS_FILE, raw.state_dict())
    cfg = {
        "architecture": raw.saelens_name,
        "d_in": raw.d_in,
        "d_sae": raw.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **raw.saelens_fields(),
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "training_architecture": raw.name,
            "training_architecture_details": raw.training_details(),
            **({OUTLIER_NORM: outlier_norm} if math.isfinite(outlier_norm) else {}),
            **metadata,
        },
    }
    write_json(folder / CFG_FILE, cfg)


def load_sae(folder: Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """The SAE (it takes raw rows) and the metadata of a SAELens folder, ours or of SAELens.

    Raises:
        CheckpointError: a missing, damaged or unsupported file; says which and why.
    """
    folder = Path(folder)
    cfg_path, weights_path = folder / CFG_FILE, folder / WEIGHTS_FILE
    cfg = read_json(cfg_path)
    tensors = read_tensors(weights_path)
    _check_sizes(cfg_path, cfg, tensors)
    sae = _build(cfg_path, cfg)
    assign_tensors(weights_path, sae, tensors)
    metadata = cfg.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    sae.outlier_norm = outlier_norm_of(cfg_path, metadata) or math.inf
    return sae, metadata


def outlier_norm_of(path: Path, metadata: Mapping[str, Any]) -> float | None:
    """The norm from which an SAE leaves rows alone; None where it has none.

    Raises:
        CheckpointError: it is no positive number; names `path`.
    """
    limit = metadata.get(OUTLIER_NORM)
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise CheckpointError(path, f"metadata.{OUTLIER_NORM} {limit!r} is not a positive number")
    return float(limit)


def _check_sizes(path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse sizes that the weights do not have, before any memory is taken for them."""
    W_enc, W_dec = tensors.get("W_enc"), tensors.get("W_dec")
    if W_enc is None or W_dec is None or W_enc.ndim != 2 or W_dec.ndim != 2:
        return  # `assign_tensors` says which tensors it wants; those here are as large as the file
    has = {"d_in": W_enc.shape[0], "d_sae": W_enc.shape[1], "d_out": W_dec.shape[1]}
    for field, size in has.items():
        if cfg.get(field) is not None and cfg[field] != size:
            raise CheckpointError(path, f"{field} is {cfg[field]!r}, the weights have {size}")


def _build(path: Path, cfg: Mapping[str, Any]) -> SparseAutoencoder:
    if not isinstance(cfg.get("metadata") or {}, dict):
        raise CheckpointError(path, f"metadata is {cfg['metadata']!r}")
    architecture = BY_SAELENS_NAME.get(str(cfg.get("architecture")))
    if architecture is None:
        raise CheckpointError(
            path,
            f"architecture {cfg.get('architecture')!r} is not supported; "
            f"valid: {', '.join(sorted(BY_SAELENS_NAME))}",
        )
    supported = {
        "apply_b_dec_to_input": (architecture.subtracts_b_dec,),
        "normalize_activations": ("none",),
        "reshape_activations": ("none",),
    }
    for field, valid in supported.items():
        if cfg.get(field, valid[0]) not in valid:
            raise CheckpointError(
                path, f"{field} {cfg[field]!r} is not supported; valid: {valid[0]!r}"
            )
    try:
        fields = architecture.config_from_saelens(cfg)
        config = SAEConfig(architecture=architecture.name, d_sae=cfg["d_sae"], **fields)
        d_in, d_out = cfg["d_in"], cfg.get("d_out")
        if not isinstance(d_in, int) or d_in < 1:
            raise ValueError(f"d_in {d_in!r} is not a positive integer")
        if d_out is not None and (not isinstance(d_out, int) or d_out < 1):
            raise ValueError(f"d_out {d_out!r} is not a positive integer")
        return build_sae(config, d_in, d_out)
    except KeyError as error:
        raise CheckpointError(path, f"field {error} is missing") from None
    except (ValidationError, ValueError, OverflowError, TypeError) as error:
        raise CheckpointError(path, str(error)) from None


@torch.no_grad()
def assign_tensors(path: Path, sae: SparseAutoencoder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors` (exactly the SAE's, same shapes) into `sae`.

    Raises:
        CheckpointError: names or shapes differ.
    """
    parameters = sae.state_dict()
    if parameters.keys() != tensors.keys():
        raise CheckpointError(path, f"has tensors {sorted(tensors)}, wanted {sorted(parameters)}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(
                path,
                f"tensor {name!r} is {tuple(tensors[name].shape)}, wanted {tuple(parameter.shape)}",
            )
        parameter.copy_(tensors[name])
