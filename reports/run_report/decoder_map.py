"""The decoder's directions on a plane: near each other means that they write nearly the same thing.

Principal components of the unit-norm decoder rows (Pearson 1901), by SVD of the centred matrix. They
are linear and need no seed, so that two maps can be compared; what share of the variance the plane
holds is said beside it, because in many dimensions it is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.sae.architectures.base import SparseAutoencoder


@dataclass(frozen=True)
class DecoderMap:
    """`xy_F2`: a point per feature. `explained`: share of the variance on each axis."""

    xy_F2: npt.NDArray[np.float64]
    explained: tuple[float, float]


@torch.no_grad()
def decoder_map(sae: SparseAutoencoder) -> DecoderMap | None:
    """None when there are fewer than three features or they all point the same way."""
    rows_FD = sae.W_dec.detach().double()
    norm_F1 = torch.linalg.vector_norm(rows_FD, dim=1, keepdim=True)
    rows_FD = rows_FD / norm_F1.clamp_min(1e-12)
    centred_FD = rows_FD - rows_FD.mean(0)
    if len(rows_FD) < 3 or rows_FD.shape[1] < 2 or not bool(torch.isfinite(centred_FD).all()):
        return None
    # The covariance is D x D: small where F is large.
    values_D, vectors_DD = torch.linalg.eigh(centred_FD.T @ centred_FD)
    total = float(values_D.clamp_min(0).sum())
    if total <= 0:
        return None
    axes_D2 = vectors_DD[:, -2:].flip(1)
    # The sign of an eigenvector is arbitrary: its largest entry is made positive.
    biggest = axes_D2.abs().argmax(0)
    axes_D2 = axes_D2 * torch.sign(axes_D2[biggest, torch.arange(2)])
    share = (values_D[-2:].flip(0).clamp_min(0) / total).tolist()
    return DecoderMap((centred_FD @ axes_D2).numpy(), (float(share[0]), float(share[1])))
