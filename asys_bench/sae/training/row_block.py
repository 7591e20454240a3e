"""Rows with what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asys_bench.sae.checkpoint.state import StateDict, tensor_of


@dataclass(frozen=True, slots=True)
class RowBlock:
    """N rows in the order in which they came."""

    rows_ND: torch.Tensor
    """float32[N, D]."""
    weight_N: torch.Tensor
    """float32[N]: how many rows each stands for."""
    step_N: torch.Tensor
    """int64[N]: host step of capture."""
    version_N: torch.Tensor
    """int64[N]: the host's weights version at capture."""

    def __len__(self) -> int:
        return len(self.rows_ND)

    def __getitem__(self, which: slice | torch.Tensor) -> RowBlock:
        """A slice (views) or a selection by index or mask (copies)."""
        return RowBlock(
            self.rows_ND[which], self.weight_N[which], self.step_N[which], self.version_N[which]
        )

    @classmethod
    def empty(cls, d_in: int) -> RowBlock:
        return cls.uniform(torch.zeros(0, d_in))

    @classmethod
    def uniform(
        cls, rows_ND: torch.Tensor, weight: float = 1.0, step: int = 0, version: int = 0
    ) -> RowBlock:
        """Rows of one packet."""
        count = (len(rows_ND),)
        return cls(
            rows_ND,
            torch.full(count, weight),
            torch.full(count, step, dtype=torch.int64),
            torch.full(count, version, dtype=torch.int64),
        )

    @classmethod
    def joined(cls, blocks: Sequence[RowBlock], d_in: int) -> RowBlock:
        if not blocks:
            return cls.empty(d_in)
        return cls(
            torch.cat([block.rows_ND for block in blocks]),
            torch.cat([block.weight_N for block in blocks]),
            torch.cat([block.step_N for block in blocks]),
            torch.cat([block.version_N for block in blocks]),
        )

    def copy_to(self, target: RowBlock, where: slice | torch.Tensor) -> None:
        """Write these rows into `target[where]`."""
        target.rows_ND[where] = self.rows_ND
        target.weight_N[where] = self.weight_N
        target.step_N[where] = self.step_N
        target.version_N[where] = self.version_N

    def state_dict(self) -> StateDict:
        return {
            "rows": self.rows_ND,
            "weight": self.weight_N,
            "step": self.step_N,
            "version": self.version_N,
        }

    @classmethod
    def from_state(cls, state: StateDict, d_in: int) -> RowBlock:
        """Raises ValueError when the state is not of rows of this width."""
        block = cls(*(tensor_of(state, name) for name in ("rows", "weight", "step", "version")))
        rows = len(block.rows_ND)
        columns = (block.weight_N, block.step_N, block.version_N)
        if block.rows_ND.shape[1:] != (d_in,) or any(c.shape != (rows,) for c in columns):
            raise ValueError(f"rows {tuple(block.rows_ND.shape)} are not {d_in} wide")
        return block
