"""The sparse kernels in torch's own operators: any device and float dtype, no compiler needed.

It is the reference of the others (tests/unit/sae/test_sparse_kernels.py) and stands in for them. All
products run on `embedding_bag`, which streams rows of a feature-major [F, D] table and adds them in a
fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from asys_bench.contracts.torch_internals import bag_weights_gradient
from asys_bench.sae.kernels.sparse_codes import FeatureMajor, Reconstruction, SparseCodes

CANDIDATES_BEYOND_K = 8
"""Features that a bfloat16 product proposes beyond k, for float32 values to choose from."""
LEAST_GROUP = 4
"""Columns of a group below which `largest` saves nothing."""


def gather_dot(codes: SparseCodes, left_BD: torch.Tensor, table_FD: torch.Tensor) -> torch.Tensor:
    """`out[pair] = left[row of pair] . table[feature of pair]`, without building [N, D].

    It is the gradient of a weighted bag with respect to its weights.
    """
    out_N: torch.Tensor = bag_weights_gradient(
        left_BD, table_FD, codes.feature_N, codes.offset_B[:-1], codes.row_N.int(), 0
    )
    return out_N


def decode(codes: SparseCodes, value_N: torch.Tensor, W_dec_FD: torch.Tensor) -> torch.Tensor:
    """`sum over a row's pairs of value W_dec[feature]`, [B, D], no bias."""
    return functional.embedding_bag(
        codes.feature_N, W_dec_FD, codes.offset_B[:-1], per_sample_weights=value_N, mode="sum"
    )


def product(x_BD: torch.Tensor, table_FD: torch.Tensor, b_F: torch.Tensor) -> torch.Tensor:
    """Pre-activations [B, F] in x's dtype, by a product in the table's: bfloat16 is rough."""
    if table_FD.dtype == x_BD.dtype:
        return torch.addmm(b_F, x_BD, table_FD.t())
    return (x_BD.to(table_FD.dtype) @ table_FD.t()).to(x_BD.dtype).add_(b_F)


def largest(pre_BF: torch.Tensor, k: int, *, staged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, columns) [B, k] of the k largest entries of each row, in any order; a NaN is the largest.

    staged: the columns are groups, and the k groups with the largest maxima hold k largest entries: a
    group that is left out has none above the k-th, for k maxima are as large as its own. One pass over
    [B, F], and `torch.topk`, which on a GPU takes several, sees about sqrt(F k) columns twice. Of equal
    entries it may keep others.
    """
    rows, features = pre_BF.shape
    size = 1 << ((features // k).bit_length() // 2)
    if not staged or size < LEAST_GROUP:
        value_BK, index_BK = torch.topk(pre_BF, k, dim=1, sorted=False)
        return value_BK, index_BK
    groups = features // size
    whole = groups * size
    best_BG = pre_BF[:, :whole].view(rows, size, groups).amax(1)
    group_BK = torch.topk(best_BG, k, dim=1, sorted=False).indices
    member_S = torch.arange(0, whole, groups, device=pre_BF.device)
    column_BC = (group_BK.unsqueeze(2) + member_S).flatten(1)
    left_over_L = torch.arange(whole, features, device=pre_BF.device)
    column_BC = torch.cat([column_BC, left_over_L.expand(rows, -1)], 1)
    value_BK, place_BK = torch.topk(pre_BF.gather(1, column_BC), k, dim=1, sorted=False)
    return value_BK, column_BC.gather(1, place_BK)


def top_k(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_F: torch.Tensor,
    k: int,
    rough_FD: torch.Tensor | None = None,
    *,
    staged: bool = False,
) -> SparseCodes:
    """The k largest pre-activations of each row. rough_FD: W_enc in bfloat16, to propose them by.
    staged: see `largest`."""
    d_sae, rough = len(b_F), rough_FD is not None
    pre_BF = product(x_BD, W_enc_FD if rough_FD is None else rough_FD, b_F)
    wanted = min(d_sae, k + CANDIDATES_BEYOND_K) if rough else k
    value_BK, index_BK = largest(pre_BF, wanted, staged=staged)
    index_BK, order_BK = index_BK.sort(1)
    if rough:
        candidates = _uniform(index_BK, value_BK, d_sae)
        value_BK = gather_dot(candidates, x_BD, W_enc_FD).view_as(value_BK) + b_F[index_BK]
        value_BK, order_BK = torch.topk(value_BK, k, dim=1, sorted=False)
        index_BK, again_BK = index_BK.gather(1, order_BK).sort(1)
        return _uniform(index_BK, value_BK.gather(1, again_BK), d_sae)
    return _uniform(index_BK, value_BK.gather(1, order_BK), d_sae)


def _uniform(index_BK: torch.Tensor, value_BK: torch.Tensor, d_sae: int) -> SparseCodes:
    rows, k = index_BK.shape
    offset_B = torch.arange(0, (rows + 1) * k, k, dtype=torch.int32, device=index_BK.device)
    return SparseCodes(offset_B, index_BK.reshape(-1).int(), value_BK.reshape(-1), d_sae)


def joined(parts: Sequence[SparseCodes]) -> SparseCodes:
    """The codes of successive blocks of rows as those of one batch."""
    if len(parts) == 1:
        return parts[0]
    counts_B = torch.cat([part.offset_B.diff() for part in parts])
    feature_N = torch.cat([part.feature_N for part in parts])
    value_N = torch.cat([part.value_N for part in parts])
    return SparseCodes(_offsets(counts_B), feature_N, value_N, parts[0].d_sae)


def _offsets(counts: torch.Tensor) -> torch.Tensor:
    """int32: where each group of so many begins, and their sum."""
    out = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=out[1:])
    return out


def above(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_F: torch.Tensor,
    floor_F: torch.Tensor,
    most: int | None,
    rough_FD: torch.Tensor | None = None,
) -> SparseCodes | None:
    """All pairs with pre > floor; None when they are more than `most`. rough_FD: as in `top_k`."""
    rough = rough_FD is not None
    pre_BF = product(x_BD, W_enc_FD if rough_FD is None else rough_FD, b_F)
    margin_F = floor_F.abs() / 64 + 1 / 64 if rough else 0.0
    active_BF = pre_BF > floor_F - margin_F
    count_B = active_BF.sum(1)
    if most is not None and int(count_B.sum()) > most:
        return None
    feature_N = active_BF.nonzero()[:, 1].int()
    codes = SparseCodes(_offsets(count_B), feature_N, pre_BF[active_BF], len(b_F))
    if rough:
        codes = codes.with_values(gather_dot(codes, x_BD, W_enc_FD) + codes.of_feature(b_F))
        codes = codes.kept(codes.value_N > codes.of_feature(floor_F))
    return codes


def reconstruct(
    codes: SparseCodes,
    value_N: torch.Tensor,
    W_dec_FD: torch.Tensor,
    target_BD: torch.Tensor,
    scale_B: torch.Tensor,
) -> Reconstruction:
    """Error, output gradient `scale * (x_hat - x)` and code gradients."""
    error_BD = decode(codes, value_N, W_dec_FD) - target_BD
    error_B = error_BD.square().sum(1)
    gradient_BD = error_BD.mul_(scale_B.unsqueeze(1))
    return Reconstruction(error_B, gradient_BD, gather_dot(codes, gradient_BD, W_dec_FD))


def reconstruct_nested(
    codes: SparseCodes,
    value_N: torch.Tensor,
    W_dec_FD: torch.Tensor,
    target_BD: torch.Tensor,
    scale_B: torch.Tensor,
    widths: Sequence[int],
) -> Reconstruction:
    """The same for every prefix of the features; see `Reconstruction`."""
    errors_MBD = torch.stack(
        [
            decode(codes, value_N * (codes.feature_N < width), W_dec_FD) - target_BD
            for width in widths
        ]
    )
    error_MB = errors_MBD.square().sum(2)
    gradient_MBD = errors_MBD.mul_(scale_B.unsqueeze(1))
    for level in range(len(widths) - 2, -1, -1):
        gradient_MBD[level] += gradient_MBD[level + 1]
    code_gradient_N = torch.zeros_like(value_N)
    least = 0
    for gradient_BD, width in zip(gradient_MBD, widths, strict=True):
        own_N = (codes.feature_N >= least) & (codes.feature_N < width)
        code_gradient_N += own_N * gather_dot(codes, gradient_BD, W_dec_FD)
        least = width
    return Reconstruction(error_MB, gradient_MBD, code_gradient_N)


def group(codes: SparseCodes) -> FeatureMajor:
    """The pairs by feature."""
    key = codes.feature_N
    order_N = torch.sort(
        key.to(torch.int16) if codes.d_sae <= 1 << 15 else key, stable=True
    ).indices
    offset_F = _offsets(torch.bincount(key, minlength=codes.d_sae))
    row_N = codes.row_N.index_select(0, order_N)
    return FeatureMajor(offset_F, order_N.int(), row_N.int())


def accumulate(
    groups: FeatureMajor,
    coefficient_N: torch.Tensor,
    rows_BD: torch.Tensor,
    shift_F: torch.Tensor | None,
    out_FD: torch.Tensor,
) -> torch.Tensor:
    """`out[f] = sum over f's pairs of coefficient rows[row + shift_F[f]]`; returns the sums [F]."""
    sorted_N = coefficient_N.index_select(0, groups.order_N)
    counts_F = groups.offset_F.diff()
    row_N = groups.row_N
    if shift_F is not None:
        row_N = row_N + torch.repeat_interleave(shift_F, counts_F)
    out_FD.copy_(
        functional.embedding_bag(
            row_N, rows_BD, groups.offset_F[:-1], per_sample_weights=sorted_N, mode="sum"
        )
    )
    return _bag_sums(groups, sorted_N)


def sum_by_feature(groups: FeatureMajor, quantity_N: torch.Tensor) -> torch.Tensor:
    """The sum of a quantity of the pairs, per feature [F]."""
    return _bag_sums(groups, quantity_N.index_select(0, groups.order_N))


def _bag_sums(groups: FeatureMajor, sorted_N: torch.Tensor) -> torch.Tensor:
    """Added up in float64: a feature may have as many pairs as the batch has rows."""
    place_N = torch.arange(len(sorted_N), dtype=torch.int32, device=sorted_N.device)
    sums_F1 = functional.embedding_bag(
        place_N, sorted_N.double().unsqueeze(1), groups.offset_F[:-1], mode="sum"
    )
    return sums_F1.squeeze(1).to(sorted_N.dtype)
