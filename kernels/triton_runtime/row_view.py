"""A strided tensor as a Triton kernel addresses it: rows of contiguous elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asys_bench.contracts.preprocessor import rows_and_width

MAX_LEADING = 3
"""Leading dimensions that a kernel can walk after those that lie evenly were merged."""


@dataclass(frozen=True, slots=True)
class RowView:
    """Row r = (a * n1 + b) * n2 + c starts at element a * s0 + b * s1 + c * s2 of `tensor`, and its
    `width` elements are adjacent."""

    tensor: torch.Tensor
    rows: int
    width: int
    n1: int
    n2: int
    s0: int
    s1: int
    s2: int

    @property
    def geometry(self) -> tuple[int, int, int, int, int]:
        """n1, n2, s0, s1, s2: what `row_start` takes."""
        return self.n1, self.n2, self.s0, self.s1, self.s2


def row_view(tensor: torch.Tensor) -> RowView:
    """The rows where they lie; a tensor whose last dimension has a stride is made contiguous first."""
    tensor = loadable(tensor)
    rows, width = rows_and_width(tensor.shape)
    leading = _merged(tensor)
    if (width > 1 and tensor.stride(-1) != 1) or len(leading) > MAX_LEADING:
        tensor = tensor.contiguous()
        leading = _merged(tensor)
    padded = [(1, 0)] * (MAX_LEADING - len(leading)) + leading
    (_, s0), (n1, s1), (n2, s2) = padded
    return RowView(tensor, rows, width, n1, n2, s0, s1, s2)


def loadable(tensor: torch.Tensor) -> torch.Tensor:
    """As kernels take it: bfloat16 as int16 (see `float_bits.widened`), nothing lazy."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor


def _merged(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the leading dimensions, adjacent ones merged where one stride covers both."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged
