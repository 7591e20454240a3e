"""How good a reconstruction is. Pure functions of tensors; `weight_B` is what a row stands for.

Ratios are plain fractions (0.05, not 5 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.architectures.scaling import RowScaling

DENSE_RATE = 0.1
"""A feature active in more than this share of rows is dense (hardly a feature)."""
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class SAEMetrics:
    """A measurement on held-out rows, in units of the raw rows."""

    rows: int
    """Without outliers."""
    loss: float
    """Mean of ||x - x_hat||^2 / D."""
    fvu: float
    """Fraction of variance unexplained, sum ||x - x_hat||^2 / sum ||x - mean||^2; >= 0, best 0. Of
    the rows without outliers, as l0 and dense_fraction are; of all where all are outliers."""
    fvu_all: float
    """The same of all rows; an outlier is reconstructed exactly, for it passes through."""
    outlier_share: float
    """Rows that are outliers, 0..1."""
    l0: float
    """Mean active features per row."""
    dead_fraction: float
    """Features silent for `dead_after_rows` trained rows, 0..1."""
    dense_fraction: float
    """Features active in over 10 % of the rows, 0..1."""
    cosine: float
    """Mean cosine of x and x_hat, -1..1. Near 1 for rows with a large mean: prefer fvu."""
    fvu_of_hooks: tuple[float, ...] = ()
    """A crosscoder's FVU on each of its hooks; fvu is their mean, weighted by the hooks' widths."""


def mean_squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor, weight_B: torch.Tensor) -> float:
    """Weighted mean over rows of ||x - x_hat||^2 / D."""
    error_B = (x_BD.double() - x_hat_BD.double()).square().mean(1)
    return float(weight_B.double() @ error_B / weight_B.double().sum())


def fraction_of_variance_unexplained(
    x_BD: torch.Tensor, x_hat_BD: torch.Tensor, weight_B: torch.Tensor
) -> float:
    """`sum w ||x - x_hat||^2 / sum w ||x - mean||^2`, mean weighted too.

    Constant rows: 0.0 when reproduced exactly, otherwise infinity.
    """
    x, x_hat, weight = x_BD.double(), x_hat_BD.double(), weight_B.double()
    mean_D = weight @ x / weight.sum()
    residual = float(weight @ (x - x_hat).square().sum(1))
    variance = float(weight @ (x - mean_D).square().sum(1))
    if variance == 0.0:
        return 0.0 if residual == 0.0 else float("inf")
    return residual / variance


def mean_cosine(x_BD: torch.Tensor, x_hat_BD: torch.Tensor, weight_B: torch.Tensor) -> float:
    """Weighted mean cosine similarity; a row with a zero vector counts as 0."""
    x, x_hat, weight = x_BD.double(), x_hat_BD.double(), weight_B.double()
    norms_B = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(x_hat, dim=1)
    cosine_B = torch.where(norms_B > 0, (x * x_hat).sum(1) / norms_B.clamp_min(1e-300), 0.0)
    return float(weight @ cosine_B / weight.sum())


def firing_rates(acts_BF: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """float64[F]: weighted share of rows in which each feature is active."""
    weight = weight_B.double()
    return weight @ (acts_BF > 0).double() / weight.sum()


Look = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of scaled inputs and their weights: (the reconstructions, the firing rate of every feature)."""


def _looking(sae: SparseAutoencoder) -> Look:
    def look(input_BD: torch.Tensor, weight_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        acts_BF = sae.encode(input_BD)
        return sae.reconstruct(input_BD, acts_BF), firing_rates(acts_BF, weight_B)

    return look


def measure(
    sae: SparseAutoencoder,
    scaling: RowScaling,
    rows_BD: torch.Tensor,
    weight_B: torch.Tensor,
    dead_fraction: float,
    outlier_norm: float = math.inf,
    look: Look | None = None,
) -> SAEMetrics:
    """Measure `sae` (which works on scaled rows) on raw rows float32[B, D], B >= 1.

    rows_BD: a trainer's rows ([x | y] for a transcoder), on the CPU wherever the SAE is. Runs in
    chunks of at most 4 Mi activations.
    outlier_norm: rows (inputs) of a larger norm are outliers. look: in place of `sae`'s own, where it is a
    part of what is measured.
    """
    look = look or _looking(sae)
    chunk, device = max(1, CHUNK_ELEMENTS // sae.d_sae), sae.W_dec.device
    norm_B = torch.linalg.vector_norm(rows_BD[:, : sae.d_in], dim=1)
    usual_B = norm_B <= outlier_norm
    if not bool(usual_B.any()):
        usual_B = torch.ones_like(usual_B)
    share = 1.0 - float(usual_B.double() @ weight_B.double() / weight_B.double().sum())
    all_BD, all_weight_B = sae.split(rows_BD)[1], weight_B
    rows_BD, weight_B = rows_BD[usual_B], weight_B[usual_B]
    _, x_BD = sae.split(rows_BD)
    x_hat_BD = torch.empty_like(x_BD)
    fired_F = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for first in range(0, len(rows_BD), chunk):
            part = slice(first, first + chunk)
            input_BD, _ = sae.split(scaling.apply(rows_BD[part]).to(device))
            made_BD, rate_F = look(input_BD, weight_B[part].to(device))
            x_hat_BD[part] = scaling.undo(made_BD.cpu())
            fired_F = fired_F + rate_F.cpu() * float(weight_B[part].double().sum())
    rate_F = fired_F / float(weight_B.double().sum())
    of_hooks = _fvu_of_parts(sae.parts, x_BD, x_hat_BD, weight_B)
    fvu = fvu_all = _mean_over(sae.parts, of_hooks)
    if share:
        made_BD = all_BD.clone()
        made_BD[usual_B] = x_hat_BD
        all_of_hooks = _fvu_of_parts(sae.parts, all_BD, made_BD, all_weight_B)
        fvu_all = _mean_over(sae.parts, all_of_hooks)
    return SAEMetrics(
        rows=len(rows_BD),
        loss=mean_squared_error(x_BD, x_hat_BD, weight_B),
        fvu=fvu,
        fvu_all=fvu_all,
        outlier_share=share,
        l0=float(rate_F.sum()),
        dead_fraction=dead_fraction,
        dense_fraction=float((rate_F > DENSE_RATE).double().mean()),
        cosine=mean_cosine(x_BD, x_hat_BD, weight_B),
        fvu_of_hooks=of_hooks if len(of_hooks) > 1 else (),
    )


def _fvu_of_parts(
    parts: Sequence[slice], x_BD: torch.Tensor, x_hat_BD: torch.Tensor, weight_B: torch.Tensor
) -> tuple[float, ...]:
    return tuple(
        fraction_of_variance_unexplained(x_BD[:, part], x_hat_BD[:, part], weight_B)
        for part in parts
    )


def _mean_over(parts: Sequence[slice], values: Sequence[float]) -> float:
    """Mean of a value per part, weighted by the parts' widths."""
    if len(values) == 1:
        return values[0]
    widths: list[int] = [part.stop - part.start for part in parts]
    return sum(w * value for w, value in zip(widths, values, strict=True)) / sum(widths)
