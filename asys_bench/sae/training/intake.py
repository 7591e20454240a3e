"""Packets on their way into the reservoir.

Hooks of small policies send a row or two per packet, so a packet is only copied and put on a list;
the costly part (finiteness, statistics, shuffling) runs over blocks. What is on the list is part of
the trainer's state, which keeps block borders, and with them resumed runs, exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, tensor_of


@dataclass(frozen=True, slots=True)
class RowBlock:
    """N rows, with what is known of each, in the order in which they came."""

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


LARGEST = 1e15
"""Rows with larger entries are refused like non-finite ones: their squares overflow float32."""


class Intake:
    """Rows float32[*, D] waiting to be looked at."""

    def __init__(self, d_in: int) -> None:
        self._d_in = d_in
        self._restored = RowBlock.empty(d_in)
        self._rows: list[torch.Tensor] = []
        self._about: list[tuple[float, int, int]] = []
        self.waiting = 0

    def put(
        self, rows_ND: torch.Tensor, weight: float, host_step: int = 0, weights_version: int = 0
    ) -> None:
        """Queue rows that the caller no longer changes."""
        self._rows.append(rows_ND)
        self._about.append((weight, host_step, weights_version))
        self.waiting += len(rows_ND)

    def _merged(self) -> RowBlock:
        if not self._rows:
            return self._restored
        counts = torch.tensor([len(rows) for rows in self._rows])
        weights, steps, versions = zip(*self._about, strict=True)
        fresh = RowBlock(
            torch.cat(self._rows),
            torch.tensor(weights, dtype=torch.float32).repeat_interleave(counts),
            torch.tensor(steps, dtype=torch.int64).repeat_interleave(counts),
            torch.tensor(versions, dtype=torch.int64).repeat_interleave(counts),
        )
        return (
            RowBlock.joined([self._restored, fresh], self._d_in) if len(self._restored) else fresh
        )

    def take(self) -> RowBlock:
        """All queued rows; the queue is empty afterwards."""
        merged = self._merged()
        self._restored = RowBlock.empty(self._d_in)
        self._rows, self._about, self.waiting = [], [], 0
        return merged

    def state_dict(self) -> StateDict:
        return self._merged().state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of rows of this width."""
        self._restored = RowBlock.from_state(state, self._d_in)
        self._rows, self._about, self.waiting = [], [], len(self._restored)


def split_usable(block: RowBlock) -> tuple[RowBlock, int]:
    """The finite rows of sane size, and how many were refused."""
    if len(block) == 0:
        return block, 0
    lowest, highest = torch.aminmax(block.rows_ND)  # NaN where there is any
    if float(lowest) >= -LARGEST and float(highest) <= LARGEST:
        return block, 0
    usable_N = (block.rows_ND.abs() <= LARGEST).all(1)
    return block[usable_N], len(block) - int(usable_N.sum())
