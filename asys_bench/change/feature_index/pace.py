"""Keeps the index within its share of the time: rows beyond it are left out, whole calls by chance. The time
is the clock's: where the machine is busy, the index reads less and does not lag behind.

Which calls is decided by a hash of what the call is, so that the hooks of one call are read or left out
together, and rows that are read stand for those that are not.
"""

from __future__ import annotations

import time

from asys_bench.contracts.coin import GOLDEN, MASK, mix

_LOOKED_AT_S = 1.0
_LEAST = 1e-4
_OWN = 0x5061636500000001


def moment_of(*parts: int) -> int:
    """A hash, of 64 bits, of what a call is."""
    found = 0
    for part in parts:
        found = mix(((found ^ part) + GOLDEN) & MASK)
    return found


class Pace:
    """share: of the time; 1 is all that there is."""

    def __init__(self, share: float) -> None:
        self._share, self.rate = share, 1.0
        """The share of calls that is read."""
        self._since_s, self._spent_s = time.monotonic(), 0.0

    def takes(self, moment: int) -> bool:
        """Whether the call of this hash is read."""
        return self.rate >= 1.0 or moment_of(moment, _OWN) < self.rate * MASK

    def spent(self, seconds: float) -> None:
        """Time that rows took."""
        if self._share >= 1.0:
            return
        self._spent_s += seconds
        now_s = time.monotonic()
        passed_s = now_s - self._since_s
        if passed_s >= _LOOKED_AT_S:
            used = max(self._spent_s / passed_s, 1e-6)
            self.rate = min(1.0, max(_LEAST, self.rate * min(2.0, self._share / used)))
            self._since_s, self._spent_s = now_s, 0.0
