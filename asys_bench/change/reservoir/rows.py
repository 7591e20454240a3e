"""Rows with what is known of each: the columns of a reservoir, and the order that decides who stays.

A row's *rank* is `-ln(u) / weight`, u in (0, 1) a hash of its moment: those with the smallest ranks stay.
That is weighted sampling without replacement (Efraimidis and Spirakis 2006, "Weighted random sampling
with a reservoir", A-Res; Cohen and Kaplan 2007, bottom-k sketches):

- a sample of two windows together is the smallest ranks of both samples, so windows join exactly;
- the same row has the same rank in each hook and in each life of a worker: hooks keep rows of the same
  moments, a packet that comes twice adds nothing, a restart goes on as if nothing had happened;
- rows of a packet that stands for w calls (1 / sampling rate) are w times as likely to stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.coin import GOLDEN, mix

NO_SEQUENCE = -1
COLUMNS: Mapping[str, type[np.generic]] = {
    "host_step": np.int64,
    "weights_version": np.int64,
    "attempt": np.int32,
    "source": np.int32,
    "shard": np.int32,
    "seq": np.int64,
    "microbatch": np.int32,
    "call": np.int64,
    "row": np.int32,
    "sequence": np.int32,
    "text": np.int32,
    "weight": np.float32,
    "rank": np.float64,
}


ABOUT = np.dtype(list(COLUMNS.items()), align=True)
"""One row's columns."""
_BYTES = np.dtype((np.void, ABOUT.itemsize))
"""The same in one piece: NumPy copies columns one by one."""


def picked(about: npt.NDArray[np.void], index: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Rows of an array of `ABOUT`."""
    return about.view(_BYTES).take(index).view(ABOUT)


@dataclass(frozen=True)
class ReservoirRows:
    """N rows. values: [N, D], float16 or the integers that were captured. about: `ABOUT`[N]."""

    values: torch.Tensor
    about: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.about)

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> ReservoirRows:
        if isinstance(index, slice):
            return ReservoirRows(self.values[index], self.about[index])
        values = self.values.index_select(0, torch.from_numpy(index))
        return ReservoirRows(values, picked(self.about, index))

    @property
    def host_step(self) -> npt.NDArray[np.int64]:
        return self.about["host_step"]

    @property
    def weights_version(self) -> npt.NDArray[np.int64]:
        return self.about["weights_version"]

    @property
    def attempt(self) -> npt.NDArray[np.int32]:
        return self.about["attempt"]

    @property
    def microbatch(self) -> npt.NDArray[np.int32]:
        return self.about["microbatch"]

    @property
    def source(self) -> npt.NDArray[np.int32]:
        return self.about["source"]

    @property
    def call(self) -> npt.NDArray[np.int64]:
        """The packet's call index."""
        return self.about["call"]

    @property
    def row(self) -> npt.NDArray[np.int32]:
        """Which row of the captured tensor, as the column of an archive."""
        return self.about["row"]

    @property
    def sequence(self) -> npt.NDArray[np.int32]:
        """Which sequence of its packet, where rows are of sequences; -1: not known."""
        return self.about["sequence"]

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """Rows of the host that it stands for, before sampling here: 1 / sampling rate."""
        return self.about["weight"]

    @property
    def rank(self) -> npt.NDArray[np.float64]:
        return self.about["rank"]

    @classmethod
    def joined(cls, parts: list[ReservoirRows]) -> ReservoirRows:
        """All of them, in order; at least one."""
        if len(parts) == 1:
            return parts[0]
        about = np.concatenate([one.about.view(_BYTES) for one in parts]).view(ABOUT)
        return cls(torch.cat([one.values for one in parts]), about)

    def of_time(self) -> ReservoirRows:
        """In the order in which the host made them."""
        keys = (
            self.host_step,
            self.weights_version,
            self.source,
            self.microbatch,
            self.call,
            self.row,
        )
        return self if _ascend(keys) else self[np.lexsort(keys[::-1])]

    def smallest(self, count: int) -> ReservoirRows:
        """Those with the `count` smallest ranks, each once."""
        rank_N = self.rank
        order = np.argsort(rank_N)
        ordered_N, first_N = rank_N[order], np.ones(len(order), bool)
        np.greater(ordered_N[1:], ordered_N[:-1], out=first_N[1:])
        kept = order[first_N]
        return self if len(kept) == len(self) <= count else self[np.sort(kept[:count])]

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a safetensors file."""
        columns = {
            name: torch.from_numpy(np.ascontiguousarray(self.about[name])) for name in COLUMNS
        }
        return {"values": self.values.contiguous(), **columns}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> ReservoirRows:
        """What `tensors` gave.

        Raises:
            ValueError: a column is missing, of another type or length, or no such rows are written.
        """
        if tensors.keys() != {"values", *COLUMNS}:
            raise ValueError(f"columns {sorted(tensors)}, wanted {sorted(['values', *COLUMNS])}")
        values = tensors["values"]
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"values of shape {tuple(values.shape)}")
        about = np.empty(len(values), ABOUT)
        for name, dtype in COLUMNS.items():
            column = tensors[name].numpy()
            if column.dtype != dtype or column.shape != (len(values),):
                raise ValueError(f"column {name} is {column.dtype}{list(column.shape)}")
            about[name] = column
        if len(values) and (about["host_step"].min() < 0 or not about["weight"].min() > 0):
            raise ValueError("a host step below 0, or a weight that is none")
        return cls(values, about)


def _ascend(keys: Sequence[npt.NDArray[np.integer]]) -> bool:
    """Whether rows are in the order of the first key, those equal in it in that of the second, and so on."""
    level_N = np.ones(max(0, len(keys[0]) - 1), bool)  # of neighbours: equal in the keys before
    for key in map(np.ascontiguousarray, keys):
        if (level_N & (key[1:] < key[:-1])).any():
            return False
        level_N &= key[1:] == key[:-1]
    return True


_STEP = np.uint64(GOLDEN)


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The next number of SplitMix64 from each state."""
    return mix(x + _STEP)


def ranks(
    moment: npt.NDArray[np.uint64], row: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The rank of each row: `moment` is the hash of its moment (`moment_hash`)."""
    u = mixed(moment ^ (row.astype(np.uint64) * _STEP))
    uniform = ((u >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(uniform) / weight)


def moment_hash(*parts: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """One hash of several columns."""
    found = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        found = mixed(found ^ part.astype(np.uint64))
    return found


def kept_values(rows_ND: torch.Tensor) -> torch.Tensor:
    """Rows as they are kept: floating point as float16 (what overflows it, an outlier that no SAE is
    trained on, at its largest number; NaN stays), integers as they are."""
    if not rows_ND.is_floating_point():
        return rows_ND.to(torch.int64)
    rows_ND, most = rows_ND.float(), torch.finfo(torch.float16).max
    if rows_ND.numel():
        low, high = torch.aminmax(rows_ND)  # NaN where one is
        if not (low >= -most and high <= most):
            rows_ND = rows_ND.clamp(-most, most)
    return rows_ND.to(torch.float16)
