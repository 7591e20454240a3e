"""Adam over an SAE's parameters, feature by feature, with the decoder kept at unit norm.

Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1; eps is small because the gradients of rare features
are. Gradients are clipped and decoder rows normalised in the same pass over memory.
"""

from __future__ import annotations

import math

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of, tensor_of
from asys_bench.sae.kernels.sparse_kernels import SparseKernels

BETAS = (0.9, 0.999)
EPSILON = 6.25e-10
"""That of Gao et al. 2024, appendix A."""


class RowAdam:
    """Moments of every parameter, and the step that uses them. Deterministic."""

    def __init__(self, sae: SparseAutoencoder, kernels: SparseKernels) -> None:
        self._sae, self.kernels = sae, kernels
        self.steps = 0
        self.moments = {
            name: (torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in sae.named_parameters()
        }
        """Name -> running mean and mean square of the gradient, laid out like the parameter."""

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Project the decoder's gradient off its rows; returns the norm of all gradients."""
        square = 0.0
        for name, parameter in self._sae.named_parameters():
            if parameter.grad is not None:
                W_FD = parameter.detach() if name == "W_dec" else None
                square += self.kernels.project(_rows(name, parameter.grad), W_FD)
        return math.sqrt(square) if square >= 0 else math.nan

    @torch.no_grad()
    def step(self, rate: float, clip: float) -> bool:
        """Move the parameters; gradients count `clip` times. False when a new weight is not finite."""
        self.steps += 1
        beta1, beta2 = BETAS
        settings = (
            beta1,
            beta2,
            1 / math.sqrt(1 - beta2**self.steps),
            EPSILON,
            clip,
        )
        finite = True
        for name, parameter in self._sae.named_parameters():
            if parameter.grad is not None:
                tensors = (parameter.detach(), parameter.grad, *self.moments[name])
                weight, gradient, mean, square = (_rows(name, tensor) for tensor in tensors)
                own_rate = rate * self._rate_factor(name) / (1 - beta1**self.steps)
                finite &= self.kernels.adam(
                    weight,
                    gradient,
                    mean,
                    square,
                    (own_rate, *settings),
                    unit_rows=name == "W_dec",
                )
        return finite

    def _rate_factor(self, name: str) -> float:
        scale = self._sae.rate_scales.get(name)
        return 1.0 if scale is None else max(1.0, scale * math.sqrt(self._sae.d_in))

    @torch.no_grad()
    def forget(self, index_M: torch.Tensor) -> None:
        """Zero the moments of these features: they were re-initialised."""
        for name, moments in self.moments.items():
            for moment in moments:
                per_feature = self._sae.feature_major(name, moment)
                if per_feature is not None:
                    per_feature[index_M] = 0.0

    def state_dict(self) -> StateDict:
        state: StateDict = {"steps": self.steps}
        for name, (mean, square) in self.moments.items():
            state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"] = mean, square
        return state

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError (missing entry) or RuntimeError (wrong shape)."""
        self.steps = int(number_of(state, "steps"))
        for name, (mean, square) in self.moments.items():
            mean.copy_(tensor_of(state, f"{name}.exp_avg"))
            square.copy_(tensor_of(state, f"{name}.exp_avg_sq"))


def _rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As contiguous rows: features first for W_enc, one row for vectors."""
    if name == "W_enc":
        return tensor.t()
    return tensor.view(1, -1) if tensor.ndim == 1 else tensor
