"""random_projection compiled by numba, for machines without the C++ module."""

from __future__ import annotations

import numba
import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.random_projection import kernel
from asys_bench.kernels.random_projection.kernel import PANEL, FloatArray
from asys_bench.kernels.simd.jit import KINDS, Array, chosen, entry, widen, words_of


@entry(numba.int64, numba.int64[:], numba.float32[:, :, ::1], numba.float32[:, :])
def _encode(words: Array, kind: int, rows: Array, panels: Array, projected: Array) -> None:
    width, d_out = words.shape[1], projected.shape[1]
    values = np.empty(width, dtype=np.float32)
    bits = values.view(np.uint32)
    sums = np.empty(PANEL, dtype=np.float32)
    for i in range(len(rows)):
        for j in range(width):
            bits[j] = widen(np.int64(words[rows[i], j]), kind)
        for panel in range(panels.shape[0]):
            sums[:] = 0
            for j in range(width):
                for o in range(PANEL):
                    sums[o] += values[j] * panels[panel, j, o]
            for o in range(min(PANEL, d_out - panel * PANEL)):
                value = sums[o]
                projected[i, panel * PANEL + o] = np.float32(np.nan) if value != value else value


def write(
    tensor: torch.Tensor,
    out: memoryview,
    positions: Positions | None,
    d_out: int,
    panels: FloatArray,
) -> int:
    """As `kernel.write`."""
    words = words_of(tensor)
    if words is None:
        return kernel.write(tensor, out, positions, d_out, panels)
    rows = chosen(positions, len(words))
    if len(rows):
        projected = np.frombuffer(out, np.float32, len(rows) * d_out).reshape(len(rows), d_out)
        _encode(words, KINDS[tensor.dtype], rows, panels, projected)
    return len(rows) * d_out * 4
