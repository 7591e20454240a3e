"""Reconstruction quality over a stream of rows, in one pass and bounded memory.

    FVU = sum w ||x - x_hat||^2 / sum w ||x - mean(x)||^2

the fraction of variance unexplained; weights w are the rows a row stands for. Sums are float64, and
the variance is merged batch by batch as Chan et al. 1979 do, so that a large mean costs no digits.
Rows that the SAE leaves alone (`outliers`) count in `fvu_all` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.metrics import DENSE_RATE

# Feature densities: in what share of the rows each feature is active, on a log scale.
#
# Bricken et al. 2023, "Towards Monosemanticity": the histogram of log10 densities tells a healthy
# dictionary (one hump around L0 / d_sae) from one with dead features (none at all) or dense ones.

LOWEST_LOG10 = -7.0


@dataclass(frozen=True, slots=True)
class DensityHistogram:
    """Counts of features per bin of log10 density; `silent` ones (density 0) are in no bin."""

    edges_log10: tuple[float, ...]
    """Rising, one more than there are bins; the last is 0 (active in every row)."""
    counts: tuple[int, ...]
    silent: int

    def to_plain(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "edges_log10": list(self.edges_log10),
            "counts": list(self.counts),
            "silent": self.silent,
        }


def density_histogram(
    rate_F: torch.Tensor, bins: int = 28, lowest_log10: float = LOWEST_LOG10
) -> DensityHistogram:
    """The histogram of firing rates in [0, 1].

    Rates under 10^lowest_log10 (but not 0) are counted in the first bin.

    Raises:
        ValueError: a rate outside [0, 1], no bins, or `lowest_log10` that is not negative.
    """
    if bins < 1 or not -math.inf < lowest_log10 < 0:
        raise ValueError(f"bins {bins} must be >= 1 and lowest_log10 {lowest_log10} < 0")
    rate = rate_F.double().cpu()
    if len(rate) and not bool(((rate >= 0) & (rate <= 1 + 1e-9)).all()):
        raise ValueError("a firing rate lies outside 0..1")
    active = rate[rate > 0].clamp(10.0**lowest_log10, 1.0)
    edges = torch.linspace(lowest_log10, 0.0, bins + 1, dtype=torch.float64)
    # Bins are closed above, so that a feature that always fires is in the last one.
    index = torch.bucketize(active.log10(), edges) - 1
    counts = torch.bincount(index.clamp(0, bins - 1), minlength=bins)
    return DensityHistogram(
        tuple(edges.tolist()), tuple(counts.tolist()), len(rate) - int((rate > 0).sum())
    )


class Autoencoder(Protocol):
    """Anything that encodes raw rows [B, D] to activations [B, F] and back."""

    def encode(self, x_BD: torch.Tensor, /) -> torch.Tensor: ...
    def decode(self, acts_BF: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class ReconstructionReport:
    """A measurement of one SAE on `rows` rows. Shares are plain fractions. All figures but `fvu_all`
    are of the rows without outliers (of all, where all are outliers)."""

    rows: int
    fvu: float
    """Fraction of variance unexplained, >= 0, best 0; constant rows: 0 if exact, else infinity."""
    fvu_all: float
    """The same with the outliers, which pass through the SAE unchanged."""
    outlier_share: float
    """Rows that are outliers, as a share of all."""
    mse: float
    """Mean of ||x - x_hat||^2 / D."""
    cosine: float
    """Mean of the cosine between x and x_hat."""
    l2_ratio: float
    """Mean of ||x_hat|| / ||x||: under 1 the SAE shrinks its rows."""
    l0: float
    """Mean active features per row."""
    dead_fraction: float
    """Features that were active in none of the rows."""
    dense_fraction: float
    """Features active in over 10 % of the rows."""
    density: DensityHistogram


class _Moments:
    """Weighted error and variance of some rows, float64."""

    def __init__(self, d_in: int) -> None:
        self.rows = 0
        self.weight = self.error = self._spread = 0.0
        self.cosine = self.l2_ratio = 0.0
        self._mean_D = torch.zeros(d_in, dtype=torch.float64)

    def update(self, x: torch.Tensor, x_hat: torch.Tensor, weight: torch.Tensor) -> None:
        """Add rows float64[B, D], B >= 1."""
        norm, norm_hat = (torch.linalg.vector_norm(rows, dim=1) for rows in (x, x_hat))
        # Of two rows of zeros, or of one, a cosine and a ratio are 0 / 0: they count as 1 and 0.
        alike = ((norm == 0) & (norm_hat == 0)).double()
        both = (norm * norm_hat).clamp_min(1e-300)
        self.cosine += float(weight @ ((x * x_hat).sum(1) / both + alike))
        self.l2_ratio += float(weight @ (norm_hat / norm.clamp_min(1e-300) + alike))
        mass = float(weight.sum())
        mean_D = weight @ x / mass
        gap_D = mean_D - self._mean_D
        total = self.weight + mass
        share = mass / total
        self._spread += float(weight @ (x - mean_D).square().sum(1))
        self._spread += self.weight * share * float(gap_D.square().sum())
        self._mean_D += share * gap_D
        self.weight = total
        self.rows += len(x)
        self.error += float(weight @ (x - x_hat).square().sum(1))

    @property
    def mean_D(self) -> torch.Tensor:
        return self._mean_D

    @property
    def fvu(self) -> float:
        unexplained = 0.0 if self.error == 0 else float("inf")
        return self.error / self._spread if self._spread > 0 else unexplained


class ReconstructionMeter:
    """Adds up batches; `report` at any time."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self._d_in = d_in
        self._usual, self._all = _Moments(d_in), _Moments(d_in)
        self._fired_F = torch.zeros(d_sae, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        x_BD: torch.Tensor,
        x_hat_BD: torch.Tensor,
        acts_BF: torch.Tensor,
        weight_B: torch.Tensor | None = None,
        outlying_B: torch.Tensor | None = None,
    ) -> None:
        """Add rows with their reconstructions and activations; no rows change nothing.

        outlying_B: bool, the rows that are outliers (with themselves as reconstructions); None: none.
        """
        if len(x_BD) == 0:
            return
        x, x_hat = x_BD.double().cpu(), x_hat_BD.double().cpu()
        weight = (
            torch.ones(len(x), dtype=torch.float64) if weight_B is None else weight_B.double().cpu()
        )
        self._all.update(x, x_hat, weight)
        self._fired_F += weight @ (acts_BF > 0).double().cpu()
        if outlying_B is not None and bool(outlying_B.any()):
            usual_B = ~outlying_B.cpu()
            x, x_hat, weight = x[usual_B], x_hat[usual_B], weight[usual_B]
        if len(x):
            self._usual.update(x, x_hat, weight)

    @property
    def mean_D(self) -> torch.Tensor:
        """float64[D]: the mean of the rows without outliers (of all, where all are outliers)."""
        return self._usual.mean_D if self._usual.rows else self._all.mean_D

    def report(self) -> ReconstructionReport:
        """Raises ValueError before the first row."""
        if self._all.rows == 0:
            raise ValueError("no rows were added")
        of = self._usual if self._usual.rows else self._all
        rate_F = (self._fired_F / of.weight).clamp(0.0, 1.0)
        return ReconstructionReport(
            rows=of.rows,
            fvu=of.fvu,
            fvu_all=self._all.fvu,
            outlier_share=max(0.0, 1.0 - self._usual.weight / self._all.weight),
            mse=of.error / of.weight / self._d_in,
            cosine=of.cosine / of.weight,
            l2_ratio=of.l2_ratio / of.weight,
            l0=float(rate_F.sum()),
            dead_fraction=float((rate_F == 0).double().mean()),
            dense_fraction=float((rate_F > DENSE_RATE).double().mean()),
            density=density_histogram(rate_F),
        )


