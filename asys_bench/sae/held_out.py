"""Rows that are never trained on.

Whether a packet is held out is a pure function of its key (source, shard, seq), so it is the same
after a restart and for a redelivered packet, and no held-out row leaks into training.
"""

from __future__ import annotations

import torch

from asys_bench.sae.state import StateDict, number_of, tensor_of

PacketKey = tuple[int, int, int]
"""(source, shard, seq)."""

_MASK = (1 << 64) - 1
MOST_OF_RING = 8
"""One packet fills at most 1/8 of the ring, so that a measurement spans several."""


def _mix(value: int) -> int:
    """splitmix64's finaliser (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def is_held_out(key: PacketKey, fraction: float) -> bool:
    """True for about `fraction` of all keys, always the same ones."""
    source, shard, seq = key
    return _mix(_mix(_mix(source & _MASK) ^ (shard & _MASK)) ^ (seq & _MASK)) < fraction * 2.0**64


class HeldOut:
    """A ring of the most recent held-out rows float32[capacity, D] with their weights."""

    def __init__(self, capacity: int, d_in: int) -> None:
        self.capacity = capacity
        self._rows_CD = torch.zeros(capacity, d_in)
        self._weight_C = torch.ones(capacity)
        self._filled = self._next = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, rows_ND: torch.Tensor, weight: float) -> None:
        """Copy one packet's rows in; of a large packet an evenly spaced part."""
        most = max(1, self.capacity // MOST_OF_RING)
        if len(rows_ND) > most:
            rows_ND = rows_ND[torch.linspace(0, len(rows_ND) - 1, most).round().long()]
        slots = (self._next + torch.arange(len(rows_ND))) % self.capacity
        self._rows_CD[slots] = rows_ND
        self._weight_C[slots] = weight
        self._next = (self._next + len(rows_ND)) % self.capacity
        self._filled = min(self.capacity, self._filled + len(rows_ND))

    @property
    def rows(self) -> torch.Tensor:
        """View, float32[filled, D]."""
        return self._rows_CD[: self._filled]

    @property
    def weights(self) -> torch.Tensor:
        """View, float32[filled]."""
        return self._weight_C[: self._filled]

    def state_dict(self) -> StateDict:
        return {"rows": self.rows, "weight": self.weights, "next": self._next}

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of a ring of this capacity and width."""
        rows_ND = tensor_of(state, "rows")
        if len(rows_ND) > self.capacity or rows_ND.shape[1:] != self._rows_CD.shape[1:]:
            raise ValueError(
                f"rows {tuple(rows_ND.shape)} do not fit a ring of {tuple(self._rows_CD.shape)}"
            )
        self._filled, self._next = len(rows_ND), int(number_of(state, "next")) % self.capacity
        self._rows_CD[: self._filled] = rows_ND
        self._weight_C[: self._filled] = tensor_of(state, "weight")
