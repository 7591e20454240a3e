"""What the features of one SAE respond to: how often, how strongly, and to which archived rows.

Densities are shares of the rows looked at. Top rows are spread out: an agent visits nearly the same
state many times, and six copies of it show one thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.reports.run_report.archive_rows import RowBlock, RowKey
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.metrics import DENSE_RATE

CANDIDATES = 64
"""Top rows kept for each feature, from which the shown ones are chosen."""
CHUNK_ROWS = 8192
RARE = 0.01
"""Share of rows below which a feature is rare."""


@dataclass(frozen=True)
class Candidate:
    """One archived row that activates a feature."""

    activation: float
    key: RowKey
    values: npt.NDArray[np.float32]
    """The hooked tensor's row."""


@dataclass(frozen=True)
class FeatureStats:
    """F features over `rows` rows."""

    rows: int
    density_F: npt.NDArray[np.float64]
    """Share of rows in which the feature is active, 0..1."""
    mean_F: npt.NDArray[np.float64]
    """Mean activation while active; 0 for a silent feature."""
    top_KF: npt.NDArray[np.float32]
    """Largest activations, descending; K = CANDIDATES."""
    where_KF: npt.NDArray[np.int64]
    """Index of the row of each, in the order in which blocks came."""

    @property
    def mass_F(self) -> npt.NDArray[np.float64]:
        """Density times mean: what the feature adds up to."""
        return self.density_F * self.mean_F

    def most_active(self, n: int) -> list[int]:
        """The `n` features with the most mass, most first; silent ones are never among them.

        Dense ones come after all others: what fires on everything tells little.
        """
        order = np.lexsort((-self.mass_F, self.density_F > DENSE_RATE))
        return [int(feature) for feature in order if self.density_F[feature] > 0][:n]

    def rare_and_strong(self, n: int, least_rows: int) -> list[int]:
        """Up to `n` features with density below `RARE`, the largest single activation first.

        least_rows: rows in which a feature must be active to be among them.
        """
        enough_F = self.density_F * self.rows >= least_rows
        wanted_F = enough_F & (self.density_F < RARE)
        order = np.argsort(-self.top_KF[0])
        return [int(feature) for feature in order if wanted_F[feature]][:n]


@torch.no_grad()
def feature_stats(sae: SparseAutoencoder, blocks: Sequence[RowBlock]) -> FeatureStats:
    """Encode every row; memory is one chunk's activations and K rows per feature.

    Rows that are not finite are counted as silent.
    """
    d_sae = sae.d_sae
    active_F = torch.zeros(d_sae, dtype=torch.float64)
    sum_F = torch.zeros(d_sae, dtype=torch.float64)
    top_KF = torch.zeros(CANDIDATES, d_sae)
    where_KF = torch.full((CANDIDATES, d_sae), -1, dtype=torch.int64)
    first = 0
    for block in blocks:
        x_ND = torch.from_numpy(np.array(block.values, dtype=np.float32))
        for start in range(0, len(x_ND), CHUNK_ROWS):
            x_BD = x_ND[start : start + CHUNK_ROWS]
            acts_BF = sae.encode(torch.nan_to_num(x_BD, 0.0, 0.0, 0.0)).float()
            acts_BF[~torch.isfinite(x_BD).all(1)] = 0.0
            active_F += (acts_BF > 0).sum(0)
            sum_F += acts_BF.sum(0).double()
            index_B1 = torch.arange(first + start, first + start + len(x_BD)).unsqueeze(1)
            both = torch.cat([top_KF, acts_BF])
            rows = torch.cat([where_KF, index_B1.expand(-1, d_sae)])
            top_KF, order = torch.topk(both, CANDIDATES, dim=0)
            where_KF = rows.gather(0, order)
        first += len(x_ND)
    density_F = active_F / max(1, first)
    mean_F = torch.where(active_F > 0, sum_F / active_F.clamp_min(1.0), 0.0)
    return FeatureStats(first, density_F.numpy(), mean_F.numpy(), top_KF.numpy(), where_KF.numpy())


@torch.no_grad()
def activations(
    sae: SparseAutoencoder, blocks: Sequence[RowBlock], features: Sequence[int]
) -> npt.NDArray[np.float32]:
    """The activations of a few features in every row, float32[N, len(features)]."""
    columns = torch.tensor(features, dtype=torch.int64)
    parts = []
    for block in blocks:
        x_ND = torch.from_numpy(np.array(block.values, dtype=np.float32))
        x_ND = torch.nan_to_num(x_ND, 0.0, 0.0, 0.0)
        parts += [sae.encode(x_BD)[:, columns].float() for x_BD in torch.split(x_ND, CHUNK_ROWS)]
    return torch.cat(parts).numpy()


def candidates(
    stats: FeatureStats, blocks: Sequence[RowBlock], features: Iterable[int]
) -> dict[int, list[Candidate]]:
    """The top rows of some features, strongest first."""
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    found: dict[int, list[Candidate]] = {}
    for feature in features:
        rows = []
        for value, where in zip(stats.top_KF[:, feature], stats.where_KF[:, feature], strict=True):
            if value <= 0 or where < 0:
                break
            number = int(np.searchsorted(starts, where, side="right")) - 1
            block, at = blocks[number], int(where - starts[number])
            values = np.array(block.values[at], dtype=np.float32)
            rows.append(Candidate(float(value), block.key(at), values))
        found[feature] = rows
    return found


def spread_out(
    rows: Sequence[Candidate], looks: Sequence[npt.NDArray[np.float32]], wanted: int
) -> list[int]:
    """Indices of up to `wanted` rows: the strongest, then those that look different from all before.

    looks: what is drawn of each row. Two rows look alike when they are nearer to each other than a
    quarter of the typical distance between rows; alike ones fill up when there are no others.
    """
    if not rows:
        return []
    points = np.stack([np.nan_to_num(look) for look in looks]).astype(np.float64)
    scale = points.std(0)
    points = points / np.where(scale > 0, scale, 1.0)
    typical = float(np.median(np.linalg.norm(points - points.mean(0), axis=1)))
    chosen: list[int] = []
    for index in range(len(rows)):
        gaps = [np.linalg.norm(points[index] - points[other]) for other in chosen]
        if len(chosen) < wanted and all(gap > 0.25 * typical for gap in gaps):
            chosen.append(index)
    rest = [index for index in range(len(rows)) if index not in chosen]
    return sorted([*chosen, *rest[: wanted - len(chosen)]])
