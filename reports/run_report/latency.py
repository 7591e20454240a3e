"""The hook latency spectrum: time over percentile, each further nine in the same room."""

from __future__ import annotations

from collections.abc import Mapping

from asys_bench.contracts.stats import HistogramSnapshot, bucket_upper
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import number
from asys_bench.reports.page.scale import (
    LEFT,
    PERCENTILES,
    RIGHT,
    TOP,
    Frame,
    Scale,
    figure,
    nines,
    percentile_scale,
    text,
    value_scale,
)
from asys_bench.reports.run_report.curves import SERIES

FRAME = Frame(bottom=212.0, height=246.0)


def latency_spectrum(latencies: Mapping[str, HistogramSnapshot]) -> Markup | None:
    """The figure over the whole run, in microseconds; None when nothing was recorded."""
    lines = {hook: steps(h) for hook, h in latencies.items() if h.count}
    if not lines:
        return None
    x = percentile_scale(max(h.count for h in latencies.values()), LEFT, RIGHT)
    y = value_scale([value for line in lines.values() for _, value in line], FRAME.bottom, TOP)
    ticks = [(x.place(nines(p)), label) for p, label in PERCENTILES if x.holds(nines(p))]
    parts = [*FRAME.rows(y), *FRAME.columns(ticks)]
    for index, (hook, line) in enumerate(lines.items()):
        parts.append(_staircase(hook, line, index, x, y))
    parts.append(text("percentile", RIGHT, FRAME.height - 4, "end", "tick"))
    label = f"Hook latency by percentile of {', '.join(lines)}"
    legend = [_item(hook, latencies[hook], index) for index, hook in enumerate(lines)]
    below = tag("ul", *legend, class_="legend")
    return figure("Hook latency spectrum", "us", FRAME.drawing(label, parts), below)


def steps(histogram: HistogramSnapshot) -> list[tuple[float, float]]:
    """(share of captures up to here, microseconds), ascending."""
    found, seen = [], 0
    for index, count in enumerate(histogram.buckets):
        seen += count
        if count:
            upper = min(bucket_upper(index), histogram.maximum)
            found.append((seen / histogram.count, max(upper, 1) / 1e3))
    return found


def _staircase(
    hook: str, line: list[tuple[float, float]], index: int, x: Scale, y: Scale
) -> Markup:
    path = f"M{LEFT:g} {y.place(line[0][1]):.1f}"
    for upto, value in line:
        path += f"V{y.place(value):.1f}H{x.place(min(nines(upto), x.high)):.1f}"
    return tag("path", tag("title", hook), d=path, class_=f"line s{index % SERIES}")


def _item(hook: str, histogram: HistogramSnapshot, index: int) -> Markup:
    swatch = tag("line", x1=0, x2=26, y1=5, y2=5, class_=f"line s{index % SERIES}")
    told = ", ".join(f"p{q:g} {number(histogram.quantile(q / 100) / 1e3)}" for q in (50, 99))
    return tag(
        "li",
        tag("svg", swatch, viewBox="0 0 26 10", class_="swatch", aria_hidden="true"),
        tag("span", name(hook)),
        tag("span", f"{told} us", class_="unit"),
    )
