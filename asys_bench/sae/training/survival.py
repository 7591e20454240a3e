"""Do features last? Matching the dictionaries of two moments.

A feature of the older dictionary has survived when some row of the newer decoder points (almost)
its way: cosine > 0.9, say. The position in the dictionary does not count, and signs do.
"""

from __future__ import annotations

import torch

MOST_FEATURES = 4096
"""Of larger dictionaries an evenly spaced part is looked up, against all of the newer one."""
CHUNK_ELEMENTS = 1 << 24


@torch.no_grad()
def matched_cosine(before_FD: torch.Tensor, after_FD: torch.Tensor) -> torch.Tensor:
    """float32[F']: for each row of (a part of) `before` its largest cosine with a row of `after`."""
    if len(before_FD) > MOST_FEATURES:
        index = torch.linspace(0, len(before_FD) - 1, MOST_FEATURES).round().long()
        before_FD = before_FD[index]
    before_FD = torch.nn.functional.normalize(before_FD.float(), dim=1)
    after_FD = torch.nn.functional.normalize(after_FD.float(), dim=1)
    chunk = max(1, CHUNK_ELEMENTS // len(after_FD))
    parts = [(part @ after_FD.t()).amax(1) for part in torch.split(before_FD, chunk)]
    return torch.cat(parts)


def feature_survival(before_FD: torch.Tensor, after_FD: torch.Tensor, cosine: float) -> float:
    """Share of the rows of `before` that have a row of `after` within `cosine`, 0..1."""
    return float((matched_cosine(before_FD, after_FD) > cosine).double().mean())
