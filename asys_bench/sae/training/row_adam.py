"""Adam over an SAE's parameters, feature by feature, with the decoder kept at unit norm.

Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1; eps is small because the gradients of rare features
are. Gradients are clipped and decoder rows normalised in the same pass over memory.

A feature's moments, and its count of steps, go on in the batches that have a gradient for it (as in
torch.optim.SparseAdam). With moments that fade in the batches between, a feature that is active in a
share p of them has a mean square of p g^2, and one of its gradients moves it by rate / sqrt(p) instead
of rate: of 1,000 batches one moves a unit row by its own length, and what was rare is lost (FVU and
never active features: docs/benchmarks.md).
"""

from __future__ import annotations

import math

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, tensor_of
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.ranks import ALONE, Ranks

BETAS = (0.6, 0.999)
"""A feature takes large steps, and a few hundred of them: with a mean over ten gradients (0.9) it goes on
where the last batches sent it. FVU by beta1 is in docs/benchmarks.md; 0 loses most of what is gained."""
EPSILON = 6.25e-10
"""That of Gao et al. 2024, appendix A."""


class RowAdam:
    """Moments of every parameter, and the step that uses them. Deterministic."""

    def __init__(
        self, sae: SparseAutoencoder, kernels: SparseKernels, ranks: Ranks = ALONE
    ) -> None:
        self._sae, self.kernels, self._ranks = sae, kernels, ranks
        self.steps = 0
        self.moments = {
            name: (torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in sae.named_parameters()
        }
        """Name -> running mean and mean square of the gradient, laid out like the parameter."""
        self.row_steps = {
            name: parameter.new_zeros(len(self.rows(name, parameter.detach())))
            for name, parameter in sae.named_parameters()
        }
        """Name -> steps of each row (see `rows`): those whose batch had a gradient for it."""
        self._stepping: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Project the decoder's gradient off its rows; returns the norm of all gradients."""
        square = 0.0
        for name, parameter in self._sae.named_parameters():
            if parameter.grad is not None:
                W_FD = parameter.detach() if name == "W_dec" else None
                square_R = self.kernels.project(self.rows(name, parameter.grad), W_FD)
                self._stepping[name] = square_R > 0
                if self._counts_here(name, parameter):
                    square += float(square_R.sum())
        square = self._ranks.number_over_latents(square)
        return math.sqrt(square) if square >= 0 else math.nan

    def _counts_here(self, name: str, parameter: torch.Tensor) -> bool:
        """What every rank has beside its own features counts once."""
        alike = self._sae.feature_major(name, parameter) is None
        return self._ranks.has_all_latents or self._ranks.rank == 0 or not alike

    @torch.no_grad()
    def step(self, rate: float, clip: float) -> bool:
        """Move the parameters by the gradients that `gradient_norm` saw last, which count `clip` times.
        False when a new weight is not finite."""
        self.steps += 1
        beta1, beta2 = BETAS
        finite = True
        for name, parameter in self._sae.named_parameters():
            if parameter.grad is not None:
                stepping_R, steps_R = self._stepping[name], self.row_steps[name]
                steps_R += stepping_R
                count_R = steps_R.double().clamp_min_(1.0)
                rate_R = stepping_R * (rate * self._rate_factor(name) / (1 - beta1**count_R))
                root_R = (1 - beta2**count_R).rsqrt_()
                tensors = (parameter.detach(), parameter.grad, *self.moments[name])
                weight, gradient, mean, square = (self.rows(name, t) for t in tensors)
                finite &= self.kernels.adam(
                    weight,
                    gradient,
                    mean,
                    square,
                    rate_R.float(),
                    root_R.float(),
                    (beta1, beta2, EPSILON, clip),
                    unit_rows=name == "W_dec",
                )
        return self._ranks.number_over_latents(float(not finite)) == 0.0

    def _rate_factor(self, name: str) -> float:
        scale = self._sae.rate_scales.get(name)
        return 1.0 if scale is None else max(1.0, scale * math.sqrt(self._sae.d_in))

    @torch.no_grad()
    def forget(self, index_M: torch.Tensor) -> None:
        """Zero the moments and steps of these features: they were re-initialised."""
        for name, moments in self.moments.items():
            for moment in moments:
                per_feature = self._sae.feature_major(name, moment)
                if per_feature is not None:
                    per_feature[index_M] = 0.0
                    self.row_steps[name][index_M] = 0.0

    def state_dict(self) -> StateDict:
        state: StateDict = {"steps": self.steps}
        for name, (mean, square) in self.moments.items():
            state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"] = mean, square
            state[f"{name}.row_steps"] = self.row_steps[name]
        return state

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        """A state of before rows had steps of their own: each has made all of them.

        Raises ValueError (missing entry) or RuntimeError (wrong shape).
        """
        self.steps = int(number_of(state, "steps"))
        for name, (mean, square) in self.moments.items():
            mean.copy_(tensor_of(state, f"{name}.exp_avg"))
            square.copy_(tensor_of(state, f"{name}.exp_avg_sq"))
            steps_R = self.row_steps[name]
            if f"{name}.row_steps" in state:
                steps_R.copy_(tensor_of(state, f"{name}.row_steps"))
            else:
                steps_R.fill_(float(self.steps))

    def rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """As contiguous rows, a feature's each where there is one per feature; b_dec is one row."""
        if tensor.ndim > 1:
            return tensor.t() if name == "W_enc" else tensor
        per_feature = self._sae.feature_major(name, tensor) is not None
        return tensor.view(-1, 1) if per_feature else tensor.view(1, -1)
