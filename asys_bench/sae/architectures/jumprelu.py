"""JumpReLU SAE: a learnt threshold per feature, and an L0 penalty through straight-through estimators.

    f = pre 1[pre > theta],  pre = W_enc^T (x - b_dec) + b_enc,   x_hat = W_dec^T f + b_dec
    L = ( ||x - x_hat||^2 + lambda sum_i 1[pre_i > theta_i] ) / D

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders" (arXiv:2407.14435), equations 3 and 9. Steps have no gradient; theirs, and ours, is a
kernel estimate of the expected loss's (equations 11 and 12), K the rectangle of width 1:

    d f / d theta            = -(theta / eps) K((pre - theta) / eps)
    d 1[pre > theta] / d theta = -(1 / eps)   K((pre - theta) / eps)
    d f / d pre              = 1[pre > theta]

theta is trained itself, not its logarithm, and kept >= 0, as in SAELens 6. Decoder rows have unit
norm, so theta is in the units of a feature's contribution: what a decoder-norm-aware penalty
achieves by weighting. theta starts at the quantile that gives a wanted L0 (`threshold_start`)
and has a larger learning rate: with that of the weights it never arrives (seen: FVU more than three times as
high after 1M synthetic rows).

The bandwidth of 0.4 is for rows of unit variance and batches of thousands. Pairs within half of it
below their threshold take part in a step, so it is also what a step costs: 1.0 took 3 to 4 times as
long on the synthetic benchmark, at the same L0, and its FVU after 300k rows was no better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.auxk import add_aux_gradient, with_aux_loss
from asys_bench.sae.architectures.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.architectures.data_start import firing_quantile
from asys_bench.sae.architectures.sparse_gradients import fired, gradient_of, set_weight_gradients
from asys_bench.sae.config import SAEConfig

DENSE_ABOVE = 0.2
START_L0_RATIO = 2.0
START_L0_SHARE = 1 / 32
"""Without `target_l0`: active features at the start as a share of all."""


class JumpReLUSAE(SparseAutoencoder):
    """As many active features as the L0 penalty leaves."""

    name: ClassVar[str] = "jumprelu"
    saelens_name: ClassVar[str] = "jumprelu"
    scale_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "threshold")
    rate_scales: ClassVar[Mapping[str, float]] = {"b_enc": 1.0, "threshold": 2.0}
    threshold: torch.nn.Parameter

    def __init__(self, d_in: int, config: SAEConfig) -> None:
        super().__init__(d_in, config)
        self.threshold = torch.nn.Parameter(torch.zeros(self.d_sae))

    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF, 0 or above their thresholds (>= 0)."""
        pre_BF = self.centered(x_BD) @ self.W_enc + self.encoder_bias
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pre_BF = self.centered(x_BD) @ self.W_enc + self.encoder_bias
        bandwidth = self.config.bandwidth
        acts_BF: torch.Tensor = _Jump.apply(pre_BF, self.threshold, bandwidth)  # type: ignore[no-untyped-call]
        step_BF: torch.Tensor = _Step.apply(pre_BF, self.threshold, bandwidth)  # type: ignore[no-untyped-call]
        error_BD = self.decode(acts_BF) - x_BD
        error_B = error_BD.square().sum(1)
        row_B = error_B + context.sparsity_coefficient * step_BF.sum(1)
        total = torch.dot(context.row_share(x_BD), row_B) / self.d_in
        total = with_aux_loss(total, self, context, x_BD, error_BD)
        return total, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        kernels, share_B = context.kernels, context.row_share(x_BD)
        input_BD, bandwidth = self.centered(x_BD), self.config.bandwidth
        codes = kernels.above(
            input_BD,
            self.W_enc.detach().t(),
            self.encoder_bias.detach(),
            self.threshold.detach() - bandwidth / 2,
            int(DENSE_ABOVE * len(x_BD) * self.d_sae),
        )
        if codes is None:
            return super().training_step(x_BD, context)
        theta_N = codes.of_feature(self.threshold.detach())
        beyond_N = codes.value_N - theta_N
        active_N = beyond_N > 0
        value_N = codes.value_N * active_N
        scale_B = share_B * (2.0 / self.d_in)
        found = kernels.reconstruct(codes, value_N, self.W_dec.detach(), input_BD, scale_B)
        share_N = codes.of_row(share_B)
        weight = context.sparsity_coefficient / self.d_in
        error = float(torch.dot(share_B, found.error_B)) / self.d_in
        penalty = weight * float(torch.dot(share_N, active_N.to(share_N.dtype)))
        loss = error + context.ranks.number_over_latents(penalty)
        groups = kernels.group(codes)
        near_N = beyond_N.abs() < bandwidth / 2
        slope_N = (theta_N * found.code_gradient_N).add_(share_N, alpha=weight)
        slope_N.mul_(near_N).div_(-bandwidth)
        gradient_of(self.threshold).copy_(kernels.sum_by_feature(codes, groups, slope_N))
        pre_sum_F = set_weight_gradients(
            self,
            kernels,
            context.ranks,
            groups,
            value_N=value_N,
            pre_gradient_N=found.code_gradient_N.mul_(active_N),
            out_gradient_BD=found.gradient_BD,
            input_BD=input_BD,
        )
        gradient_of(self.encoder_bias).copy_(pre_sum_F)
        if context.reviving:
            loss += add_aux_gradient(self, context, input_BD, found.gradient_BD, scale_B)
        energy_F = kernels.sum_by_feature(codes, groups, value_N.square())
        return StepResult(loss, error, found.error_B, fired(codes, active_N), energy_F)

    @torch.no_grad()
    def start_(self, x_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
        wanted = self.config.target_l0
        start = START_L0_SHARE * self.d_sae if wanted is None else START_L0_RATIO * wanted
        self.threshold.copy_(firing_quantile(self.centered(x_ND), self.W_enc.t(), start))

    @torch.no_grad()
    def after_step_(self, result: StepResult) -> None:
        self.threshold.clamp_min_(0.0)

    def saelens_fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {}


class _Jump(torch.autograd.Function):
    """f = pre 1[pre > theta] with the estimators of the module docstring."""

    @staticmethod
    def forward(
        ctx: Any, pre_BF: torch.Tensor, theta_F: torch.Tensor, bandwidth: float
    ) -> torch.Tensor:
        ctx.save_for_backward(pre_BF, theta_F)
        ctx.bandwidth = bandwidth
        return pre_BF * (pre_BF > theta_F)

    @staticmethod
    def backward(ctx: Any, grad_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        pre_BF, theta_F = ctx.saved_tensors
        near_BF = _rectangle((pre_BF - theta_F) / ctx.bandwidth)
        theta_grad_F = (-theta_F / ctx.bandwidth * near_BF * grad_BF).sum(0)
        return grad_BF * (pre_BF > theta_F), theta_grad_F, None


class _Step(torch.autograd.Function):
    """1[pre > theta] with the estimator of the module docstring; no gradient to pre."""

    @staticmethod
    def forward(
        ctx: Any, pre_BF: torch.Tensor, theta_F: torch.Tensor, bandwidth: float
    ) -> torch.Tensor:
        ctx.save_for_backward(pre_BF, theta_F)
        ctx.bandwidth = bandwidth
        return (pre_BF > theta_F).to(pre_BF.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BF: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        pre_BF, theta_F = ctx.saved_tensors
        near_BF = _rectangle((pre_BF - theta_F) / ctx.bandwidth)
        return None, (-1.0 / ctx.bandwidth * near_BF * grad_BF).sum(0), None


def _rectangle(u: torch.Tensor) -> torch.Tensor:
    return (u.abs() < 0.5).to(u.dtype)
