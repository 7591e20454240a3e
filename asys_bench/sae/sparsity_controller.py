"""Steers the weight of an L1 or L0 penalty so that a wanted number of features is active.

An integral controller on log(lambda): L0 falls about monotonically with lambda and the two are
close to a power law, so each step

    log lambda += GAIN clamp(log(L0 / target), -1, 1)

with the batch's L0. At most 3 % per step: slower than the weights follow, so that it does not
oscillate; a lambda that is 10x off is right after a hundred steps.
"""

from __future__ import annotations

import math

from asys_bench.sae.config import PENALISED, SAEConfig
from asys_bench.sae.state import StateDict, number_of

GAIN = 0.03
LOWEST, HIGHEST = 1e-4, 1e4


class SparsityController:
    """The current weight of one SAE's penalty."""

    def __init__(self, config: SAEConfig) -> None:
        self._config = config
        self._coefficient = config.sparsity_coefficient

    @property
    def steers(self) -> bool:
        """Whether the architecture has a penalty at all."""
        return self._config.architecture in PENALISED

    def coefficient(self, step: int) -> float:
        """The weight for step `step`, after warm-up."""
        warmup = self._config.sparsity_warmup_steps
        return self._coefficient * (min(1.0, (step + 1) / warmup) if warmup else 1.0)

    def observe(self, step: int, l0: float) -> None:
        """Correct the weight after a step whose batch had `l0` active features per row."""
        target = self._config.target_l0
        if target is None or step < self._config.sparsity_warmup_steps:
            return
        excess = math.log(max(l0, 1e-3) / target)
        wanted = max(self._coefficient, LOWEST) * math.exp(GAIN * max(-1.0, min(1.0, excess)))
        self._coefficient = max(LOWEST, min(HIGHEST, wanted))

    def state_dict(self) -> StateDict:
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: StateDict) -> None:
        self._coefficient = number_of(state, "coefficient")
