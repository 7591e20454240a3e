"""identity in plain torch: one strided copy into the payload."""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import tensor_view
from asys_bench.contracts.preprocessor import Positions, rows_and_width, take_rows
from asys_bench.kernels.simd.sections import check_positions


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the elements of `tensor` (or of its rows at `positions`); returns the bytes."""
    if positions is not None:
        check_positions(positions, rows_and_width(tensor.shape)[0])
        tensor = take_rows(tensor, positions)
    if tensor.numel():
        tensor_view(out, tensor.dtype, tuple(tensor.shape)).copy_(tensor.detach())
    return tensor.numel() * tensor.element_size()
