# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""topk on the device. Entry point `asys.device_encoder: topk`.

One program per row, in three walks over it (the second and third out of the cache): find the k-th
largest key by bisection over its 31 bits, then write what lies above it, and of the equal ones those
of lowest index. `torch.topk` breaks ties differently on every device, and would need keys of 64 bits
and two sorts to be made to agree with the reference.
"""

import re

import torch
import triton
import triton.language as tl

from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.kernels.simd.sections import aligned, refuse_non_float
from asys_bench.kernels.topk.kernel import index_bytes, payload_bytes, value_bytes
from asys_bench.kernels.triton_runtime.encoder import EXACT, GpuPlugin, TritonEncoder
from asys_bench.kernels.triton_runtime.float_bits import (
    MAGNITUDE,
    QUIET_NAN,
    bfloat16_bits,
    bits_of,
    is_nan,
    widened,
)
from asys_bench.kernels.triton_runtime.row_tiles import row_start, source_row
from asys_bench.kernels.triton_runtime.row_view import RowView

NAN_KEY = tl.constexpr(0x7F800001)
GAP = tl.constexpr(32)
"""Places of two (or four) bytes between the arrays, at most."""


@triton.jit
def _load(x, start, column, width):
    return widened(tl.load(x + start + column, mask=column < width, other=0))


@triton.jit
def _keys(value, column, width):
    """Bits of |x|, one key for every NaN, -1 past the row's end."""
    return tl.where(column < width, tl.minimum(bits_of(value) & MAGNITUDE, NAN_KEY), -1)


@triton.jit(do_not_specialize=["n1", "n2", "rows", "kept", "gap"])
def _select(
    x,
    values,
    indices,
    positions,
    rows,
    width,
    n1,
    n2,
    s0,
    s1,
    s2,
    kept,
    gap,
    BFLOAT16: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row_start(source_row(row, row >= 0, positions, HAS_POSITIONS), n1, n2, s0, s1, s2)
    lane = tl.arange(0, BLOCK)

    threshold = 0  # the largest key that at least `kept` keys reach
    for step in range(0, 31):
        candidate = threshold | (1 << (30 - step))
        reached = 0
        for first in range(0, width, BLOCK):
            key = _keys(_load(x, start, first + lane, width), first + lane, width)
            reached += tl.sum((key >= candidate).to(tl.int32), axis=0)
        threshold = tl.where(reached >= kept, candidate, threshold)

    above = 0
    for first in range(0, width, BLOCK):
        key = _keys(_load(x, start, first + lane, width), first + lane, width)
        above += tl.sum((key > threshold).to(tl.int32), axis=0)

    written = 0
    ties_left = kept - above
    for first in range(0, width, BLOCK):
        column = first + lane
        value = _load(x, start, column, width)
        key = _keys(value, column, width)
        tie = (key == threshold).to(tl.int32)
        chosen = (key > threshold) | ((tie == 1) & (tl.cumsum(tie, axis=0) <= ties_left))
        rank = written + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        place = row * kept + rank
        if BFLOAT16:
            bits = bfloat16_bits(value).to(tl.int16)
        else:
            bits = tl.where(is_nan(value), QUIET_NAN, bits_of(value))
        tl.store(values + place, bits, mask=chosen)
        tl.store(indices + place, column.to(indices.dtype.element_ty), mask=chosen)
        written += tl.sum(chosen.to(tl.int32), axis=0)
        ties_left -= tl.sum(tie, axis=0)

    between = tl.arange(0, GAP)
    nothing = tl.zeros([GAP], values.dtype.element_ty)
    end = tl.cast(rows, tl.int64) * kept
    tl.store(values + end + between, nothing, mask=between < tl.where(row == 0, gap, 0))


class TopKEncoder(TritonEncoder):
    """k: kept per row. bfloat16: the values' dtype on the wire, else float32."""

    def __init__(self, encoding: str, k: int, bfloat16: bool) -> None:
        self._encoding, self._k, self._bfloat16 = encoding, k, bfloat16

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        refuse_non_float(self._encoding, dtype)
        nbytes = payload_bytes(*rows_and_width(shape), self._k, int(self._bfloat16))
        return Encoded(nbytes, dtype, shape)

    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        rows = view.rows if positions is None else positions.numel()
        kept = min(self._k, view.width)
        size = value_bytes(int(self._bfloat16))
        end = rows * kept * size
        start = aligned(end)
        value_dtype = torch.int16 if self._bfloat16 else torch.int32
        index_dtype = torch.int16 if index_bytes(view.width) == 2 else torch.int32
        wide = view.width > 1024
        _select[(rows,)](
            view.tensor,
            out[:start].view(value_dtype),
            out[start:].view(index_dtype),
            view.tensor if positions is None else positions,
            rows,
            view.width,
            *view.geometry,
            kept,
            (start - end) // size,
            BFLOAT16=self._bfloat16,
            HAS_POSITIONS=positions is not None,
            BLOCK=4096 if wide else 1024,
            num_warps=8 if wide else 4,
            **EXACT,
        )


_ENCODING = re.compile(r"topk\.k([1-9]\d*)\.(float32|bfloat16)")


def _build(encoding: str) -> TritonEncoder | None:
    found = _ENCODING.fullmatch(encoding)
    if found is None:
        return None
    return TopKEncoder(encoding, int(found[1]), found[2] == "bfloat16")


plugin = GpuPlugin("topk", "the k largest magnitudes per row, one Triton kernel", _build)
