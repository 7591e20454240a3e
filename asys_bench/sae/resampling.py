"""Resampling of dead features (Bricken et al. 2023, appendix "Neuron resampling").

A dead feature's decoder row becomes the direction of a badly reconstructed row, drawn with
probability proportional to its squared loss; its encoder the same direction at 0.2 times the mean
norm of the living encoders, its bias 0, its Adam moments 0. Online, the rows come from the current
batch and only as many features are revived per round as leaves the loss undisturbed.
"""

from __future__ import annotations

import torch

from asys_bench.sae.base import SparseAutoencoder
from asys_bench.sae.row_adam import RowAdam

ENCODER_SCALE = 0.2
MOST_PER_ROUND = 256


@torch.no_grad()
def resample_(
    sae: SparseAutoencoder,
    adam: RowAdam,
    dead_N: torch.Tensor,
    input_BD: torch.Tensor,
    error_B: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Re-initialise (some of) the dead features in place; returns the indices of those revived.

    input_BD: what the encoder multiplies, of a batch of scaled rows; error_B: their squared
    errors. Nothing is done without loss.
    """
    chance_B = error_B.double().square()
    count = min(len(dead_N), MOST_PER_ROUND, int((chance_B > 0).sum()))
    if count == 0 or not bool(torch.isfinite(chance_B.sum())):
        return dead_N[:0]
    revived_M = dead_N[torch.randperm(len(dead_N), generator=generator)[:count]]
    chosen_M = torch.multinomial(chance_B, count, replacement=False, generator=generator)
    direction_MD = input_BD[chosen_M]
    norm_M1 = torch.linalg.vector_norm(direction_MD, dim=1, keepdim=True)
    usable_M = norm_M1.squeeze(1) > 1e-8
    revived_M, direction_MD = revived_M[usable_M], (direction_MD / norm_M1)[usable_M]

    living_F = torch.ones(sae.d_sae, dtype=torch.bool)
    living_F[dead_N] = False
    encoder_norm_F = torch.linalg.vector_norm(sae.W_enc, dim=0)
    living_norm = float(encoder_norm_F[living_F].mean()) if bool(living_F.any()) else 1.0
    sae.reset_features_(revived_M, direction_MD, ENCODER_SCALE * living_norm)
    adam.forget(revived_M)
    return revived_M
