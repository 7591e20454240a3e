"""dictionary_learning: `trainer_0/{config.json, ae.pt}`, read by `load_dictionary`.

    standard, decoder rows of unit norm   AutoEncoder
    standard otherwise                    JumpReluAutoEncoder with thresholds of 0, which is ReLU:
                                          AutoEncoder's loader would change the activations' units
    topk                                  AutoEncoderTopK
    jumprelu, one threshold, k known      BatchTopKSAE (MatryoshkaBatchTopKSAE where the group
                                          widths are known): what those are once trained
    jumprelu otherwise                    JumpReluAutoEncoder
    gated                                 GatedAutoEncoder

Read off dictionary-learning 0.1.0. JumpReluAutoEncoder does not centre its input: b_enc - b_dec W_enc
stands for that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from asys_bench.sae.checkpoint_files import write_json
from asys_bench.sae.exchange.error import ExchangeError
from asys_bench.sae.exchange.weights import SAEWeights

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
