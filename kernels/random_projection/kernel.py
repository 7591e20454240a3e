"""Rows [N, D] times a seeded random matrix [D, d_out]: distances survive, coordinates do not.

The decoded tensor is the projected one, float32 [..., d_out]; it is linear in the captured tensor, so
sums and means of projections are projections of sums and means. By the Johnson-Lindenstrauss lemma
d_out of order log(n) / e^2 keeps the distances among n rows within a factor 1 +- e. The matrix is
made again from the encoding's name (`MatrixRule`). A row with a NaN or an infinity projects
to non-finite values (0 * inf is NaN). Cost: D * d_out multiply-adds per row in the hook.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from asys_bench.contracts.packet import PacketError, tensor_bytes, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Positions,
    Preprocessor,
    Role,
    Stage,
    Staged,
    rows_and_width,
)
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.sections import float_rows, refuse_non_float
from asys_bench.kernels.simd.splitmix import Words, draw_key, hashes32

PANEL = 64
"""Columns that lie together: the compiled code keeps that many sums in registers."""
MAX_MATRIX_BYTES = 1 << 30
_SIXTH = (1 << 32) // 6

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MatrixRule:
    """The random matrix [d_in, d_out] as float32, from a seed alone. kind: "gaussian" or "achlioptas".

    Entry (j, o) comes from h = h(j * d_out + o) of `kernels.simd.splitmix` under draw_key(seed, d_in):

    - gaussian: ndtri((h + 1/2) / 2^32) / sqrt(d_out), with ndtri the inverse of the normal distribution
      function (Johnson & Lindenstrauss 1984; Indyk & Motwani 1998);
    - achlioptas: sqrt(3 / d_out) * (+1 if h < T, -1 if T <= h < 2 T, else 0), T = 2^32 // 6 (Achlioptas,
      "Database-friendly random projections", JCSS 66 (2003), eq. 2).

    Both keep squared lengths in expectation: E |x R|^2 = |x|^2.
    """

    kind: str
    d_out: int
    seed: int

    @property
    def name(self) -> str:
        """For example `gaussian.d64.seed0`."""
        return f"{self.kind}.d{self.d_out}.seed{self.seed}"

    def panels(self, d_in: int) -> FloatArray:
        """float32[ceil(d_out / 64), d_in, 64]: 64 columns at a time, zeros past the last column.

        Raises:
            PacketError: the matrix would take more than 1 GiB.
        """
        count = -(-self.d_out // PANEL)
        if count * PANEL * d_in * 4 > MAX_MATRIX_BYTES:
            raise PacketError(
                f"random_projection of {d_in} to {self.d_out} needs more than 1 GiB for its matrix; "
                "lower d_out"
            )
        panels = np.zeros((count, d_in, PANEL), dtype=np.float32)
        key = draw_key(self.seed, d_in)
        row: Words = np.arange(d_in, dtype=np.uint64)[:, None] * np.uint64(self.d_out)
        for index in range(count):
            first, last = index * PANEL, min((index + 1) * PANEL, self.d_out)
            column: Words = np.arange(first, last, dtype=np.uint64)
            h = hashes32(key, row + column)
            panels[index, :, : last - first] = self._entries(h)
        return panels

    def _entries(self, h: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        if self.kind == "gaussian":
            from scipy.special import ndtri

            normal: npt.NDArray[np.float64] = ndtri((h + 0.5) / 2.0**32)
            return normal / math.sqrt(self.d_out)
        sign = np.where(h < _SIXTH, 1.0, np.where(h < 2 * _SIXTH, -1.0, 0.0))
        return sign * math.sqrt(3.0 / self.d_out)


def dense(panels: FloatArray, d_out: int) -> FloatArray:
    """The matrix [d_in, d_out] that `panels` hold."""
    count, d_in, _ = panels.shape
    return panels.transpose(1, 0, 2).reshape(d_in, count * PANEL)[:, :d_out]


class RandomProjectionOptions(KernelOptions):
    """Options of the `random_projection` preprocessor."""

    d_out: int = Field(
        default=64, ge=1, le=65536, description="elements per row after the projection"
    )
    matrix: Literal["gaussian", "achlioptas"] = Field(
        default="gaussian",
        description="entries: normal of variance 1 / d_out, or sqrt(3 / d_out) times +1, 0, -1 with "
        "probabilities 1/6, 2/3, 1/6",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="seed of the matrix")
    d_in: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="width of the hooked rows, to make the matrix when the run starts; null makes "
        "it in the first call of the hook",
    )


def project(rows_ND: torch.Tensor, panels: FloatArray, d_out: int) -> torch.Tensor:
    """float32 [N, D] -> [N, d_out]."""
    matrix_DO = torch.from_numpy(dense(panels, d_out))
    sums_NO = torch.zeros(len(rows_ND), d_out)
    for j in range(rows_ND.shape[1]):
        sums_NO += rows_ND[:, j, None] * matrix_DO[j]
    return torch.where(sums_NO.isnan(), torch.nan, sums_NO)


def write(
    tensor: torch.Tensor,
    out: memoryview,
    positions: Positions | None,
    d_out: int,
    panels: FloatArray,
) -> int:
    """Write the projected rows of `tensor` (or those at `positions`); returns their bytes.

    Plain torch; every other version writes the same bytes.

    Floating-point sums depend on their order, so it is part of the definition: sums start at +0 and add
    x[j] * R[j, o] for j = 0, 1, ..., product and sum each rounded to float32 (no fused multiply-add).
    Every NaN is sent as the positive quiet one.
    """
    rows_ND = float_rows("random_projection", tensor, positions)
    if len(rows_ND):
        projected_NO = project(rows_ND.cpu(), panels, d_out)
        tensor_view(out, torch.float32, tuple(projected_NO.shape)).copy_(projected_NO)
    return len(rows_ND) * d_out * 4


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


_ENCODING = re.compile(
    r"random_projection\.(gaussian|achlioptas)\.d([1-9][0-9]{0,4})\.seed(0|[1-9][0-9]{0,18})"
)


def _build(options: RandomProjectionOptions) -> Preprocessor:
    rule = MatrixRule(options.matrix, options.d_out, options.seed)
    return RandomProjectionPreprocessor(rule, d_in=options.d_in)


def _decoder(encoding: str) -> Preprocessor | None:
    found = _ENCODING.fullmatch(encoding)
    if found is None:
        return None
    return RandomProjectionPreprocessor(MatrixRule(found[1], int(found[2]), int(found[3])), TORCH)


plugin = KernelPlugin(
    name="random_projection",
    summary="each row times a seeded random matrix",
    options=RandomProjectionOptions,
    build=_build,
    decoder=_decoder,
    role=Role.STAGE,
)
