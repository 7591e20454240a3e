"""Gated SAE: one path decides which features fire, another how strongly.

    p      = W_enc^T (x - b_dec)
    gate   = p + b_gate                    a feature fires where gate > 0
    f_mag  = ReLU(exp(r_mag) p + b_mag)    how strongly
    f      = 1[gate > 0] f_mag,            x_hat = W_dec^T f + b_dec
    L = ( ||x - x_hat||^2 + lambda sum_i ReLU(gate_i)
          + ||x - W_dec^T ReLU(gate) - b_dec||^2, decoder frozen ) / D

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders"
(arXiv:2404.16014), equations 6 to 8: the L1 penalty and the auxiliary reconstruction train the
gate, the main reconstruction the magnitudes, so the penalty does not shrink activations. W_dec and
b_dec get no gradient from the auxiliary term (b_dec does through the encoder's input).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.architectures.data_start import firing_quantile
from asys_bench.sae.architectures.sparse_gradients import fired, gradient_of, set_weight_gradients
from asys_bench.sae.config import SAEConfig

DENSE_ABOVE = 0.2
START_L0_RATIO = 2.0


class GatedSAE(SparseAutoencoder):
    """As many active features as the L1 penalty on the gates leaves."""

    name: ClassVar[str] = "gated"
    saelens_name: ClassVar[str] = "gated"
    scale_units: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "b_dec")
    rate_scales: ClassVar[Mapping[str, float]] = {"b_gate": 2.0, "b_mag": 0.6, "r_mag": 0.6}
    encoder_bias_name: ClassVar[str] = "b_gate"
    b_gate: torch.nn.Parameter
    b_mag: torch.nn.Parameter
    r_mag: torch.nn.Parameter

    def __init__(self, d_in: int, config: SAEConfig) -> None:
        super().__init__(d_in, config)
        self.b_mag = torch.nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = torch.nn.Parameter(torch.zeros(self.d_sae))

    def _paths(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(gate_BF, acts_BF)."""
        product_BF = self.centered(x_BD) @ self.W_enc
        gate_BF = product_BF + self.b_gate
        magnitude_BF = torch.relu(self.r_mag.exp() * product_BF + self.b_mag)
        return gate_BF, magnitude_BF * (gate_BF > 0)

    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF >= 0."""
        return self._paths(x_BD)[1]

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gate_BF, acts_BF = self._paths(x_BD)
        error_B = (self.decode(acts_BF) - x_BD).square().sum(1)
        gate_acts_BF = torch.relu(gate_BF)
        frozen_BD = gate_acts_BF @ self.W_dec.detach() + self.b_dec.detach()
        aux_B = (frozen_BD - x_BD).square().sum(1)
        row_B = error_B + aux_B + context.sparsity_coefficient * gate_acts_BF.sum(1)
        return torch.dot(context.row_share(x_BD), row_B) / self.d_in, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        kernels, share_B = context.kernels, context.row_share(x_BD)
        input_BD, W_dec_FD = self.centered(x_BD), self.W_dec.detach()
        codes = kernels.above(
            input_BD,
            self.W_enc.detach().t(),
            self.b_gate.detach(),
            torch.zeros_like(self.b_gate),
            int(DENSE_ABOVE * len(x_BD) * self.d_sae),
        )
        if codes is None:
            return super().training_step(x_BD, context)
        gate_N = codes.value_N
        product_N = gate_N - codes.of_feature(self.b_gate.detach())
        stretch_N = codes.of_feature(self.r_mag.detach().exp())
        magnitude_N = stretch_N * product_N + codes.of_feature(self.b_mag.detach())
        positive_N = magnitude_N > 0
        value_N = magnitude_N.clamp_min(0)
        scale_B = share_B * (2.0 / self.d_in)
        main = kernels.reconstruct(codes, value_N, W_dec_FD, input_BD, scale_B)
        aux = kernels.reconstruct(codes, gate_N, W_dec_FD, input_BD, scale_B, name="aux")
        share_N = codes.of_row(share_B)
        weight = context.sparsity_coefficient / self.d_in
        error = float(torch.dot(share_B, main.error_B)) / self.d_in
        loss = error + float(torch.dot(share_B, aux.error_B)) / self.d_in
        loss += context.ranks.number_over_latents(weight * float(torch.dot(share_N, gate_N)))
        gate_gradient_N = aux.code_gradient_N.add_(share_N, alpha=weight)
        magnitude_gradient_N = main.code_gradient_N.mul_(positive_N)
        through_N = magnitude_gradient_N * stretch_N
        groups = kernels.group(codes)
        for parameter, gradient_N in (
            (self.b_gate, gate_gradient_N),
            (self.b_mag, magnitude_gradient_N),
            (self.r_mag, through_N * product_N),
        ):
            gradient_of(parameter).copy_(kernels.sum_by_feature(codes, groups, gradient_N))
        set_weight_gradients(
            self,
            kernels,
            context.ranks,
            groups,
            value_N=value_N,
            pre_gradient_N=through_N.add_(gate_gradient_N),
            out_gradient_BD=main.gradient_BD,
            input_BD=input_BD,
        )
        energy_F = kernels.sum_by_feature(codes, groups, value_N.square())
        return StepResult(loss, error, main.error_B, fired(codes, value_N > 0), energy_F)

    @torch.no_grad()
    def start_(self, x_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
        wanted = self.config.target_l0
        if wanted is not None:
            start = START_L0_RATIO * wanted
            quantile_F = firing_quantile(self.centered(x_ND), self.W_enc.t(), start)
            self.b_gate.copy_(-quantile_F)

    def saelens_fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {}
