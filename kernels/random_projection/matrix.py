"""The random matrix [d_in, d_out] as float32, from a seed alone.

Entry (j, o) comes from h = h(j * d_out + o) of `kernels.simd.splitmix` under draw_key(seed, d_in):

- gaussian: ndtri((h + 1/2) / 2^32) / sqrt(d_out), with ndtri the inverse of the normal distribution
  function (Johnson & Lindenstrauss 1984; Indyk & Motwani 1998);
- achlioptas: sqrt(3 / d_out) * (+1 if h < T, -1 if T <= h < 2 T, else 0), T = 2^32 // 6 (Achlioptas,
  "Database-friendly random projections", JCSS 66 (2003), eq. 2).

Both keep squared lengths in expectation: E |x R|^2 = |x|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.packet import PacketError
from asys_bench.kernels.simd.splitmix import Words, draw_key, hashes32

PANEL = 64
"""Columns that lie together: the compiled code keeps that many sums in registers."""
MAX_MATRIX_BYTES = 1 << 30
_SIXTH = (1 << 32) // 6

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MatrixRule:
    """kind: "gaussian" or "achlioptas"."""

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
