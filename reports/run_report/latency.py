"""The hook latency spectrum: time over percentile, each further nine in the same room."""

from __future__ import annotations

from collections.abc import Mapping

from asys_bench.contracts.stats import HistogramSnapshot
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.percentiles import (
    FRAME,
    Stairs,
    grid,
    percentile_scale,
    staircase,
    stairs,
)
from asys_bench.reports.page.quantity import number
from asys_bench.reports.page.scale import TOP, figure, value_scale
from asys_bench.reports.run_report.curves import SERIES


def latency_spectrum(latencies: Mapping[str, HistogramSnapshot]) -> Markup | None:
    """The figure over the whole run, in microseconds; None when nothing was recorded."""
    lines = {hook: steps(h) for hook, h in latencies.items() if h.count}
    if not lines:
        return None
    x = percentile_scale(max(h.count for h in latencies.values()))
    y = value_scale([value for line in lines.values() for _, value in line], FRAME.bottom, TOP)
    parts = grid(x, y)
    for index, (hook, line) in enumerate(lines.items()):
        path = staircase(line, x, y)
        parts.append(tag("path", tag("title", hook), d=path, class_=f"line s{index % SERIES}"))
    label = f"Hook latency by percentile of {', '.join(lines)}"
    legend = [_item(hook, latencies[hook], index) for index, hook in enumerate(lines)]
    below = tag("ul", *legend, class_="legend")
    return figure("Hook latency spectrum", "us", FRAME.drawing(label, parts), below)


def steps(histogram: HistogramSnapshot) -> Stairs:
    """(share of captures up to here, microseconds), ascending; a call takes at least a nanosecond."""
    line = stairs(enumerate(histogram.buckets), histogram.maximum, 1e-3)
    return [(upto, max(us, 1e-3)) for upto, us in line]


def _item(hook: str, histogram: HistogramSnapshot, index: int) -> Markup:
    swatch = tag("line", x1=0, x2=26, y1=5, y2=5, class_=f"line s{index % SERIES}")
    told = ", ".join(f"p{q:g} {number(histogram.quantile(q / 100) / 1e3)}" for q in (50, 99))
    return tag(
        "li",
        tag("svg", swatch, viewBox="0 0 26 10", class_="swatch", aria_hidden="true"),
        tag("span", name(hook)),
        tag("span", f"{told} us", class_="unit"),
    )
