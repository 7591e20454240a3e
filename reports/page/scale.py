"""Axes: from values to places in a drawing, and the ticks that a person would choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import compact

LOG_FROM = 15.0
"""A range this wide (largest over smallest) is drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Values `low`..`high` at places `start`..`end`; those outside are placed at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        share = (self._axis(value) - self._axis(self.low)) / (
            self._axis(self.high) - self._axis(self.low)
        )
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, wanted: int = 4) -> list[float]:
        """About `wanted` round values inside the range."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = _round_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]

    def _axis(self, value: float) -> float:
        return math.log(value) if self.log else value


def value_scale(values: Iterable[float], start: float, end: float, pad: float = 0.08) -> Scale:
    """A scale that holds all values, with some air; logarithmic when they span `LOG_FROM`."""
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return Scale(0.0, 1.0, start, end)
    low, high = min(found), max(found)
    if low > 0 and high / low > LOG_FROM:
        factor = (high / low) ** pad
        return Scale(low / factor, high * factor, start, end, log=True)
    if low == high:
        pad, span = 0.5, abs(high) or 1.0
    else:
        span = high - low
    bottom = low - pad * span
    return Scale(0.0 if low >= 0 > bottom else bottom, high + pad * span, start, end)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    if rough <= 0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999))


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(found) <= wanted + 2:
            return found
    return found[:: math.ceil(len(found) / (wanted + 2))]


# The frame of a chart: grid, axes, clip, and the place where marks go.

WIDTH = 400.0
LEFT, RIGHT, TOP = 46.0, 388.0, 12.0
"""The plot's sides in a drawing that is WIDTH wide: nearly a phone, so that letters stay readable
there; a wide page shows several beside each other."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A plot from TOP to `bottom`, in a drawing `height` high."""

    bottom: float
    height: float

    def rows(self, y: Scale) -> list[Markup]:
        """Grid lines with their values at the left."""
        parts = []
        for value in y.ticks():
            at = y.place(value)
            parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="grid"))
            parts.append(text(compact(value), LEFT - 6, at + 4, "end", "tick"))
        return parts

    def columns(self, ticks: Iterable[tuple[float, str]]) -> list[Markup]:
        """Grid lines at places, with their names below."""
        parts = []
        for at, label in ticks:
            parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=self.bottom, class_="grid"))
            parts.append(text(label, at, self.bottom + 15, "middle", "tick"))
        return parts

    def forbidden(self, left: float, right: float, top: float, bottom: float) -> list[Markup]:
        """A hatched rectangle, clipped to the plot."""
        top, bottom = max(top, TOP), min(bottom, self.bottom)
        if bottom <= top or right <= left:
            return []
        box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return [
            tag("rect", class_="outside", **box),
            tag("rect", fill="url(#hatch)", **box),
        ]

    def drawing(self, label: str, parts: Sequence[Markup]) -> Markup:
        border = tag(
            "rect", x=LEFT, y=TOP, width=RIGHT - LEFT, height=self.bottom - TOP, class_="border"
        )
        view = f"0 0 {WIDTH:g} {self.height:g}"
        return tag(
            "svg", tag("title", label), *parts, border, viewBox=view, class_="chart", role="img"
        )


def text(words: str, x: float, y: float, anchor: str, kind: str) -> Markup:
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=kind)


def figure(title: str, unit: str, drawing: Markup, *below: Markup | None) -> Markup:
    """A chart with its title above, and a legend or caption below."""
    head = tag(
        "figcaption", tag("b", name(title)), tag("span", unit, class_="unit") if unit else None
    )
    return tag("figure", head, drawing, *below)
