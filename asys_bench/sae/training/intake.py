"""Packets on their way into the reservoir.

Hooks of small policies send a row or two per packet, so a packet is only copied and put on a list;
the costly part (finiteness, statistics, shuffling) runs over blocks. What is on the list is part of
the trainer's state, which keeps block borders, and with them resumed runs, exact.
"""

from __future__ import annotations

import torch

from asys_bench.sae.checkpoint.state import StateDict
from asys_bench.sae.training.row_block import RowBlock

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
