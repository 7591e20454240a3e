"""The rows that a probe is fitted to, or scored on: the newest ones, of many blocks.

Rows of one block are alike, so a window that a few long blocks fill says little. While it holds fewer than
`BLOCKS`, a full window is thinned by half, and from then on takes half of the rows; with enough blocks the
oldest rows make room. Each row draws one number u; it is kept while u < share * boost, so it is there with
probability min(1, share * boost) and weighs the inverse. Rows of a rare class have a boost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.probe.blocks import Ids
from asys_bench.change.probe.fit import Dense, Features, Sparse

BLOCKS = 1024
_LEAST_SHARE = 2.0**-24
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """n rows on their way into a window.

    draw_N: u of each. labels_NK: a column for each label, NaN where a row has none.
    """

    features: Features
    labels_NK: Floats
    draw_N: Floats
    boost_N: Floats
    block_N: Ids

    def __len__(self) -> int:
        return len(self.draw_N)

    def some(self, wanted: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Rows:
        places = np.flatnonzero(wanted) if wanted.dtype == bool else wanted
        return Rows(
            self.features.some(torch.from_numpy(places)),
            self.labels_NK[places],
            self.draw_N[places],
            self.boost_N[places],
            self.block_N[places],
        )


class Window:
    """At most `capacity` rows, oldest first.

    share: of rows without a boost that are taken now.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.share = capacity, 1.0
        self._rows: Rows | None = None
        self._pending: list[Rows] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting + (len(self._rows) if self._rows is not None else 0)

    @property
    def is_full(self) -> bool:
        return len(self) >= self.capacity // 2

    def add(self, rows: Rows) -> None:
        """Take those that their draw lets in; their memory is kept."""
        wanted_N = self._are_in(rows)
        if not wanted_N.any():
            return
        self._pending.append(rows if wanted_N.all() else rows.some(wanted_N))
        self._waiting += len(self._pending[-1])
        if self._waiting >= max(256, self.capacity // 8):
            self.settle()

    def settle(self) -> Rows | None:
        """Bring everything that was added into its place; what the window holds now."""
        if self._pending:
            parts = [*([self._rows] if self._rows is not None else []), *self._pending]
            self._pending, self._waiting = [], 0
            self._rows = _joined(parts)
        while self._rows is not None and len(self._rows) > self.capacity:
            blocks = len(np.unique(self._rows.block_N))
            if blocks >= BLOCKS or self.share <= _LEAST_SHARE:
                self._rows = self._rows.some(
                    np.arange(len(self._rows) - self.capacity, len(self._rows))
                )
            else:
                self.share /= 2
                self._rows = self._rows.some(self._are_in(self._rows))
        return self._rows

    def weights(self, rows: Rows) -> Floats:
        """Rows that each row stands for, up to a factor."""
        weight_N: Floats = 1.0 / np.minimum(1.0, rows.boost_N * self.share)
        return weight_N * self.share

    def clear(self) -> None:
        self._rows, self._pending, self._waiting = None, [], 0

    def _are_in(self, rows: Rows) -> npt.NDArray[np.bool_]:
        wanted_N: npt.NDArray[np.bool_] = rows.draw_N < rows.boost_N * self.share
        return wanted_N


def _joined(parts: list[Rows]) -> Rows:
    columns = max(part.labels_NK.shape[1] for part in parts)
    labels = [
        np.pad(
            part.labels_NK,
            ((0, 0), (0, columns - part.labels_NK.shape[1])),
            constant_values=np.nan,
        )
        for part in parts
    ]
    return Rows(
        _features([part.features for part in parts]),
        np.concatenate(labels),
        np.concatenate([part.draw_N for part in parts]),
        np.concatenate([part.boost_N for part in parts]),
        np.concatenate([part.block_N for part in parts]),
    )


def _features(parts: list[Features]) -> Features:
    first = parts[0]
    if isinstance(first, Dense):
        return Dense(torch.cat([part.x_ND for part in parts if isinstance(part, Dense)]))
    sparse = [part for part in parts if isinstance(part, Sparse)]
    return Sparse(
        torch.cat([part.index_NK for part in sparse]),
        torch.cat([part.value_NK for part in sparse]),
        first.width,
    )
