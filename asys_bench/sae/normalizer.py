"""Running mean and scale of a stream of rows that drifts.

A plain (weighted) average over the first `window_rows` rows, an exponential window of that length
afterwards. Chunks are merged by Chan et al. 1979's update, so a large mean does not eat the
variance's digits.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from asys_bench.sae.state import StateDict, number_of, tensor_of

LEAST_SQUARE = 1e-24
"""Below this the rows count as constant (or zero) and are not scaled."""


class Normalizer:
    """Mean, total variance and mean norm of rows float32[*, D]."""

    def __init__(self, d_in: int, mode: Literal["none", "std", "norm"], window_rows: int) -> None:
        self.mode = mode
        self._d_in, self._window = d_in, window_rows
        self._rows = 0.0
        self.mean_D = torch.zeros(d_in, dtype=torch.float64)
        self.variance = 0.0
        """E||x - mean||^2."""
        self.mean_norm = 0.0
        """E||x||."""

    def update(self, rows_ND: torch.Tensor, weight_N: torch.Tensor) -> None:
        """Take in finite rows; row i counts as `weight_N[i]` > 0 rows."""
        if len(rows_ND) == 0:
            return
        mass = float(weight_N.double().sum())
        share_N = weight_N / weight_N.sum()
        chunk_mean_D = share_N @ rows_ND
        chunk_variance = float(share_N @ (rows_ND - chunk_mean_D).square().sum(1))
        chunk_norm = float(share_N @ torch.linalg.vector_norm(rows_ND, dim=1))
        self._rows = min(self._rows + mass, max(float(self._window), mass))
        new = mass / self._rows
        gap_D = chunk_mean_D.double() - self.mean_D
        gap = float(gap_D.square().sum())
        self.variance = (1 - new) * self.variance + new * chunk_variance + new * (1 - new) * gap
        self.mean_D += new * gap_D
        self.mean_norm += new * (chunk_norm - self.mean_norm)

    @property
    def scale(self) -> float:
        """s such that s * x has the wanted size; 1.0 for constant rows."""
        square = {"none": 0.0, "std": self.variance, "norm": self.mean_norm**2}[self.mode]
        if not math.isfinite(square) or square <= LEAST_SQUARE:
            return 1.0
        return math.sqrt(self._d_in / square)

    def state_dict(self) -> StateDict:
        return {
            "rows": self._rows,
            "mean": self.mean_D,
            "variance": self.variance,
            "mean_norm": self.mean_norm,
        }

    def load_state_dict(self, state: StateDict) -> None:
        self._rows = number_of(state, "rows")
        self.variance = number_of(state, "variance")
        self.mean_norm = number_of(state, "mean_norm")
        self.mean_D.copy_(tensor_of(state, "mean"))
