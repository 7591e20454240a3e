# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Where elements lie, inside Triton kernels. Offsets are 64-bit: activations pass 2**31 elements."""

import triton
import triton.language as tl


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
