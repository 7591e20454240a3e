"""Packets on their way into the reservoir.

Hooks of small policies send a row or two per packet, so a packet is only copied and put on a list;
the costly part (finiteness, statistics, shuffling) runs over blocks. What is on the list is part of
the trainer's state, which keeps block borders, and with them resumed runs, exact.
"""

from __future__ import annotations

import torch

from asys_bench.sae.state import StateDict, tensor_of

LARGEST = 1e15
"""Rows with larger entries are refused like non-finite ones: their squares overflow float32."""


class Intake:
    """Rows float32[*, D] waiting to be looked at."""

    def __init__(self, d_in: int) -> None:
        self._d_in = d_in
        self._rows: list[torch.Tensor] = []
        self._weights: list[float | torch.Tensor] = []
        self.waiting = 0

    def put(self, rows_ND: torch.Tensor, weight: float) -> None:
        """Queue rows that the caller no longer changes."""
        self._rows.append(rows_ND)
        self._weights.append(weight)
        self.waiting += len(rows_ND)

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._rows:
            return torch.zeros(0, self._d_in), torch.zeros(0)
        weights = [
            weight if isinstance(weight, torch.Tensor) else torch.full((len(rows),), weight)
            for rows, weight in zip(self._rows, self._weights, strict=True)
        ]
        return torch.cat(self._rows), torch.cat(weights)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All queued rows and their weights; the queue is empty afterwards."""
        merged = self._merged()
        self._rows, self._weights, self.waiting = [], [], 0
        return merged

    def state_dict(self) -> StateDict:
        rows_ND, weight_N = self._merged()
        return {"rows": rows_ND, "weight": weight_N}

    def load_state_dict(self, state: StateDict) -> None:
        rows_ND = tensor_of(state, "rows")
        if rows_ND.shape[1:] != (self._d_in,):
            raise ValueError(f"rows {tuple(rows_ND.shape)} are not {self._d_in} wide")
        self._rows, self._weights = [rows_ND], [tensor_of(state, "weight")]
        self.waiting = len(rows_ND)


def split_usable(
    rows_ND: torch.Tensor, weight_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The finite rows of sane size, their weights, and how many were refused."""
    usable_N = (rows_ND.abs() <= LARGEST).all(1)
    refused = len(rows_ND) - int(usable_N.sum())
    if refused:
        rows_ND, weight_N = rows_ND[usable_N], weight_N[usable_N]
    return rows_ND, weight_N, refused
