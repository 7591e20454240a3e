"""The percentile spectrum: value over percentile, each further nine in the same room, as in HdrHistogram
plots. A distribution is a staircase, because that is what a histogram knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from asys_bench.contracts.stats import bucket_upper
from asys_bench.reports.page.markup import Markup
from asys_bench.reports.page.scale import LEFT, RIGHT, Frame, Scale, text

FRAME = Frame(bottom=212.0, height=246.0)
Stairs = Sequence[tuple[float, float]]
"""(share of samples up to here, value), ascending."""

PERCENTILES: Sequence[tuple[float, str]] = (
    (0.0, "0"),
    (0.5, "50"),
    (0.9, "90"),
    (0.99, "99"),
    (0.999, "99.9"),
    (0.9999, "99.99"),
    (0.99999, "99.999"),
    (0.999999, "99.9999"),
)


def stairs(buckets: Iterable[tuple[int, int]], maximum: int, unit: float) -> Stairs:
    """Of (bucket, samples) pairs in order; values are multiplied by `unit`, none is above `maximum`."""
    filled = [(index, count) for index, count in buckets if count > 0]
    total = sum(count for _, count in filled)
    found, seen = [], 0
    for index, count in filled:
        seen += count
        found.append((seen / total, min(bucket_upper(index), maximum) * unit))
    return found


def percentile_scale(n: int, reach: float = 1.0) -> Scale:
    """Of `nines`, as far as n samples reach and at least to `reach`."""
    return Scale(0.0, max(reach, math.log10(max(n, 1))), LEFT, RIGHT)


def nines(share: float) -> float:
    """0 for the 0th percentile, 1 for the 90th, 2 for the 99th, 3 for the 99.9th."""
    return -math.log10(1.0 - share) if share < 1.0 else math.inf


def grid(x: Scale, y: Scale) -> list[Markup]:
    """Lines with their values and percentiles."""
    ticks = [
        (x.place(nines(share)), label) for share, label in PERCENTILES if x.holds(nines(share))
    ]
    axis = text("percentile", RIGHT, FRAME.height - 4, "end", "tick")
    return [*FRAME.rows(y), *FRAME.columns(ticks), axis]


def staircase(line: Stairs, x: Scale, y: Scale) -> str:
    """The path of a distribution."""
    path = f"M{LEFT:g} {y.place(line[0][1]):.1f}"
    for upto, value in line:
        path += f"V{y.place(value):.1f}H{x.place(min(nines(upto), x.high)):.1f}"
    return path
