# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Chosen rows as they are, on the device: what ends a chain of stages without an encoder.

Entry point `asys.device_encoder: identity`. A hook with `identity` alone does not come here: its
tensors are copied by the device's copy engine.
"""

import torch
import triton
import triton.language as tl

from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.kernels.triton_runtime.encoder import EXACT, GpuPlugin, TritonEncoder
from asys_bench.kernels.triton_runtime.row_tiles import load_tile, row_tiles
from asys_bench.kernels.triton_runtime.row_view import RowView

_CARRIER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["rows", "n1", "n2", "column_tiles"])
def _gather(
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
    HAS_POSITIONS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    value, place, inside = load_tile(
        x, positions, rows, width, n1, n2, s0, s1, s2, column_tiles, HAS_POSITIONS, ROWS, BLOCK
    )
    tl.store(out + place, value, mask=inside)


class GatherEncoder(TritonEncoder):
    """The elements' own bytes, any dtype of up to 8 bytes."""

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        rows, width = rows_and_width(shape)
        return Encoded(rows * width * dtype.itemsize, dtype, shape)

    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        carrier = _CARRIER[view.tensor.element_size()]
        grid, arguments, tile = row_tiles(view, positions)
        _gather[grid](view.tensor.view(carrier), out.view(carrier), *arguments, **tile, **EXACT)


def _build(encoding: str) -> TritonEncoder | None:
    return GatherEncoder() if encoding == "identity" else None


plugin = GpuPlugin("identity", "chosen rows as they are, one Triton kernel", _build)
