"""SAEs with weights that exercise everything, saved natively; and the formulas they must obey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asys_bench.sae import SAEConfig, SparseAutoencoder, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.exchange import SAEWeights

D_IN, D_SAE, K = 6, 24, 3


def saved(folder: Path, architecture: str, hook: str = "layers.3.mlp") -> SparseAutoencoder:
    """A SAE with random parameters, saved with an input scale; returns it as it takes raw rows."""
    config = SAEConfig.model_validate({"architecture": architecture, "d_sae": D_SAE, "k": K})
    sae = build_sae(config, D_IN)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name == "threshold" and architecture != "jumprelu":
                tensor.fill_(0.3)  # one for all features
            else:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
        sae.normalize_decoder_()
    folder.mkdir(parents=True, exist_ok=True)
    scaling = InputScaling(2.5, torch.linspace(-0.5, 0.5, D_IN))
    save_sae(folder, sae, scaling, {"model_name": "m", "hook_name": hook})
    return sae.folded(scaling)


def reference(weights: SAEWeights, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(activations, reconstruction) by the formulas of `exchange.weights`, float64."""
    t = {name: tensor.double() for name, tensor in weights.tensors.items()}
    x = x_BD.double()
    centred = x if weights.transcodes else x - t["b_dec"]
    z = centred @ t["W_enc"]
    if weights.architecture == "gated":
        gate = (z + t["b_gate"] > 0).double()
        acts = gate * torch.relu(z * t["r_mag"].exp() + t["b_mag"])
    else:
        pre = z + t["b_enc"]
        acts = torch.relu(pre)
        if weights.architecture == "topk":
            assert weights.k is not None
            top = torch.topk(pre, weights.k, dim=1)
            acts = torch.zeros_like(pre).scatter(1, top.indices, torch.relu(top.values))
        if "threshold" in t:
            acts = acts * (pre > t["threshold"])
    out = acts @ t["W_dec"] + t["b_dec"]
    if "W_skip" in t:
        out = out + x @ t["W_skip"].t()
    return acts, out


@pytest.fixture
def save() -> Callable[..., SparseAutoencoder]:
    return saved


@pytest.fixture
def apply() -> Callable[[SAEWeights, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    return reference


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
