"""Rows [N, D] times a seeded random matrix [D, d_out]: distances survive, coordinates do not.

The decoded tensor is the projected one, float32 [..., d_out]; it is linear in the captured tensor, so
sums and means of projections are projections of sums and means. By the Johnson-Lindenstrauss lemma
d_out of order log(n) / e^2 keeps the distances among n rows within a factor 1 +- e. The matrix is
made again from the encoding's name (`matrix.MatrixRule`). A row with a NaN or an infinity projects
to non-finite values (0 * inf is NaN). Cost: D * d_out multiply-adds per row in the hook.
"""

from __future__ import annotations

from math import prod

import torch

from asys_bench.contracts.packet import tensor_bytes
from asys_bench.contracts.preprocessor import (
    Encoded,
    Positions,
    Stage,
    Staged,
    rows_and_width,
)
from asys_bench.kernels.random_projection.matrix import FloatArray, MatrixRule
from asys_bench.kernels.random_projection.reference import write
from asys_bench.kernels.simd.implementations import Implementations
from asys_bench.kernels.simd.sections import refuse_non_float

IMPLEMENTATIONS = Implementations("project", "asys_bench.kernels.random_projection.twin", write)


class RandomProjectionPreprocessor(Stage):
    """Projects rows by `rule`; `implementation` None takes the best one here.

    d_in: make the matrix for rows of this width now.

    Raises:
        PacketError: that matrix would take more than 1 GiB.
    """

    def __init__(
        self, rule: MatrixRule, implementation: str | None = None, *, d_in: int | None = None
    ) -> None:
        self.encoding = f"random_projection.{rule.name}"
        self._rule = rule
        self._write = IMPLEMENTATIONS.writer(implementation, rule.d_out)
        self._panels: FloatArray | None = None
        if d_in is not None:
            self.panels(d_in)

    def panels(self, d_in: int) -> FloatArray:
        """The matrix for rows of width `d_in`, made once per width in a row."""
        if self._panels is None or self._panels.shape[1] != d_in:
            self._panels = self._rule.panels(d_in)
        return self._panels

    def staged(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        refuse_non_float(self.encoding, dtype)
        return (*shape[:-1], self._rule.d_out), torch.float32

    def apply(self, tensor: torch.Tensor) -> Staged:
        shape, _ = self.staged(tensor.shape, tensor.dtype)
        projected = torch.empty(shape, dtype=torch.float32)
        if projected.numel():
            memory = tensor_bytes(projected)
            self._write(tensor, memory, None, self.panels(rows_and_width(tensor.shape)[1]))
        return Staged(projected)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        shape, dtype = self.staged(tensor.shape, tensor.dtype)
        nbytes = 0
        if prod(shape):
            panels = self.panels(rows_and_width(tensor.shape)[1])
            nbytes = self._write(tensor, out, None, panels)
        return Encoded(nbytes, dtype, shape)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        width = rows_and_width(tensor.shape)[1]
        shape, dtype = self.staged((len(positions), width), tensor.dtype)
        nbytes = self._write(tensor, out, positions, self.panels(width)) if len(positions) else 0
        return Encoded(nbytes, dtype, shape)

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        del encoded
        return self.apply(tensor).tensor
