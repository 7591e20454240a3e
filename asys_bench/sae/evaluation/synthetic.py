"""Rows with a known dictionary: sparse sums of unit directions, frequencies falling by a power law.

    x = sum_i a_i t_i      a_i = 0, or with probability p_i uniform in [0.5, 1.5]
    p_i ~ i^-exponent      scaled so that sum p_i = mean_l0, none above 0.9

as toy models of superposition have it (Elhage et al. 2022; Sharkey et al. 2022). More directions
than dimensions, so they cannot be orthogonal. Everything follows from the seed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

HIGHEST_RATE = 0.9
_BLOCK_ROWS = 4096


class SyntheticFeatures:
    """A dictionary of `features` directions in `d_in` dimensions, and rows made from it."""

    def __init__(
        self,
        features: int = 1024,
        d_in: int = 256,
        mean_l0: float = 16.0,
        exponent: float = 0.7,
        seed: int = 0,
    ) -> None:
        """Raises ValueError for sizes under 1, or a mean_l0 that 0.9 x features cannot reach."""
        if min(features, d_in) < 1 or not 0 < mean_l0 <= HIGHEST_RATE * features:
            raise ValueError(
                f"features {features} and d_in {d_in} must be >= 1, and mean_l0 {mean_l0} in "
                f"(0, {HIGHEST_RATE * features:g}]"
            )
        self.mean_l0, self.seed = mean_l0, seed
        generator = torch.Generator().manual_seed(_seed_of("dictionary", seed))
        directions_GD = torch.randn(features, d_in, generator=generator)
        self.directions_GD = torch.nn.functional.normalize(directions_GD, dim=1)
        """float32[G, D], unit rows: the truth."""
        self.rate_G = _rates(features, mean_l0, exponent)
        """float32[G]: probability that a feature is active in a row; sums to `mean_l0`."""

    @property
    def d_in(self) -> int:
        return self.directions_GD.shape[1]

    def rows(self, count: int, stream: int = 0) -> torch.Tensor:
        """`count` rows float32[count, D]; other `stream`s are independent of each other.

        A prefix does not depend on `count`.
        """
        generator = torch.Generator().manual_seed(_seed_of(f"rows {stream}", self.seed))
        out_ND = torch.empty(count, self.d_in)
        for first in range(0, count, _BLOCK_ROWS):
            # Whole blocks are drawn, so that a longer call begins with the same rows.
            uniform_BG = torch.rand(_BLOCK_ROWS, len(self.rate_G), generator=generator)
            size_BG = torch.rand(_BLOCK_ROWS, len(self.rate_G), generator=generator).add_(0.5)
            acts_BG = size_BG.mul_(uniform_BG < self.rate_G)
            wanted = min(_BLOCK_ROWS, count - first)
            torch.mm(acts_BG[:wanted], self.directions_GD, out=out_ND[first : first + wanted])
        return out_ND


def _seed_of(what: str, seed: int) -> int:
    """32 bits, all that torch's CPU generator takes.

    Mixed, because an SAE that is initialised from the plain seed would begin with the truth: both
    are the first normal numbers of one generator.
    """
    return zlib.crc32(f"{what} {seed}".encode())


def _rates(features: int, mean_l0: float, exponent: float) -> torch.Tensor:
    shape_G = torch.arange(1, features + 1, dtype=torch.float64) ** -exponent
    rate_G = torch.zeros_like(shape_G)
    free_G = torch.ones(features, dtype=torch.bool)
    left = mean_l0
    while True:  # features that would fire too often are set to the highest rate, one after another
        rate_G[free_G] = shape_G[free_G] * (left / float(shape_G[free_G].sum()))
        over_G = free_G & (rate_G > HIGHEST_RATE)
        if not bool(over_G.any()):
            return rate_G.float()
        rate_G[over_G] = HIGHEST_RATE
        free_G &= ~over_G
        left = mean_l0 - float(rate_G[~free_G].sum())
        if not bool(free_G.any()):
            return rate_G.float()


# How much of a known dictionary an SAE has found.
#
#     MMCS(true, learned) = mean over true features t of max over learned rows d of cos(t, d)
#
# Sharkey, Braun and Millidge 2022, "Taking features out of superposition with sparse autoencoders",
# mean max cosine similarity. A true feature counts as recovered when that maximum exceeds 0.9.

RECOVERED_COSINE = 0.9
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Recovery:
    """Plain fractions; best 1."""

    mmcs: float
    recovered: float
    """Share of true features that some learned direction matches with cosine > 0.9."""


@torch.no_grad()
def max_cosines(truth_GD: torch.Tensor, learned_FD: torch.Tensor) -> torch.Tensor:
    """float32[G]: for each true direction, the largest cosine of any learned one.

    Zero vectors have cosine 0. Raises ValueError when widths differ or a side is empty.
    """
    if truth_GD.shape[1:] != learned_FD.shape[1:] or not len(truth_GD) or not len(learned_FD):
        raise ValueError(
            f"true directions {tuple(truth_GD.shape)} and learned ones {tuple(learned_FD.shape)} "
            "must be matrices of one width, with rows"
        )
    learned_FD = torch.nn.functional.normalize(learned_FD.float(), dim=1)
    return torch.cat(
        [
            (torch.nn.functional.normalize(part.float(), dim=1) @ learned_FD.t()).amax(1)
            for part in torch.split(truth_GD, _CHUNK_ROWS)
        ]
    )


def recovery(truth_GD: torch.Tensor, learned_FD: torch.Tensor) -> Recovery:
    """MMCS and the share recovered; `learned_FD` are decoder rows (of any norm)."""
    best_G = max_cosines(truth_GD, learned_FD)
    return Recovery(float(best_G.mean()), float((best_G > RECOVERED_COSINE).float().mean()))
