"""Warm-up: chunks of work until their durations agree, or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WINDOW = 5
TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class WarmupEnd:
    seconds: float
    steady: bool


def is_steady(durations: Sequence[float]) -> bool:
    """The last five durations lie within 15 % of their median, and they no longer fall."""
    if len(durations) < WINDOW:
        return False
    last = list(durations[-WINDOW:])
    middle = sorted(last)[WINDOW // 2]
    falling = all(later < earlier for earlier, later in pairwise(last))
    return not falling and all(abs(value - middle) <= TOLERANCE * middle for value in last)


def warm_up(step: Callable[[], float], max_s: float) -> WarmupEnd:
    """Call `step` (returns the duration of one chunk in seconds) until steady or `max_s` is over."""
    started = time.monotonic()
    durations: list[float] = []
    while True:
        durations.append(step())
        elapsed = time.monotonic() - started
        if is_steady(durations):
            return WarmupEnd(elapsed, True)
        if elapsed >= max_s:
            return WarmupEnd(elapsed, False)
