"""The numbers that a trainer always has at hand, for gauges and log lines."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
    rows_waiting: int = 0
    """Trainable rows (budget) not yet spent."""
    buffer_fill_ratio: float = 0.0
    loss: float = math.nan
    """NaN before the first step."""
    fvu: float = math.nan
    """Error of training batches / running variance of the stream; see `evaluate` for held-out."""
    l0: float = math.nan
    dead_fraction: float = 0.0
    features_resampled: int = 0
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
