"""How well the reservoir mixes, and how old what it gives is.

Neighbouring rows of a stream are alike: an SAE trained in their order follows the stream instead of
learning it. The measure is the lag-1 autocorrelation of the host steps of a batch's rows in the
order in which they were drawn,

    r = sum_i (s_i - m)(s_{i+1} - m) / sum_i (s_i - m)^2        m: their mean

1 for rows in order of time, 0 (to within 1 / sqrt(B)) when the draw has forgotten it.
"""

from __future__ import annotations

import math

import torch

from asys_bench.sae.checkpoint.state import StateDict, number_of

SMOOTHING = 0.05
"""Weight of a new batch in the running numbers."""


def order_autocorrelation(step_B: torch.Tensor) -> float:
    """Lag-1 autocorrelation, -1..1, of int64[B]; NaN for fewer than 3 or equal ones."""
    deviation_B = step_B.double() - step_B.double().mean()
    square = float(deviation_B.square().sum())
    if len(step_B) < 3 or square == 0.0:
        return math.nan
    return float(torch.dot(deviation_B[:-1], deviation_B[1:])) / square


class MixingMeter:
    """Running means over training batches; NaN before the first."""

    def __init__(self) -> None:
        self.autocorrelation = math.nan
        self.age_versions = math.nan
        """Weight updates of the host since a trained row was captured, mean."""

    def observe(self, step_B: torch.Tensor, version_B: torch.Tensor, newest_version: int) -> None:
        """A batch was drawn when the newest row of the stream had `newest_version`."""
        self.autocorrelation = _smooth(self.autocorrelation, order_autocorrelation(step_B))
        age = newest_version - float(version_B.double().mean())
        self.age_versions = _smooth(self.age_versions, age)

    def state_dict(self) -> StateDict:
        return {
            name: value
            for name, value in vars(self).items()
            if math.isfinite(value)  # JSON has no NaN
        }

    def load_state_dict(self, state: StateDict) -> None:
        for name in vars(self):
            setattr(self, name, number_of(state, name) if name in state else math.nan)


def _smooth(before: float, value: float) -> float:
    if math.isnan(value):
        return before
    return value if math.isnan(before) else before + SMOOTHING * (value - before)
