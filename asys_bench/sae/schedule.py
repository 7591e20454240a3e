"""Learning rate over steps.

Default peak: 8e-4 / sqrt(d_sae / 2^14). The square-root rule is that of Gao et al. 2024
(arXiv:2406.04093, appendix A.3) and sparsify; their constant of 2e-4 is for runs of billions of
tokens and batches of 131k, ours for streams of 1e5 to 1e7 rows and batches of about 1k.
Held-out FVU with the constant at 4e-4 against 8e-4: a 64-unit policy, k = 8, 200k rows, 4 passes:
0.0116 against 0.0086; 1024 known features in d = 256, F = 2048, k = 16, 1M rows once in batches of
4096: 0.113 against 0.106. Twice that again (5e-3 at F = 2048) loses: 0.108 and half of the features
dead. Longer streams of small batches want less (4e-4: 2 % dead instead of 12 %): set learning_rate
or lr_decay_steps there.
"""

from __future__ import annotations

import math

from asys_bench.sae.config import SAEConfig

BASE_RATE = 8e-4
BASE_FEATURES = 1 << 14
MAX_DEFAULT_RATE = 5e-3


def peak_rate(config: SAEConfig, d_sae: int) -> float:
    """`learning_rate`, or the default for `d_sae` features (at most 5e-3)."""
    if config.learning_rate is not None:
        return config.learning_rate
    return min(MAX_DEFAULT_RATE, BASE_RATE / math.sqrt(d_sae / BASE_FEATURES))


def rate_at(config: SAEConfig, d_sae: int, step: int) -> float:
    """The rate of step `step` (0 is the first): linear warm-up, then constant or linear decay."""
    peak = peak_rate(config, d_sae)
    if step < config.lr_warmup_steps:
        return peak * (step + 1) / config.lr_warmup_steps
    if config.lr_decay_steps is None:
        return peak
    progress = min(1.0, (step - config.lr_warmup_steps) / config.lr_decay_steps)
    return peak * (1.0 - (1.0 - config.lr_min_ratio) * progress)