@torch.no_grad()
def evaluate(sae: Autoencoder, batches: Iterable[torch.Tensor]) -> ReconstructionReport:
    """`sae` on raw rows float32[B, D], batch by batch. One of ours is judged with its outliers.

    Raises:
        ValueError: there are no rows.
    """
    meter: ReconstructionMeter | None = None
    for x_BD in batches:
        acts_BF = sae.encode(x_BD)
        if meter is None:
            meter = ReconstructionMeter(x_BD.shape[-1], acts_BF.shape[-1])
        if isinstance(sae, SparseAutoencoder):
            meter.update(
                x_BD, sae.reconstruct(x_BD, acts_BF), acts_BF, outlying_B=sae.outlying(x_BD)
            )
        else:
            meter.update(x_BD, sae.decode(acts_BF), acts_BF)
    if meter is None:
        raise ValueError("no rows were given")
    return meter.report()


class PositionMeter:
    """FVU by a row's position in its sequence, all positions on the scale of the whole variance:

        FVU_t = (sum_t ||x - x_hat||^2 / n_t) / (sum ||x - mean||^2 / n)

    Positions whose rows vary little among themselves (the first token) are not blown up by that. The
    mean of FVU_t over rows is the FVU. Weights are 1.
    """

    def __init__(self) -> None:
        self._rows_T = self._error_T = torch.zeros(0, dtype=torch.float64)

    def update(self, position_B: torch.Tensor, x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> None:
        """Add rows with their positions, int64[B], each >= 0."""
        if not len(position_B):
            return
        error_B = (x_BD.double() - x_hat_BD.double()).square().sum(1)
        length = max(len(self._rows_T), int(position_B.max()) + 1)
        for name, weight_B in (("_rows_T", torch.ones_like(error_B)), ("_error_T", error_B)):
            grown_T = torch.zeros(length, dtype=torch.float64)
            held_T = getattr(self, name)
            grown_T[: len(held_T)] = held_T
            setattr(self, name, grown_T.index_add_(0, position_B, weight_B))

    def fvu_by_position(self, fvu: float) -> list[float | None]:
        """FVU_t from position 0 on, None where no row was; `fvu` is that of the same rows together."""
        error, rows = float(self._error_T.sum()), float(self._rows_T.sum())
        if not error or not math.isfinite(fvu):
            return [0.0 if n else None for n in self._rows_T.tolist()]
        per_row = error / rows / fvu
        return [
            float(e / n / per_row) if n else None
            for e, n in zip(self._error_T.tolist(), self._rows_T.tolist(), strict=True)
        ]
