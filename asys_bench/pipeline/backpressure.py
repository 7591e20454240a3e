"""What a hook does when the bus fills up: its sampling rate, controlled by AIMD.

Multiplicative decrease on congestion and additive recovery (Chiu & Jain 1989), per hook. The rate
that was in force travels with each packet, so that ``1 / sampling_rate`` weights keep statistics
unbiased. The sampler owns its generator: the host's random state is never touched.
"""

from __future__ import annotations

import random

from asys_bench.config.sampling import SamplingConfig

HOLD_NS = 250_000_000
"""After a decrease the bus gets this long to show its effect before the next decrease."""
FILL_STEP = 0.05
"""... unless it has filled by this much more in the meantime: then the next one comes at once."""


class AdaptiveSampler:
    """Bernoulli sampling whose rate follows the bus. All times are CLOCK_MONOTONIC nanoseconds."""

    __slots__ = ("_fill", "_grown_ns", "_lowered_ns", "_policy", "_random", "decreases", "rate")

    def __init__(self, policy: SamplingConfig, seed: int) -> None:
        self._policy = policy
        self._random = random.Random(seed).random
        self._lowered_ns = -HOLD_NS
        self._grown_ns = 0
        self._fill = 0.0  # of the bus at the last decrease
        self.rate = policy.max_rate
        self.decreases = 0

    def take(self) -> bool:
        """Whether to capture this call."""
        rate = self.rate
        return rate >= 1.0 or self._random() < rate

    def congested(self, now_ns: int) -> None:
        """The bus refused a packet or is past the high watermark."""
        if now_ns - self._lowered_ns >= HOLD_NS:
            self.rate = max(self._policy.min_rate, self.rate * self._policy.decrease_factor)
            self._lowered_ns = self._grown_ns = now_ns
            self.decreases += 1

    def clear(self, now_ns: int) -> None:
        """The bus is under the low watermark: recover by `increase_per_s`."""
        policy = self._policy
        if self.rate < policy.max_rate:
            gained = policy.increase_per_s * (now_ns - self._grown_ns) / 1e9
            self.rate = min(policy.max_rate, self.rate + max(0.0, gained))
        self._grown_ns = now_ns

    def observe_fill(self, fill: float, now_ns: int) -> None:
        """Feed the bus's fill ratio (0..1). Between the watermarks the rate stays."""
        if fill >= self._policy.high_watermark:
            if fill >= self._fill + FILL_STEP:
                self._lowered_ns = now_ns - HOLD_NS
            self.congested(now_ns)
            if self._lowered_ns == now_ns:
                self._fill = fill
        elif fill <= self._policy.low_watermark:
            self._fill = 0.0
            self.clear(now_ns)
        else:
            self._grown_ns = now_ns
