"""Data-driven start of whatever decides that a feature fires.

With zero biases half of the features fire on every row: the first hundred steps go into pushing
them off, at the cost of dense products. Starting every feature at the same, wanted rate costs one
quantile per feature. Conerly et al. 2025, "Dictionary Learning Optimization Techniques" (Anthropic
Circuits Updates, January 2025), choose b_enc in this way.
"""

from __future__ import annotations

import torch

SAMPLE_ROWS = 4096
CHUNK_ELEMENTS = 1 << 22


def firing_quantile(
    input_ND: torch.Tensor, W_enc_FD: torch.Tensor, wanted_l0: float
) -> torch.Tensor:
    """float32[F]: for each feature the value that its product `W_enc x` exceeds in wanted_l0 / F of
    the rows, but at least 0.

    input_ND: what the encoder multiplies, N >= 1; of more than 4096 rows the first.
    """
    rows_ND = input_ND[:SAMPLE_ROWS]
    rows, d_sae = len(rows_ND), len(W_enc_FD)
    rank = max(1, min(rows, round(rows * (1.0 - wanted_l0 / d_sae))))
    chunk = max(1, CHUNK_ELEMENTS // rows)
    parts = [
        torch.kthvalue(rows_ND @ table_FD.t(), rank, dim=0).values
        for table_FD in torch.split(W_enc_FD, chunk)
    ]
    return torch.cat(parts).clamp_min_(0.0)
