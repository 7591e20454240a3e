"""Every archived row encoded once: the active features of each row, and what each feature comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.reports.run_report.archive_rows import RowBlock
from asys_bench.reports.run_report.features import CANDIDATES, FeatureStats
from asys_bench.sae.architectures.base import SparseAutoencoder

CHUNK_CODES = 1 << 24
"""Activations that are made at a time."""
MOST_ACTIVE = 256
"""Of a row's active features so many are kept, the strongest."""


@dataclass(frozen=True)
class Codes:
    """The active features of N rows, in the order of rows and, apart, in that of features."""

    start_N: npt.NDArray[np.int64]
    """[N + 1]: where each row's begin."""
    feature: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    row_of: npt.NDArray[np.int32]
    """The row of each, ordered by feature (`begin_F`, `order`)."""
    order: npt.NDArray[np.int64]
    begin_F: npt.NDArray[np.int64]
    active_F: npt.NDArray[np.float64]
    """Rows in which each is active, and the sum of its activations: of all of them."""
    sum_F: npt.NDArray[np.float64]

    def of(self, feature: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(rows, activations) of one feature, rows ascending."""
        where = slice(self.begin_F[feature], self.begin_F[feature + 1])
        return self.row_of[where], self.value[self.order[where]]

    def stats(self) -> FeatureStats:
        """As `feature_stats`; a top row is one in which the feature is among the `MOST_ACTIVE`."""
        rows, features = len(self.start_N) - 1, len(self.begin_F) - 1
        feature_M, value_M = self.feature[self.order], self.value[self.order]
        strong = np.lexsort((-value_M, feature_M))
        place_M = np.arange(len(strong)) - np.repeat(self.begin_F[:-1], np.diff(self.begin_F))
        kept = place_M < CANDIDATES
        strong, place_M, feature_M = strong[kept], place_M[kept], feature_M[kept]
        top_KF = np.zeros((CANDIDATES, features), np.float32)
        where_KF = np.full((CANDIDATES, features), -1, np.int64)
        top_KF[place_M, feature_M] = value_M[strong]
        where_KF[place_M, feature_M] = self.row_of[strong]
        mean_F = np.divide(
            self.sum_F, self.active_F, out=np.zeros(features), where=self.active_F > 0
        )
        return FeatureStats(rows, self.active_F / max(1, rows), mean_F, top_KF, where_KF)


@torch.no_grad()
def codes_of(
    sae: SparseAutoencoder,
    blocks: Sequence[RowBlock],
    told: Callable[[int], None] = lambda rows: None,
) -> Codes:
    """Encode every row; those that are not finite have no active features. told: the rows done so far."""
    rows, features, values, first = [], [], [], 0
    active_F, sum_F = (torch.zeros(sae.d_sae, dtype=torch.float64) for _ in range(2))
    chunk = max(16, CHUNK_CODES // sae.d_sae)
    for block in blocks:
        x_ND = torch.from_numpy(np.array(block.values, dtype=np.float32))
        for x_BD in torch.split(x_ND, chunk):
            acts_BF = sae.encode(torch.nan_to_num(x_BD, 0.0, 0.0, 0.0)).float()
            acts_BF[~torch.isfinite(x_BD).all(1)] = 0.0
            active_BF = acts_BF > 0
            active_F += active_BF.sum(0)
            sum_F += acts_BF.sum(0)
            if int(active_BF.sum(1).max()) > MOST_ACTIVE:
                least_B1 = acts_BF.topk(MOST_ACTIVE, dim=1).values[:, -1:]
                active_BF &= acts_BF >= least_B1
            row_M, feature_M = active_BF.nonzero(as_tuple=True)
            rows.append((row_M + first).to(torch.int32).numpy())
            features.append(feature_M.to(torch.int32).numpy())
            values.append(acts_BF[row_M, feature_M].numpy())
            first += len(x_BD)
            told(first)
    of_row_M, of_feature_M = np.concatenate(rows), np.concatenate(features)
    order = np.argsort(of_feature_M, kind="stable")
    return Codes(
        np.searchsorted(of_row_M, np.arange(first + 1)),
        of_feature_M,
        np.concatenate(values),
        of_row_M[order],
        order,
        np.searchsorted(of_feature_M[order], np.arange(sae.d_sae + 1)),
        active_F.numpy(),
        sum_F.numpy(),
    )
