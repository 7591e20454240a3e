"""Who watches others by the clock must doubt itself first. Pure.

A machine that was suspended, a frozen container or a starved process looks, to whoever wakes up in
it, as if everybody else had been silent. They were as unable to beat as the watcher was to look.
"""

from __future__ import annotations


class SelfDoubt:
    """Notices that the watcher's own look came late. Times are seconds on any monotonic clock."""

    def __init__(self, interval_s: float, timeout_s: float, now_s: float) -> None:
        """interval_s: between two looks. timeout_s: how long the watched may be silent."""
        self._interval_s, self._timeout_s = interval_s, timeout_s
        self._last_s = now_s
        self._trusts_from_s = now_s

    def look(self, now_s: float) -> float:
        """A look begins. Returns how late it came, in seconds, when that is too late to judge by (the
        watched then have a whole new timeout), else 0."""
        gap_s = now_s - self._last_s
        self._last_s = now_s
        if gap_s <= self._interval_s + self._timeout_s / 2:
            return 0.0
        self._trusts_from_s = now_s + self._timeout_s
        return gap_s

    def trusts(self, now_s: float) -> bool:
        """Whether silence means anything at this time."""
        return now_s >= self._trusts_from_s
