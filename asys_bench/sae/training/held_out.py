"""Rows that are never trained on.

Of every packet a run of rows, one after the other, is held out. Where it lies and how long it is, is
a pure function of the packet's key (source, shard, seq) and its number of rows, so it is the same
after a restart and for a redelivered packet, and no held-out row leaks into training. A run of rows,
because neighbours are alike (tokens of one sequence): most of them stay on one side. Some of each
packet, because a short run has few packets: whole ones left most hooks of 25 packets without any.
"""

from __future__ import annotations

import math

import torch

from asys_bench.contracts.coin import GOLDEN, MASK, mix
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, tensor_of

PacketKey = tuple[int, int, int]
"""(source, shard, seq)."""

MOST_OF_RING = 8
"""One packet fills at most 1/8 of the ring, so that a measurement spans several."""


def _mix(value: int) -> int:
    """The next number of SplitMix64."""
    return mix((value + GOLDEN) & MASK)


def _of_key(key: PacketKey) -> int:
    """64 random bits, always the same ones for a key."""
    source, shard, seq = key
    return _mix(_mix(_mix(source & MASK) ^ (shard & MASK)) ^ (seq & MASK))


def whole_is_held_out(key: PacketKey, fraction: float) -> bool:
    """True for about `fraction` of all keys: the rule of checkpoints before runs of rows."""
    return _of_key(key) < fraction * 2.0**64


def held_out_run(key: PacketKey, rows: int, fraction: float) -> tuple[int, int]:
    """(first, count) of the held-out rows of a packet; the run goes on at its first row.

    count is `fraction * rows` on average over keys, rounded down or up; fewer than all but for a
    packet of one row.
    """
    if rows < 1 or fraction <= 0:
        return 0, 0
    bits = _of_key(key)
    count = math.floor(fraction * rows + 1.0 - bits * 2.0**-64)
    return _mix(bits) % rows, min(count, max(1, rows - 1))


def split_rows(
    key: PacketKey, rows: int, fraction: float, part: slice | None = None
) -> tuple[list[slice], list[slice]]:
    """(held-out, trained) rows of a packet of `rows`, as slices in order.

    part: the rows of the packet that are here; what is returned counts from its first one.
    """
    begin, end = (part.start, part.stop) if part is not None else (0, rows)
    first, count = held_out_run(key, rows, fraction)
    last, wrapped = min(rows, first + count), max(0, first + count - rows)
    held_out = _within([(0, wrapped), (first, last)], begin, end)
    return held_out, _within([(wrapped, first), (last, rows)], begin, end)


def _within(ranges: list[tuple[int, int]], begin: int, end: int) -> list[slice]:
    cut = [(max(first, begin) - begin, min(last, end) - begin) for first, last in ranges]
    return [slice(first, last) for first, last in cut if first < last]


class HeldOut:
    """A ring of the most recent held-out rows float32[capacity, D] with their weights."""

    def __init__(self, capacity: int, d_in: int) -> None:
        self.capacity = capacity
        self._whole_packets = False
        """A checkpoint of before holds out packets whole; what it goes on with must not train on
        rows that are in the ring."""
        self._rows_CD = torch.zeros(capacity, d_in)
        self._weight_C = torch.ones(capacity)
        self._filled = self._next = 0

    def __len__(self) -> int:
        return self._filled

    def share(
        self, key: PacketKey, rows: int, fraction: float, part: slice
    ) -> tuple[list[slice], list[slice]]:
        """As `split_rows`."""
        if not self._whole_packets:
            return split_rows(key, rows, fraction, part)
        everything = _within([(part.start, part.stop)], part.start, part.stop)
        return (everything, []) if whole_is_held_out(key, fraction) else ([], everything)

    def add(self, rows_ND: torch.Tensor, weight: float) -> None:
        """Copy one packet's rows in; of many an evenly spaced part."""
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
        return {
            "rows": self.rows,
            "weight": self.weights,
            "next": self._next,
            "whole_packets": int(self._whole_packets),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of a ring of this capacity and width."""
        rows_ND = tensor_of(state, "rows")
        if len(rows_ND) > self.capacity or rows_ND.shape[1:] != self._rows_CD.shape[1:]:
            raise ValueError(
                f"rows {tuple(rows_ND.shape)} do not fit a ring of {tuple(self._rows_CD.shape)}"
            )
        self._whole_packets = bool(state.get("whole_packets", 1))
        self._filled, self._next = len(rows_ND), int(number_of(state, "next")) % self.capacity
        self._rows_CD[: self._filled] = rows_ND
        self._weight_C[: self._filled] = tensor_of(state, "weight")
