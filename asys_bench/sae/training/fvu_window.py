"""The FVU of training, window by window: a running mean hides what a host's phases do to it."""

from __future__ import annotations

import math

from asys_bench.sae.checkpoint.state import StateDict, number_of


class FVUWindow:
    """Sums over the current window of `rows` trained rows."""

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
