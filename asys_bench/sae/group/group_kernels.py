"""The products of a step whose features or rows are spread over ranks, over the kernels of one rank.

`latents`: each rank's dictionary is a smaller one. Which pairs are kept, and what they add up to, is
agreed on; everything else is a rank's own. `rows`: each rank has all features and some of the rows, so
only a choice over the whole batch (`batch_top_k`) is agreed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asys_bench.sae.kernels import torch_kernels
from asys_bench.sae.kernels.sparse_codes import Reconstruction, SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels, best_of_batch
from asys_bench.sae.ranks import Ranks

_OWN = ("group", "accumulate", "sum_by_feature", "affine", "project", "adam")
"""Methods that concern a rank's features or rows alone."""


class GroupKernels(SparseKernels):
    """See the module docstring. k: of the whole SAE; a rank may have fewer features."""

    def __init__(self, own: SparseKernels, ranks: Ranks, k: int) -> None:
        super().__init__(rough=own.rough)
        self.name, self.measured, self.staged = own.name, own.measured, own.staged
        self._own, self._ranks, self._k = own, ranks, k
        for name in _OWN:
            setattr(self, name, getattr(own, name))

    def top_k(
        self, x_BD: torch.Tensor, W_enc_FD: torch.Tensor, b_F: torch.Tensor, k: int
    ) -> SparseCodes:
        own = self._own.top_k(x_BD, W_enc_FD, b_F, min(self._k, len(b_F)))
        kept_BK = self._ranks.among_best(own.value_N.view(len(x_BD), -1), self._k)
        return own if kept_BK is None else own.kept(kept_BK.reshape(-1))

    def above(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        floor_F: torch.Tensor,
        most: int | None = None,
    ) -> SparseCodes | None:
        """With features split never None: the dense step, which it stands for, knows no ranks."""
        most = most if self._ranks.has_all_latents else None
        return self._own.above(x_BD, W_enc_FD, b_F, floor_F, most)

    def batch_top_k(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        count: int,
        guess: float,
    ) -> SparseCodes:
        """Of the whole batch and SAE; `count` is of this rank's rows and features."""
        ranks = self._ranks
        rows = len(x_BD) if ranks.has_all_rows else ranks.count_in_batch(len(x_BD))
        return best_of_batch(self._own, ranks, x_BD, W_enc_FD, b_F, self._k * rows, guess)

    def reconstruct(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        *,
        name: str = "main",
    ) -> Reconstruction:
        ranks = self._ranks
        if ranks.has_all_latents:
            return self._own.reconstruct(codes, value_N, W_dec_FD, target_BD, scale_B, name=name)
        error_BD = ranks.over_latents(torch_kernels.decode(codes, value_N, W_dec_FD)) - target_BD
        error_B = error_BD.square().sum(1)
        gradient_BD = error_BD.mul_(scale_B.unsqueeze(1))
        return Reconstruction(error_B, gradient_BD, self._dots(codes, gradient_BD, W_dec_FD, name))

    def reconstruct_nested(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        widths: Sequence[int],
    ) -> Reconstruction:
        """widths: of this rank's features; a rank may have none of the narrow prefixes."""
        ranks = self._ranks
        if ranks.has_all_latents:
            return self._own.reconstruct_nested(
                codes, value_N, W_dec_FD, target_BD, scale_B, widths
            )
        parts = [
            torch_kernels.decode(codes, value_N * (codes.feature_N < width), W_dec_FD)
            for width in widths
        ]
        errors_MBD = ranks.over_latents(torch.stack(parts)) - target_BD
        error_MB = errors_MBD.square().sum(2)
        gradient_MBD = errors_MBD.mul_(scale_B.unsqueeze(1))
        for level in range(len(widths) - 2, -1, -1):
            gradient_MBD[level] += gradient_MBD[level + 1]
        code_gradient_N = torch.zeros_like(value_N)
        least = 0
        for gradient_BD, width in zip(gradient_MBD, widths, strict=True):
            own_N = (codes.feature_N >= least) & (codes.feature_N < width)
            code_gradient_N[own_N] = self._dots(codes.kept(own_N), gradient_BD, W_dec_FD, "nested")
            least = width
        return Reconstruction(error_MB, gradient_MBD, code_gradient_N)

    def _dots(
        self, codes: SparseCodes, gradient_BD: torch.Tensor, W_dec_FD: torch.Tensor, name: str
    ) -> torch.Tensor:
        """float[N]: each pair's `gradient[row] . W_dec[feature]`, as the reconstruction of nothing
        whose error is the gradient."""
        nothing_N, one_B = torch.zeros_like(codes.value_N), gradient_BD.new_ones(len(gradient_BD))
        found = self._own.reconstruct(
            codes, nothing_N, W_dec_FD, gradient_BD.neg(), one_B, name=f"{name}_dots"
        )
        return found.code_gradient_N
