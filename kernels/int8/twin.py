"""int8 compiled by numba, for machines without the C++ module."""

from __future__ import annotations

import numba
import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.int8 import reference
from asys_bench.kernels.simd.jit import KINDS, Array, chosen, entry, row_scale, words_of
from asys_bench.kernels.simd.scaled_rows import largest_scale
from asys_bench.kernels.simd.sections import aligned, two_sections


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
    """As `reference.write`."""
    words = words_of(tensor)
    if words is None:
        return reference.write(tensor, out, positions)
    rows = chosen(positions, len(words))
    shape = (len(rows), words.shape[1])
    nbytes = two_sections(4 * shape[0], shape[0] * shape[1])
    if nbytes:
        start = aligned(4 * shape[0])
        scales = np.frombuffer(out, np.float32, shape[0])
        codes = np.frombuffer(out, np.int8, shape[0] * shape[1], start).reshape(shape)
        out[4 * shape[0] : start] = bytes(start - 4 * shape[0])
        limits = reference.CODE_MAX, largest_scale(reference.CODE_MAX)
        _encode(words, KINDS[tensor.dtype], rows, scales, codes, *limits)
    return nbytes
