"""cast compiled by numba, for machines without the C++ module."""

from __future__ import annotations

import numba
import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.cast import kernel
from asys_bench.kernels.simd.jit import (
    KINDS,
    Array,
    chosen,
    entry,
    to_bfloat16,
    to_float16,
    widen,
    words_of,
)


@entry(numba.int64, numba.int64[:], numba.uint16[:, :], numba.int64)
def _encode(words: Array, kind: int, rows: Array, codes: Array, bfloat16: int) -> None:
    for i in range(len(rows)):
        for j in range(words.shape[1]):
            bits = widen(np.int64(words[rows[i], j]), kind)
            codes[i, j] = to_bfloat16(bits) if bfloat16 else to_float16(bits)


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None, bfloat16: int) -> int:
    """As `kernel.write`."""
    words = words_of(tensor)
    if words is None:
        return kernel.write(tensor, out, positions, bfloat16)
    rows = chosen(positions, len(words))
    shape = (len(rows), words.shape[1])
    count: int = shape[0] * shape[1]
    if count:
        codes = np.frombuffer(out, np.uint16, count).reshape(shape)
        _encode(words, KINDS[tensor.dtype], rows, codes, bfloat16)
    return count * 2
