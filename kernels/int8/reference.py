"""int8 in plain torch: the definition that every other version matches byte for byte."""

from __future__ import annotations

import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.scaled_rows import quantisation, store
from asys_bench.kernels.simd.sections import float_rows

CODE_MAX = 127.0
NON_FINITE = -128
"""The code of NaN and of both infinities; it decodes to NaN."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes."""
    rows_ND = float_rows("int8", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    scale_N, scaled_ND, finite_ND = quantisation(rows_ND, CODE_MAX)
    codes_ND = torch.where(finite_ND, scaled_ND.round(), float(NON_FINITE)).to(torch.int8)
    return store(out, scale_N, codes_ND, *rows_ND.shape)
