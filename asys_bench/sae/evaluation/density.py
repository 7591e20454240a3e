"""Feature densities: in what share of the rows each feature is active, on a log scale.

Bricken et al. 2023, "Towards Monosemanticity": the histogram of log10 densities tells a healthy
dictionary (one hump around L0 / d_sae) from one with dead features (none at all) or dense ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

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
