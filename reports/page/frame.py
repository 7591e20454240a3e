"""The frame of a chart: grid, axes, clip, and the place where marks go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import compact
from asys_bench.reports.page.scale import Scale

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
