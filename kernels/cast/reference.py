"""cast in plain torch: the definition that every other version matches byte for byte."""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import tensor_view
from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.sections import float_rows

TARGETS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
QUIET_NAN = {torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}
"""torch's own conversion gives several NaN patterns, by vector width; every NaN is sent as this one."""


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None, bfloat16: int) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes.

    bfloat16: 1 for bfloat16, 0 for float16 (the compiled module takes numbers).
    """
    dtype = torch.bfloat16 if bfloat16 else torch.float16
    rows_ND = float_rows("cast", tensor, positions)
    if rows_ND.numel():
        bits_ND = rows_ND.to(dtype).view(torch.int16)
        bits_ND = torch.where(rows_ND.isnan(), QUIET_NAN[dtype], bits_ND)
        tensor_view(out, torch.int16, tuple(rows_ND.shape)).copy_(bits_ND)
    return rows_ND.numel() * 2
