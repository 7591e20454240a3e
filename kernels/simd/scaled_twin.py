"""What the numba twins of int8 and fp8 share: where scales and codes go in the payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.jit import KINDS, chosen, words_of
from asys_bench.kernels.simd.scaled_rows import largest_scale
from asys_bench.kernels.simd.sections import aligned, two_sections


def write_scaled(
    tensor: torch.Tensor,
    out: memoryview,
    positions: Positions | None,
    *,
    encode: Callable[..., None],
    code_dtype: npt.DTypeLike,
    code_max: float,
) -> int | None:
    """The payload of `scaled_rows` in `out`, and its bytes; None: not a tensor for compiled code.

    encode: (words, kind, rows, scales, codes, code_max, largest scale), compiled.
    """
    words = words_of(tensor)
    if words is None:
        return None
    rows = chosen(positions, len(words))
    shape = (len(rows), words.shape[1])
    nbytes = two_sections(4 * shape[0], shape[0] * shape[1])
    if nbytes:
        start = aligned(4 * shape[0])
        scales = np.frombuffer(out, np.float32, shape[0])
        codes: Any = np.frombuffer(out, code_dtype, shape[0] * shape[1], start).reshape(shape)
        out[4 * shape[0] : start] = bytes(start - 4 * shape[0])
        kind = KINDS[tensor.dtype]
        encode(words, kind, rows, scales, codes, code_max, largest_scale(code_max))
    return nbytes
