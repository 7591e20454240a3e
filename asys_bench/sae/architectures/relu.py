"""ReLU SAE with an L1 penalty.

    f = ReLU(W_enc^T (x - b_dec) + b_enc),   x_hat = W_dec^T f + b_dec
    L = ( ||x - x_hat||^2 + lambda sum_i f_i ||W_dec,i|| ) / D

Bricken et al. 2023, "Towards Monosemanticity", and Cunningham et al. 2023 (arXiv:2309.08600), with
the penalty of Conerly et al. 2024, "Update on how we train SAEs" (Anthropic, April 2024). Decoder
rows have unit norm here, so the norms drop out. For rows scaled to E||x||^2 ~ D, the papers' lambda
of about 5 carries over; `target_l0` finds it, and starts b_enc near that sparsity.

Dead features are resampled (Bricken et al., appendix "Neuron resampling"): see `training.resampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.architectures.data_start import firing_quantile
from asys_bench.sae.architectures.sparse_gradients import fired, gradient_of, set_weight_gradients

DENSE_ABOVE = 0.2
"""Share of active pairs above which the dense gradient is the cheaper one."""
START_L0_RATIO = 2.0
"""Active features at the start, as a multiple of `target_l0`."""


class ReLUSAE(SparseAutoencoder):
    """As many active features as the L1 penalty leaves."""

    name: ClassVar[str] = "relu"
    saelens_name: ClassVar[str] = "standard"

    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF >= 0."""
        return torch.relu(self.centered(x_BD) @ self.W_enc + self.encoder_bias)

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_BF = self.activations(x_BD)
        error_B = (self.decode(acts_BF) - x_BD).square().sum(1)
        row_B = error_B + context.sparsity_coefficient * acts_BF.sum(1)
        return torch.dot(context.row_share(x_BD), row_B) / self.d_in, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        kernels, share_B = context.kernels, context.row_share(x_BD)
        input_BD = self.centered(x_BD)
        codes = kernels.above(
            input_BD,
            self.W_enc.detach().t(),
            self.encoder_bias.detach(),
            torch.zeros_like(self.encoder_bias),
            int(DENSE_ABOVE * len(x_BD) * self.d_sae),
        )
        if codes is None:
            return super().training_step(x_BD, context)
        value_N = codes.value_N
        scale_B = share_B * (2.0 / self.d_in)
        found = kernels.reconstruct(codes, value_N, self.W_dec.detach(), input_BD, scale_B)
        share_N = codes.of_row(share_B)
        weight = context.sparsity_coefficient / self.d_in
        error = float(torch.dot(share_B, found.error_B)) / self.d_in
        loss = error + context.ranks.number_over_latents(
            weight * float(torch.dot(share_N, value_N))
        )
        groups = kernels.group(codes)
        pre_sum_F = set_weight_gradients(
            self,
            kernels,
            context.ranks,
            groups,
            value_N=value_N,
            pre_gradient_N=found.code_gradient_N.add_(share_N, alpha=weight),
            out_gradient_BD=found.gradient_BD,
            input_BD=input_BD,
        )
        gradient_of(self.encoder_bias).copy_(pre_sum_F)
        energy_F = kernels.sum_by_feature(codes, groups, value_N.square())
        return StepResult(loss, error, found.error_B, fired(codes, value_N > 0), energy_F)

    @torch.no_grad()
    def start_(self, x_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
        wanted = self.config.target_l0
        if wanted is not None:
            start = START_L0_RATIO * wanted
            quantile_F = firing_quantile(self.centered(x_ND), self.W_enc.t(), start)
            self.encoder_bias.copy_(-quantile_F)

    def saelens_fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {}
