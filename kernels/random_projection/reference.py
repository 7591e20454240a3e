"""random_projection in plain torch: the definition that every other version matches byte for byte.

Floating-point sums depend on their order, so it is part of the definition: sums start at +0 and add
x[j] * R[j, o] for j = 0, 1, ..., product and sum each rounded to float32 (no fused multiply-add).
Every NaN is sent as the positive quiet one.
"""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import tensor_view
from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.random_projection.matrix import FloatArray, dense
from asys_bench.kernels.simd.sections import float_rows


def project(rows_ND: torch.Tensor, panels: FloatArray, d_out: int) -> torch.Tensor:
    """float32 [N, D] -> [N, d_out]."""
    matrix_DO = torch.from_numpy(dense(panels, d_out))
    sums_NO = torch.zeros(len(rows_ND), d_out)
    for j in range(rows_ND.shape[1]):
        sums_NO += rows_ND[:, j, None] * matrix_DO[j]
    return torch.where(sums_NO.isnan(), torch.nan, sums_NO)


def write(
    tensor: torch.Tensor,
    out: memoryview,
    positions: Positions | None,
    d_out: int,
    panels: FloatArray,
) -> int:
    """Write the projected rows of `tensor` (or those at `positions`); returns their bytes."""
    rows_ND = float_rows("random_projection", tensor, positions)
    if len(rows_ND):
        projected_NO = project(rows_ND.cpu(), panels, d_out)
        tensor_view(out, torch.float32, tuple(projected_NO.shape)).copy_(projected_NO)
    return len(rows_ND) * d_out * 4
