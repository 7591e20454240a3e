"""BatchTopK SAE: the k B largest pre-activations of a batch of B rows are its features.

    z = BatchTopK(ReLU(W_enc^T (x - b_dec) + b_enc)),   x_hat = W_dec^T z + b_dec
    L = ||x - x_hat||^2 / D  +  AuxK for dead features (see `auxk`)

Bussmann et al. 2024, "BatchTopK Sparse Autoencoders" (arXiv:2412.06410): rows share the budget, k
active features on average. Used afterwards, a row must not depend on its neighbours, so a threshold
takes over: z_i = pre_i where pre_i > theta, theta = E[smallest activation of a batch] (equation 5),
a running mean here. A checkpoint is therefore a JumpReLU SAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.base import StepResult
from asys_bench.sae.architectures.topk import TopKSAE
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.kernels.sparse_codes import SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels

THRESHOLD_WEIGHT = 0.05
"""Of a new batch in the running threshold. With 0.01 it lags a hundred steps behind an SAE that is
still learning (L0 14.9 instead of 16 after 240 steps)."""
GUESS_RATIO = 0.97
"""Where the search for a batch's smallest activation begins, as a share of the last batch's."""


class BatchTopKSAE(TopKSAE):
    """k active features per row on average."""

    name: ClassVar[str] = "batchtopk"
    saelens_name: ClassVar[str] = "jumprelu"
    reads_saelens: ClassVar[bool] = False
    scale_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "threshold")
    threshold: torch.Tensor
    """float32[F], all alike: the running mean of a batch's smallest activation."""

    def __init__(self, d_in: int, config: SAEConfig, d_out: int | None = None) -> None:
        super().__init__(d_in, config, d_out)
        self.register_buffer("threshold", torch.zeros(self.d_sae))
        self._last_least = 0.0  # only where a search begins, never what it finds

    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF, each row on its own: pre-activations above the running threshold."""
        pre_BF = self.centered(x_BD) @ self.W_enc + self.encoder_bias
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def activations_among(self, x_BD: torch.Tensor, kernels: SparseKernels) -> torch.Tensor:
        return self.activations(x_BD)  # a row's threshold is no other feature's business

    def _training_acts(self, x_BD: torch.Tensor) -> torch.Tensor:
        acts_BF = torch.relu(self.centered(x_BD) @ self.W_enc + self.encoder_bias)
        flat = acts_BF.reshape(-1)
        value, index = torch.topk(flat, min(len(flat), self.config.k * len(x_BD)), sorted=False)
        return torch.zeros_like(flat).scatter(0, index, value).view_as(acts_BF)

    def _training_codes(self, input_BD: torch.Tensor, kernels: SparseKernels) -> SparseCodes:
        return kernels.batch_top_k(
            input_BD,
            self.W_enc.detach().t(),
            self.encoder_bias.detach(),
            self.config.k * len(input_BD),
            GUESS_RATIO * (self._last_least or float(self.threshold[0])),
        )

    def _least_active(self, value_N: torch.Tensor, active_N: torch.Tensor) -> float:
        active = value_N[active_N]
        return float(active.min()) if len(active) else 0.0

    @torch.no_grad()
    def after_step_(self, result: StepResult) -> None:
        self._last_least = result.least_active
        if result.least_active > 0:
            seen = float(self.threshold[0])
            weight = THRESHOLD_WEIGHT if seen > 0 else 1.0
            self.threshold.fill_(seen + weight * (result.least_active - seen))

    def saelens_fields(self) -> dict[str, Any]:
        return {}

    def training_details(self) -> dict[str, Any]:
        return {"k": float(self.config.k)}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        raise ValueError("a checkpoint of a BatchTopK SAE is opened as a JumpReLU SAE")


def trained_k(cfg: Mapping[str, Any]) -> int:
    """The mean k that a checkpoint was trained with, by its cfg.json; 1 where nobody wrote it down.

    Raises:
        ValueError: it is no number.
    """
    details = (cfg.get("metadata") or {}).get("training_architecture_details") or {}
    k = details.get("k", 1) if isinstance(details, dict) else None
    if not isinstance(k, int | float) or isinstance(k, bool):
        raise ValueError(f"metadata.training_architecture_details has k {k!r}")
    return max(1, round(k))
