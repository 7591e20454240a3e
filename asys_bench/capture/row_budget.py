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

from asys_bench.contracts.capture_port import (
    BUDGET_CELLS,
    BUDGET_DEBT,
    BUDGET_DUE_NS,
    BUDGET_OFFERED,
    BUDGET_TOP,
)

UPDATE_NS = 100_000_000
_FIRST_UPDATE_NS = 20_000_000
LOAD_SMOOTHING_S = 1.0
PAYBACK_S = 2.0
PAYBACK_CALLS = 4.0


class RowBudget:
    """The rate that the budget allows one hook. All times are CLOCK_MONOTONIC nanoseconds.

    cells: its books, as `contracts.capture_port.BUDGET_*`.
    """

    __slots__ = ("_budget", "_load", "_since_ns", "cells", "rate")

    def __init__(self, rows_per_s: float) -> None:
        self._budget = rows_per_s
        self._load: float | None = None
        self._since_ns: int | None = None
        self.cells = memoryview(bytearray(8 * BUDGET_CELLS)).cast("d")
        self.rate = 1.0

    def offer(self, rows: float, now_ns: int) -> bool:
        """`rows` could be sent now; call it before the coin. True: `rate` may have changed."""
        cells = self.cells
        if self._since_ns is None:
            self._since_ns = now_ns
            cells[BUDGET_DUE_NS] = now_ns + _FIRST_UPDATE_NS
        if rows > cells[BUDGET_TOP]:
            cells[BUDGET_TOP] = rows
        if now_ns < cells[BUDGET_DUE_NS]:
            cells[BUDGET_OFFERED] += rows
            return False
        self._update(now_ns)
        cells[BUDGET_OFFERED] = rows
        return True

    def take(self, rows: float) -> None:
        """`rows` were sent."""
        self.cells[BUDGET_DEBT] += rows

    def _update(self, now_ns: int) -> None:
        assert self._since_ns is not None
        cells = self.cells
        passed_s = (now_ns - self._since_ns) / 1e9
        self._since_ns = now_ns
        cells[BUDGET_DUE_NS] = now_ns + UPDATE_NS
        load = cells[BUDGET_OFFERED] / passed_s
        if self._load is None:
            self._load = load
        else:
            self._load += (load - self._load) * -math.expm1(-passed_s / LOAD_SMOOTHING_S)
        budget = self._budget
        payback_s = max(PAYBACK_S, PAYBACK_CALLS * cells[BUDGET_TOP] / budget)
        cells[BUDGET_TOP] *= 0.99
        debt = max(cells[BUDGET_DEBT] - budget * passed_s, -budget * payback_s)
        cells[BUDGET_DEBT] = debt
        wanted = min(max(budget - debt / payback_s, budget / 10), 2 * budget)
        self.rate = 1.0 if self._load <= wanted else wanted / self._load
