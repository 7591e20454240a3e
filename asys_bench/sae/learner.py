"""One SAE with its optimizer: turns batches of raw rows into better weights.

A step whose loss or gradient is not finite changes nothing and is counted.
"""

from __future__ import annotations

import math

import torch

from asys_bench.sae.architectures import build_sae
from asys_bench.sae.base import StepContext, StepResult
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.dead_features import DeadFeatures
from asys_bench.sae.geometric_median import geometric_median
from asys_bench.sae.resampling import resample_
from asys_bench.sae.scaling import InputScaling
from asys_bench.sae.schedule import peak_rate, rate_at
from asys_bench.sae.sparsity_controller import SparsityController
from asys_bench.sae.state import StateDict, number_of, pick, put, tensor_of

RESCALE_BEYOND = 1.05
"""`normalize: norm`: the scale follows the normaliser once they differ by this factor."""
MEDIAN_ROWS = 8192


class Learner:
    """Weights, Adam, schedules and dead-feature care of one SAE. Deterministic on one machine."""

    def __init__(self, config: SAEConfig, d_in: int) -> None:
        self.config = config
        self.sae = build_sae(config, d_in)
        self.scaling = InputScaling.identity(d_in)
        """From raw rows to what the SAE works on."""
        self.steps = 0
        self.steps_skipped = 0
        self.features_resampled = 0
        self.dead = DeadFeatures(self.sae.d_sae, config.dead_after_rows)
        self.controller = SparsityController(config)
        self._generator = torch.Generator().manual_seed(config.seed ^ 0x5AE)
        self._optimizer = torch.optim.Adam(
            self.sae.parameters(), lr=peak_rate(config, self.sae.d_sae), eps=6.25e-10, fused=True
        )
        # Materialise the moments now, so that a state can be copied into them.
        for parameter in self.sae.parameters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def start(self, rows_ND: torch.Tensor, scaling: InputScaling) -> None:
        """Set the input scaling and put b_dec at the geometric median of the first raw rows."""
        self.scaling = scaling
        self.sae.b_dec.copy_(scaling.apply(geometric_median(rows_ND[:MEDIAN_ROWS])))

    def follow(self, scaling: InputScaling) -> None:
        """Adopt the scaling of an input that has drifted.

        `std`: the weights stay as they are in the SAE's units, so the function moves and shrinks
        with the data. A host's layer can saturate within seconds (seen: variance / 60,000, mean
        moved by hundreds of the new standard deviations); Adam would need 1e5 steps to follow.
        `norm`: the function of raw rows stays.
        """
        if self.config.normalize == "std":
            self.scaling = scaling
            return
        ratio = scaling.scale / self.scaling.scale
        if math.isfinite(ratio) and not 1 / RESCALE_BEYOND <= ratio <= RESCALE_BEYOND:
            self.sae.rescale_(ratio)
            self.scaling = scaling

    @property
    def l1_coefficient(self) -> float:
        return self.controller.coefficient(self.steps)

    @property
    def learning_rate(self) -> float:
        return rate_at(self.config, self.sae.d_sae, self.steps)

    def step(self, rows_BD: torch.Tensor, weight_B: torch.Tensor) -> StepResult | None:
        """One optimizer step on raw rows; None when it was skipped."""
        x_BD = self.scaling.apply(rows_BD)
        policy = self.config.resolved_dead_policy
        revive = policy == "auxk" and self.dead.count > 0 and self.config.aux_k_coefficient > 0
        context = StepContext(
            weight_B=None if bool((weight_B == weight_B[0]).all()) else weight_B,
            dead_F=self.dead.indices() if revive else None,
            l1_coefficient=self.l1_coefficient,
        )
        result = self.sae.training_step(x_BD, context)
        if not self._prepare_gradients(result.loss):
            self.steps_skipped += 1
            return None
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self.sae.normalize_decoder_()
        self.dead.update(result.fired_F, len(x_BD))
        self.controller.observe(self.steps, float(result.fired_F.sum()) / len(x_BD))
        self.steps += 1
        if (
            policy == "resample"
            and self.steps % self.config.resample_every_steps == 0
            and self.dead.count
        ):
            revived = resample_(
                self.sae,
                self._optimizer,
                self.dead.indices(),
                x_BD,
                result.error_B,
                self._generator,
            )
            self.dead.revive(revived)
            self.features_resampled += len(revived)
        return result

    def _prepare_gradients(self, loss: float) -> bool:
        """Project and clip; False when anything is not finite."""
        if not math.isfinite(loss):
            return False
        self.sae.project_decoder_gradient_()
        grads = [p.grad for p in self.sae.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(grad)) ** 2 for grad in grads))
        if not math.isfinite(norm):
            return False
        limit = self.config.gradient_clip_norm
        if limit is not None and norm > limit:
            for grad in grads:
                grad.mul_(limit / norm)
        return True

    def state_dict(self) -> StateDict:
        state: StateDict = {
            "scale": self.scaling.scale,
            "center": self.scaling.center_D,
            "steps": self.steps,
            "steps_skipped": self.steps_skipped,
            "features_resampled": self.features_resampled,
            "rng": self._generator.get_state(),
        }
        for name, parameter in self.sae.named_parameters():
            state[f"sae.{name}"] = parameter.detach()
            put(state, f"adam.{name}", dict(self._optimizer.state[parameter]))
        put(state, "dead", self.dead.state_dict())
        put(state, "controller", self.controller.state_dict())
        return state

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError (missing entry) or RuntimeError (wrong shape)."""
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensor_of(state, f"sae.{name}"))
            for key, moment in self._optimizer.state[parameter].items():
                moment.copy_(tensor_of(state, f"adam.{name}.{key}"))
        self.scaling = InputScaling(number_of(state, "scale"), tensor_of(state, "center").clone())
        self.steps = int(number_of(state, "steps"))
        self.steps_skipped = int(number_of(state, "steps_skipped"))
        self.features_resampled = int(number_of(state, "features_resampled"))
        self._generator.set_state(tensor_of(state, "rng"))
        self.dead.load_state_dict(pick(state, "dead"))
        self.controller.load_state_dict(pick(state, "controller"))
