"""Where features begin: at rows of the data, not in random directions.

A row is a sum of the few features that are active in it, so it points towards each of them; a random
direction points nowhere. Rows of a model vary most in a few directions, in which they all overlap: a
feature that begins at a row r reads what tells r from the others, C^-1 r with C the rows' covariance, the
linear filter with the largest response to r over the mean square of its responses to all (Fisher 1936, "The
use of multiple measurements in taxonomic problems"), and writes C^-1/2 r, in between. C is that of the rows
at unit length, the sign covariance (Visuri, Koivunen and Oja 2000, "Sign and rank covariance matrices"): a
few rows of a hundred times the norm would be all of it. A ridge keeps directions of hardly any variance out
of it; fewer features than columns begin at rows as they are. Then the encoder is scaled so that what is
active at the start reconstructs the rows with the least squared error: rows overlap, and unscaled they add
up to far more than the row.

FVU of TopK on the synthetic benchmark (1024 features, d = 256, F = 2048, k = 16, batches of 4096,
Adam at 1.2e-2), held out, after 300k rows: random directions 0.402; rows 0.264; rows, scaled 0.171. What
reading apart gains on top is in docs/benchmarks.md.
"""

from __future__ import annotations

import math

import torch

FIT_ROWS = 2048
"""Rows that the encoder's scale is fitted on."""
JITTER = 0.1
"""Length of a random vector that is added to every unit direction: equal rows must not make equal
features, which would stay equal for ever."""
AXES_ROWS = 2048
"""Rows that their covariance is taken of: what it costs is bounded at any width."""
RIDGE = 0.1
"""Of the mean variance, added to that of every direction."""
LEAST_SCALE, MOST_SCALE = 0.05, 2.0


def feature_rows(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """int64[2, count]: the rows whose difference each feature begins at; the second is -1 where it is
    the row itself. Every row is used once before pairs are."""
    first_F = torch.cat(
        [
            torch.randperm(rows, generator=generator)[:count],
            torch.randint(rows, (max(0, count - rows),), generator=generator),
        ]
    )
    second_F = torch.randint(rows, (count,), generator=generator)
    second_F[:rows] = -1
    return torch.stack([first_F, second_F])


def directions(
    input_ND: torch.Tensor, picked_2F: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Unit rows float32[F, D] at the picked (centred) rows; random where a row is zero."""
    noise_FD = torch.randn(picked_2F.shape[1], input_ND.shape[1], generator=generator)
    noise_FD = noise_FD.to(input_ND.device) / math.sqrt(input_ND.shape[1])
    first_F, second_F = picked_2F.to(input_ND.device)
    out_FD = input_ND[first_F]
    pairs_F = second_F >= 0
    out_FD[pairs_F] -= input_ND[second_F[pairs_F]]
    norm_F1 = torch.linalg.vector_norm(out_FD, dim=1, keepdim=True)
    usable_F1 = torch.isfinite(norm_F1) & (norm_F1 > 1e-8)
    out_FD = torch.where(usable_F1, out_FD / norm_F1 + JITTER * noise_FD, noise_FD)
    norm_F1 = torch.linalg.vector_norm(out_FD, dim=1, keepdim=True).clamp_min_(1e-12)
    return out_FD.div_(norm_F1)


def read_and_written(
    rows_FD: torch.Tensor, input_ND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what features that begin at these unit rows read, of mean norm 1; what they write, unit rows), both
    float32[F, D]; see the module docstring. input_ND: the centred rows that they are among."""
    variance_M, axis_DM = _axes(input_ND)
    along_FM = rows_FD @ axis_DM

    def turned(power: float) -> torch.Tensor:
        """(C / RIDGE + 1)^-power r: nothing changes across the axes."""
        left_M = (variance_M / RIDGE + 1.0).pow_(-power).sub_(1.0)
        return torch.addmm(rows_FD, along_FM * left_M, axis_DM.t())

    read_FD, write_FD = turned(1.0), turned(0.5)
    read_FD /= torch.linalg.vector_norm(read_FD, dim=1).mean().clamp_min_(1e-12)
    return read_FD, write_FD.div_(torch.linalg.vector_norm(write_FD, dim=1, keepdim=True))


def _axes(input_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(variances float32[M], unit axes float32[D, M]) of at most `AXES_ROWS` of the rows, at the length
    sqrt(D), M the smaller one of rows and D; the variances of D directions have a mean of 1."""
    rows_ND = torch.nn.functional.normalize(input_ND[:: -(-len(input_ND) // AXES_ROWS)], dim=1)
    rows_ND *= math.sqrt(rows_ND.shape[1])
    if len(rows_ND) >= rows_ND.shape[1]:
        variance_M, axis_DM = torch.linalg.eigh(rows_ND.t() @ rows_ND / len(rows_ND))
        return variance_M.clamp_min_(0.0), axis_DM
    variance_M, of_rows_NM = torch.linalg.eigh(rows_ND @ rows_ND.t() / len(rows_ND))
    axis_DM = rows_ND.t() @ of_rows_NM
    axis_DM /= torch.linalg.vector_norm(axis_DM, dim=0).clamp_min_(1e-12)
    return variance_M.clamp_min_(0.0), axis_DM


def fitted_scale(wanted_ND: torch.Tensor, found_ND: torch.Tensor) -> float:
    """The s in [0.05, 2] that brings `s * found` closest to `wanted`; 1 where nothing was found."""
    square = float(found_ND.double().square().sum())
    scale = float((wanted_ND.double() * found_ND.double()).sum()) / square if square > 0 else 1.0
    return min(MOST_SCALE, max(LEAST_SCALE, scale)) if math.isfinite(scale) else 1.0


# Data-driven start of whatever decides that a feature fires.
#
# With zero biases half of the features fire on every row: the first hundred steps go into pushing
# them off, at the cost of dense products. Starting every feature at the same, wanted rate costs one
# quantile per feature. Conerly et al. 2025, "Dictionary Learning Optimization Techniques" (Anthropic
# Circuits Updates, January 2025), choose b_enc in this way.

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
