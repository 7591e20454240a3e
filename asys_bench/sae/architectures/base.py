"""What every sparse autoencoder here is, and what a trainer may ask of it.

- `encode(x_BD) -> acts_BF`, `decode(acts_BF) -> x_BD`, `forward = reconstruct(x, encode(x))`: the
  function that a checkpoint computes. Rows with a norm above `outlier_norm` have no activations, and
  `reconstruct` gives them back as they are (`training.outliers`); `decode`, which sees activations alone,
  cannot.
- Parameters: W_enc[D,F], W_dec[F,D], b_enc[F], b_dec[D], float32, and the architecture's own. W_enc
  is stored feature-major (a transposed view of [F,D] memory): one feature's weights lie together.
- Decoder rows have unit norm, so penalties weighted by that norm are what they are without it; both
  tables start at rows of the data (`data_start`), b_dec at its centre.
- It works on centred and scaled rows (`scaling.InputScaling`). `folded` is the same function of raw
  rows.
- It is homogeneous: scaling the input and its `scale_units` tensors by r scales the output by r.
  That lets the scale change without changing the function of raw rows (`rescale_`).
- `training_step` leaves gradients in `.grad` and changes nothing else. The default runs autograd
  over `loss`, which is what an architecture minimises; each one has a sparse gradient written by
  hand, checked against that in tests/unit/sae/test_gradients.py.

Shapes: B rows of a batch, D = d_in, F = d_sae, K = active features per row.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn

from asys_bench.contracts.torch_internals import copy_on
from asys_bench.sae.architectures.data_start import (
    directions,
    feature_rows,
    fitted_scale,
    read_and_written,
)
from asys_bench.sae.architectures.scaling import RowScaling
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A batch of which a rank has some rows."""

    first: int
    """The place of the rank's first row."""
    rows: int
    weight: float
    """Rows that all of them stand for."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a training step needs besides its rows."""

    weight_B: torch.Tensor | None = None
    """How many rows each row stands for (1 / sampling rate); None: all alike."""
    dead_F: torch.Tensor | None = None
    """Features (int64 indices) that AuxK shall revive; None: none."""
    sparsity_coefficient: float = 0.0
    """Weight of the L1 (relu, gated) or L0 (jumprelu) penalty."""
    target_BD: torch.Tensor | None = None
    """What is to be reconstructed (transcoders); None: the rows themselves."""
    kernels: SparseKernels = field(default_factory=CompiledKernels)
    ranks: Ranks = ALONE
    """Who takes the step together."""
    batch: WholeBatch | None = None
    """What these rows are a part of; None: they are all."""

    def row_share(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Each row's share of the batch loss; those of a whole batch sum to 1."""
        if self.weight_B is None:
            rows = x_BD.shape[0] if self.batch is None else self.batch.rows
            return x_BD.new_full((x_BD.shape[0],), 1.0 / rows)
        return self.weight_B / (self.weight_B.sum() if self.batch is None else self.batch.weight)

    @property
    def reviving(self) -> bool:
        """Whether AuxK has a feature to revive, at any rank."""
        return self.dead_F is not None and (len(self.dead_F) > 0 or not self.ranks.has_all_latents)

    def first_rows(self, x_BD: torch.Tensor, most: int) -> tuple[torch.Tensor, float]:
        """(those of the batch's first `most` rows that are here, their share of these)."""
        if self.batch is None:
            return x_BD[:most], 1.0
        here = x_BD[: max(0, most - self.batch.first)]
        return here, len(here) / min(most, self.batch.rows)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a training step found; gradients are in the parameters."""

    loss: float
    """Everything that was minimised, in units of ||s x||^2 / D."""
    error: float
    """Reconstruction part: weighted mean of ||s x - s x_hat||^2 / D."""
    error_B: torch.Tensor
    """||s x - s x_hat||^2 of each row; overwritten by the next step."""
    fired_F: torch.Tensor
    """int64: rows of the batch in which each feature was active."""
    energy_F: torch.Tensor
    """float: the sum of each feature's squared activations over the batch."""
    least_active: float = 0.0
    """The smallest positive activation (architectures that learn a threshold from it); 0: none."""
    active: float = 0.0
    """Pairs of a row and a feature that were active, over all ranks; the learner counts them."""


class SparseAutoencoder(nn.Module, ABC):
    """Base of all architectures; see the module's contract."""

    name: ClassVar[str]
    """The `architecture` in `SAEConfig`."""
    saelens_name: ClassVar[str]
    """The `architecture` in SAELens's cfg.json. Several of ours may share one; the class that has
    `reads_saelens` opens it."""
    reads_saelens: ClassVar[bool] = True
    subtracts_b_dec: ClassVar[bool] = True
    """The encoder sees x - b_dec."""
    scale_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Tensors in units of the scaled input."""
    rate_scales: ClassVar[Mapping[str, float]] = {"b_enc": 1.0}
    """Name -> its learning rate as a multiple of sqrt(D) times that of the weights. Adam moves all
    entries alike, but biases are of the size of pre-activations, about 1, where weights are of size
    1 / sqrt(D). (FVU after 1M synthetic rows, b_enc without -> with: topk 0.1054 -> 0.1020,
    batchtopk 0.0965 -> 0.0939.)"""
    encoder_bias_name: ClassVar[str] = "b_enc"
    """The bias that decides whether a feature fires."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, d_in: int, config: SAEConfig, d_out: int | None = None) -> None:
        """Random unit decoder rows from `config.seed`, encoder tied to them, zero biases.

        Raises:
            ValueError: the config does not fit `d_in`.
        """
        super().__init__()
        self.config = config
        self.d_in, self.d_sae, self.d_out = d_in, config.features(d_in), d_out or d_in
        generator = torch.Generator().manual_seed(config.seed)
        W_dec_FD = _unit_rows(self.d_sae, self.d_out, generator)
        W_enc_FD = W_dec_FD.clone() if d_out is None else _unit_rows(self.d_sae, d_in, generator)
        self.W_dec = nn.Parameter(W_dec_FD)
        self.W_enc = nn.Parameter(W_enc_FD.t())
        self.register_parameter(self.encoder_bias_name, nn.Parameter(torch.zeros(self.d_sae)))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.parts: tuple[slice, ...] = (slice(0, self.d_out),)
        """The columns of each hook that is reconstructed: one hook, but for a crosscoder."""
        self.outlier_norm = math.inf
        """Rows of a larger norm are left alone; infinity: none. In units of the rows that it takes."""

    @abstractmethod
    def activations(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Dense feature activations acts_BF, float32, of rows whatever their norm."""

    def outlying(self, x_BD: torch.Tensor) -> torch.Tensor | None:
        """bool[B]: the rows that are left alone; None when there can be none."""
        if math.isinf(self.outlier_norm):
            return None
        outlying_B: torch.Tensor = torch.linalg.vector_norm(x_BD, dim=-1) > self.outlier_norm
        return outlying_B

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Dense feature activations acts_BF, float32; none in rows that are left alone."""
        acts_BF, outlying_B = self.activations(x_BD), self.outlying(x_BD)
        return acts_BF if outlying_B is None else acts_BF.masked_fill(outlying_B.unsqueeze(-1), 0.0)

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

    def training_details(self) -> dict[str, Any]:
        """What SAELens calls `training_architecture_details`: needed to train, not to run."""
        return {}

    @property
    def encoder_bias(self) -> nn.Parameter:
        """b_enc, or what stands for it."""
        return self.get_parameter(self.encoder_bias_name)

    def centered(self, x_BD: torch.Tensor) -> torch.Tensor:
        """What the encoder multiplies: x - b_dec."""
        return x_BD - self.b_dec if self.subtracts_b_dec else x_BD

    def decode(self, acts_BF: torch.Tensor) -> torch.Tensor:
        """Rows from dense activations: acts W_dec + b_dec."""
        return acts_BF @ self.W_dec + self.b_dec

    def reconstruct(self, x_BD: torch.Tensor, acts_BF: torch.Tensor) -> torch.Tensor:
        """What these activations say about the rows they came from; rows that are left alone as they
        are."""
        made_BD, outlying_B = self.decode(acts_BF), self.outlying(x_BD)
        return (
            made_BD if outlying_B is None else torch.where(outlying_B.unsqueeze(-1), x_BD, made_BD)
        )

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The reconstruction of `x_BD`."""
        return self.reconstruct(x_BD, self.encode(x_BD))

    def split(self, rows_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is encoded, what is to be reconstructed) of a trainer's rows."""
        return rows_BD, rows_BD

    def training_step(self, x_BD: torch.Tensor, context: StepContext) -> StepResult:
        """Set every parameter's `.grad` for one batch of scaled rows float32[B, D]."""
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            total, error_B, acts_BF = self.loss(x_BD, context)
            torch.autograd.backward(total)
        error_B = error_B.detach()
        error = float(torch.dot(context.row_share(x_BD), error_B)) / self.d_out
        fired_F = (acts_BF.detach() > 0).sum(0)
        energy_F = acts_BF.detach().square().sum(0)
        return StepResult(float(total.detach()), error, error_B, fired_F, energy_F)

    @torch.no_grad()
    def start_directions_(
        self, x_ND: torch.Tensor, target_ND: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Point every feature at one of these scaled rows (`data_start`), b_dec being set already."""
        picked_2F = feature_rows(len(x_ND), self.d_sae, generator)
        input_ND = self.centered(x_ND)
        rows_FD = directions(input_ND, picked_2F, generator)
        read_FD, write_FD = rows_FD, rows_FD
        if self.d_sae >= self.d_in:  # fewer features are all needed where rows vary most
            read_FD, write_FD = read_and_written(rows_FD, input_ND)
        self.W_enc.t().copy_(read_FD)
        self.W_dec.copy_(write_FD)

    @torch.no_grad()
    def start_(self, x_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
        """Data-driven start of everything else, from the first scaled rows."""

    @torch.no_grad()
    def fit_encoder_scale_(
        self, x_ND: torch.Tensor, target_ND: torch.Tensor, kernels: SparseKernels
    ) -> None:
        """Scale all pre-activations and what they are compared with, for the least squared error."""
        wanted_ND = target_ND - self.without_features(x_ND)
        scale = fitted_scale(wanted_ND, self.features_make(x_ND, kernels))
        tensors = self.state_dict()
        for name in ("W_enc", *self.scale_units):
            if name != "b_dec":
                tensors[name].mul_(scale)

    @torch.no_grad()
    def after_step_(self, result: StepResult) -> None:
        """What the optimizer does not know of: constraints, running thresholds."""

    @torch.no_grad()
    def reset_features_(
        self,
        index_M: torch.Tensor,
        write_MD: torch.Tensor,
        read_MD: torch.Tensor,
        ratio: float,
        typical: Mapping[str, float],
    ) -> None:
        """Make features write `write` and read `read` (unit rows), `ratio` times as strongly as the
        living ones do; biases and thresholds become those of a typical living feature
        (`typical_feature`)."""
        self.W_dec[index_M] = write_MD
        self.W_enc.t()[index_M] = ratio * typical["W_enc"] * read_MD
        for name, usual in typical.items():
            if name != "W_enc":
                parameter = self.get_parameter(name)
                parameter[index_M] = usual * ratio if name in self.scale_units else usual

    @torch.no_grad()
    def typical_feature(self, living_F: torch.Tensor, ranks: Ranks = ALONE) -> dict[str, float]:
        """Of the features where `living_F` (bool, over all ranks) holds: the mean norm of their
        encoders, and the median of each bias and threshold."""
        some = bool(living_F.any())
        norm_F = ranks.every_latent(torch.linalg.vector_norm(self.W_enc, dim=0))
        found = {"W_enc": float(norm_F[living_F].mean()) if some else 1.0}
        for name, parameter in self.named_parameters():
            if name not in ("W_enc", "W_dec") and self.feature_major(name, parameter) is not None:
                every_F = ranks.every_latent(parameter.detach())
                found[name] = float(every_F[living_F].median()) if some else 0.0
        return found

    def features_make(self, x_ND: torch.Tensor, kernels: SparseKernels) -> torch.Tensor:
        """What features that a training step would choose add to `without_features`, float32[N, D_out];
        holds until the next call of `kernels`."""
        return self.activations(x_ND) @ self.W_dec

    # Of an SAE whose features are spread over ranks (`sae.group`): this object has some of them.

    def take_part_(self, first: int, whole: SAEConfig, d_sae: int) -> None:
        """Be the features from `first` on of an SAE of `d_sae` features that `whole` describes."""

    def activations_among(self, x_BD: torch.Tensor, kernels: SparseKernels) -> torch.Tensor:
        """`activations` of these features beside all others; kernels: those of the ranks."""
        return self.activations(x_BD)

    def without_features(self, x_BD: torch.Tensor) -> torch.Tensor:
        """What `reconstruct` adds to what the features make."""
        return self.b_dec.expand(len(x_BD), -1)

    def feature_major(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """`tensor`, shaped like parameter `name`, as a view with the features first; None when the
        parameter is not per feature."""
        if name == "W_enc":
            return tensor.t()
        return None if name in ("b_dec", "W_skip") else tensor

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
        tensors = self.state_dict()
        for tensor_name in self.scale_units:
            tensors[tensor_name].mul_(ratio)

    @torch.no_grad()
    def moved(self, device: torch.device) -> Self:
        """A copy on another device, without gradients; itself where it is there already."""
        if self.W_dec.device == device:
            return self
        return copy_on(self, device)

    @torch.no_grad()
    def folded(self, scaling: RowScaling) -> Self:
        """A copy that acts on raw rows: W_enc *= s, W_dec /= s, b_dec = b_dec / s + center.

        Exact, because these architectures subtract b_dec from their input.
        """
        raw = copy.deepcopy(self)
        raw.zero_grad(set_to_none=True)
        raw.W_enc.mul_(scaling.scale)
        raw.W_dec.div_(scaling.scale)
        raw.b_dec.copy_(scaling.undo(raw.b_dec))
        return raw


def _unit_rows(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    rows_FD = torch.randn(count, width, generator=generator)
    norms_F1: torch.Tensor = torch.linalg.vector_norm(rows_FD, dim=1, keepdim=True)
    return rows_FD / norms_F1.clamp_min(1e-12)
