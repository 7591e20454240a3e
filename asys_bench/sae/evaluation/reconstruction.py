"""Reconstruction quality over a stream of rows, in one pass and bounded memory.

    FVU = sum w ||x - x_hat||^2 / sum w ||x - mean(x)||^2

the fraction of variance unexplained; weights w are the rows a row stands for. Sums are float64, and
the variance is merged batch by batch as Chan et al. 1979 do, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from asys_bench.sae.evaluation.density import DensityHistogram, density_histogram
from asys_bench.sae.metrics import DENSE_RATE


class Autoencoder(Protocol):
    """Anything that encodes raw rows [B, D] to activations [B, F] and back."""

    def encode(self, x_BD: torch.Tensor, /) -> torch.Tensor: ...
    def decode(self, acts_BF: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class ReconstructionReport:
    """A measurement of one SAE on `rows` rows. Shares are plain fractions."""

    rows: int
    fvu: float
    """Fraction of variance unexplained, >= 0, best 0; constant rows: 0 if exact, else infinity."""
    mse: float
    """Mean of ||x - x_hat||^2 / D."""
    l0: float
    """Mean active features per row."""
    dead_fraction: float
    """Features that were active in none of the rows."""
    dense_fraction: float
    """Features active in over 10 % of the rows."""
    density: DensityHistogram


class ReconstructionMeter:
    """Adds up batches; `report` at any time."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self._d_in = d_in
        self._rows = 0
        self._weight = self._error = self._spread = self._active = 0.0
        self._mean_D = torch.zeros(d_in, dtype=torch.float64)
        self._fired_F = torch.zeros(d_sae, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        x_BD: torch.Tensor,
        x_hat_BD: torch.Tensor,
        acts_BF: torch.Tensor,
        weight_B: torch.Tensor | None = None,
    ) -> None:
        """Add rows with their reconstructions and activations; no rows change nothing."""
        if len(x_BD) == 0:
            return
        x, x_hat = x_BD.double().cpu(), x_hat_BD.double().cpu()
        weight = (
            torch.ones(len(x), dtype=torch.float64) if weight_B is None else weight_B.double().cpu()
        )
        mass = float(weight.sum())
        mean_D = weight @ x / mass
        gap_D = mean_D - self._mean_D
        total = self._weight + mass
        share = mass / total
        self._spread += float(weight @ (x - mean_D).square().sum(1))
        self._spread += self._weight * share * float(gap_D.square().sum())
        self._mean_D += share * gap_D
        self._weight = total
        self._rows += len(x)
        self._error += float(weight @ (x - x_hat).square().sum(1))
        self._fired_F += weight @ (acts_BF > 0).double().cpu()

    def report(self) -> ReconstructionReport:
        """Raises ValueError before the first row."""
        if self._rows == 0:
            raise ValueError("no rows were added")
        rate_F = (self._fired_F / self._weight).clamp(0.0, 1.0)
        unexplained = 0.0 if self._error == 0 else float("inf")
        fvu = self._error / self._spread if self._spread > 0 else unexplained
        return ReconstructionReport(
            rows=self._rows,
            fvu=fvu,
            mse=self._error / self._weight / self._d_in,
            l0=float(rate_F.sum()),
            dead_fraction=float((rate_F == 0).double().mean()),
            dense_fraction=float((rate_F > DENSE_RATE).double().mean()),
            density=density_histogram(rate_F),
        )


@torch.no_grad()
def evaluate(sae: Autoencoder, batches: Iterable[torch.Tensor]) -> ReconstructionReport:
    """`sae` on raw rows float32[B, D], batch by batch.

    Raises:
        ValueError: there are no rows.
    """
    meter: ReconstructionMeter | None = None
    for x_BD in batches:
        acts_BF = sae.encode(x_BD)
        if meter is None:
            meter = ReconstructionMeter(x_BD.shape[-1], acts_BF.shape[-1])
        meter.update(x_BD, sae.decode(acts_BF), acts_BF)
    if meter is None:
        raise ValueError("no rows were given")
    return meter.report()
