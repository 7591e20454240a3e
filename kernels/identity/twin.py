"""identity without the C++ module: numpy takes the rows, so numba would add nothing."""

from __future__ import annotations

import numpy as np
import torch

from asys_bench.contracts.packet import tensor_bytes
from asys_bench.contracts.preprocessor import Positions, rows_and_width
from asys_bench.kernels.identity import reference
from asys_bench.kernels.simd.sections import check_positions


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """As `reference.write`; chosen rows are copied straight into the payload."""
    if positions is None or not (tensor.is_cpu and tensor.is_contiguous() and tensor.numel()):
        return reference.write(tensor, out, positions)
    rows, width = rows_and_width(tensor.shape)
    check_positions(positions, rows)
    row_bytes = width * tensor.element_size()
    nbytes = len(positions) * row_bytes
    source = np.frombuffer(tensor_bytes(tensor), np.uint8).reshape(rows, row_bytes)
    target = np.frombuffer(out, np.uint8, nbytes).reshape(len(positions), row_bytes)
    np.take(source, positions, axis=0, out=target, mode="clip")  # "raise" would take a copy
    return nbytes
