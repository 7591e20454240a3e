"""Everything that is kept of the features of one hook's SAE, and how rows change it.

Where the SAE is another than before (a newer checkpoint), what a feature has counts less: by the fourth
power of the cosine of its encoder's direction before and after, so that an SAE that has settled keeps
everything and a feature that still moves soon has examples of what it is now. A feature that was resampled
(another generation) begins with nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.feature_index.batches import Batch, Neighbours, Pairs
from asys_bench.change.feature_index.byte_counts import add_counts, join_pairs
from asys_bench.change.feature_index.cofiring import count_partners, forget
from asys_bench.change.feature_index.slots import Floats, Ints, place, random_keys
from asys_bench.rundir.feature_index import histogram_places, quantile_bins
from asys_bench.rundir.feature_index_layout import (
    BINS_PER_OCTAVE,
    HEAT_BELOW,
    HEAT_OCTAVES,
    HEAT_WINDOWS,
    NO_BASE,
    QUANTILE_BINS,
    WINDOWS,
    Columns,
    Sizes,
)
from asys_bench.sae import SparseAutoencoder

OCTAVES_BELOW = 11
"""Of the 16 octaves of a histogram: below the largest activation of the batch that a feature first fires in;
five are above."""
FADE_POWER = 4
LEAST_FADE = 1e-6
UNKNOWN_FADE = 0.5
"""Where the weights before are gone."""
WORKING_BYTES = 32 << 20
"""What is in memory beside the columns, at most: rows that wait, tokens, a batch with its pairs."""
MOST_PAIRS = 1 << 16
_ZEROED = ("fires", "rows", "sum", "histogram", "window_fires", "window_octaves", "activation")
_BLOCK = 1 << 12
"""Examples whose neighbours are looked up at once."""


class Index:
    """See the module docstring. columns: those of the layout, which this changes in place."""

    def __init__(self, sizes: Sizes, columns: Columns | None = None) -> None:
        self.sizes = sizes
        self.columns = sizes.empty() if columns is None else columns
        self.rows = 0
        self.host_step = 0
        self.first, self.width, self.used = 0, 1, 0
        """The windows of the density over time: host steps."""
        self._random_key = self.columns["random_key"].reshape(-1, sizes.per_bin)
        self._least()

    def _least(self) -> None:
        self._top_least = self.columns["top_key"].min(axis=1)
        self._random_least = self._random_key.min(axis=1)

    # ---- rows

    def add(self, batch: Batch, pairs: Pairs, sae_step: int) -> None:
        """Rows, and what fired in each."""
        columns, features = self.columns, self.sizes.d_sae
        self.rows += len(batch)
        self.host_step = max(self.host_step, int(batch.calls["host_step"].max()))
        columns["rows"] += batch.weight_R.sum()
        window_R = self._windows(batch.calls["host_step"], batch.moment_R[0])
        columns["window_rows"] += np.bincount(window_R, batch.weight_R, WINDOWS)
        if not len(pairs.feature_N):
            return
        row_N, feature_N, value_N = pairs.row_N, pairs.feature_N, pairs.value_N
        weight_N = batch.weight_R[row_N]
        columns["fires"] += np.bincount(feature_N, weight_N, features)
        columns["sum"] += np.bincount(feature_N, weight_N * value_N, features)
        _add_to(columns["window_fires"], feature_N * WINDOWS + window_R[row_N], weight_N)
        place_N, bin_N = self._histogram(feature_N, value_N, weight_N)
        self._heat(feature_N, place_N, window_R[row_N], weight_N, batch.moment_R[0])
        self._latest(batch, row_N, feature_N, value_N)

        top = place(columns["top_key"], self._top_least, feature_N, value_N)
        group_N = feature_N * QUANTILE_BINS + bin_N
        key_N = random_keys(batch.moment_R[row_N], feature_N, weight_N)
        taken, group, slot = place(self._random_key, self._random_least, group_N, key_N)
        feature, its_bin = np.divmod(group, QUANTILE_BINS)
        slot = self.sizes.top + its_bin * self.sizes.per_bin + slot
        pair_M = np.concatenate([top[0], taken])
        feature_M = np.concatenate([top[1], feature])
        slot_M = np.concatenate([top[2], slot])
        self._write(batch, pairs, row_N, pair_M, feature_M, slot_M, sae_step)
        count_partners(
            columns["partner"], columns["together"], pairs.offset_R, feature_N, batch.weight_R,
            batch.moment_R,
        )  # fmt: skip

    def _windows(self, step_R: Ints, salt: np.uint64) -> Ints:
        """The window of each host step, joined in pairs until all are there."""
        if not self.used:
            self.first = int(step_R.min())
        while (int(step_R.max()) - self.first) // self.width >= WINDOWS:
            for name in ("window_fires", "window_rows"):
                column = self.columns[name]
                column[..., : WINDOWS // 2] = column[..., ::2] + column[..., 1::2]
                column[..., WINDOWS // 2 :] = 0
            join_pairs(self.columns["window_octaves"], salt ^ np.uint64(self.width))
            self.width, self.used = 2 * self.width, (self.used + 1) // 2
        window_R = np.maximum(step_R - self.first, 0) // self.width
        self.used = max(self.used, int(window_R.max()) + 1)
        return window_R

    def _histogram(
        self, feature_N: Ints, value_N: Floats, weight_N: npt.NDArray[np.float64]
    ) -> tuple[Ints, Ints]:
        """Count the activations; (the bin of the histogram, the quantile bin) of each."""
        base_F, histogram = self.columns["base"], self.columns["histogram"]
        new = np.flatnonzero(base_F[feature_N] == NO_BASE)
        if len(new):
            largest_F = np.zeros(self.sizes.d_sae, np.float32)
            np.maximum.at(largest_F, feature_N[new], value_N[new])
            known = np.flatnonzero(largest_F)
            exponent = np.floor(np.log2(largest_F[known])).astype(np.int16)
            base_F[known] = exponent - OCTAVES_BELOW
        base_N = base_F[feature_N]
        place_N, _ = histogram_places(base_N, value_N)
        _add_to(histogram, feature_N * histogram.shape[1] + place_N, weight_N)
        fired, owner_N = np.unique(feature_N, return_inverse=True)
        bin_N = quantile_bins(histogram[fired], base_N, owner_N.reshape(-1), value_N)
        return place_N, bin_N

    def _heat(
        self,
        feature_N: Ints,
        place_N: Ints,
        window_N: Ints,
        weight_N: npt.NDArray[np.float64],
        salt: np.uint64,
    ) -> None:
        """Count the activations of each part of the run by octaves."""
        octave_N = np.clip(place_N // BINS_PER_OCTAVE - HEAT_BELOW, 0, HEAT_OCTAVES - 1)
        part_N = window_N // (WINDOWS // HEAT_WINDOWS)
        cell_N = (feature_N * HEAT_WINDOWS + part_N) * HEAT_OCTAVES + octave_N
        add_counts(self.columns["window_octaves"].reshape(-1), cell_N, weight_N, salt)

    def _latest(self, batch: Batch, row_N: Ints, feature_N: Ints, value_N: Floats) -> None:
        """Of a feature that comes several times, its last row counts."""
        columns = self.columns
        columns["latest_step"][feature_N] = batch.calls["host_step"][row_N]
        columns["latest_activation"][feature_N] = value_N
        token_R = np.full(len(batch), -1, np.int32)
        if len(batch.token_U):
            token_R = np.where(batch.at_R >= 0, batch.token_U[np.maximum(batch.at_R, 0)], -1)
        columns["latest_token"][feature_N] = token_R[row_N]

    def _write(
        self,
        batch: Batch,
        pairs: Pairs,
        row_N: Ints,
        pair_M: Ints,
        feature_M: Ints,
        slot_M: Ints,
        sae_step: int,
    ) -> None:
        """Put the pairs of these numbers into the slots."""
        if not len(pair_M):
            return
        columns, row_M = self.columns, row_N[pair_M]
        columns["activation"][feature_M, slot_M] = pairs.value_N[pair_M]
        columns["sae_step"][feature_M, slot_M] = sae_step
        columns["row"][feature_M, slot_M] = batch.place_R[row_M]
        for name, value_R in batch.calls.items():
            columns[name][feature_M, slot_M] = value_R[row_M].astype(columns[name].dtype)
        if not self.sizes.text:
            return
        neighbours = Neighbours(batch, pairs, self.sizes.d_sae)
        for at in range(0, len(pair_M), _BLOCK):
            block = slice(at, at + _BLOCK)
            feature, slot = feature_M[block], slot_M[block]
            around = neighbours.around(row_M[block], feature)
            for name, values in vars(around).items():
                columns[name][feature, slot] = values

    # ---- the SAE is another

    def renew(
        self, before: SparseAutoencoder | None, sae: SparseAutoencoder, generation_F: Ints
    ) -> None:
        """Rows are read with `sae` from now on. before: what they were read with; None: it is gone."""
        columns = self.columns
        gone_F = columns["generation"] != generation_F
        fade_F, ratio_F = _moved(before, sae) if before is not None else _unknown(sae)
        least_F = np.maximum(fade_F, LEAST_FADE)  # an example stays until another takes its place
        columns["top_key"] *= (least_F * ratio_F)[:, None].astype(np.float32)
        columns["random_key"] /= least_F[:, None, None].astype(np.float32)
        for name in ("fires", "rows", "sum"):
            columns[name] *= fade_F
        for name in ("histogram", "together"):
            columns[name] *= fade_F[:, None].astype(np.float32)
        self.forget(gone_F)
        columns["generation"][:] = generation_F
        self._least()

    def forget(self, gone_F: npt.NDArray[np.bool_]) -> None:
        """These features are others now."""
        if not gone_F.any():
            return
        columns = self.columns
        for name in ("top_key", "random_key"):
            columns[name][gone_F] = -np.inf
        for name in _ZEROED:
            columns[name][gone_F] = 0
        for name in ("tokens", "levels", "length") if self.sizes.text else ():
            columns[name][gone_F] = 0
        columns["base"][gone_F] = NO_BASE
        for name in ("latest_step", "latest_token"):
            columns[name][gone_F] = -1
        forget(columns["partner"], columns["together"], gone_F)
        self._least()

    def settle(self) -> None:
        """Before the columns are written: what is derived."""
        top = self.columns["activation"][:, : self.sizes.top]
        there = self.columns["top_key"] > -np.inf
        np.max(top, axis=1, where=there, initial=0.0, out=self.columns["largest"])


def most_rows(features_per_row: float) -> int:
    """Rows of a batch, for that many features that fire in each."""
    return int(min(4096, max(8, MOST_PAIRS / max(1.0, features_per_row))))


def _moved(
    before: SparseAutoencoder, sae: SparseAutoencoder
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(what a feature's past counts, how much longer its encoder is) of each feature."""
    old, new = before.W_enc.detach(), sae.W_enc.detach()
    old_F, new_F = (torch.linalg.vector_norm(one, dim=0).double() for one in (old, new))
    product_F = torch.einsum("df,df->f", old, new).double()
    cosine_F = (product_F / (old_F * new_F).clamp_min(1e-30)).clamp(0.0, 1.0)
    same = torch.equal(old, new)
    fade_F = torch.ones_like(cosine_F) if same else cosine_F**FADE_POWER
    ratio_F = (new_F / old_F.clamp_min(1e-30)).clamp(1e-3, 1e3)
    return fade_F.numpy(), ratio_F.numpy()


def _unknown(
    sae: SparseAutoencoder,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.full(sae.d_sae, UNKNOWN_FADE), np.ones(sae.d_sae)


def _add_to(table: Floats, cell_N: Ints, weight_N: npt.NDArray[np.float64]) -> None:
    """Add to cells of a table, of which some come several times."""
    cells, of_N = np.unique(cell_N, return_inverse=True)
    table.reshape(-1)[cells] += np.bincount(of_N.reshape(-1), weight_N).astype(np.float32)
