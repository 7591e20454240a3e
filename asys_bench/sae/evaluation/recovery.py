"""How much of a known dictionary an SAE has found.

    MMCS(true, learned) = mean over true features t of max over learned rows d of cos(t, d)

Sharkey, Braun and Millidge 2022, "Taking features out of superposition with sparse autoencoders",
mean max cosine similarity. A true feature counts as recovered when that maximum exceeds 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
