"""topk in plain torch: the definition that every other version matches byte for byte."""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import tensor_view
from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.cast.reference import QUIET_NAN
from asys_bench.kernels.simd.sections import aligned, float_rows, two_sections

NAN_KEY = 0x7F800001
"""The sort key of every NaN: past infinity, and the same for all, so that the index decides."""
SHORT_INDEX_WIDTH = 1 << 16
"""Rows of at most this many elements have uint16 indices, wider ones uint32."""


def index_bytes(width: int) -> int:
    """Bytes of one index into a row of `width` elements."""
    return 2 if width <= SHORT_INDEX_WIDTH else 4


def value_bytes(bfloat16: int) -> int:
    """Bytes of one kept value."""
    return 2 if bfloat16 else 4


def payload_bytes(rows: int, width: int, k: int, bfloat16: int) -> int:
    """Size of the whole payload."""
    kept = rows * min(k, width)
    return two_sections(kept * value_bytes(bfloat16), kept * index_bytes(width))


def selected(rows_ND: torch.Tensor, k: int) -> torch.Tensor:
    """int64[N, min(k, D)]: indices of the largest magnitudes, ascending.

    Magnitudes are compared as the bits of |x| (which order as the numbers do), NaN above infinity;
    of equal ones the lower index is kept.
    """
    bits_ND = rows_ND.contiguous().view(torch.int32) & 0x7FFFFFFF
    order_ND = bits_ND.clamp_max(NAN_KEY).sort(dim=1, descending=True, stable=True).indices
    return order_ND[:, :k].sort(dim=1).values


def write(
    tensor: torch.Tensor, out: memoryview, positions: Positions | None, k: int, bfloat16: int
) -> int:
    """Write the payload of `tensor` (or of its rows at `positions`); returns its bytes."""
    rows_ND = float_rows("topk", tensor, positions)
    if rows_ND.numel() == 0:
        return 0
    rows, width = rows_ND.shape
    index_NK = selected(rows_ND, k)
    value_NK = rows_ND.gather(1, index_NK)
    kept = tuple(index_NK.shape)
    if bfloat16:
        bits_NK = value_NK.to(torch.bfloat16).view(torch.int16)
        bits_NK = torch.where(value_NK.isnan(), QUIET_NAN[torch.bfloat16], bits_NK)
    else:
        bits_NK = torch.where(value_NK.isnan(), 0x7FC00000, value_NK.view(torch.int32))
    tensor_view(out, bits_NK.dtype, kept).copy_(bits_NK)
    end = index_NK.numel() * value_bytes(bfloat16)
    start = aligned(end)
    out[end:start] = bytes(start - end)
    short = torch.int16 if index_bytes(width) == 2 else torch.int32  # the bits of the unsigned ones
    tensor_view(out, short, kept, offset=start).copy_(index_NK.to(short))
    return payload_bytes(rows, width, k, bfloat16)
