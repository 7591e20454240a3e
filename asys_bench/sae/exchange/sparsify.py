"""sparsify (EleutherAI): `<hookpoint>/{cfg.json, sae.safetensors}`, as `SparseCoder` reads and writes it.

Its one activation is TopK of ReLU, so what it can express is

    topk        as it is
    standard    TopK with k = d_sae, which leaves ReLU as it is (exact; its decode gathers all rows)
    *transcoder of the same width in and out, ReLU likewise; W_skip where there is one

Tensors: encoder.weight[F, D], encoder.bias[F], W_dec[F, D], b_dec[D], W_skip[D, D]. Reading takes
the same ones; what it cannot take is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from asys_bench.sae.checkpoint.native_format import OUTLIER_NORM
from asys_bench.sae.exchange.weights import ExchangeError, SAEWeights

CFG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
_ELSEWHERE = "export it as saelens or dictionary_learning, or train topk for sparsify"
_REASONS = {
    "jumprelu": "sparsify has no thresholds, only TopK (JumpReLU, BatchTopK and Matryoshka SAEs "
    "are thresholds once trained)",
    "gated": "sparsify has no gates, only TopK",
}


def write_sparsify(weights: SAEWeights, folder: Path) -> None:
    """Write both files into the existing `folder`.

    Raises:
        ExchangeError: `SparseCoder` cannot compute what this SAE computes.
    """
    what = f"{weights.architecture} SAE of {weights.hook_name or folder.name!r}"
    if "threshold" in weights.tensors:
        raise ExchangeError(what, _REASONS["jumprelu"], _ELSEWHERE)
    if weights.architecture == "gated":
        raise ExchangeError(what, _REASONS["gated"], _ELSEWHERE)
    if weights.d_in != weights.d_out:
        raise ExchangeError(
            what,
            f"sparsify's transcoders have one width, this one maps {weights.d_in} to "
            f"{weights.d_out}",
            "export it as saelens",
        )
    source = weights.tensors
    tensors = {
        "encoder.weight": source["W_enc"].t(),
        "encoder.bias": source["b_enc"],
        "W_dec": source["W_dec"],
        "b_dec": source["b_dec"],
    }
    if "W_skip" in source:
        tensors["W_skip"] = source["W_skip"]
    k = weights.k if weights.architecture == "topk" else weights.d_sae
    write_tensors(folder / WEIGHTS_FILE, {n: t.to(torch.float32) for n, t in tensors.items()})
    write_json(folder / CFG_FILE, _cfg(weights, k))


def read_sparsify(folder: Path) -> SAEWeights:
    """The sparse coder in a folder with cfg.json and sae.safetensors.

    Raises:
        CheckpointError: a file is missing, damaged or inconsistent.
        ExchangeError: it is no TopK autoencoder and no transcoder of ReLU.
    """
    cfg = read_json(folder / CFG_FILE)
    path = folder / WEIGHTS_FILE
    found = {name: tensor.to(torch.float32) for name, tensor in read_tensors(path).items()}
    missing = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} - found.keys()
    if missing:
        raise CheckpointError(path, f"tensors {sorted(missing)} are missing; got {sorted(found)}")
    activation, k = cfg.get("activation", "topk"), cfg.get("k")
    if activation != "topk":
        raise ExchangeError(
            str(folder), f"activation {activation!r} is not TopK", "train it with activation topk"
        )
    tensors = {
        "W_enc": found["encoder.weight"].t().contiguous(),
        "b_enc": found["encoder.bias"],
        "W_dec": found["W_dec"],
        "b_dec": found["b_dec"],
    }
    d_sae = len(found["encoder.bias"])
    every = not isinstance(k, int) or k >= d_sae
    if not cfg.get("transcode", False):
        if "W_skip" in found:
            raise ExchangeError(
                str(folder), "an autoencoder with a skip connection", "set transcode in sparsify"
            )
        architecture = "standard" if every else "topk"
    elif not every:
        raise ExchangeError(
            str(folder), "a transcoder of TopK", "ours are thresholds; there is no equal one"
        )
    elif "W_skip" in found:
        architecture = "skip_transcoder"
        tensors["W_skip"] = found["W_skip"]
    else:
        architecture = "transcoder"
    metadata = {"hook_name": folder.name}
    if cfg.get(OUTLIER_NORM) is not None:
        metadata[OUTLIER_NORM] = cfg[OUTLIER_NORM]
    weights = SAEWeights(architecture, tensors, None if every else k, metadata=metadata)
    problem = weights.problem()
    if problem is not None:
        raise CheckpointError(path, problem)
    return weights


def _cfg(weights: SAEWeights, k: int | None) -> dict[str, Any]:
    return {
        "activation": "topk",
        "expansion_factor": max(1, weights.d_sae // weights.d_in),
        # The input scale is in the decoder's norms: normalising them would change the function.
        "normalize_decoder": False,
        "num_latents": weights.d_sae,
        "k": k,
        "multi_topk": False,
        "skip_connection": "W_skip" in weights.tensors,
        "transcode": weights.transcodes,
        "d_in": weights.d_in,
        # `SparseCoder` drops fields that it does not know.
        **({} if weights.outlier_norm is None else {OUTLIER_NORM: weights.outlier_norm}),
    }
