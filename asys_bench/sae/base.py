"""What every sparse autoencoder here is, and what a trainer may ask of it.

- `encode(x_BD) -> acts_BF`, `decode(acts_BF) -> x_BD`, `forward = decode(encode(x))`.
- Parameters: W_enc[D,F], W_dec[F,D], b_enc[F], b_dec[D], float32. W_enc is stored feature-major
  (a transposed view of [F,D] memory), so that one feature's weights lie together.
- Decoder rows have unit norm; the encoder starts as their transpose, b_dec at the data's centre.
- It works on centred and scaled rows (`scaling.InputScaling`). `folded` is the same function of raw
  rows.
- It is homogeneous: scaling the input and its `_scale_units` tensors by r scales the output by r.
  That lets the scale change without changing the function of raw rows (`rescale_`).
- `training_step` leaves gradients in `.grad` and changes nothing else. The default runs autograd
  over `loss`; an architecture may write its gradient by hand (see `topk`).

Shapes: B rows of a batch, D = d_in, F = d_sae, K = active features per row.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from asys_bench.sae.config import SAEConfig
from asys_bench.sae.scaling import InputScaling


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a training step needs besides its rows."""

    weight_B: torch.Tensor | None = None
    """How many rows each row stands for (1 / sampling rate); None: all alike."""
    dead_F: torch.Tensor | None = None
    """Features (int64 indices) that AuxK shall revive; None: none."""
    l1_coefficient: float = 0.0

    def row_share(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Each row's share of the batch loss, summing to 1."""
        if self.weight_B is None:
            return x_BD.new_full((x_BD.shape[0],), 1.0 / x_BD.shape[0])
        return self.weight_B / self.weight_B.sum()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a training step found; gradients are in the parameters."""

    loss: float
    """Everything that was minimised, in units of ||s x||^2 / D."""
    error: float
    """Reconstruction part: weighted mean of ||s x - s x_hat||^2 / D."""
    error_B: torch.Tensor
    """||s x - s x_hat||^2 of each row."""
    fired_F: torch.Tensor
    """int64: rows of the batch in which each feature was active."""


class SparseAutoencoder(nn.Module, ABC):
    """Base of all architectures; see the module's contract."""

    name: ClassVar[str]
    """The `architecture` in `SAEConfig`."""
    saelens_name: ClassVar[str]
    """The `architecture` in SAELens's cfg.json."""
    _scale_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Tensors in units of the scaled input."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, d_in: int, config: SAEConfig) -> None:
        """Random unit decoder rows from `config.seed`, encoder tied to them, zero biases.

        Raises:
            ValueError: the config does not fit `d_in`.
        """
        super().__init__()
        self.config = config
        self.d_in, self.d_sae = d_in, config.features(d_in)
        generator = torch.Generator().manual_seed(config.seed)
        W_dec_FD = torch.randn(self.d_sae, d_in, generator=generator)
        W_dec_FD /= torch.linalg.vector_norm(W_dec_FD, dim=1, keepdim=True).clamp_min(1e-12)
        self.W_dec = nn.Parameter(W_dec_FD)
        self.W_enc = nn.Parameter(W_dec_FD.clone().t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @abstractmethod
    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Dense feature activations acts_BF, float32."""

    @abstractmethod
    def loss(
        self, x_BD: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Differentiable (total loss, error_B, acts_BF), in the units of `StepResult`."""

    @abstractmethod
    def saelens_fields(self) -> dict[str, Any]:
        """Fields of SAELens's cfg.json that only this architecture has."""

    @classmethod
    @abstractmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The `SAEConfig` fields that `saelens_fields` came from; KeyError when one is missing."""

    def decode(self, acts_BF: torch.Tensor) -> torch.Tensor:
        """Rows from dense activations: acts W_dec + b_dec."""
        return acts_BF @ self.W_dec + self.b_dec

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The reconstruction of `x_BD`."""
        return self.decode(self.encode(x_BD))

    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        """Set every parameter's `.grad` for one batch of scaled rows float32[B, D]."""
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            total, error_B, acts_BF = self.loss(x_BD, context)
            torch.autograd.backward(total)
        error_B = error_B.detach()
        error = float(torch.dot(context.row_share(x_BD), error_B)) / self.d_in
        fired_F = (acts_BF.detach() > 0).sum(0)
        return StepResult(float(total.detach()), error, error_B, fired_F)

    @torch.no_grad()
    def project_decoder_gradient_(self) -> None:
        """Drop the part of each decoder row's gradient along the row: only its direction is free.

        Bricken et al. 2023, "Towards Monosemanticity", appendix "Optimization".
        """
        grad_FD = self.W_dec.grad
        assert grad_FD is not None
        along_F1 = (grad_FD * self.W_dec).sum(1, keepdim=True)
        grad_FD.addcmul_(along_F1, self.W_dec, value=-1.0)

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Bring every decoder row back to unit norm."""
        norm_F1 = torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-12)
        self.W_dec.div_(norm_F1)

    @torch.no_grad()
    def rescale_(self, ratio: float) -> None:
        """The input scale became `ratio` times larger: keep the same function of raw rows."""
        for tensor_name in self._scale_units:
            self.get_parameter(tensor_name).mul_(ratio)

    @torch.no_grad()
    def folded(self, scaling: InputScaling) -> Self:
        """A copy that acts on raw rows: W_enc *= s, W_dec /= s, b_dec = b_dec / s + center.

        Exact, because every architecture subtracts b_dec from its input.
        """
        raw = copy.deepcopy(self)
        raw.zero_grad(set_to_none=True)
        raw.W_enc.mul_(scaling.scale)
        raw.W_dec.div_(scaling.scale)
        raw.b_dec.copy_(scaling.undo(raw.b_dec))
        return raw
