"""The numbers that a trainer always has at hand, for gauges and log lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from asys_bench.sae.checkpoint.checkpoint_files import StateDict, number_of


@dataclass(slots=True)
class RunningMetrics:
    """Cheap numbers at any moment; losses are smoothed over about 50 steps of training batches."""

    steps: int = 0
    steps_skipped: int = 0
    """Steps not taken because loss or gradient was not finite."""
    rollbacks: int = 0
    """Times that the SAE went back to its last good state."""
    rows_ingested: int = 0
    rows_held_out: int = 0
    rows_refused: int = 0
    """Rows with NaN, infinity or entries past 1e15."""
    rows_outlying: int = 0
    """Rows left out of training because of their norm (see `outliers`)."""
    outlier_norm: float = math.inf
    """Rows of a larger norm are left out of training; infinity: none."""
    rows_trained: int = 0
    rows_over_budget: int = 0
    """Trainable rows (budget) given up because training did not keep up."""
    buffer_fill_ratio: float = 0.0
    loss: float = math.nan
    """NaN before the first step."""
    fvu: float = math.nan
    """Error of training batches / running variance of the stream; see `evaluate` for held-out."""
    l0: float = math.nan
    dead_fraction: float = 0.0
    features_resampled: int = 0
    lives: int = 0
    """Lives of features that have begun, those of the start included (`lives`)."""
    new_lives: float = 0.0
    """Share of the features whose life began within the last `dead_after` trained rows."""
    turned: int = 0
    """Features whose decoder has drifted past cosine 0.5 from the begin of their life."""
    learning_rate: float = 0.0
    sparsity_coefficient: float = 0.0
    """Weight of the L1 or L0 penalty; 0 where sparsity is k."""
    input_scale: float = 1.0
    windows: int = 0
    """Complete windows of `window_rows` trained rows."""
    window_fvu: float = math.nan
    """FVU of the last complete window; NaN before."""
    input_drift: float = 0.0
    """How far the input's mean moved within the normaliser's window, in standard deviations."""
    mixing_autocorrelation: float = math.nan
    """Of the host steps in a batch's order: 1 for time order, 0 for a perfect shuffle."""
    row_age_versions: float = math.nan
    """Mean weight updates of the host since the trained rows were captured."""
    feature_survival: float = math.nan
    """Share of the features of the checkpoint before the last one that the last one still has."""


class FVUWindow:
    """The FVU of training over windows of `rows` rows: a running mean hides what a host's phases do to it."""

    def __init__(self, rows: int) -> None:
        self._wanted = rows
        self._rows = self._error = self._variance = 0.0
        self.last = math.nan
        """FVU of the last complete window; NaN before."""
        self.count = 0
        """Complete windows."""

    def add(self, rows: int, error: float, variance: float) -> bool:
        """A step on `rows` rows, with mean error and variance of the inputs in one unit; True when
        it completed a window."""
        self._rows += rows
        self._error += rows * error
        self._variance += rows * variance
        if self._rows < self._wanted:
            return False
        self.last = self._error / self._variance if self._variance > 0 else 0.0
        self._rows = self._error = self._variance = 0.0
        self.count += 1
        return True

    def state_dict(self) -> StateDict:
        return {
            "rows": self._rows,
            "error": self._error,
            "variance": self._variance,
            "last": self.last if math.isfinite(self.last) else -1.0,
            "count": self.count,
        }

    def load_state_dict(self, state: StateDict) -> None:
        self._rows, self._error = number_of(state, "rows"), number_of(state, "error")
        self._variance, self.count = number_of(state, "variance"), int(number_of(state, "count"))
        last = number_of(state, "last")
        self.last = last if last >= 0 else math.nan


# How well the reservoir mixes, and how old what it gives is.
#
# Neighbouring rows of a stream are alike: an SAE trained in their order follows the stream instead of
# learning it. The measure is the lag-1 autocorrelation of the host steps of a batch's rows in the
# order in which they were drawn,
#
#     r = sum_i (s_i - m)(s_{i+1} - m) / sum_i (s_i - m)^2        m: their mean
#
# 1 for rows in order of time, 0 (to within 1 / sqrt(B)) when the draw has forgotten it.

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


# Do features last? Matching the dictionaries of two moments.
#
# A feature of the older dictionary has survived when some row of the newer decoder points (almost)
# its way: cosine > 0.9, say. The position in the dictionary does not count, and signs do.

MOST_FEATURES = 4096
"""Of larger dictionaries an evenly spaced part is looked up, against all of the newer one."""
CHUNK_ELEMENTS = 1 << 24


@torch.no_grad()
def matched_cosine(before_FD: torch.Tensor, after_FD: torch.Tensor) -> torch.Tensor:
    """float32[F']: for each row of (a part of) `before` its largest cosine with a row of `after`."""
    if len(before_FD) > MOST_FEATURES:
        index = torch.linspace(0, len(before_FD) - 1, MOST_FEATURES).round().long()
        before_FD = before_FD[index]
    before_FD = torch.nn.functional.normalize(before_FD.float(), dim=1)
    after_FD = torch.nn.functional.normalize(after_FD.float(), dim=1)
    chunk = max(1, CHUNK_ELEMENTS // len(after_FD))
    parts = [(part @ after_FD.t()).amax(1) for part in torch.split(before_FD, chunk)]
    return torch.cat(parts)


SURVIVAL_COSINE = 0.9


def feature_survival(
    before_FD: torch.Tensor, after_FD: torch.Tensor, cosine: float = SURVIVAL_COSINE
) -> float:
    """Share of the rows of `before` that have a row of `after` within `cosine`, 0..1."""
    return float((matched_cosine(before_FD, after_FD) > cosine).double().mean())
