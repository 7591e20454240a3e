"""Rates and quantiles over an interval: differences of two readings. Pure functions.

Counters and histograms in the stats page only grow, so what happened in an interval is the later
reading minus the earlier one. Nothing is ever reset, hence any number of monitors can read at their
own pace without disturbing each other.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from asys_bench.contracts.stats import HISTOGRAM_BUCKETS, HistogramSnapshot, bucket_upper

T = TypeVar("T")
EMPTY_HISTOGRAM = HistogramSnapshot(0, 0, 0, (0,) * HISTOGRAM_BUCKETS)


def increase(now: int, before: int) -> int:
    """How much a counter grew; 0 if it went backwards (its slot was recreated)."""
    return max(0, now - before)


def per_second(now: float, before: float, seconds: float) -> float:
    """Growth per second; NaN for an empty interval, 0 if the value went backwards."""
    if seconds <= 0 or math.isnan(seconds):
        return float("nan")
    return max(0.0, now - before) / seconds


def subtract(now: HistogramSnapshot, before: HistogramSnapshot) -> HistogramSnapshot:
    """What was recorded between two snapshots of one histogram.

    The maximum of an interval is not recorded anywhere, so the result's is the upper edge of its
    highest bucket (at most 6.25 % too high), never above the maximum of the whole run.
    """
    if before.count == 0:
        return now
    buckets = tuple(map(operator.sub, now.buckets, before.buckets))
    if min(buckets) < 0:  # its slot was recreated
        buckets = tuple(max(0, n) for n in buckets)
    count = sum(buckets)
    if count == 0:
        return EMPTY_HISTOGRAM
    highest = len(buckets) - 1 - next(at for at, n in enumerate(reversed(buckets)) if n)
    return HistogramSnapshot(
        count, max(0, now.total - before.total), min(bucket_upper(highest), now.maximum), buckets
    )


def merge(snapshots: Iterable[HistogramSnapshot]) -> HistogramSnapshot:
    """One histogram of everything in several (all hooks together)."""
    present = [s for s in snapshots if s.count]
    if len(present) < 2:
        return present[0] if present else EMPTY_HISTOGRAM
    return HistogramSnapshot(
        sum(s.count for s in present),
        sum(s.total for s in present),
        max(s.maximum for s in present),
        tuple(map(sum, zip(*(s.buckets for s in present), strict=True))),
    )


@dataclass(frozen=True, slots=True)
class Quantiles:
    """p50, p90, p99 and maximum in the histogram's unit times a factor; NaN when count is 0."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


def quantiles(snapshot: HistogramSnapshot, factor: float = 1.0) -> Quantiles:
    """The usual quantiles, scaled: `factor=1e-6` turns nanoseconds into milliseconds."""
    p50, p90, p99 = (snapshot.quantile(q) * factor for q in (0.5, 0.9, 0.99))
    maximum = snapshot.maximum * factor if snapshot.count else float("nan")
    return Quantiles(snapshot.count, p50, p90, p99, maximum)


class Window(Generic[T]):
    """Readings of the last `span_s` seconds, so that shown rates are steady at any refresh rate."""

    def __init__(self, span_s: float) -> None:
        self._span_ns = int(span_s * 1e9)
        self._items: deque[tuple[int, T]] = deque()

    def add(self, time_ns: int, item: T) -> tuple[float, T]:
        """Add a reading; returns (seconds, reading) of the one to compare it with.

        That is the youngest reading at least `span_s` old, or the oldest there is; (0, itself) for
        the first.
        """
        self._items.append((time_ns, item))
        while len(self._items) > 2 and self._items[1][0] <= time_ns - self._span_ns:
            self._items.popleft()
        then, earlier = self._items[0]
        return (time_ns - then) / 1e9, earlier
