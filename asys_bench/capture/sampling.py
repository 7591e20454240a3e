"""Which calls a hook keeps: `Coin`, and the rate that it is tossed against. `FillController` follows the
bus, `RowBudget` a budget of rows.

The controller has two parts, so that it answers at once and still settles without swinging (f is the
fill ratio of the bus):

- a brake, in force only while the bus is fuller than the low watermark::

      rate = base * 10 ** -((f - low) / (high - low))

- a base that moves slowly to where the brake is not needed: additive increase below the low
  watermark, exponential decrease above it (time constant BASE_SETTLES_S), and a multiplicative
  decrease whenever a packet was refused after all (as in Chiu & Jain 1989).

The brake is proportional control of ln(rate) on f, the base its integral. A bus that its readers
empty in T seconds answers d f / dt = (rate / ideal - 1) / T, so the rate comes within 20 % of the
ideal in a few T / G with G = ln(10) / (high - low) = 9.2, and the loop is overdamped while
BASE_SETTLES_S * G > 4 * T, that is for T < 276 s. Where it is measured: tests/unit/capture/
test_backpressure.py. Rejected: halving at the high watermark and adding below the low one, which
swings between half of the ideal and more than it for ever.

The rate in force travels with each packet, so that ``1 / sampling_rate`` weights keep statistics
unbiased: it never depends on the coin that is tossed with it. As hooks share the coin, a bus that is
fuller because another hook kept this very call must not lower the rate of this very call: a rate comes into
force with the first call whose coin nobody has tossed (`contracts.capture_port.STATE_NEXT_RATE`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from asys_bench.capture.tags.clock import Tags
from asys_bench.config.sections.hooks import SamplingConfig
from asys_bench.contracts.capture_port import (
    BUDGET_CELLS,
    BUDGET_DEBT,
    BUDGET_DUE_NS,
    BUDGET_OFFERED,
    BUDGET_TOP,
    CALLS_BETWEEN_CHECKS,
)
from asys_bench.contracts.coin import compiled_toss, toss


class Coin:
    """`contracts.coin.toss` with one key. The writer's lock is held around each toss.

    toss: (tags, call_index) -> u in [0, 1) of one call; `tags` are one object for as long as they stay
        the same. Compiled where it was built. In Python the hash takes a seventh of a hook's call, so the
        last u is kept there: hooks of one call come one after another.
    """

    __slots__ = ("_index", "_tags", "_u", "key", "toss")

    def __init__(self, key: int) -> None:
        self.key = key
        self._tags: Tags | None = None
        self._index, self._u = 0, 0.0
        self.toss: Callable[[Tags, int], float] = self._toss
        if compiled_toss is not None:
            self.toss = partial(compiled_toss, key)

    def _toss(self, tags: Tags, call_index: int) -> float:
        if tags is self._tags and call_index == self._index:
            return self._u
        step, version, microbatch, _ = tags
        self._u = toss(self.key, step, version, microbatch, call_index)
        self._tags, self._index = tags, call_index
        return self._u


HOLD_NS = 250_000_000
"""After a decrease for a refused packet, the bus gets this long to show the effect."""
BASE_SETTLES_S = 120.0
_BRAKE_AT_HIGH = 10.0
_CLOSE_CALLS = 4
"""Captured calls between two checks of a filling bus: calls that are left out do not fill it."""
_CHECK_NS = 10_000_000
"""A host whose calls are so quick that checks come more often than this makes fewer of them, ..."""
_STEADY_FILL = 0.01
"""... as long as the bus fills up by less than this from one to the next, ..."""
_MOST_TIMES = 16
"""... down to one of so many: a check costs such a host more than ten captures."""


class FillController:
    """The rate that the bus allows one hook. All times are CLOCK_MONOTONIC nanoseconds."""

    __slots__ = (
        "_base", "_ceiling", "_gain", "_near", "_policy", "_refused_ns", "_seen_fill", "_seen_ns",
        "_times", "calls_to_next", "rate",
    )  # fmt: skip

    def __init__(self, policy: SamplingConfig) -> None:
        self._policy = policy
        span = max(policy.high_watermark - policy.low_watermark, 1e-3)
        self._gain = math.log(_BRAKE_AT_HIGH) / span
        self._near = 0.5 * policy.low_watermark
        self._base = self._ceiling = policy.max_rate
        self._seen_ns: int | None = None
        self._refused_ns = -HOLD_NS
        self._seen_fill, self._times = 0.0, 1
        self.rate = policy.max_rate
        self.calls_to_next = CALLS_BETWEEN_CHECKS

    @property
    def calm_fill(self) -> float:
        """The fill ratio up to which `observe` would change nothing; -1.0: it always may."""
        return self._near if self._base >= self._ceiling else -1.0

    def raise_ceiling(self, raised: bool) -> None:
        """Let the rate go up to 1 instead of `max_rate`, at once and as far as the bus allows; or no
        longer. What the bus has taught since stays where it is lower than `max_rate`."""
        self._ceiling = 1.0 if raised else self._policy.max_rate
        self._base = 1.0 if raised else min(self._base, self._ceiling)

    def observe(self, fill: float, now_ns: int) -> None:
        """Feed the bus's fill ratio (0..1)."""
        policy = self._policy
        passed_s = 0.0
        if self._seen_ns is not None:
            passed_s = max(0, now_ns - self._seen_ns) / 1e9
            self._check_in_time(fill, now_ns - self._seen_ns)
        self._seen_ns, self._seen_fill = now_ns, fill
        over = fill - policy.low_watermark
        if over <= 0:
            room = -over / policy.low_watermark if policy.low_watermark > 0 else 1.0
            self._base = min(self._ceiling, self._base + policy.increase_per_s * passed_s * room)
            rate = self._base
        else:
            # A host that paused tells nothing about the bus in the meantime: at most a second.
            exponent = self._gain / BASE_SETTLES_S * over * min(passed_s, 1.0)
            self._base = max(policy.min_rate, self._base * math.exp(-exponent))
            rate = self._base * math.exp(-self._gain * over)
        self.rate = max(policy.min_rate, rate)
        calls = CALLS_BETWEEN_CHECKS
        if fill > self._near:
            calls = min(round(_CLOSE_CALLS / self.rate), CALLS_BETWEEN_CHECKS)
        self.calls_to_next = calls * self._times

    def _check_in_time(self, fill: float, passed_ns: int) -> None:
        """Twice or half as many calls to the next check: `_CHECK_NS`."""
        if fill - self._seen_fill > _STEADY_FILL:
            self._times = 1
        elif 2 * passed_ns < _CHECK_NS:
            self._times = min(2 * self._times, _MOST_TIMES)
        elif passed_ns > _CHECK_NS:
            self._times = max(1, self._times // 2)

    def refused(self, now_ns: int) -> None:
        """The bus refused a packet: the brake alone does not hold (or came too late)."""
        self._times = 1
        if now_ns - self._refused_ns < HOLD_NS:
            return
        self._refused_ns = now_ns
        policy = self._policy
        self._base = max(policy.min_rate, self._base * policy.decrease_factor)
        self.rate = max(policy.min_rate, min(self.rate, self._base))


UPDATE_NS = 100_000_000
_FIRST_UPDATE_NS = 20_000_000
LOAD_SMOOTHING_S = 1.0
PAYBACK_S = 2.0
PAYBACK_CALLS = 4.0


class RowBudget:
    """The rate that a budget of rows per second allows one hook, for readers slower than the bus.

    A bucket that refuses when it is empty would make the chance of a row depend on the rows before it
    and leave some rows with no chance at all, which no weight can repair. So the budget sets a
    *probability*, from what was offered and sent up to now and never from the coin it is used with::

        rate = clip(R - debt / T, R / 10, 2 R) / load        T = max(PAYBACK_S, PAYBACK_CALLS n / R)

    R is the budget, `load` the smoothed rate of offered rows, n the rows of a call, and `debt` the rows
    sent beyond R x time (a negative debt is remembered up to R T). The debt is the integral of the
    error, so the mean over time is R, whatever the load does; T is long enough that one call does not
    swing the rate. All times are CLOCK_MONOTONIC nanoseconds.

    cells: its counters, as `contracts.capture_port.BUDGET_*`.
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
