"""A budget of rows per second: what is behind the bus (an SAE's optimizer) tires before the bus does.

A bucket that refuses when it is empty would make the chance of a row depend on the rows before it
and leave some rows with no chance at all, which no weight can repair. So the budget sets a
*probability*, from what was offered and sent up to now and never from the coin it is used with::

    rate = clip(R - debt / T, R / 10, 2 R) / load        T = max(PAYBACK_S, PAYBACK_CALLS n / R)

R is the budget, `load` the smoothed rate of offered rows, n the rows of a call, and `debt` the rows
sent beyond R x time (a negative debt is remembered up to R T). The debt is the integral of the
error, so the mean over time is R, whatever the load does; T is long enough that one call does not
swing the rate.
"""

from __future__ import annotations

import math

UPDATE_NS = 100_000_000
_FIRST_UPDATE_NS = 20_000_000
LOAD_SMOOTHING_S = 1.0
PAYBACK_S = 2.0
PAYBACK_CALLS = 4.0


class RowBudget:
    """The rate that the budget allows one hook. All times are CLOCK_MONOTONIC nanoseconds."""

    __slots__ = ("_budget", "_debt", "_due_ns", "_load", "_offered", "_since_ns", "_top", "rate")

    def __init__(self, rows_per_s: float) -> None:
        self._budget = rows_per_s
        self._debt = 0.0
        self._load: float | None = None
        self._offered = 0.0
        self._top = 0.0  # rows of the largest call lately
        self._since_ns: int | None = None
        self._due_ns = 0
        self.rate = 1.0

    def offer(self, rows: float, now_ns: int) -> bool:
        """`rows` could be sent now; call it before the coin. True: `rate` may have changed."""
        if self._since_ns is None:
            self._since_ns, self._due_ns = now_ns, now_ns + _FIRST_UPDATE_NS
        if rows > self._top:
            self._top = rows
        if now_ns < self._due_ns:
            self._offered += rows
            return False
        self._update(now_ns)
        self._offered = rows
        return True

    def take(self, rows: float) -> None:
        """`rows` were sent."""
        self._debt += rows

    def _update(self, now_ns: int) -> None:
        assert self._since_ns is not None
        passed_s = (now_ns - self._since_ns) / 1e9
        self._since_ns, self._due_ns = now_ns, now_ns + UPDATE_NS
        load = self._offered / passed_s
        if self._load is None:
            self._load = load
        else:
            self._load += (load - self._load) * -math.expm1(-passed_s / LOAD_SMOOTHING_S)
        budget = self._budget
        payback_s = max(PAYBACK_S, PAYBACK_CALLS * self._top / budget)
        self._top *= 0.99
        self._debt = max(self._debt - budget * passed_s, -budget * payback_s)
        wanted = min(max(budget - self._debt / payback_s, budget / 10), 2 * budget)
        self.rate = 1.0 if self._load <= wanted else wanted / self._load
