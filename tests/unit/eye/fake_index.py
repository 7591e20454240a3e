"""A feature index as `rundir.feature_index.FeatureIndex` gives it, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class FakeExample:
    activation: float
    tokens: Sequence[int] | None
    activations: Sequence[float] | None
    position: int
    source: int = 0
    host_step: int = 12
    row: int = 3
    quantile_bin: int = 4


@dataclass
class FakeIndex:
    """Every feature that fires does so most on the token of its number."""

    d_sae: int
    hook: str = "policy.net"
    rows: int = 1000
    weights_step: int = 10
    sae: str = "sae/policy.net/step_000000010"
    asked: list[tuple[int, str]] = field(default_factory=list)

    @property
    def density_F(self) -> np.ndarray:
        density_F = np.full(self.d_sae, 0.25, np.float32)
        density_F[5] = 0.0
        return density_F

    @property
    def mean_F(self) -> np.ndarray:
        return np.full(self.d_sae, 2.0, np.float32)

    @property
    def max_F(self) -> np.ndarray:
        return np.full(self.d_sae, 3.0, np.float32)

    def examples(self, feature: int, kind: str = "top") -> list[FakeExample]:
        self.asked.append((feature, kind))
        if feature == 6:
            return [FakeExample(1.0, None, None, -1)]
        strong = FakeExample(3.0, [1, feature, 2], [0.5, 3.0, float("nan")], 1)
        return [strong, strong, FakeExample(1.0, [40], [1.0], 0)]

    def top_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        tokens_FT = np.stack([np.arange(self.d_sae)] * 2 + [np.full(self.d_sae, 40)], 1)
        values_FT = np.tile(np.array([3.0, 3.0, 1.0]), (self.d_sae, 1))
        tokens_FT[5:7], values_FT[5:7] = -1, 0.0
        return tokens_FT, values_FT

    def random_tokens(self) -> np.ndarray:
        """One in four is another token."""
        tokens_FT = np.stack([np.arange(self.d_sae)] * 3 + [np.full(self.d_sae, 40)], 1)
        tokens_FT[5:7] = -1
        return tokens_FT

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0.0, 1.0, 2.0]), np.array([5.0, 1.0])

    def density_over_time(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0, 100]), np.array([0.1, 0.2])

    def activations_over_time(self, feature: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array([0, 50]), np.array([1.0, 2.0, 4.0]), np.array([[1.0, 0.0], [2.0, 2.0]])

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        return [(1, 9.0, 3.5)]
