"""The point with the least summed distance to a set of rows: a centre that outliers do not move."""

from __future__ import annotations

import torch


def geometric_median(
    x_ND: torch.Tensor, iterations: int = 50, tolerance: float = 1e-6
) -> torch.Tensor:
    """Weiszfeld's iteration: `m <- sum(x_i / d_i) / sum(1 / d_i)`, d_i = ||x_i - m||, from the mean.

    x_ND: finite float[N, D], N >= 1. Returns x's dtype [D]. Stops when the centre moves less than
    `tolerance` of the mean distance. Used for b_dec as in Bricken et al. 2023.
    """
    rows_ND = x_ND.double()
    center_D = rows_ND.mean(0)
    for _ in range(iterations):
        distance_N = torch.linalg.vector_norm(rows_ND - center_D, dim=1)
        spread = float(distance_N.mean())
        if spread == 0.0:
            break
        pull_N = 1.0 / distance_N.clamp_min(1e-9 * spread)
        new_D = (pull_N.unsqueeze(1) * rows_ND).sum(0) / pull_N.sum()
        moved = float(torch.linalg.vector_norm(new_D - center_D))
        center_D = new_D
        if moved < tolerance * spread:
            break
    return center_D.to(x_ND.dtype)
