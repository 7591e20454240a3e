"""TopK SAE: the k largest pre-activations of a row are its features.

    z = TopK(ReLU(W_enc^T (x - b_dec) + b_enc)),   x_hat = W_dec^T z + b_dec

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), section 2.3. Dead
features get the auxiliary loss AuxK of its appendix A.2: with e = x - x_hat (no gradient), the
k_aux (D/2 by default) strongest dead features reconstruct e,

    L = ||e||^2 / D  +  alpha min(1, n_dead / k_aux) ||e - W_dec^T z_dead||^2 / D,   alpha = 1/32.

AuxK runs on the first `AUX_ROWS` rows of the (shuffled) batch: dead features need a direction, not
a precise gradient, and it costs a dense product over all dead features. Rejected: z_dead without
ReLU, as SAELens has it (error 0.231 against 0.201 after 200 steps from 3/4 suppressed features).

The gradient is written by hand over the k active features only (`sparse_codes`) and is checked
against autograd of `loss` in tests/unit/sae/test_architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from asys_bench.sae.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.sparse_codes import SparseCodes, gather_dot

AUX_ROWS = 512


class TopKSAE(SparseAutoencoder):
    """Exactly k (fewer where pre-activations are negative) active features per row."""

    name: ClassVar[str] = "topk"
    saelens_name: ClassVar[str] = "topk"

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF with at most k non-zero entries per row."""
        pre_BF = (x_BD - self.b_dec) @ self.W_enc + self.b_enc
        value_BK, index_BK = torch.topk(pre_BF, self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre_BF).scatter(-1, index_BK, torch.relu(value_BK))

    def saelens_fields(self) -> dict[str, Any]:
        return {"k": self.config.k, "rescale_acts_by_decoder_norm": False}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        if cfg.get("rescale_acts_by_decoder_norm", False):
            raise ValueError("rescale_acts_by_decoder_norm is true; fold the decoder norms first")
        return {"k": cfg["k"]}

    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acts_BF = self.encode(x_BD)
        error_BD = self.decode(acts_BF) - x_BD
        error_B = error_BD.square().sum(1)
        share_B = context.row_share(x_BD)
        total = torch.dot(share_B, error_B) / self.d_in
        if context.dead_F is not None and len(context.dead_F):
            total = total + self._aux_loss(
                (x_BD - self.b_dec)[:AUX_ROWS],
                -error_BD.detach()[:AUX_ROWS],
                self.W_enc.t()[context.dead_F],
                self.W_dec[context.dead_F],
                self.b_enc[context.dead_F],
            )
        return total, error_B, acts_BF

    @torch.no_grad()
    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        W_enc_FD, W_dec_FD = self.W_enc.detach().t(), self.W_dec.detach()
        centered_BD = x_BD - self.b_dec
        index_BK, value_BK = self._select(centered_BD, W_enc_FD)
        active_BK = value_BK > 0
        codes = SparseCodes(index_BK, torch.relu(value_BK))

        error_BD = codes.decode(W_dec_FD).add_(self.b_dec).sub_(x_BD)
        error_B = error_BD.square().sum(1)
        share_B = context.row_share(x_BD)
        error = float(torch.dot(share_B, error_B)) / self.d_in
        out_grad_BD = error_BD * (share_B * (2.0 / self.d_in)).unsqueeze(1)
        code_grad_BK = gather_dot(index_BK, out_grad_BD, W_dec_FD).mul_(active_BK)

        groups = codes.by_feature(self.d_sae)
        flat = index_BK.reshape(-1)
        b_enc_grad_F = torch.bincount(flat, code_grad_BK.reshape(-1), minlength=self.d_sae)
        b_enc_grad_F = b_enc_grad_F.to(torch.float32)
        fired_F = torch.bincount(flat[active_BK.reshape(-1)], minlength=self.d_sae)
        self.W_dec.grad = groups.accumulate(codes.value_BK, out_grad_BD)
        self.W_enc.grad = groups.accumulate(code_grad_BK, centered_BD).t()
        self.b_enc.grad = b_enc_grad_F
        # x enters the encoder as x - b_dec: the second term is -sum_b of that path's gradient.
        self.b_dec.grad = out_grad_BD.sum(0) - b_enc_grad_F @ W_enc_FD

        loss = error
        if context.dead_F is not None and len(context.dead_F):
            loss += self._add_aux_gradient(
                centered_BD[:AUX_ROWS], -error_BD[:AUX_ROWS], context.dead_F
            )
        return StepResult(loss, error, error_B, fired_F)

    def _select(
        self, centered_BD: torch.Tensor, W_enc_FD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best features of each row; in bfloat16 only the choice is rough, not the values."""
        if self.config.dtype == "float32":
            pre_BF = torch.addmm(self.b_enc, centered_BD, W_enc_FD.t())
            value_BK, index_BK = torch.topk(pre_BF, self.config.k, dim=1, sorted=False)
            return index_BK, value_BK
        pre_BF = torch.addmm(self.b_enc.bfloat16(), centered_BD.bfloat16(), W_enc_FD.bfloat16().t())
        index_BK = torch.topk(pre_BF, self.config.k, dim=1, sorted=False).indices
        value_BK = gather_dot(index_BK, centered_BD, W_enc_FD).add_(self.b_enc[index_BK])
        return index_BK, value_BK

    def _aux_loss(
        self,
        centered_RD: torch.Tensor,
        residual_RD: torch.Tensor,
        W_enc_ND: torch.Tensor,
        W_dec_ND: torch.Tensor,
        b_enc_N: torch.Tensor,
    ) -> torch.Tensor:
        """The weighted AuxK term for N dead features and R rows."""
        n_dead = b_enc_N.shape[0]
        wanted = self.config.aux_k or max(1, self.d_in // 2)
        k_aux = min(wanted, n_dead)
        pre_RN = centered_RD @ W_enc_ND.t() + b_enc_N
        value_RK, index_RK = torch.topk(pre_RN, k_aux, dim=1, sorted=False)
        acts_RN = torch.zeros_like(pre_RN).scatter(1, index_RK, torch.relu(value_RK))
        miss_RD = acts_RN @ W_dec_ND - residual_RD
        weight = self.config.aux_k_coefficient * min(1.0, n_dead / wanted) / self.d_in
        return weight * miss_RD.square().sum(1).mean()

    def _add_aux_gradient(
        self, centered_RD: torch.Tensor, residual_RD: torch.Tensor, dead_N: torch.Tensor
    ) -> float:
        """Add AuxK's gradient for the dead features to `.grad`; the loss term, 0 if not finite.

        Its gradient with respect to b_dec goes with the one through the dead encoders.
        """
        with torch.enable_grad():
            W_enc_ND = self.W_enc.detach().t()[dead_N].requires_grad_()
            W_dec_ND = self.W_dec.detach()[dead_N].requires_grad_()
            b_enc_N = self.b_enc.detach()[dead_N].requires_grad_()
            term = self._aux_loss(centered_RD, residual_RD, W_enc_ND, W_dec_ND, b_enc_N)
        W_enc_grad, W_dec_grad, b_enc_grad = torch.autograd.grad(
            term, (W_enc_ND, W_dec_ND, b_enc_N)
        )
        grads = [p.grad for p in (self.W_enc, self.W_dec, self.b_enc, self.b_dec)]
        for grad, more in zip(grads[:3], (W_enc_grad, W_dec_grad, b_enc_grad), strict=True):
            assert grad is not None
            (grad.t() if grad is self.W_enc.grad else grad).index_add_(0, dead_N, more)
        assert grads[3] is not None
        grads[3].sub_(b_enc_grad @ W_enc_ND.detach())
        return float(term.detach())
