"""What appeared at a birth: the direction that its first rows have and other rows do not.

The decoder row of the life need not be it: an SAE that has not settled reads two new features with one life,
or one with two. A row is x = sum over g of a_g d_g + r. Of that, a life f has to do with its own part, that
of features that fire in its first rows and hardly elsewhere (*companions*), and r. The direction that fits
this best over some rows, with the activations of f as they are, is

    sum over the rows of a_f (r + a_f d_f + sum over companions g of a_g d_g),

the update of one atom with fixed coefficients (Engan, Aase, Husoy 1999, "Method of optimal directions for
frame design").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.change.timeline.earlier import packed
from asys_bench.change.timeline.firing import CHUNK_ROWS, Firing, reconstructed
from asys_bench.rundir.timeline_document import FeatureLife
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.training.device import CPU

FIRST_ROWS = 60
"""Of a birth: the noise of their mean is an eighth of a row's, and what begins later is not among them."""
OTHER_ROWS = 512
"""Of the whole run, evenly, by which it is known what fires elsewhere."""
COMPANION_SHARE, COMPANION_LIFT = 0.5, 4.0
"""A companion fires in so many of the first rows, and so many times as often as elsewhere."""

IntArray = npt.NDArray[np.int64]


@dataclass
class _Pairs:
    """What fires in some rows, which ascend: the pairs of row n begin at `offset[n]`."""

    row: IntArray
    offset: IntArray
    feature: IntArray
    value: npt.NDArray[np.float32]

    def of(self, row_K: IntArray) -> tuple[IntArray, IntArray, npt.NDArray[np.float32]]:
        """(which of some rows, all among these, each pair is of; its feature; its value)."""
        place_K = np.searchsorted(self.row, row_K)
        begin_K, size_K = self.offset[place_K], np.diff(self.offset)[place_K]
        which_N = np.repeat(np.arange(len(row_K)), size_K)
        pair_N = np.arange(len(which_N)) + np.repeat(begin_K - np.cumsum(size_K) + size_K, size_K)
        return which_N, self.feature[pair_N], self.value[pair_N]

    def shares(self, row_K: IntArray, features: int) -> npt.NDArray[np.float64]:
        """In which share of these rows each feature fires."""
        counts_F = np.bincount(self.of(row_K)[1], minlength=features)
        return np.asarray(counts_F / max(1, len(row_K)))


@torch.no_grad()
def appeared(
    sae: SparseAutoencoder,
    values_ND: torch.Tensor,
    found: Firing,
    pairs: Mapping[int, IntArray],
) -> dict[int, torch.Tensor]:
    """float32[D] of unit length for each feature.

    values: the rows that `found` is of. pairs: which of a feature's pairs of `found` are its first ones, at
    least one each. Features from `sae.d_sae` on are no decoder rows but directions that these leave over.
    """
    if not pairs:
        return {}
    row_of = {feature: found.rows_of(feature)[pair_K] for feature, pair_K in pairs.items()}
    value_of = {
        feature: torch.from_numpy(found.values_of(feature)[pair_K])
        for feature, pair_K in pairs.items()
    }
    others = np.linspace(0, len(values_ND) - 1, min(OTHER_ROWS, len(values_ND))).astype(np.int64)
    left_over, fired = _pass(sae, values_ND, row_of, value_of, others)
    elsewhere_F = fired.shares(np.intersect1d(others, fired.row), sae.d_sae)
    told = {}
    for feature, row_K in row_of.items():
        with_it_F = fired.shares(row_K, sae.d_sae)
        companion_F = with_it_F >= np.maximum(COMPANION_SHARE, COMPANION_LIFT * elsewhere_F)
        if feature < sae.d_sae:  # else it is all in r
            companion_F[feature] = True
        which_N, feature_N, value_N = fired.of(row_K)
        kept_N = companion_F[feature_N]
        weight_N = value_of[feature][torch.from_numpy(which_N[kept_N])]
        made_N = weight_N * torch.from_numpy(value_N[kept_N])
        rows_ND = sae.W_dec.detach()[torch.from_numpy(feature_N[kept_N])]
        told[feature] = torch.nn.functional.normalize(left_over[feature] + made_N @ rows_ND, dim=0)
    return told


def _pass(
    sae: SparseAutoencoder,
    values_ND: torch.Tensor,
    row_of: Mapping[int, IntArray],
    value_of: Mapping[int, torch.Tensor],
    others: IntArray,
) -> tuple[dict[int, torch.Tensor], _Pairs]:
    """(sum over a feature's rows of its value times r; what fires in these rows and in `others`)."""
    row_N = np.unique(np.concatenate([others, *row_of.values()]))
    sums = dict.fromkeys(row_of, torch.zeros(sae.d_in))
    kernels = CPU.kernels(sae.config, sae)
    rows, sizes, features, values = [], [], [], []
    for first in range(0, len(row_N), CHUNK_ROWS):
        row_B = row_N[first : first + CHUNK_ROWS]
        chunk = reconstructed(sae, values_ND[torch.from_numpy(row_B)].float(), kernels)
        row_B, error_BD = row_B[chunk.kept_B.numpy()], chunk.made.gradient_BD
        for feature, row_K in row_of.items():
            here_K, place_K = _places(row_B, row_K)
            value_K = value_of[feature][torch.from_numpy(here_K)]
            sums[feature] = sums[feature] - value_K @ error_BD[torch.from_numpy(place_K)]
        rows.append(row_B)
        sizes.append(chunk.codes.offset_B.diff().numpy())
        features.append(chunk.codes.feature_N.numpy().astype(np.int64))
        values.append(chunk.codes.value_N.numpy().copy())
    offset = np.r_[0, np.cumsum(np.concatenate(sizes))].astype(np.int64)
    pairs = _Pairs(
        np.concatenate(rows), offset, np.concatenate(features), np.concatenate(values)
    )  # fmt: skip
    return sums, pairs


def _places(row_B: IntArray, row_K: IntArray) -> tuple[npt.NDArray[np.bool_], IntArray]:
    """(which of some rows are among `row_B`, which ascends; at which place each of these is)."""
    place_K = np.searchsorted(row_B, row_K)
    here_K = place_K < len(row_B)
    here_K[here_K] = row_B[place_K[here_K]] == row_K[here_K]
    return here_K, place_K[here_K]


def first_pairs(feature: int, born_step: float, rows: ReservoirRows, found: Firing) -> IntArray:
    """Which of the feature's pairs are the first since its birth."""
    step_K = rows.host_step[found.rows_of(feature)]
    return np.flatnonzero(step_K >= born_step)[:FIRST_ROWS]


def with_appeared(
    lives: list[FeatureLife], rows: ReservoirRows, found: Firing, sae: SparseAutoencoder
) -> list[FeatureLife]:
    """Births say what appeared (`FeatureLife.appeared`). rows: those that `found` is of."""
    pairs = {
        one.feature: first_pairs(one.feature, one.born_step, rows, found)
        for one in lives
        if one.verdict == "born" and one.born_step is not None
    }
    some = {feature: pair_K for feature, pair_K in pairs.items() if len(pair_K)}
    told = appeared(sae, rows.values, found, some)
    return [
        replace(one, appeared=packed(told[one.feature])) if one.feature in told else one
        for one in lives
    ]
