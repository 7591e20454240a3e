# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""int8 and fp8 on the device: `kernels.simd.scaled_rows` says what is computed and written."""

import torch
import triton
import triton.language as tl

from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.kernels.simd.scaled_rows import SMALLEST, largest_scale
from asys_bench.kernels.simd.sections import aligned, refuse_non_float, two_sections
from asys_bench.kernels.triton_runtime.encoder import EXACT, TritonEncoder
from asys_bench.kernels.triton_runtime.float_bits import (
    E4M3_NAN,
    e4m3_bits,
    is_finite,
    round_half_even,
    widened,
)
from asys_bench.kernels.triton_runtime.row_tiles import row_start, source_row
from asys_bench.kernels.triton_runtime.row_view import RowView

NON_FINITE_INT8 = tl.constexpr(-128)
GAP = tl.constexpr(16)
"""float32 places between the arrays, at most."""
NARROW = 256
"""Rows up to this width share a program with others."""


@triton.jit(do_not_specialize=["rows", "n1", "n2", "gap"])
def _quantise(
    x,
    scales,
    codes,
    positions,
    rows,
    width,
    n1,
    n2,
    s0,
    s1,
    s2,
    gap,
    CODE_MAX: tl.constexpr,
    LARGEST: tl.constexpr,
    FLOOR: tl.constexpr,
    FP8: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    start = row_start(source_row(row, valid, positions, HAS_POSITIONS), n1, n2, s0, s1, s2)
    column = tl.arange(0, BLOCK)

    peak = tl.full([ROWS], FLOOR, tl.float32)
    for first in range(0, width, BLOCK):
        inside = valid[:, None] & (first + column < width)[None, :]
        value = tl.load(x + start[:, None] + (first + column)[None, :], mask=inside, other=0)
        value = widened(value)
        peak = tl.maximum(peak, tl.max(tl.where(is_finite(value), tl.abs(value), 0.0), axis=1))

    code_max = tl.full([ROWS], CODE_MAX, tl.float32)
    scale = tl.minimum(tl.div_rn(peak, code_max), tl.full([ROWS], LARGEST, tl.float32))
    inverse = tl.div_rn(code_max, peak)
    tl.store(scales + row, scale, mask=valid)
    between = tl.arange(0, GAP)
    tl.store(
        scales + rows + between,
        tl.zeros([GAP], tl.float32),
        mask=between < tl.where(tl.program_id(0) == 0, gap, 0),
    )

    for first in range(0, width, BLOCK):
        inside = valid[:, None] & (first + column < width)[None, :]
        value = tl.load(x + start[:, None] + (first + column)[None, :], mask=inside, other=0)
        value = widened(value)
        finite = is_finite(value)
        scaled = tl.where(finite, value, 0.0) * inverse[:, None]
        if FP8:
            limited = tl.minimum(tl.maximum(scaled, -CODE_MAX), CODE_MAX)
            code = tl.where(finite, e4m3_bits(limited), E4M3_NAN)
        else:
            code = tl.where(finite, round_half_even(scaled), NON_FINITE_INT8)
        place = row[:, None] * width + (first + column)[None, :]
        tl.store(codes + place, code.to(tl.int8), mask=inside)


class ScaledRowsEncoder(TritonEncoder):
    """code_max: of int8 or e4m3. fp8: write e4m3 codes."""

    def __init__(self, encoding: str, code_max: float, fp8: bool) -> None:
        self._encoding, self._code_max, self._fp8 = encoding, code_max, fp8

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        refuse_non_float(self._encoding, dtype)
        rows, width = rows_and_width(shape)
        return Encoded(two_sections(4 * rows, rows * width), dtype, shape)

    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        rows = view.rows if positions is None else positions.numel()
        codes = aligned(4 * rows)
        block, together = (128, 16) if view.width <= NARROW else (1024, 2)
        _quantise[(triton.cdiv(rows, together),)](
            view.tensor,
            out[:codes].view(torch.float32),
            out[codes:].view(torch.int8),
            view.tensor if positions is None else positions,
            rows,
            view.width,
            *view.geometry,
            codes // 4 - rows,
            CODE_MAX=self._code_max,
            LARGEST=largest_scale(self._code_max),
            FLOOR=SMALLEST,
            FP8=self._fp8,
            HAS_POSITIONS=positions is not None,
            ROWS=together,
            BLOCK=block,
            **EXACT,
        )
