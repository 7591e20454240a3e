"""One pass of an SAE over rows: which feature fired in which row, and what a feature is good for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.kernels.sparse_codes import Reconstruction, SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.training.device import CPU

CHUNK_ROWS = 2048
STRONG_SHARE = 0.5
"""A feature counts as firing from this share of its usual strength on, sum a^3 / sum a^2 over its rows, and
where it helps: an SAE fires weakly by chance where a feature is not, and in others' rows where its encoder
has not learnt to tell them apart. Of 22 planted births 4 were hidden by the one and 2 by the other. Weak
firing hardly moves that mean, and the order of rows does not, so that the null is what it was."""
_ABOVE = ("jumprelu", "batchtopk", "matryoshka", "relu")


@dataclass(frozen=True)
class Firing:
    """Pairs of a feature and a row in which it fired, by feature and then by row. R rows, F features."""

    starts: npt.NDArray[np.int64]
    """F + 1: where each feature's pairs begin."""
    row: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    gain: npt.NDArray[np.float32]
    """By how much the row's squared error would grow without the feature, as a share of the row's squared
    distance from the decoder's bias. Without it the residual r = x - x_hat becomes r + a d, and the error
    grows by ||r + a d||^2 - ||r||^2 = 2 a (r . d) + a^2 ||d||^2: no second forward pass is needed. Below 0
    the row is better off without it."""
    rows: int

    @classmethod
    def nothing(cls, features: int, rows: int) -> Firing:
        """None of these features fired in any of these rows."""
        none, starts = np.zeros(0, np.float32), np.zeros(features + 1, np.int64)
        return cls(starts, none.astype(np.int32), none, none, rows)

    @property
    def features(self) -> int:
        return len(self.starts) - 1

    def strong(self) -> Firing:
        """Only pairs with at least `STRONG_SHARE` of the feature's usual strength that help their row."""
        feature_N = self._feature_N
        value_N = self.value.astype(np.float64)
        square_F = np.bincount(feature_N, value_N**2, self.features)
        cube_F = np.bincount(feature_N, value_N**3, self.features)
        least_F = STRONG_SHARE * cube_F / np.maximum(square_F, 1e-300)
        return self._kept((value_N >= least_F[feature_N]) & (self.gain > 0), self.rows)

    def joined(self, other: Firing) -> Firing:
        """With the features of another pass over the same rows, numbered after these."""
        return Firing(
            np.r_[self.starts, self.starts[-1] + other.starts[1:]],
            np.r_[self.row, other.row],
            np.r_[self.value, other.value],
            np.r_[self.gain, other.gain],
            self.rows,
        )

    def split(self, at: int) -> tuple[Firing, Firing]:
        """(what fired in the first `at` rows, what in the others)."""
        early, late = self._kept(self.row < at, at), self._kept(self.row >= at, self.rows - at)
        return early, replace(late, row=(late.row - at).astype(np.int32))

    def _kept(self, mask_N: npt.NDArray[np.bool_], rows: int) -> Firing:
        total_F = np.bincount(self._feature_N[mask_N], minlength=self.features)
        starts = np.r_[0, np.cumsum(total_F)].astype(np.int64)
        return Firing(starts, self.row[mask_N], self.value[mask_N], self.gain[mask_N], rows)

    @property
    def _feature_N(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(self.features), self.total)

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """Rows in which each feature fired."""
        return np.diff(self.starts)

    def rows_of(self, feature: int) -> npt.NDArray[np.int64]:
        """In which rows it fired, ascending."""
        return self.row[self.starts[feature] : self.starts[feature + 1]].astype(np.int64)

    def values_of(self, feature: int) -> npt.NDArray[np.float32]:
        """How strongly, in these rows."""
        return self.value[self.starts[feature] : self.starts[feature + 1]]

    def usefulness_of(self, feature: int) -> float:
        """Mean gain of the rows in which it fired; 0 without any."""
        gain = self.gain[self.starts[feature] : self.starts[feature + 1]]
        return float(gain.mean()) if len(gain) else 0.0

    def counts(self, unit_R: npt.NDArray[np.int64], units: int) -> npt.NDArray[np.int32]:
        """int32[units, F]: rows of each unit in which each feature fired."""
        cell_N = unit_R[self.row] * self.features + self._feature_N
        table = np.bincount(cell_N, minlength=units * self.features)
        return table.reshape(units, self.features).astype(np.int32)


