"""Skip transcoder: from the rows of one hook point to those of another.

    f(x)  = BatchTopK(ReLU(W_enc^T x + b_enc))
    y_hat = W_dec^T f(x) + W_skip x + b_dec
    L     = ||y - y_hat||^2 / D_out  +  AuxK for dead features (see `auxk`)

Paulo et al. 2025, "Transcoders Beat Sparse Autoencoders for Interpretability" (arXiv:2501.18823),
section 3.1: the affine skip takes what is linear between the two points, so that features are left
to explain what is not. The sparse choice is over the batch, with a running threshold afterwards
(see `batchtopk`): that is what SAELens can run (`jumprelu_skip_transcoder`); per-row TopK it cannot.

W_skip starts at the least-squares map of the first rows, not at 0: an online run should not spend
its first minutes on a regression that has a closed form. Nothing is subtracted from the input.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from asys_bench.sae.architectures.base import StepContext
from asys_bench.sae.architectures.batchtopk import BatchTopKSAE, trained_k
from asys_bench.sae.architectures.data_start import directions, feature_rows
from asys_bench.sae.architectures.scaling import PairScaling, RowScaling
from asys_bench.sae.architectures.sparse_gradients import gradient_of
from asys_bench.sae.config import SAEConfig

LEAST_SQUARES_ROWS_PER_COLUMN = 4
"""Rows per input column below which W_skip starts at 0."""
RIDGE = 1e-3
"""Of the mean squared input, added to the diagonal of the normal equations."""


class SkipTranscoder(BatchTopKSAE):
    """Rows of a trainer are [x | y]; `d_in` is the width of x, `d_out` that of y."""

    name: ClassVar[str] = "skip_transcoder"
    saelens_name: ClassVar[str] = "jumprelu_skip_transcoder"
    reads_saelens: ClassVar[bool] = True
    subtracts_b_dec: ClassVar[bool] = False
    W_skip: torch.nn.Parameter

    def __init__(self, d_in: int, config: SAEConfig, d_out: int | None = None) -> None:
        super().__init__(d_in, config, d_in if d_out is None else d_out)
        self.W_skip = torch.nn.Parameter(torch.zeros(self.d_out, d_in))

    def reconstruct(self, x_BD: torch.Tensor, acts_BF: torch.Tensor) -> torch.Tensor:
        """The other hook's rows. Of a row that is left alone it is what the skip makes, which stands
        for nothing: `splice` leaves the module's own there."""
        return self.decode(acts_BF) + x_BD @ self.W_skip.t()

    def without_features(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.b_dec + x_BD @ self.W_skip.t()

    def split(self, rows_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows_BD[:, : self.d_in].contiguous(), rows_BD[:, self.d_in :].contiguous()

    def _decoded_target(
        self, x_BD: torch.Tensor, input_BD: torch.Tensor, context: StepContext
    ) -> torch.Tensor:
        assert context.target_BD is not None
        return torch.addmm(context.target_BD - self.b_dec, x_BD, self.W_skip.t(), alpha=-1.0)

    def _set_other_gradients(self, x_BD: torch.Tensor, out_gradient_BD: torch.Tensor) -> None:
        torch.mm(out_gradient_BD.t(), x_BD, out=gradient_of(self.W_skip))

    @torch.no_grad()
    def start_directions_(
        self, x_ND: torch.Tensor, target_ND: torch.Tensor, generator: torch.Generator
    ) -> None:
        """A feature reads a row's x and writes what W_skip leaves of its y."""
        self.start_(x_ND, target_ND)
        left_ND = self._decoded_target(x_ND, x_ND, StepContext(target_BD=target_ND))
        picked_2F = feature_rows(len(x_ND), self.d_sae, generator)
        self.W_enc.t().copy_(directions(x_ND, picked_2F, generator))
        self.W_dec.copy_(directions(left_ND, picked_2F, generator))

    @torch.no_grad()
    def start_(self, x_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
        if len(x_ND) < LEAST_SQUARES_ROWS_PER_COLUMN * self.d_in:
            return
        x, y = x_ND.double(), (target_ND - self.b_dec).double()
        gram_DD = x.t() @ x
        gram_DD.diagonal().add_(RIDGE * float(gram_DD.diagonal().mean()) + 1e-12)
        self.W_skip.copy_(torch.linalg.solve(gram_DD, x.t() @ y).t())

    @torch.no_grad()
    def folded(self, scaling: RowScaling) -> Self:
        """A copy from raw x to raw y.

        With x' = s_x (x - c_x) and y = y' / s_y + c_y:  W_enc *= s_x, b_enc -= W_enc^T c_x,
        W_dec /= s_y, W_skip *= s_x / s_y, b_dec = b_dec / s_y + c_y - W_skip c_x.
        """
        assert isinstance(scaling, PairScaling)
        source, target = scaling.input, scaling.output
        raw = copy.deepcopy(self)
        raw.zero_grad(set_to_none=True)
        raw.W_enc.mul_(source.scale)
        center_D = source.center_D.double()
        raw.encoder_bias.copy_(raw.encoder_bias.double() - center_D @ raw.W_enc.double())
        raw.W_dec.div_(target.scale)
        raw.W_skip.mul_(source.scale / target.scale)
        shift_D = raw.W_skip.double() @ center_D
        raw.b_dec.copy_(target.undo(raw.b_dec).double() - shift_D)
        return raw

    def saelens_fields(self) -> dict[str, Any]:
        return {"d_out": self.d_out, "apply_b_dec_to_input": False}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {"k": trained_k(cfg)}
