"""fp8 in plain torch: the definition that every other version matches byte for byte."""

from __future__ import annotations

import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.scaled_rows import quantisation, store
from asys_bench.kernels.simd.sections import float_rows

CODE_MAX = 448.0
"""The largest finite float8_e4m3fn."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes."""
    rows_ND = float_rows("fp8.e4m3fn", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    scale_N, scaled_ND, finite_ND = quantisation(rows_ND, CODE_MAX)
    saturated_ND = scaled_ND.clamp(-CODE_MAX, CODE_MAX)
    codes_ND = torch.where(finite_ND, saturated_ND, torch.nan).to(torch.float8_e4m3fn)
    return store(out, scale_N, codes_ND, *rows_ND.shape)