@contextmanager
def one_thread() -> Iterator[None]:
    """A pass has its kernels' threads (`SAEConfig.threads`): torch's own would only spin beside them, on
    cores that a live run needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def codes_of(
    sae: SparseAutoencoder, x_BD: torch.Tensor, kernels: SparseKernels
) -> tuple[SparseCodes, torch.Tensor]:
    """(everything that fires in the rows that the SAE does not leave alone, which rows these are)."""
    outlying_B = sae.outlying(x_BD)
    kept_B = torch.arange(len(x_BD)) if outlying_B is None else (~outlying_B).nonzero()[:, 0]
    x_BD = x_BD[kept_B] if len(kept_B) < len(x_BD) else x_BD
    W_enc_FD, bias_F = sae.W_enc.detach().t().contiguous(), sae.encoder_bias.detach()
    if sae.name == "topk":
        codes = kernels.top_k(sae.centered(x_BD), W_enc_FD, bias_F, sae.config.k)
        return codes.kept(codes.value_N > 0), kept_B
    if sae.name in _ABOVE and sae.encoder_bias_name == "b_enc":
        floor_F = sae.state_dict().get("threshold", torch.zeros(sae.d_sae)).clamp_min(0.0)
        found = kernels.above(sae.centered(x_BD), W_enc_FD, bias_F, floor_F)
        assert found is not None
        return found, kept_B
    acts_BF = sae.activations(x_BD)
    row_N, feature_N = acts_BF.nonzero(as_tuple=True)
    offset_B = torch.zeros(len(x_BD) + 1, dtype=torch.int32)
    torch.cumsum(torch.bincount(row_N, minlength=len(x_BD)), 0, dtype=torch.int32, out=offset_B[1:])
    value_N = acts_BF[row_N, feature_N]
    return SparseCodes(offset_B, feature_N.to(torch.int32), value_N, sae.d_sae), kept_B


@dataclass(frozen=True)
class Chunk:
    """Some rows as the SAE makes them."""

    codes: SparseCodes
    kept_B: torch.Tensor
    """Which of the rows these are: all but those that the SAE leaves alone."""
    target_BD: torch.Tensor
    """Less the decoder's bias."""
    made: Reconstruction
    """Its `gradient_BD` is x_hat - x, that for an activation -(r . d)."""


@torch.no_grad()
def reconstructed(sae: SparseAutoencoder, x_BD: torch.Tensor, kernels: SparseKernels) -> Chunk:
    """float32 rows, encoded and decoded; holds until the kernels' next call."""
    codes, kept_B = codes_of(sae, x_BD, kernels)
    x_BD = x_BD[kept_B] if len(kept_B) < len(x_BD) else x_BD
    target_BD, ones_B = x_BD - sae.b_dec.detach(), torch.ones(len(x_BD))
    made = kernels.reconstruct(codes, codes.value_N, sae.W_dec.detach(), target_BD, ones_B)
    return Chunk(codes, kept_B, target_BD, made)


@dataclass(frozen=True)
class Residuals:
    """What an SAE leaves of N rows, which a pass fills in; 0 for rows that it leaves alone."""

    rows_ND: torch.Tensor
    """float16, x - x_hat."""
    square_N: torch.Tensor
    """float32: each row's squared distance from the decoder's bias."""
    error_N: torch.Tensor
    """float32: the squared size of each row's residual."""

    @classmethod
    def of(cls, values_ND: torch.Tensor) -> Residuals:
        rows = len(values_ND)
        residual_ND = torch.zeros(values_ND.shape, dtype=torch.float16)
        return cls(residual_ND, torch.zeros(rows), torch.zeros(rows))

    def take(self, first: int, chunk: Chunk) -> None:
        """Of the rows from `first` on."""
        row_B = chunk.kept_B + first
        most = torch.finfo(torch.float16).max
        self.rows_ND[row_B] = (-chunk.made.gradient_BD).clamp_(-most, most).half()
        self.square_N[row_B] = chunk.target_BD.square().sum(1)
        self.error_N[row_B] = chunk.made.error_B


@torch.no_grad()
def firing(
    sae: SparseAutoencoder, values_ND: torch.Tensor, residuals: Residuals | None = None
) -> Firing:
    """The pass. values: raw rows as a reservoir has them. residuals: to be filled in."""
    kernels = CPU.kernels(sae.config, sae)
    square_F = sae.W_dec.detach().square().sum(1)
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    for first in range(0, len(values_ND), CHUNK_ROWS):
        chunk = reconstructed(sae, values_ND[first : first + CHUNK_ROWS].float(), kernels)
        codes, a_N = chunk.codes, chunk.codes.value_N
        if residuals is not None:
            residuals.take(first, chunk)
        grown_N = -2 * a_N * chunk.made.code_gradient_N + a_N.square() * codes.of_feature(square_F)
        gain_N = grown_N / codes.of_row(chunk.target_BD.square().sum(1).clamp_min(1e-12))
        row_N = chunk.kept_B[codes.row_N] + first
        whole = row_N.to(torch.int32), codes.feature_N, a_N, gain_N
        parts.append(tuple(one.numpy().copy() for one in whole))
    row_M, feature_M, value_M, gain_M = (
        np.concatenate([part[index] for part in parts]) if parts else np.zeros(0, dtype)
        for index, dtype in enumerate((np.int32, np.int32, np.float32, np.float32))
    )
    narrow = np.uint16 if sae.d_sae <= 1 << 16 else np.int32  # NumPy sorts 16 bits by radix
    order = np.argsort(feature_M.astype(narrow), kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(feature_M, minlength=sae.d_sae))].astype(np.int64)
    return Firing(starts, row_M[order], value_M[order], gain_M[order], len(values_ND))
