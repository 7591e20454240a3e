"""Rows that are indexed together: parts of packets, side by side, with what is known of each row.

Shapes: R rows, U tokens of all their texts, N pairs of a row and a feature that fires there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.feature_index.slots import Floats, Ints
from asys_bench.change.feature_index.token_join import Tokens
from asys_bench.change.reservoir.rows import mixed
from asys_bench.rundir.feature_index_layout import BEFORE, TOKENS_AROUND, UNKNOWN


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one packet. place_R: which rows of the captured tensor. weight: rows that each stands for.
    moment: hash of what its call is. call: the columns of `_PER_EXAMPLE` that the packet says."""

    x_RD: torch.Tensor
    place_R: Ints
    weight: float
    moment: int
    call: Mapping[str, int]
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.place_R)

    def owned(self) -> Part:
        """Without views of a lease."""
        return replace(self, x_RD=self.x_RD.clone(), place_R=self.place_R.copy())

    def cut(self, most_rows: int) -> tuple[Part, Part | None]:
        """(its first rows, the others): at most so many, up to the begin of a sequence where one is in the
        second half of them."""
        if len(self) <= most_rows:
            return self, None
        end = most_rows
        if self.tokens is not None:
            half = most_rows // 2
            sequence = self.tokens.sequence_N[self.place_R[half : end + 1]]
            begins = np.flatnonzero(sequence[1:] != sequence[:-1])
            end = half + 1 + int(begins[-1]) if len(begins) else end
        return self.some(slice(None, end)), self.some(slice(end, None))

    def some(self, rows: slice | npt.NDArray[np.bool_]) -> Part:
        """Some of its rows."""
        where = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        return replace(self, x_RD=self.x_RD[where], place_R=self.place_R[rows])


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of some parts, without their values.

    at_R: the place of each row's token among the U tokens, -1 without. row_U: the row of each token, -1 where
    it did not come. sequence_U: a number per sequence.
    """

    place_R: Ints
    weight_R: npt.NDArray[np.float64]
    moment_R: npt.NDArray[np.uint64]
    calls: Mapping[str, Ints]
    at_R: Ints
    token_U: npt.NDArray[np.int32]
    position_U: npt.NDArray[np.int32]
    sequence_U: Ints
    row_U: Ints

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Batch:
        sizes = [len(part) for part in parts]
        at_R = np.full(sum(sizes), -1, np.int64)
        texts: list[Tokens] = []
        sequences: list[Ints] = []
        row = token = sequence = 0
        for part, size in zip(parts, sizes, strict=True):
            if part.tokens is not None and len(part.tokens):
                at_R[row : row + size] = token + part.place_R
                texts.append(part.tokens)
                sequences.append(sequence + part.tokens.sequence_N.astype(np.int64))
                token, sequence = token + len(part.tokens), int(sequences[-1][-1]) + 1
            row += size
        row_U = np.full(token, -1, np.int64)
        has = at_R >= 0
        row_U[at_R[has]] = np.flatnonzero(has)
        place_R = np.concatenate([part.place_R for part in parts])
        moment_P = np.array([part.moment for part in parts], np.uint64)
        return cls(
            place_R=place_R,
            weight_R=np.repeat([part.weight for part in parts], sizes),
            moment_R=mixed(np.repeat(moment_P, sizes) ^ place_R.astype(np.uint64)),
            calls={
                name: np.repeat(np.array([part.call[name] for part in parts], np.int64), sizes)
                for name in parts[0].call
            },
            at_R=at_R,
            token_U=_joined([one.id_N for one in texts], np.int32),
            position_U=_joined([one.position_N for one in texts], np.int32),
            sequence_U=_joined(sequences, np.int64),
            row_U=row_U,
        )

    def __len__(self) -> int:
        return len(self.place_R)


@dataclass(frozen=True, eq=False)
class Pairs:
    """What fires: by row, features ascending within one."""

    offset_R: Ints
    """R + 1."""
    feature_N: Ints
    value_N: Floats

    @property
    def row_N(self) -> Ints:
        return np.repeat(np.arange(len(self.offset_R) - 1), np.diff(self.offset_R))


@dataclass(frozen=True, eq=False)
class Around:
    """The tokens around M rows, from the left: see the columns of these names."""

    tokens: npt.NDArray[np.int32]
    levels: npt.NDArray[np.uint8]
    scale: Floats
    at: Ints
    length: Ints
    token_position: Ints


class Neighbours:
    """Looks up what is around rows of a batch, and how strongly a feature fires there."""

    def __init__(self, batch: Batch, pairs: Pairs, features: int) -> None:
        self._batch, self._features = batch, features
        self._key_N = pairs.row_N * features + pairs.feature_N
        self._value_N = pairs.value_N

    def around(self, row_M: Ints, feature_M: Ints) -> Around:
        """Of each row, with the activations of its feature; the length is 0 where a row has no token."""
        batch = self._batch
        own_M = batch.at_R[row_M]
        if not len(batch.token_U):
            return _nothing(len(row_M))
        index_MT = own_M[:, None] + np.arange(-BEFORE, TOKENS_AROUND - BEFORE)
        there_MT = (index_MT >= 0) & (index_MT < len(batch.token_U)) & (own_M >= 0)[:, None]
        index_MT = np.where(there_MT, index_MT, 0)
        sequence_M1 = batch.sequence_U[np.maximum(own_M, 0)][:, None]
        there_MT &= batch.sequence_U[index_MT] == sequence_M1
        length_M, first_M = there_MT.sum(1), there_MT.argmax(1)
        # To the left: what is there lies side by side, as a sequence does.
        shift_MT = np.minimum(first_M[:, None] + np.arange(TOKENS_AROUND), TOKENS_AROUND - 1)
        index_MT = np.take_along_axis(index_MT, shift_MT, 1)
        there_MT = np.arange(TOKENS_AROUND) < length_M[:, None]
        near_MT = np.where(there_MT, batch.row_U[index_MT], -1)
        value_MT = self._values(near_MT, feature_M)
        scale_M = np.maximum(value_MT.max(1), np.float32(1e-37))
        levels_MT = np.rint(value_MT * (np.float32(UNKNOWN - 1) / scale_M[:, None]))
        levels_MT = np.where(near_MT >= 0, levels_MT, UNKNOWN)
        tokens_MT = np.where(there_MT, batch.token_U[index_MT], 0)
        return Around(
            tokens_MT.astype(np.int32),
            np.where(there_MT, levels_MT, 0).astype(np.uint8),
            scale_M.astype(np.float32),
            np.where(length_M > 0, BEFORE - first_M, 0),
            length_M,
            np.where(own_M >= 0, batch.position_U[np.maximum(own_M, 0)], -1),
        )

    def _values(self, row_MT: Ints, feature_M: Ints) -> Floats:
        wanted_MT = row_MT * self._features + feature_M[:, None]
        place_MT = np.minimum(np.searchsorted(self._key_N, wanted_MT), len(self._key_N) - 1)
        same_MT = (self._key_N[place_MT] == wanted_MT) & (row_MT >= 0)
        return np.where(same_MT, self._value_N[place_MT], np.float32(0))


def _nothing(rows: int) -> Around:
    zeros = np.zeros(rows, np.int64)
    around = (rows, TOKENS_AROUND)
    return Around(
        np.zeros(around, np.int32), np.zeros(around, np.uint8), np.zeros(rows, np.float32), zeros, zeros,
        zeros - 1,
    )  # fmt: skip


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
