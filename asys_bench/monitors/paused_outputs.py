"""Outputs of a monitor that a disk refuses for now: when to try again, and how much was left out."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


@dataclass
class _Paused:
    next_try_s: float
    pause_s: float
    left_out: int = 0


class PausedOutputs:
    """By output name. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._paused: dict[str, _Paused] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._paused

    def skip(self, name: str, now_s: float) -> bool:
        """Whether a write is to be left out (and counts it), because its next attempt is not due."""
        paused = self._paused.get(name)
        if paused is None or now_s >= paused.next_try_s:
            return False
        paused.left_out += 1
        return True

    def refused(self, name: str, now_s: float) -> bool:
        """A write failed. True when that is news."""
        paused = self._paused.get(name)
        news = paused is None
        if paused is None:
            paused = self._paused[name] = _Paused(now_s, FIRST_PAUSE_S)
        else:
            paused.pause_s = min(2 * paused.pause_s, LONGEST_PAUSE_S)
        paused.next_try_s = now_s + paused.pause_s
        paused.left_out += 1
        return news

    def returned(self, name: str) -> int:
        """A write succeeded. How many were left out since it last did; 0: it was not paused."""
        paused = self._paused.pop(name, None)
        return paused.left_out if paused is not None else 0
