"""Feature activations that are mostly zero, as (feature, value) pairs, and their cheap products.

With K of F features active per row, decode and the weight gradients cost B K D instead of B F D
multiplications. All three products run on torch's `embedding_bag` kernels, which stream rows of a
feature-major [F, D] table. Measured on 2 cores, B=4096 D=256 F=2048 K=16, fp32, milliseconds
(rejected -> used): decode dense 20 -> 0.6; values' gradient, gather + bmm 24 -> 1.8; weight
gradient, dense product 19 -> 1.1 (sparse CSR product 1.3) plus one sort of 0.6 for both weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


def gather_dot(
    index_BK: torch.Tensor, left_BD: torch.Tensor, table_FD: torch.Tensor
) -> torch.Tensor:
    """`out[b, j] = left[b] . table[index[b, j]]`, float32[B, K], without building [B, K, D].

    It is the gradient of a weighted bag with respect to its weights.
    """
    with torch.enable_grad():
        probe_BK = left_BD.new_zeros(index_BK.shape).requires_grad_()
        bag_BD = functional.embedding_bag(
            index_BK, table_FD.detach(), per_sample_weights=probe_BK, mode="sum"
        )
    (out_BK,) = torch.autograd.grad(bag_BD, probe_BK, left_BD)
    return out_BK


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """K active features per row: index_BK int64 (distinct within a row), value_BK float32."""

    index_BK: torch.Tensor
    value_BK: torch.Tensor

    def decode(self, W_dec_FD: torch.Tensor) -> torch.Tensor:
        """`sum_j value[b, j] W_dec[index[b, j]]`, float32[B, D], no bias."""
        return functional.embedding_bag(
            self.index_BK, W_dec_FD, per_sample_weights=self.value_BK, mode="sum"
        )

    def dense(self, d_sae: int) -> torch.Tensor:
        """acts_BF."""
        out_BF = self.value_BK.new_zeros(self.index_BK.shape[0], d_sae)
        return out_BF.scatter_(1, self.index_BK, self.value_BK)

    def by_feature(self, d_sae: int) -> FeatureMajor:
        """The same pairs grouped by feature."""
        flat = self.index_BK.reshape(-1)
        key = flat.to(torch.int16 if d_sae <= 1 << 15 else torch.int32)
        order = torch.sort(key, stable=True).indices
        count_F = torch.bincount(flat, minlength=d_sae)
        offset_F = torch.zeros_like(count_F)
        torch.cumsum(count_F[:-1], 0, out=offset_F[1:])
        rows = torch.div(order, self.index_BK.shape[1], rounding_mode="floor")
        return FeatureMajor(order, rows, offset_F)


@dataclass(frozen=True, slots=True)
class FeatureMajor:
    """A permutation of a batch's (row, feature) pairs that groups them by feature."""

    order: torch.Tensor
    """int64[B*K]: positions in the flattened [B, K]."""
    row: torch.Tensor
    """int64[B*K]: the batch row of each."""
    offset_F: torch.Tensor
    """int64[F]: where each feature's group begins."""

    def accumulate(self, coefficient_BK: torch.Tensor, rows_BD: torch.Tensor) -> torch.Tensor:
        """`out[f] = sum over pairs (b, j) of f of coefficient[b, j] rows[b]`, float32[F, D]."""
        return functional.embedding_bag(
            self.row,
            rows_BD,
            self.offset_F,
            per_sample_weights=coefficient_BK.reshape(-1)[self.order],
            mode="sum",
        )
