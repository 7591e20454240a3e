# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""cast on the device. Entry point `asys.device_encoder: cast`."""

import torch
import triton
import triton.language as tl

from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.kernels.cast.kernel import TARGETS
from asys_bench.kernels.simd.sections import refuse_non_float
from asys_bench.kernels.triton_runtime.encoder import EXACT, GpuPlugin, TritonEncoder
from asys_bench.kernels.triton_runtime.float_bits import bfloat16_bits, float16_bits, widened
from asys_bench.kernels.triton_runtime.row_tiles import load_tile, row_tiles
from asys_bench.kernels.triton_runtime.row_view import RowView


@triton.jit(do_not_specialize=["rows", "n1", "n2", "column_tiles"])
def _cast(
    x,
    out,
    positions,
    rows,
    width,
    n1,
    n2,
    s0,
    s1,
    s2,
    column_tiles,
    BFLOAT16: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    value, place, inside = load_tile(
        x, positions, rows, width, n1, n2, s0, s1, s2, column_tiles, HAS_POSITIONS, ROWS, BLOCK
    )
    value = widened(value)
    bits = bfloat16_bits(value) if BFLOAT16 else float16_bits(value)
    tl.store(out + place, bits.to(tl.int16), mask=inside)


class CastEncoder(TritonEncoder):
    """Two bytes per element."""

    def __init__(self, encoding: str, bfloat16: bool) -> None:
        self._encoding, self._bfloat16 = encoding, bfloat16

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        refuse_non_float(self._encoding, dtype)
        rows, width = rows_and_width(shape)
        return Encoded(rows * width * 2, dtype, shape)

    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        grid, arguments, tile = row_tiles(view, positions)
        _cast[grid](
            view.tensor, out.view(torch.int16), *arguments, BFLOAT16=self._bfloat16, **tile, **EXACT
        )


def _build(encoding: str) -> TritonEncoder | None:
    kernel, _, dtype = encoding.partition(".")
    return (
        CastEncoder(encoding, dtype == "bfloat16")
        if kernel == "cast" and dtype in TARGETS
        else None
    )


plugin = GpuPlugin("cast", "float16 or bfloat16, one Triton kernel", _build)
