"""ReLU SAE with an L1 penalty.

    f = ReLU(W_enc^T (x - b_dec) + b_enc),   x_hat = W_dec^T f + b_dec
    L = ( ||x - x_hat||^2 + lambda sum_i f_i ||W_dec,i|| ) / D

Bricken et al. 2023, "Towards Monosemanticity", with the penalty of Conerly et al. 2024, "Update on
how we train SAEs" (Anthropic, April 2024). Decoder rows have unit norm here, so the norms drop out.
For rows scaled to E||x||^2 ~ D, the papers' lambda of about 5 carries over; `target_l0` finds it.

Dead features are resampled (Bricken et al., appendix "Neuron resampling"): see `resampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.base import SparseAutoencoder, StepContext


class ReLUSAE(SparseAutoencoder):
    """As many active features as the L1 penalty leaves."""

    name: ClassVar[str] = "relu"
    saelens_name: ClassVar[str] = "standard"

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF >= 0."""
        return torch.relu((x_BD - self.b_dec) @ self.W_enc + self.b_enc)

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_BF = self.encode(x_BD)
        error_B = (self.decode(acts_BF) - x_BD).square().sum(1)
        penalty_B = acts_BF.sum(1)
        row_B = error_B + context.l1_coefficient * penalty_B
        return torch.dot(context.row_share(x_BD), row_B) / self.d_in, error_B, acts_BF

    def saelens_fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {}
