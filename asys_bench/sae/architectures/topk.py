"""TopK SAE: the k largest pre-activations of a row are its features.

    z = TopK(ReLU(W_enc^T (x - b_dec) + b_enc)),   x_hat = W_dec^T z + b_dec
    L = ||x - x_hat||^2 / D  +  AuxK for dead features (see `auxk`)

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.architectures.auxk import add_aux_gradient, with_aux_loss
from asys_bench.sae.architectures.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.architectures.sparse_gradients import fired, gradient_of, set_weight_gradients
from asys_bench.sae.kernels.sparse_codes import SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels


class TopKSAE(SparseAutoencoder):
    """Exactly k (fewer where pre-activations are negative) active features per row."""

    name: ClassVar[str] = "topk"
    saelens_name: ClassVar[str] = "topk"

    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF with at most k non-zero entries per row."""
        return self._training_acts(x_BD)

    def activations_among(self, x_BD: torch.Tensor, kernels: SparseKernels) -> torch.Tensor:
        codes = self._training_codes(self.centered(x_BD), kernels)
        return codes.with_values(codes.value_N.clamp_min(0)).dense()

    def features_make(self, x_ND: torch.Tensor, kernels: SparseKernels) -> torch.Tensor:
        codes = self._training_codes(self.centered(x_ND), kernels)
        nothing_ND, one_N = x_ND.new_zeros(len(x_ND), self.d_out), x_ND.new_ones(len(x_ND))
        value_N = codes.value_N.clamp_min(0)
        # The gradient of half the squared error against nothing is what was made.
        found = kernels.reconstruct(
            codes, value_N, self.W_dec.detach(), nothing_ND, one_N, name="made"
        )
        return found.gradient_BD

    def _training_acts(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Dense activations as training picks them, differentiable."""
        pre_BF = self.centered(x_BD) @ self.W_enc + self.encoder_bias
        value_BK, index_BK = torch.topk(pre_BF, self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre_BF).scatter(-1, index_BK, torch.relu(value_BK))

    def _training_codes(self, input_BD: torch.Tensor, kernels: SparseKernels) -> SparseCodes:
        """The same picked sparsely; values are pre-activations."""
        W_enc_FD = self.W_enc.detach().t()
        return kernels.top_k(input_BD, W_enc_FD, self.encoder_bias.detach(), self.config.k)

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_BF = self._training_acts(x_BD)
        target_BD = x_BD if context.target_BD is None else context.target_BD
        error_BD = self.reconstruct(x_BD, acts_BF) - target_BD
        error_B = error_BD.square().sum(1)
        total = torch.dot(context.row_share(x_BD), error_B) / self.d_out
        total = with_aux_loss(total, self, context, x_BD, error_BD)
        return total, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        kernels, share_B = context.kernels, context.row_share(x_BD)
        input_BD = self.centered(x_BD)
        codes = self._training_codes(input_BD, kernels)
        active_N = codes.value_N > 0
        value_N = codes.value_N.clamp_min(0)
        # x_hat - target = W_dec^T z - (target - b_dec); for an autoencoder that is the input.
        target_BD = self._decoded_target(x_BD, input_BD, context)
        scale_B = share_B * (2.0 / self.d_out)
        found = kernels.reconstruct(codes, value_N, self.W_dec.detach(), target_BD, scale_B)
        error = float(torch.dot(share_B, found.error_B)) / self.d_out
        groups = kernels.group(codes)
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
        self._set_other_gradients(x_BD, found.gradient_BD)
        loss = error
        if context.reviving:
            loss += add_aux_gradient(self, context, input_BD, found.gradient_BD, scale_B)
        least = self._least_active(value_N, active_N)
        energy_F = kernels.sum_by_feature(codes, groups, value_N.square())
        return StepResult(loss, error, found.error_B, fired(codes, active_N), energy_F, least)

    def _decoded_target(
        self, x_BD: torch.Tensor, input_BD: torch.Tensor, context: StepContext
    ) -> torch.Tensor:
        """What W_dec^T z alone should equal."""
        return input_BD

    def _set_other_gradients(self, x_BD: torch.Tensor, out_gradient_BD: torch.Tensor) -> None:
        """Gradients of parameters that only a subclass has."""

    def _least_active(self, value_N: torch.Tensor, active_N: torch.Tensor) -> float:
        """The smallest activation of the batch, where an inference threshold is learnt from it."""
        return 0.0

    def saelens_fields(self) -> dict[str, Any]:
        return {"k": self.config.k, "rescale_acts_by_decoder_norm": False}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        if cfg.get("rescale_acts_by_decoder_norm", False):
            raise ValueError("rescale_acts_by_decoder_norm is true; fold the decoder norms first")
        return {"k": cfg["k"]}
