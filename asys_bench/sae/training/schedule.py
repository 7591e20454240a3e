"""Learning rate and penalty weight over steps.

    peak    1.2e-2 sqrt(2048 / F) min(1, batch / 4096)^(1/4)
    rate    peak (t + 1) / warmup                      while it warms up
            peak / sqrt(1 + t / lr_half_steps)         after it, not below lr_min_ratio peak
            falls linearly to lr_min_ratio of that     over the last fifth, if total_steps is known

The square root of the width is that of Gao et al. 2024 (arXiv:2406.04093, appendix A.3); their
constant is for runs of billions of tokens, ours for streams of 1e5 to 1e7 rows. A smaller batch has
gradients for fewer features, and a feature takes a step only where it has one (`row_adam`): so the rate
falls with its fourth root, not its square root. Such a run has a few
hundred steps: what counts is to move fast at first and to become quiet in time, without knowing when
it ends. 1 / sqrt(t) does so at every length (it is what online convex optimisation asks for).
"""

from __future__ import annotations

import math

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of
from asys_bench.sae.config import PENALISED, SAEConfig

PEAK, PEAK_FEATURES, PEAK_ROWS = 1.2e-2, 2048, 4096
MAX_DEFAULT_RATE = 2.4e-2
LAST_SHARE = 0.2
"""Of a run of known length: the rate falls and no feature starts anew any more."""
FIRST_GAIN, GAIN = 0.1, 0.03
FIRST_STEPS = 100
LOWEST, HIGHEST = 1e-4, 1e4


def peak_rate(config: SAEConfig, d_sae: int) -> float:
    """`learning_rate`, or the default for `d_sae` features."""
    if config.learning_rate is not None:
        return config.learning_rate
    batch = min(1.0, config.batch_rows / PEAK_ROWS)
    return min(MAX_DEFAULT_RATE, PEAK * math.sqrt(PEAK_FEATURES / d_sae * math.sqrt(batch)))


def rate_at(config: SAEConfig, d_sae: int, step: int) -> float:
    """The rate of step `step` (0 is the first)."""
    peak, least = peak_rate(config, d_sae), config.lr_min_ratio
    if step < config.lr_warmup_steps:
        return peak * (step + 1) / config.lr_warmup_steps
    since = step - config.lr_warmup_steps
    factor = 1.0
    if config.lr_half_steps is not None:
        factor = max(least, 1.0 / math.sqrt(1.0 + since / config.lr_half_steps))
    if config.total_steps is not None:
        left = max(0.0, 1.0 - step / config.total_steps)
        factor *= min(1.0, least + (1.0 - least) * left / LAST_SHARE)
    return peak * factor


def settling(config: SAEConfig, step: int) -> bool:
    """Whether a run of known length is in its last fifth."""
    return config.total_steps is not None and step >= (1.0 - LAST_SHARE) * config.total_steps


class SparsityController:
    """Steers the weight of one SAE's L1 or L0 penalty so that a wanted number of features is active.

    An integral controller on log(lambda): L0 falls about monotonically with lambda and the two are
    close to a power law, so each step

        log lambda += gain clamp(log(L0 / target), -1, 1)

    with the batch's L0. The gain is 0.1 for the first hundred steps, while the learning rate is high and
    the weights follow at once, and falls to 0.03, slower than they follow later, so that it does not
    oscillate. With 0.03 throughout, a run of 73 steps ended at an L0 of 62 instead of 16.
    """

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
