"""int8 compiled by numba, for machines without the C++ module."""

from __future__ import annotations

import numba
import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.int8 import kernel
from asys_bench.kernels.simd.jit import Array, entry, row_scale, write_scaled


@entry(
    numba.int64, numba.int64[:], numba.float32[:], numba.int8[:, :], numba.float64, numba.float64
)
def _encode(
    words: Array, kind: int, rows: Array, scales: Array, codes: Array, code_max: float, most: float
) -> None:
    width = words.shape[1]
    values = np.empty(width, dtype=np.float32)
    bits = values.view(np.uint32)
    for i in range(len(rows)):
        scale, inverse = row_scale(words, rows[i], kind, values, bits, code_max, most)
        scales[i] = scale
        for j in range(width):
            if bits[j] & 0x7FFFFFFF < 0x7F800000:
                codes[i, j] = np.int8(np.rint(values[j] * inverse))
            else:
                codes[i, j] = np.int8(-128)


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """As `kernel.write`."""
    nbytes = write_scaled(
        tensor,
        out,
        positions,
        encode=_encode,
        code_dtype=np.int8,
        code_max=kernel.CODE_MAX,
    )
    return kernel.write(tensor, out, positions) if nbytes is None else nbytes
