"""One SAE with its optimizer: turns batches of raw rows into better weights.

A step whose loss or gradient is not finite changes nothing and is counted. When steps keep failing,
or an update made a weight infinite, the SAE goes back to its last good state and says so.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch

from asys_bench.sae.architectures.base import (
    SparseAutoencoder,
    StepContext,
    StepResult,
    WholeBatch,
)
from asys_bench.sae.architectures.by_name import build_sae
from asys_bench.sae.architectures.data_start import FIT_ROWS
from asys_bench.sae.architectures.scaling import InputScaling, JointScaling, PairScaling, RowScaling
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, pick, put, tensor_of
from asys_bench.sae.config import LEARN_A_THRESHOLD, SAEConfig
from asys_bench.sae.group.group_kernels import GroupKernels
from asys_bench.sae.kernels.choice import named_kernels
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.metrics import SAEMetrics, measure
from asys_bench.sae.ranks import ALONE, Ranks
from asys_bench.sae.training.dead_features import DeadFeatures, resample_, round_after
from asys_bench.sae.training.device import CPU, TrainingDevice
from asys_bench.sae.training.lives import FeatureLives
from asys_bench.sae.training.normalizer import geometric_median
from asys_bench.sae.training.row_adam import RowAdam
from asys_bench.sae.training.schedule import SparsityController, rate_at, settling

RESCALE_BEYOND = 1.05
"""`normalize: norm`: the scale follows the normaliser once they differ by this factor."""
MEDIAN_ROWS = 8192
log = logging.getLogger(__name__)


class Learner:
    """Weights, Adam, schedules and dead-feature care of one SAE. Deterministic on one machine.

    d_out: width of a transcoder's target; None for autoencoders. device: where weights and steps are;
    generators and the input's scaling stay on the CPU. ranks: in a group, every rank has a learner, of its
    part of the features or of all, and calls its methods as the others do. Such a learner is given its
    state (`load_state_dict`); `start` is for one that is alone.
    """

    ready = True
    """Steps can be taken: here they always can."""

    def __init__(
        self,
        config: SAEConfig,
        d_in: int,
        d_out: int | None = None,
        device: TrainingDevice = CPU,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self._device, self._ranks = config, device.tensors, ranks
        self.d_out = d_out
        self.d_sae = config.features(d_in)
        """Features of the whole SAE."""
        part = _part_of(config, d_in, d_out, self.d_sae, ranks)
        self.sae: SparseAutoencoder = part.moved(device.tensors)
        self.scaling = _identity(config, d_in, d_out)
        """From raw rows to what the SAE works on."""
        self._columns_of: RowScaling | None = None
        self.steps = 0
        """Steps taken; a rollback does not lower it."""
        self.steps_skipped = 0
        self.rollbacks = 0
        self.features_resampled = 0
        after = config.dead_after(self.d_sae)
        self.dead = DeadFeatures(self.sae.d_sae, after, device.tensors, ranks)
        self.controller = SparsityController(config)
        self.kernels = self._over_ranks(device.kernels(config, self.sae))
        self.adam = RowAdam(self.sae, self.kernels, ranks)
        self.lives = FeatureLives(self.sae.W_dec.detach())
        self._generator = torch.Generator().manual_seed(config.seed ^ 0x5AE)
        self._skipped_in_a_row = 0
        self._next_round = round_after(0, config.resample_every_steps)
        self._good: StateDict = {}

    @torch.no_grad()
    def start(self, rows_ND: torch.Tensor, scaling: RowScaling) -> None:
        """Set the input scaling, put b_dec at the geometric median of the first raw rows' target,
        features at rows, and let the architecture choose the rest of its start from them."""
        self.scaling = scaling
        sae, first = self.sae, slice(MEDIAN_ROWS)
        scaled_ND = scaling.apply(rows_ND[: max(MEDIAN_ROWS, 2 * sae.d_sae)])
        x_ND, target_ND = sae.split(scaled_ND.to(self._device))
        sae.b_dec.copy_(geometric_median(target_ND[first]))
        if self.config.start == "rows":
            sae.start_directions_(x_ND, target_ND, self._generator)
        sae.start_(x_ND[first], target_ND[first])
        if self.config.start == "rows":
            sae.fit_encoder_scale_(x_ND[:FIT_ROWS], target_ND[:FIT_ROWS], self.kernels)
        self.lives.start(sae.W_dec)

    def follow(self, scaling: RowScaling) -> float:
        """Adopt the scaling of an input that has drifted; what the weights were rescaled by.

        `std`: the weights stay as they are in the SAE's units, so the function moves and shrinks
        with the data. A host's layer can saturate within seconds (seen: variance / 60,000, mean
        moved by hundreds of the new standard deviations); Adam would need 1e5 steps to follow.
        `norm`: the function of raw rows stays.
        """
        if self.config.normalize == "std":
            self.scaling = scaling
            return 1.0
        ratio = scaling.scale / self.scaling.scale
        if not math.isfinite(ratio) or 1 / RESCALE_BEYOND <= ratio <= RESCALE_BEYOND:
            return 1.0
        self.sae.rescale_(ratio)
        self.scaling = scaling
        return ratio

    @property
    def sparsity_coefficient(self) -> float:
        return self.controller.coefficient(self.steps)

    @property
    def learning_rate(self) -> float:
        return rate_at(self.config, self.d_sae, self.steps)

    @property
    def dead_fraction(self) -> float:
        return self.dead.count / self.d_sae

    @torch.no_grad()
    def step(
        self, rows_BD: torch.Tensor, weight_B: torch.Tensor, host_step: int = 0
    ) -> StepResult | None:
        """One optimizer step on raw rows; None when it was skipped. weight_B is on the CPU.

        host_step: the newest of the rows.
        """
        uniform = bool((weight_B == weight_B[0]).all())
        scaled_BD = self.scaled(rows_BD)
        return self.step_on(scaled_BD, None if uniform else weight_B, host_step=host_step)

    @torch.no_grad()
    def scaled(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """What a step sees of these rows; holds until the next call."""
        if self._columns_of is not self.scaling:
            center_D, scale_D = self.scaling.columns
            self._columns = center_D.to(self._device), scale_D.to(self._device)
            self._columns_of = self.scaling
        center_D, scale_D = self._columns
        return self.kernels.affine(rows_BD, center_D, scale_D, name="scaled")

    @torch.no_grad()
    def step_on(
        self,
        scaled_BD: torch.Tensor,
        weight_B: torch.Tensor | None,
        batch: WholeBatch | None = None,
        *,
        host_step: int = 0,
    ) -> StepResult | None:
        """`step` on rows that are scaled.

        weight_B: None where all rows stand for as many. batch: what these rows are a part of.
        """
        if not self._good:
            self.mark_good()
        x_BD, target_BD = self.sae.split(scaled_BD)
        rows = len(x_BD) if batch is None else batch.rows
        policy = self.config.resolved_dead_policy
        revive = policy == "auxk" and self.dead.count > 0 and self.config.aux_k_coefficient > 0
        context = StepContext(
            weight_B=None if weight_B is None else weight_B.to(self._device),
            ranks=self._ranks,
            batch=batch,
            dead_F=self.dead.indices() if revive else None,
            sparsity_coefficient=self.sparsity_coefficient,
            target_BD=None if target_BD is x_BD else target_BD,
            kernels=self.kernels,
        )
        result = self._of_all_ranks(self.sae.training_step(x_BD, context))
        norm = self.adam.gradient_norm() if math.isfinite(result.loss) else math.nan
        if not math.isfinite(norm):
            self._skip()
            return None
        limit = self.config.gradient_clip_norm
        clip = limit / norm if limit is not None and norm > limit else 1.0
        if not self.adam.step(self.learning_rate, clip):
            self.steps_skipped += 1
            self._roll_back("an update made weights non-finite")
            return None
        self._skipped_in_a_row = 0
        self.sae.after_step_(result)
        self.dead.update(result.fired_F, rows)
        self.controller.observe(self.steps, result.active / rows)
        self.steps += 1
        self.lives.observe(result.energy_F, rows, host_step)
        if policy == "resample" and self.steps >= self._next_round:
            self._resample(x_BD, target_BD, result)
        if self.steps % self.config.good_state_steps == 0:
            self.mark_good()
        return result

    def _resample(self, x_BD: torch.Tensor, target_BD: torch.Tensor, result: StepResult) -> None:
        self._next_round = round_after(self.steps, self.config.resample_every_steps)
        if self.dead.count and not settling(self.config, self.steps):
            began_M, began = resample_(
                self.sae,
                self.adam,
                self.dead,
                x_BD,
                target_BD,
                result.error_B,
                self._generator,
                self._remade,
                self._ranks,
            )
            self.lives.begin(began_M, self.sae.W_dec.detach(), self.steps)
            self.features_resampled += began

    def _remade(self, x_BD: torch.Tensor) -> torch.Tensor:
        """`made` alone, by sparse kernels where a step chooses what `encode` does."""
        if self._ranks.size > 1 or self.config.architecture in LEARN_A_THRESHOLD:
            return self.made(x_BD)[1]
        return self.sae.without_features(x_BD) + self.sae.features_make(x_BD, self.kernels)

    @torch.no_grad()
    def made(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(acts_BF of the features that are here, the reconstruction by all) of scaled inputs."""
        if self._ranks.has_all_latents:
            acts_BF = self.sae.encode(x_BD)
            return acts_BF, self.sae.reconstruct(x_BD, acts_BF)
        acts_BF = self.sae.activations_among(x_BD, self.kernels)
        made_BD = self._ranks.over_latents(acts_BF @ self.sae.W_dec)
        return acts_BF, made_BD.add_(self.sae.without_features(x_BD))

    @property
    def decoder(self) -> torch.Tensor:
        """W_dec_FD of the whole SAE, where it lies."""
        return self.sae.W_dec.detach()

    def whole_lives(self) -> FeatureLives:
        """Of all features, as they are now."""
        return self.lives

    def whole_sae(self) -> SparseAutoencoder:
        """All of the SAE, on the CPU; itself where it is there already."""
        return self.sae.moved(CPU.tensors)

    def measure(
        self, rows_BD: torch.Tensor, weight_B: torch.Tensor, outlier_norm: float
    ) -> SAEMetrics:
        """On raw rows; see `metrics.measure`."""
        return measure(self.sae, self.scaling, rows_BD, weight_B, self.dead_fraction, outlier_norm)

    def _of_all_ranks(self, result: StepResult) -> StepResult:
        """The result of the step as one process would have it, and the gradients where rows are split."""
        ranks = self._ranks
        if ranks.size == 1:
            return replace(result, active=float(result.fired_F.sum()))
        least_active = 0.0
        if self.config.architecture in LEARN_A_THRESHOLD:
            every = ranks.every_number(result.least_active)
            least_active = min((one for one in every if one > 0), default=0.0)
        if ranks.has_all_rows:
            active = ranks.number_over_latents(float(result.fired_F.sum()))
            return replace(result, active=active, least_active=least_active)
        losses = torch.tensor([result.loss, result.error], dtype=torch.float64)
        gradients = [self.adam.rows(name, parameter.grad)
                     for name, parameter in self.sae.named_parameters()
                     if parameter.grad is not None]  # fmt: skip
        ranks.sum_over_rows_([losses, result.fired_F, result.energy_F, *gradients])
        return replace(
            result,
            loss=float(losses[0]),
            error=float(losses[1]),
            active=float(result.fired_F.sum()),
            least_active=least_active,
        )

    def _take_kernels(self, state: StateDict) -> None:
        """Those that this training was begun with."""
        name = "triton" if number_of(state, "triton") else "torch"
        staged = "staged" in state and number_of(state, "staged") != 0
        if (name, staged) != (self.kernels.name, self.kernels.staged):
            kernels = named_kernels(name, rough=self.kernels.rough)
            kernels.measured, kernels.staged = True, staged
            self.kernels = self.adam.kernels = self._over_ranks(kernels)

    def _over_ranks(self, kernels: SparseKernels) -> SparseKernels:
        if self._ranks.size == 1:
            return kernels
        return GroupKernels(kernels, self._ranks, self.config.k)

    def mark_good(self) -> None:
        """Remember this state as one to go back to. Costs a copy of weights and moments."""
        self.lives.look_for_turned(self.sae.W_dec.detach())
        self._good = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in self._weights_state().items()
        }

    def _skip(self) -> None:
        self.steps_skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.config.rollback_after_skips:
            self._roll_back(f"{self._skipped_in_a_row} steps in a row had no finite gradient")

    def _roll_back(self, reason: str) -> None:
        self._load_weights(self._good)
        self._skipped_in_a_row = 0
        self.rollbacks += 1
        log.warning(
            "%s: back to the state of Adam step %d (rollback %d, at step %d)",
            reason,
            self.adam.steps,
            self.rollbacks,
            self.steps,
        )

    def _weights_state(self) -> StateDict:
        """What a step changes: weights, moments, dead features, controller, lives."""
        state: StateDict = {f"sae.{k}": v for k, v in self.sae.state_dict().items()}
        put(state, "adam", self.adam.state_dict())
        put(state, "dead", self.dead.state_dict())
        put(state, "controller", self.controller.state_dict())
        put(state, "lives", self.lives.state_dict())
        return state

    @torch.no_grad()
    def _load_weights(self, state: StateDict) -> None:
        for name, tensor in self.sae.state_dict().items():
            tensor.copy_(tensor_of(state, f"sae.{name}"))
        self.adam.load_state_dict(pick(state, "adam"))
        self.dead.load_state_dict(pick(state, "dead"))
        self.controller.load_state_dict(pick(state, "controller"))
        self.lives.load_state_dict(pick(state, "lives"), self.sae.W_dec.detach())

    def state_dict(self) -> StateDict:
        state: StateDict = {
            "steps": self.steps,
            "steps_skipped": self.steps_skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "rollbacks": self.rollbacks,
            "features_resampled": self.features_resampled,
            "rng": self._generator.get_state(),
            "lives.birth": self.lives.birth_FD,
        }
        if self.kernels.measured:
            state["triton"] = int(self.kernels.name == "triton")
            state["staged"] = int(self.kernels.staged)
        for name, scaling in self.scaling.parts.items():
            state[f"scale{name}"], state[f"center{name}"] = scaling.scale, scaling.center_D
        return state | self._weights_state()

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError (missing entry) or RuntimeError (wrong shape)."""
        self._load_weights(state)
        if self.kernels.measured and "triton" in state:
            self._take_kernels(state)
        parts = {
            name: InputScaling(
                number_of(state, f"scale{name}"), tensor_of(state, f"center{name}").clone()
            )
            for name in self.scaling.parts
        }
        self.scaling = self.scaling.with_parts(parts)
        self.steps = int(number_of(state, "steps"))
        self._next_round = round_after(self.steps, self.config.resample_every_steps)
        self.steps_skipped = int(number_of(state, "steps_skipped"))
        self._skipped_in_a_row = int(number_of(state, "skipped_in_a_row"))
        self.rollbacks = int(number_of(state, "rollbacks"))
        self.features_resampled = int(number_of(state, "features_resampled"))
        self._generator.set_state(tensor_of(state, "rng"))
        self.mark_good()


def _identity(config: SAEConfig, d_in: int, d_out: int | None) -> RowScaling:
    """The scaling of an SAE that has seen no rows."""
    if config.hook_widths is not None:
        return JointScaling.identity(config.hook_widths)
    own = InputScaling.identity(d_in)
    return own if d_out is None else PairScaling(own, InputScaling.identity(d_out))


def _part_of(
    config: SAEConfig, d_in: int, d_out: int | None, d_sae: int, ranks: Ranks
) -> SparseAutoencoder:
    """A fresh SAE of this rank's features."""
    own = ranks.features_of(d_sae)
    features = own.stop - own.start
    if features == d_sae:
        return build_sae(config, d_in, d_out)
    fields = {"d_sae": features, "k": min(config.k, features),
              "target_l0": None, "matryoshka_widths": None}  # fmt: skip
    part = build_sae(config.model_copy(update=fields), d_in, d_out)
    part.take_part_(own.start, config, d_sae)
    return part
