"""topk compiled by numba, for machines without the C++ module."""

from __future__ import annotations

import numba
import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.jit import (
    KINDS,
    Array,
    Number,
    chosen,
    entry,
    inner,
    to_bfloat16,
    widen,
    words_of,
)
from asys_bench.kernels.simd.sections import aligned
from asys_bench.kernels.topk import kernel


@inner
def _kept_value(bits: Number, bfloat16: int) -> Number:
    if bfloat16:
        return to_bfloat16(bits)
    return 0x7FC00000 if bits & 0x7FFFFFFF > 0x7F800000 else bits


@entry(
    numba.int64, numba.int64[:], numba.int64,
    numba.uint32[:, :], numba.uint16[:, :], numba.uint32[:, :], numba.uint16[:, :],
)  # fmt: skip
def _encode(
    words: Array, kind: int, rows: Array, kept: int,
    wide_values: Array, narrow_values: Array, wide_index: Array, narrow_index: Array,
) -> None:  # fmt: skip
    """Of each pair of outputs one is empty: values as uint32 or uint16, indices likewise.

    The kept-th largest key is found bit by bit, by counting (np.partition takes seconds to compile).
    """
    width = words.shape[1]
    bits = np.empty(width, dtype=np.int64)
    keys = np.empty(width, dtype=np.int32)
    for i in range(len(rows)):
        for j in range(width):
            bits[j] = widen(np.int64(words[rows[i], j]), kind)
            keys[j] = min(bits[j] & 0x7FFFFFFF, 0x7F800001)
        limit = np.int32(0)
        for shift in range(30, -1, -1):
            candidate = limit | np.int32(1 << shift)
            reached = 0
            for j in range(width):
                reached += keys[j] >= candidate
            if reached >= kept:
                limit = candidate
        equal = kept
        for j in range(width):
            equal -= keys[j] > limit
        slot = 0
        for j in range(width):
            if keys[j] < limit or (keys[j] == limit and equal == 0):
                continue
            equal -= keys[j] == limit
            if narrow_values.size:
                narrow_values[i, slot] = _kept_value(bits[j], 1)
            else:
                wide_values[i, slot] = _kept_value(bits[j], 0)
            if narrow_index.size:
                narrow_index[i, slot] = j
            else:
                wide_index[i, slot] = j
            slot += 1


def write(
    tensor: torch.Tensor, out: memoryview, positions: Positions | None, k: int, bfloat16: int
) -> int:
    """As `kernel.write`."""
    words = words_of(tensor)
    if words is None:
        return kernel.write(tensor, out, positions, k, bfloat16)
    rows = chosen(positions, len(words))
    width = words.shape[1]
    kept = (len(rows), min(k, width))
    nbytes = kernel.payload_bytes(len(rows), width, k, bfloat16)
    if nbytes:
        count = kept[0] * kept[1]
        end = count * kernel.value_bytes(bfloat16)
        start = aligned(end)
        out[end:start] = bytes(start - end)
        values = _pair(out, count, 0, kept, short=bool(bfloat16))
        index = _pair(out, count, start, kept, short=kernel.index_bytes(width) == 2)
        _encode(words, KINDS[tensor.dtype], rows, kept[1], *values, *index)
    return nbytes


def _pair(
    out: memoryview, count: int, offset: int, shape: tuple[int, int], *, short: bool
) -> tuple[Array, Array]:
    """The section as (uint32, uint16), the other one empty."""
    if short:
        narrow = np.frombuffer(out, np.uint16, count, offset).reshape(shape)
        return np.empty((0, 0), dtype=np.uint32), narrow
    wide = np.frombuffer(out, np.uint32, count, offset).reshape(shape)
    return wide, np.empty((0, 0), dtype=np.uint16)
