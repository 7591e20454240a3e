"""Steers the weight of an L1 or L0 penalty so that a wanted number of features is active.

An integral controller on log(lambda): L0 falls about monotonically with lambda and the two are
close to a power law, so each step

    log lambda += gain clamp(log(L0 / target), -1, 1)

with the batch's L0. The gain is 0.1 for the first hundred steps, while the learning rate is high and
the weights follow at once, and falls to 0.03, slower than they follow later, so that it does not
oscillate. With 0.03 throughout, a run of 73 steps ended at an L0 of 62 instead of 16.
"""

from __future__ import annotations

import math

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of
from asys_bench.sae.config import PENALISED, SAEConfig

FIRST_GAIN, GAIN = 0.1, 0.03
FIRST_STEPS = 100
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
        gain = max(GAIN, min(FIRST_GAIN, FIRST_GAIN * FIRST_STEPS / (step + 1)))
        wanted = max(self._coefficient, LOWEST) * math.exp(gain * max(-1.0, min(1.0, excess)))
        self._coefficient = max(LOWEST, min(HIGHEST, wanted))

    def state_dict(self) -> StateDict:
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: StateDict) -> None:
        self._coefficient = number_of(state, "coefficient")
