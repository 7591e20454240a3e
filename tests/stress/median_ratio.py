"""What a script says of ratios that were taken in turn: their median, and how sure it is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

_DRAWS = 2000


def median_ratio(ratios: Sequence[float]) -> dict[str, float]:
    """The median (`ratio`), and its 95 % bootstrap interval (`low`, `high`)."""
    draw = np.random.default_rng(0)
    medians = [np.median(draw.choice(ratios, len(ratios))) for _ in range(_DRAWS)]
    low, high = np.quantile(medians, [0.025, 0.975])
    return {
        "ratio": round(statistics.median(ratios), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }
