# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Element-wise kernels over rows: each program takes one tile of some rows by some columns. Offsets are
64-bit: activations pass 2**31 elements."""

from typing import Any

import torch
import triton
import triton.language as tl

from asys_bench.kernels.triton_runtime.row_view import RowView


@triton.jit
def source_row(row, valid, positions, HAS_POSITIONS: tl.constexpr):
    """The tensor's row that output row `row` reads: positions[row], or itself."""
    if HAS_POSITIONS:
        return tl.load(positions + row, mask=valid, other=0)
    else:
        return row


@triton.jit
def row_start(row, n1, n2, s0, s1, s2):
    """Element offset of each of `row` (int64); see `row_view.RowView`."""
    outer = row // n2
    return (outer // n1) * s0 + (outer % n1) * s1 + (row % n2) * s2


NARROW = 256
"""Rows up to this width share a program with many others."""


def row_tiles(
    view: RowView, positions: torch.Tensor | None
) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    """Grid, run-time arguments (from `positions` to `column_tiles`) and constants of a launch."""
    rows = view.rows if positions is None else positions.numel()
    block, together = (128, 16) if view.width <= NARROW else (1024, 2)
    column_tiles = triton.cdiv(view.width, block)
    arguments = (
        view.tensor if positions is None else positions,
        rows,
        view.width,
        *view.geometry,
        column_tiles,
    )
    tile = {"HAS_POSITIONS": positions is not None, "ROWS": together, "BLOCK": block}
    return (triton.cdiv(rows, together) * column_tiles,), arguments, tile


@triton.jit
def load_tile(
    x,
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
    """This program's elements [ROWS, BLOCK], where they go in a dense [rows, width], and which exist."""
    program = tl.program_id(0)
    row = (program // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % column_tiles) * BLOCK + tl.arange(0, BLOCK)
    valid = row < rows
    start = row_start(source_row(row, valid, positions, HAS_POSITIONS), n1, n2, s0, s1, s2)
    inside = valid[:, None] & (column < width)[None, :]
    value = tl.load(x + start[:, None] + column[None, :], mask=inside, other=0)
    return value, row[:, None] * width + column[None, :], inside
