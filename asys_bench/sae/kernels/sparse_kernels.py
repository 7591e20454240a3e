"""The products of a sparse training step: what every implementation does, in torch's own operators.

`SparseKernels` is right on every device and for every float dtype. `compiled_kernels` (C++, float32 on
the CPU) and `triton_kernels` (float32 on a GPU) override what they do faster. tests/unit/sae
trains with all of them side by side (test_kernels_agree.py, test_triton_kernels.py).

One object belongs to one learner. What a method returns holds until its next call.

Every operator here gives the same bits each time on one device: sums run over bags in a fixed order
(`embedding_bag`), never by atomic additions (`index_add_` of floats on a GPU).

Shapes: B rows, D their width, F features, N pairs. Encoder and decoder tables are feature-major
[F, D], contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asys_bench.sae.kernels import torch_kernels
from asys_bench.sae.kernels.sparse_codes import FeatureMajor, Reconstruction, SparseCodes
from asys_bench.sae.ranks import ALONE, Ranks

Settings = tuple[float, float, float, float]
"""Of an Adam step: beta1, beta2, epsilon, and the factor that clips the gradient."""
BLOCK_BYTES = 512 << 20
"""Pre-activations that exist at once."""


class SparseKernels:
    """See the module docstring.

    rough: find candidates by a bfloat16 product; values, and the choice between candidates, are
    float32.
    """

    name = "torch"
    measured = False
    """They were chosen by their speed here, and a resumed training keeps them."""
    staged = False
    """The k largest are found in two stages (`torch_kernels.largest`): chosen by its speed, too."""

    def __init__(self, *, rough: bool = False) -> None:
        self.rough = rough

    # Encoding.

    def top_k(
        self, x_BD: torch.Tensor, W_enc_FD: torch.Tensor, b_F: torch.Tensor, k: int
    ) -> SparseCodes:
        """The k largest pre-activations `x W_enc^T + b` of each row, also those <= 0."""
        rough_FD = W_enc_FD.bfloat16() if self.rough else None
        parts = [
            torch_kernels.top_k(rows_BD, W_enc_FD, b_F, k, rough_FD, staged=self.staged)
            for rows_BD in torch.split(x_BD, rows_at_once(len(b_F)))
        ]
        return torch_kernels.joined(parts)

    def above(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        floor_F: torch.Tensor,
        most: int | None = None,
    ) -> SparseCodes | None:
        """All pairs whose pre-activation exceeds `floor_F`; None when they are more than `most`."""
        rough_FD = W_enc_FD.bfloat16() if self.rough else None
        parts: list[SparseCodes] = []
        for rows_BD in torch.split(x_BD, rows_at_once(len(b_F))):
            found = torch_kernels.above(rows_BD, W_enc_FD, b_F, floor_F, most, rough_FD)
            if found is None:
                return None
            parts.append(found)
            if most is not None:
                most -= len(found.feature_N)
        return torch_kernels.joined(parts)

    def batch_top_k(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        count: int,
        guess: float,
    ) -> SparseCodes:
        """The `count` largest positive pre-activations of the whole batch (fewer if fewer are).

        guess: a value that more than `count` of them probably exceed; it saves time and changes
        nothing.
        """
        return best_of_batch(self, ALONE, x_BD, W_enc_FD, b_F, count, guess)

    # Decoding and its gradients.

    def reconstruct(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        *,
        name: str = "main",
    ) -> Reconstruction:
        """Of `x_hat = sum value W_dec`: error_B = ||x_hat - target||^2 and the gradients of the loss
        whose derivative by x_hat is `scale_B (x_hat - target)`.

        name: results of calls with different names do not overwrite each other.
        """
        return torch_kernels.reconstruct(codes, value_N, W_dec_FD, target_BD, scale_B)

    def reconstruct_nested(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        widths: Sequence[int],
    ) -> Reconstruction:
        """As `reconstruct` for every prefix of the features.

        widths: ascending, the last one F. See `Reconstruction` for what comes out.
        """
        return torch_kernels.reconstruct_nested(
            codes, value_N, W_dec_FD, target_BD, scale_B, widths
        )

    # From rows to features.

    def group(self, codes: SparseCodes) -> FeatureMajor:
        """The pairs by feature."""
        return torch_kernels.group(codes)

    def accumulate(
        self,
        groups: FeatureMajor,
        coefficient_N: torch.Tensor,
        rows_BD: torch.Tensor,
        out_FD: torch.Tensor,
        shift_F: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`out[f] = sum over the pairs of f of coefficient rows[row]`; returns the sums of the
        coefficients [F].

        shift_F: int32, added to the row numbers of a feature (rows of several levels on end).
        """
        return torch_kernels.accumulate(groups, coefficient_N, rows_BD, shift_F, out_FD)

    def sum_by_feature(
        self, codes: SparseCodes, groups: FeatureMajor, quantity_N: torch.Tensor
    ) -> torch.Tensor:
        """float[F]: the sum of a quantity of the pairs, per feature."""
        return torch_kernels.sum_by_feature(groups, quantity_N)

    # Rows and weights.

    def affine(
        self,
        rows_BD: torch.Tensor,
        center_D: torch.Tensor,
        scale_D: torch.Tensor,
        *,
        name: str,
    ) -> torch.Tensor:
        """`(rows - center) * scale`; see `reconstruct` for `name`."""
        return (rows_BD - center_D) * scale_D

    def project(self, gradient_FD: torch.Tensor, W_FD: torch.Tensor | None) -> torch.Tensor:
        """Drop the part of each gradient row along its row of unit norm W (None: leave it);
        returns the squared norms of what is left, float64[F], 0 for a row of zeros."""
        if W_FD is not None:
            along_F1 = (gradient_FD * W_FD).sum(1, keepdim=True)
            gradient_FD.addcmul_(along_F1, W_FD, value=-1.0)
        return gradient_FD.double().square().sum(1)

    def adam(
        self,
        weight_FD: torch.Tensor,
        gradient_FD: torch.Tensor,
        mean_FD: torch.Tensor,
        square_FD: torch.Tensor,
        rate_F: torch.Tensor,
        root_F: torch.Tensor,
        settings: Settings,
        *,
        unit_rows: bool,
    ) -> bool:
        """One Adam step in place; False when a new weight is not finite.

        rate_F, root_F: each row's rate / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), with the steps t of
        that row. Where the rate is 0 the row takes no step: weights and moments stay.
        unit_rows: bring rows that take a step back to norm 1.
        """
        beta1, beta2, epsilon, clip = settings
        rate_F1, root_F1 = rate_F.unsqueeze(1), root_F.unsqueeze(1)
        steps_F1 = (rate_F1 != 0).to(weight_FD.dtype)
        clipped_FD = gradient_FD * clip
        mean_FD.lerp_(clipped_FD, steps_F1 * (1 - beta1))
        square_FD.lerp_(clipped_FD.square_(), steps_F1 * (1 - beta2))
        weight_FD.sub_(mean_FD * rate_F1 / (square_FD.sqrt() * root_F1).add_(epsilon))
        finite = bool(torch.isfinite(weight_FD.square().sum()))
        if unit_rows:
            norm_F1 = torch.linalg.vector_norm(weight_FD, dim=1, keepdim=True).clamp_min_(1e-12)
            weight_FD.div_(torch.where(rate_F1 != 0, norm_F1, torch.ones_like(norm_F1)))
        return finite


def rows_at_once(features: int) -> int:
    """Rows whose pre-activations exist at once."""
    return max(1, BLOCK_BYTES // (4 * features))


def best_of_batch(
    kernels: SparseKernels,
    ranks: Ranks,
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_F: torch.Tensor,
    count: int,
    guess: float,
) -> SparseCodes:
    """This rank's part of `SparseKernels.batch_top_k`. count: of all ranks."""
    floor = max(0.0, guess)
    while True:
        codes = kernels.above(x_BD, W_enc_FD, b_F, torch.full_like(b_F, floor))
        assert codes is not None
        found = ranks.count_in_batch(len(codes.feature_N))
        if found >= count or floor == 0.0:
            break
        floor = 0.5 * floor if floor > 1e-3 else 0.0
    if found <= count:
        return codes
    every_N, first = ranks.every_pair(codes.value_N)
    least = torch.kthvalue(every_N, found - count + 1).values
    keep_N = every_N >= least
    surplus = int(keep_N.sum()) - count
    if surplus > 0:  # several are equal to the smallest: the last ones go
        equal = (every_N == least).nonzero().squeeze(1)
        keep_N[equal[len(equal) - surplus :]] = False
    return codes.kept(keep_N[first : first + len(codes.value_N)])
