"""A chart over the run's time: lines, the moments at which something happened, and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asys_bench.monitors.readable import duration_text
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import number, with_unit
from asys_bench.reports.page.scale import LEFT, RIGHT, TOP, Frame, Scale, figure, text, value_scale
from asys_bench.reports.run_report.series import Points, thin

FRAME = Frame(bottom=168.0, height=192.0)
SERIES = 6
"""Colours and dash patterns; after that they repeat."""
GAP_FACTOR = 8.0
"""A line is broken where readings are this many times further apart than usual: nobody looked."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    points: Points


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened; drawn as a vertical mark."""

    time_s: float
    what: str
    bad: bool = True


def chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    end_s: float,
    *,
    moments: Sequence[Moment] = (),
    level: tuple[float, str] | None = None,
    share: bool = False,
) -> Markup | None:
    """The figure; None when no line has a point.

    level: a horizontal line with its name, for example the configured L0.
    share: values are shares, the axis is 0..1.
    """
    drawn = [Line(line.name, thin(line.points)) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return None
    x = Scale(0.0, max(end_s, 1e-3), LEFT, RIGHT)
    values = [value for line in drawn for _, value in line.points]
    if level is not None:
        values.append(level[0])
    y = Scale(0.0, 1.0, FRAME.bottom, TOP) if share else _value_axis(values)
    ticks = [(x.place(t), duration_text(t)) for t in time_ticks(end_s)]
    parts = [*FRAME.rows(y), *FRAME.columns(ticks)]
    for moment in moments:
        at = x.place(moment.time_s)
        kind = "moment bad" if moment.bad else "moment"
        words = tag("title", f"{duration_text(moment.time_s)} {moment.what}")
        parts.append(tag("path", words, d=f"M{at:.1f} {TOP:g}V{FRAME.bottom:g}", class_=kind))
    if level is not None:
        at = y.place(level[0])
        parts.append(tag("path", d=f"M{LEFT:g} {at:.1f}H{RIGHT:g}", class_="reference"))
        above = at - 5 if at > TOP + 14 else at + 13
        parts.append(text(level[1], LEFT + 6, above, "start", "tick"))
    for index, line in enumerate(drawn):
        parts.append(_line(line, index, unit, x, y))
    label = f"{title} over time: {', '.join(line.name for line in drawn)}"
    return figure(title, unit, FRAME.drawing(label, parts), _legend(drawn, unit))


def time_ticks(end_s: float, wanted: int = 4) -> list[float]:
    """Round moments of a clock: seconds, minutes, hours, days."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if end_s / s <= wanted + 1), None)
    if step is None:
        step = 86400 * math.ceil(end_s / 86400 / wanted)
    return [float(step * index) for index in range(int(end_s // step) + 1)]


def _value_axis(values: Sequence[float]) -> Scale:
    """From zero unless the values span decades; a spike to zero does not make it linear."""
    positive = [value for value in values if value > 0]
    scale = value_scale(positive or values, FRAME.bottom, TOP)
    if scale.log and min(values) >= 0:
        low = min(positive)
        if low < max(positive) * 1e-6:
            return value_scale([max(v, max(positive) * 1e-6) for v in positive], FRAME.bottom, TOP)
        return scale
    high = max(values)
    low = min(0.0, *values)
    span = (high - low) or abs(high) or 1.0
    return Scale(low, high + 0.08 * span, FRAME.bottom, TOP)


def _line(line: Line, index: int, unit: str, x: Scale, y: Scale) -> Markup:
    steps = sorted(b[0] - a[0] for a, b in zip(line.points, line.points[1:], strict=False))
    usual = steps[len(steps) // 2] if steps else 0.0
    path, before = "", -math.inf
    for t, value in line.points:
        move = "M" if not path or t - before > GAP_FACTOR * usual > 0 else "L"
        path += f"{move}{x.place(t):.1f} {y.place(value):.1f}"
        before = t
    last = line.points[-1]
    title = tag("title", f"{line.name}: {with_unit(number(last[1]), unit)} at the end")
    kind = f"s{index % SERIES}"
    if len(line.points) == 1:
        return tag(
            "circle", title, cx=x.place(last[0]), cy=y.place(last[1]), r=3, class_=f"spot {kind}"
        )
    return tag("path", title, d=path, class_=f"line {kind}")


def _legend(lines: Sequence[Line], unit: str) -> Markup:
    items = []
    for index, line in enumerate(lines):
        swatch = tag("line", x1=0, x2=26, y1=5, y2=5, class_=f"line s{index % SERIES}")
        last = next((v for _, v in reversed(line.points) if math.isfinite(v)), math.nan)
        items.append(
            tag(
                "li",
                tag("svg", swatch, viewBox="0 0 26 10", class_="swatch", aria_hidden="true"),
                tag("span", name(line.name)),
                tag("span", with_unit(number(last), unit), class_="unit"),
            )
        )
    return tag("ul", *items, class_="legend")
