"""Which features have not fired for a while."""

from __future__ import annotations

from collections.abc import Callable

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, tensor_of
from asys_bench.sae.ranks import ALONE, Ranks
from asys_bench.sae.training.row_adam import RowAdam


class DeadFeatures:
    """Counts trained rows since each feature last fired.

    d_sae: features that are here. ranks: where the others are, if these are not all.
    """

    def __init__(
        self,
        d_sae: int,
        dead_after_rows: int,
        device: torch.device | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._after, self._ranks = dead_after_rows, ranks
        self.silent_rows_F = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.count = 0
        """Dead features after the last `update`, at all ranks."""

    def update(self, fired_F: torch.Tensor, rows: int) -> None:
        """A batch of `rows` rows was trained in which feature f fired `fired_F[f]` times."""
        self.silent_rows_F.add_(rows).masked_fill_(fired_F > 0, 0)
        self._count()

    def indices(self) -> torch.Tensor:
        """int64 indices of the dead features that are here."""
        return (self.silent_rows_F > self._after).nonzero().squeeze(1)

    def revive(self, index_N: torch.Tensor) -> None:
        """These were re-initialised: give them a full window to prove themselves."""
        self.silent_rows_F[index_N] = 0
        self._count()

    def _count(self) -> None:
        here = int((self.silent_rows_F > self._after).sum())
        self.count = round(self._ranks.number_over_latents(here))

    def state_dict(self) -> StateDict:
        return {"silent_rows": self.silent_rows_F}

    def load_state_dict(self, state: StateDict) -> None:
        self.silent_rows_F.copy_(tensor_of(state, "silent_rows"))
        self._count()


# Resampling: dead features start anew where the living ones fail.
#
# A dead feature's decoder row becomes the direction of the residual x - x_hat of a badly reconstructed
# row, drawn with probability proportional to its squared error; its encoder the same direction at
# `ENCODER_RATIO` times the mean norm of the living encoders, with the biases or thresholds of a typical
# living feature, its Adam moments 0. After Bricken et al. 2023, appendix "Neuron resampling", who take
# the row itself; the residual points at what is missing in it.
#
# Synthetic benchmark, TopK, 1M rows, FVU and share of true features found: no care for dead features
# 0.134, 89 %; whole rows every 30 steps 0.130, 90 %; AuxK on 512 rows a step 0.112, 95 %; AuxK on 4096
# rows 0.0995, 99.6 %, at half the speed; residuals 0.101, 99.6 %. An encoder ratio of 1 disturbs what
# works already (FVU 0.37 right after a round).
#
# Rounds come every `LEAST_GAP` steps at first and further apart later, since each one costs what is
# tried in vain: after a tenth of the steps taken, at most `resample_every_steps`.

ENCODER_RATIO = 0.35
LEAST_GAP = 10
SHARE_PER_ROUND = 1 / 32
"""Of all features, at most so many start anew in one round (and at least one)."""


def round_after(step: int, longest_gap: int) -> int:
    """The first step of a round that is later than `step`."""
    at = 0
    while at <= step:
        at += max(1, min(longest_gap, max(LEAST_GAP, at // 10)))
    return at


@torch.no_grad()
def resample_(
    sae: SparseAutoencoder,
    adam: RowAdam,
    dead: DeadFeatures,
    x_BD: torch.Tensor,
    target_BD: torch.Tensor,
    error_B: torch.Tensor,
    generator: torch.Generator,
    forward: Callable[[torch.Tensor], torch.Tensor],
    ranks: Ranks = ALONE,
) -> tuple[torch.Tensor, int]:
    """Re-initialise (some of) the dead features in place; returns the indices of those that are here, and
    how many they are at all ranks.

    x_BD, target_BD: a batch of scaled rows and what they are to become; error_B: their squared
    errors. Nothing is done without loss. forward: what the SAE makes of rows.
    """
    is_dead_F = torch.zeros_like(dead.silent_rows_F)
    is_dead_F[dead.indices()] = 1
    is_dead_F = ranks.every_latent(is_dead_F) > 0
    dead_N, d_sae = is_dead_F.nonzero().squeeze(1), len(is_dead_F)
    chance_B = ranks.every_row(error_B).double().cpu()  # the generator draws there
    most = max(1, round(SHARE_PER_ROUND * d_sae))
    count = min(len(dead_N), most, int((chance_B > 0).sum()))
    if count == 0 or not bool(torch.isfinite(chance_B.sum())):
        return dead_N[:0], 0
    device = dead_N.device
    revived_M = dead_N[torch.randperm(len(dead_N), generator=generator)[:count].to(device)]
    chosen_M = torch.multinomial(chance_B, count, replacement=False, generator=generator)
    chosen_M = chosen_M.to(device)
    rows_MD = ranks.rows_at(x_BD, chosen_M)
    residual_MD = ranks.rows_at(target_BD, chosen_M) - forward(rows_MD)
    read_MD = residual_MD if sae.d_out == sae.d_in and sae.subtracts_b_dec else rows_MD
    norms_MS = torch.stack([torch.linalg.vector_norm(t, dim=1) for t in (residual_MD, read_MD)], 1)
    usable_M = (norms_MS > 1e-8).all(1)
    typical = sae.typical_feature(~is_dead_F, ranks)
    own = ranks.features_of(d_sae)
    here_M = usable_M & (revived_M >= own.start) & (revived_M < own.stop)
    index_M = revived_M[here_M] - own.start
    sae.reset_features_(
        index_M,
        residual_MD[here_M] / norms_MS[here_M, :1],
        read_MD[here_M] / norms_MS[here_M, 1:],
        ENCODER_RATIO,
        typical,
    )
    adam.forget(index_M)
    dead.revive(index_M)
    return index_M, int(usable_M.sum())
