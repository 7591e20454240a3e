# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The products of a sparse training step in Triton: float32 on a GPU.

Sparse decoding with its error, the gradients of pairs and of weights, and Adam's step with the clip and
the norm of decoder rows, each in one pass over memory. Every sum runs in a fixed order and nothing is added
atomically, so that a step gives the same bits each time. `choice` measures whether they are faster.

Adam's step goes over all features: the moments of one that has no pair in a batch fade, and its weights
move on with them. A step over touched rows alone would be another optimizer.

Imported only where Triton is installed (extra `gpu`). Encoding takes torch's own product and top-k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from asys_bench.sae.kernels.sparse_codes import FeatureMajor, Reconstruction, SparseCodes
from asys_bench.sae.kernels.sparse_kernels import Settings, SparseKernels

COLUMNS = 512
"""Of a row, per program of the kernels that walk over pairs."""
WIDEST = 16_384
"""Columns of the rows that the kernels of whole rows take."""


@triton.jit
def _decode(
    offset, feature, value, table, target, scale, gradient, error, features, width, tiles,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row and one tile of columns: gradient = scale (sum of value table[feature] - target), and the
    squared error of the tile. Features ascend, and those from `features` on are left out."""
    row = tl.program_id(0)
    tile = tl.program_id(1)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    made = tl.zeros([COLUMNS], tl.float32)
    for pair in range(tl.load(offset + row), tl.load(offset + row + 1)):
        which = tl.load(feature + pair)
        weight = tl.where(which < features, tl.load(value + pair), 0.0)
        start = which.to(tl.int64) * width
        made += weight * tl.load(table + start + column, mask=inside, other=0.0)
    start = row.to(tl.int64) * width
    missed = made - tl.load(target + start + column, mask=inside, other=0.0)
    missed = tl.where(inside, missed, 0.0)
    tl.store(error + row.to(tl.int64) * tiles + tile, tl.sum(missed * missed, 0))
    tl.store(gradient + start + column, missed * tl.load(scale + row), mask=inside)


@triton.jit
def _pair_dots(feature, row_of, gradient, table, out, width, COLUMNS: tl.constexpr):
    """One pair: gradient[row] . table[feature]."""
    pair = tl.program_id(0).to(tl.int64)
    left = tl.load(row_of + pair).to(tl.int64) * width
    right = tl.load(feature + pair).to(tl.int64) * width
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < width
        x = tl.load(gradient + left + column, mask=inside, other=0.0)
        total += x * tl.load(table + right + column, mask=inside, other=0.0)
    tl.store(out + pair, tl.sum(total, 0))


@triton.jit
def _accumulate(
    offset, order, row_of, shift, coefficient, rows, out, sums, width,
    SHIFTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One feature and one tile of columns: the sum over its pairs of coefficient rows[row]."""
    which = tl.program_id(0)
    tile = tl.program_id(1)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros([COLUMNS], tl.float32)
    summed = 0.0
    moved = tl.load(shift + which) if SHIFTED else 0
    for place in range(tl.load(offset + which), tl.load(offset + which + 1)):
        weight = tl.load(coefficient + tl.load(order + place))
        start = (tl.load(row_of + place) + moved).to(tl.int64) * width
        total += weight * tl.load(rows + start + column, mask=inside, other=0.0)
        summed += weight
    tl.store(out + which.to(tl.int64) * width + column, total, mask=inside)
    if tile == 0:
        tl.store(sums + which, summed)


@triton.jit
def _project(gradient, weight, square, width, ALONG: tl.constexpr, COLUMNS: tl.constexpr):
    """One row: the gradient without its part along the weight's row, and its squared norm."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    place = row.to(tl.int64) * width + column
    value = tl.load(gradient + place, mask=inside, other=0.0)
    if ALONG:
        unit = tl.load(weight + place, mask=inside, other=0.0)
        value -= tl.sum(value * unit, 0) * unit
        tl.store(gradient + place, value, mask=inside)
    tl.store(square + row, tl.sum(value * value, 0))


@triton.jit
def _adam(
    weight, gradient, mean, square, squares, rates, roots, width, beta1, beta2, epsilon, clip,
    UNIT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of an Adam step, and the squared norm of the new row before it is brought back to 1.
    A row whose rate is 0 stays as it is (its squared norm is given as 0)."""
    row = tl.program_id(0)
    rate, root = tl.load(rates + row), tl.load(roots + row)
    column = tl.arange(0, COLUMNS)
    inside = column < tl.where(rate != 0.0, width, 0)
    place = row.to(tl.int64) * width + column
    slope = tl.load(gradient + place, mask=inside, other=0.0) * clip
    first = tl.load(mean + place, mask=inside, other=0.0)
    second = tl.load(square + place, mask=inside, other=0.0)
    first += (1.0 - beta1) * (slope - first)
    second = second * beta2 + (1.0 - beta2) * slope * slope
    new = tl.load(weight + place, mask=inside, other=0.0)
    new -= rate * (first / (tl.sqrt(second) * root + epsilon))
    new = tl.where(inside, new, 0.0)
    norm = tl.sum(new * new, 0)
    if UNIT:
        new = new / tl.maximum(tl.sqrt(norm), 1e-12)
    tl.store(squares + row, norm)
    tl.store(mean + place, first, mask=inside)
    tl.store(square + place, second, mask=inside)
    tl.store(weight + place, new, mask=inside)


class TritonKernels(SparseKernels):
    """See the module docstring. What is not float32, contiguous or narrow enough takes torch's operators."""

    name = "triton"

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
        if not _fit(value_N, W_dec_FD, target_BD, scale_B):
            return super().reconstruct(codes, value_N, W_dec_FD, target_BD, scale_B)
        features = len(W_dec_FD)
        gradient_BD, error_B = _decoded(codes, value_N, W_dec_FD, target_BD, scale_B, features)
        dots_N = _dots(codes, codes.row_N.int(), gradient_BD, W_dec_FD)
        return Reconstruction(error_B, gradient_BD, dots_N)

    def reconstruct_nested(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        widths: Sequence[int],
    ) -> Reconstruction:
        if not _fit(value_N, W_dec_FD, target_BD, scale_B):
            return super().reconstruct_nested(codes, value_N, W_dec_FD, target_BD, scale_B, widths)
        levels = [_decoded(codes, value_N, W_dec_FD, target_BD, scale_B, w) for w in widths]
        gradient_MBD = torch.stack([gradient_BD for gradient_BD, _ in levels])
        for level in range(len(widths) - 2, -1, -1):
            gradient_MBD[level] += gradient_MBD[level + 1]
        edges_M = torch.tensor(widths).to(value_N.device)
        level_N = torch.bucketize(codes.feature_N, edges_M, right=True)
        row_N = (codes.row_N + level_N * codes.rows).int()
        dots_N = _dots(codes, row_N, gradient_MBD, W_dec_FD)
        return Reconstruction(torch.stack([e for _, e in levels]), gradient_MBD, dots_N)

    def accumulate(
        self,
        groups: FeatureMajor,
        coefficient_N: torch.Tensor,
        rows_BD: torch.Tensor,
        out_FD: torch.Tensor,
        shift_F: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not _fit(coefficient_N, rows_BD, out_FD):
            return super().accumulate(groups, coefficient_N, rows_BD, out_FD, shift_F)
        features, width = out_FD.shape
        sum_F = torch.empty(features, device=out_FD.device)
        columns = _columns(width)
        _accumulate[(features, triton.cdiv(width, columns))](
            groups.offset_F, groups.order_N, groups.row_N,
            groups.row_N if shift_F is None else shift_F, coefficient_N, rows_BD, out_FD, sum_F,
            width, SHIFTED=shift_F is not None, COLUMNS=columns,
        )  # fmt: skip
        return sum_F

    def project(self, gradient_FD: torch.Tensor, W_FD: torch.Tensor | None) -> torch.Tensor:
        rows, width = gradient_FD.shape
        weight_FD = gradient_FD if W_FD is None else W_FD
        if 1 in (rows, width) or width > WIDEST or not _fit(gradient_FD, weight_FD):
            return super().project(gradient_FD, W_FD)
        square_F = torch.empty(rows, device=gradient_FD.device)
        _project[(rows,)](
            gradient_FD, weight_FD, square_F, width,
            ALONG=W_FD is not None, COLUMNS=triton.next_power_of_2(width),
        )  # fmt: skip
        return square_F.double()

    def adam(
        self,
        weight_FD: torch.Tensor,
        gradient_FD: torch.Tensor,
        mean_FD: torch.Tensor,
        square_FD: torch.Tensor,
        rate_F: torch.Tensor,
        root_F: torch.Tensor,
        settings: Settings,
        *,
        unit_rows: bool,
    ) -> bool:
        rows, width = weight_FD.shape
        tensors = (weight_FD, gradient_FD, mean_FD, square_FD, rate_F, root_F)
        if 1 in (rows, width) or width > WIDEST or not _fit(*tensors):
            return super().adam(*tensors, settings, unit_rows=unit_rows)
        squares_F = torch.empty(rows, device=weight_FD.device)
        _adam[(rows,)](
            weight_FD, gradient_FD, mean_FD, square_FD, squares_F, rate_F, root_F, width, *settings,
            UNIT=unit_rows, COLUMNS=triton.next_power_of_2(width),
        )  # fmt: skip
        return bool(torch.isfinite(squares_F.sum()))


def _fit(*tensors: torch.Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def _columns(width: int) -> int:
    return min(COLUMNS, int(triton.next_power_of_2(width)))


def _decoded(codes, value_N, W_dec_FD, target_BD, scale_B, features):
    """(gradient_BD, error_B) of the prefix of so many features."""
    rows, width = target_BD.shape
    columns = _columns(width)
    tiles = triton.cdiv(width, columns)
    gradient_BD = torch.empty_like(target_BD)
    error_BT = torch.empty(rows, tiles, device=target_BD.device)
    _decode[(rows, tiles)](
        codes.offset_B, codes.feature_N, value_N, W_dec_FD, target_BD, scale_B, gradient_BD, error_BT,
        features, width, tiles, COLUMNS=columns,
    )  # fmt: skip
    return gradient_BD, error_BT.sum(1)


def _dots(codes, row_N, gradient, W_dec_FD):
    out_N = torch.empty(len(row_N), device=gradient.device)
    width = W_dec_FD.shape[1]
    if len(row_N):
        _pair_dots[(len(row_N),)](
            codes.feature_N, row_N, gradient, W_dec_FD, out_N, width, COLUMNS=_columns(width)
        )
    return out_N
