"""A learning rate that follows the stream instead of a plan.

A run without an end has no last step to decay towards, and a host that changes its mind would meet
an SAE that has stopped learning. So the windowed FVU decides: while it improves the rate stays,
once it stands still the rate falls (which lowers the noise floor), and when it rises by more than
windows differ by chance, the stream has drifted and the rate returns to its peak.
"""

from __future__ import annotations

import math

from asys_bench.sae.state import StateDict, number_of

FALL = 0.7
"""Of the rate, per window without improvement."""
IMPROVEMENT = 0.02
RISE = 0.10
"""Relative changes of a window's FVU against the best one that count as such."""


class RateTracker:
    """The factor on the learning rate, between `least` and 1."""

    def __init__(self, least: float) -> None:
        self._least = least
        self.factor = 1.0
        self._best = math.inf

    def observe(self, fvu: float) -> None:
        """A window of training ended with this FVU."""
        if not math.isfinite(fvu):
            return
        if fvu > (1 + RISE) * self._best:
            self.factor, self._best = 1.0, fvu
        elif fvu < (1 - IMPROVEMENT) * self._best:
            self._best = fvu
        else:
            self.factor = max(self._least, FALL * self.factor)
            self._best = min(self._best, fvu)

    def state_dict(self) -> StateDict:
        # JSON has no infinity: -1 stands for "no window yet".
        best = self._best if math.isfinite(self._best) else -1.0
        return {"factor": self.factor, "best": best}

    def load_state_dict(self, state: StateDict) -> None:
        best = number_of(state, "best")
        self.factor, self._best = number_of(state, "factor"), best if best >= 0 else math.inf
