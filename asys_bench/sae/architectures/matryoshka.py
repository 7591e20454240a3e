"""Matryoshka BatchTopK SAE: nested dictionaries that must each reconstruct on their own.

    z = BatchTopK(ReLU(W_enc^T (x - b_dec) + b_enc)),   x_hat_m = sum_{i < F_m} z_i W_dec[i] + b_dec
    L = 1/M sum_m ||x - x_hat_m||^2 / D  +  AuxK on x - x_hat_M        F_1 < ... < F_M = F

Bussmann, Nabeshima et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders"
(arXiv:2503.17547), equation 4, here with the mean over levels, which keeps the loss's size. Early
features must be general, since they cannot count on later ones; that counters feature absorption.

By hand: feature i takes part in every x_hat_m with F_m > i, so its gradients are those of a plain
SAE with the error replaced by the sum of the errors of all levels that contain it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.auxk import add_aux_gradient, with_aux_loss
from asys_bench.sae.architectures.base import StepContext, StepResult
from asys_bench.sae.architectures.batchtopk import BatchTopKSAE
from asys_bench.sae.architectures.sparse_gradients import fired, gradient_of, set_weight_gradients
from asys_bench.sae.config import SAEConfig


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK over nested prefixes of the dictionary."""

    name: ClassVar[str] = "matryoshka"

    def __init__(self, d_in: int, config: SAEConfig) -> None:
        super().__init__(d_in, config)
        self.widths = config.prefix_widths(self.d_sae)

    def take_part_(self, first: int, whole: SAEConfig, d_sae: int) -> None:
        widths = whole.prefix_widths(d_sae)
        self.widths = tuple(min(self.d_sae, max(0, width - first)) for width in widths)

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_BF = self._training_acts(x_BD)
        share_B = context.row_share(x_BD)
        total = x_BD.new_zeros(())
        for width in self.widths:
            x_hat_BD = acts_BF[:, :width] @ self.W_dec[:width] + self.b_dec
            error_BD = x_hat_BD - x_BD
            error_B = error_BD.square().sum(1)
            total = total + torch.dot(share_B, error_B) / (self.d_in * len(self.widths))
        total = with_aux_loss(total, self, context, x_BD, error_BD)
        return total, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        kernels, share_B = context.kernels, context.row_share(x_BD)
        levels, rows = len(self.widths), len(x_BD)
        input_BD = self.centered(x_BD)
        codes = self._training_codes(input_BD, kernels)
        active_N = codes.value_N > 0
        value_N = codes.value_N.clamp_min(0)
        scale_B = share_B * (2.0 / (self.d_in * levels))
        found = kernels.reconstruct_nested(
            codes, value_N, self.W_dec.detach(), input_BD, scale_B, self.widths
        )
        error_M = (found.error_B @ share_B) / self.d_in
        groups = kernels.group(codes)
        pre_sum_F = set_weight_gradients(
            self,
            kernels,
            context.ranks,
            groups,
            value_N=value_N,
            pre_gradient_N=found.code_gradient_N.mul_(active_N),
            out_gradient_BD=found.gradient_BD.view(levels * rows, self.d_in),
            input_BD=input_BD,
            out_gradient_sum_D=found.gradient_BD[0].sum(0),
            shift_F=self._level_of_feature().mul_(rows),
        )
        gradient_of(self.encoder_bias).copy_(pre_sum_F)
        loss = float(error_M.mean())
        if context.reviving:
            # The last level's gradient is that of its own error alone.
            loss += add_aux_gradient(self, context, input_BD, found.gradient_BD[-1], scale_B)
        least = self._least_active(value_N, active_N)
        energy_F = kernels.sum_by_feature(codes, groups, value_N.square())
        fired_F = fired(codes, active_N)
        return StepResult(loss, float(error_M[-1]), found.error_B[-1], fired_F, energy_F, least)

    def _level_of_feature(self) -> torch.Tensor:
        """int32[F]: the first level that contains each feature."""
        device = self.W_dec.device
        edges_M = torch.tensor(self.widths).to(device)
        feature_F = torch.arange(self.d_sae, device=device)
        return torch.bucketize(feature_F, edges_M, right=True, out_int32=True)

    def training_details(self) -> dict[str, Any]:
        return super().training_details() | {"matryoshka_widths": list(self.widths)}
