"""The percentile spectrum: value over percentile, one line per contender, limits drawn.

A target `p99 <= B` says that the curve stays below B up to the 99th percentile, and nothing about
what lies beyond: so the area above B and left of p99 is hatched, and the curve must not enter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asys_bench.harness.results.result import Hdr, TargetResult
from asys_bench.harness.results.result_run import Op, TargetKind
from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.page.percentiles import (
    FRAME,
    PERCENTILES,
    Stairs,
    grid,
    nines,
    percentile_scale,
    staircase,
    stairs,
)
from asys_bench.reports.page.quantity import exact, number, with_unit
from asys_bench.reports.page.scale import LEFT, RIGHT, TOP, Scale, figure, text, value_scale

LABEL_ROOM = 14.0
"""Limits nearer to each other than this share one label."""
SERIES = 6
"""Colours and dash patterns; after that they repeat."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One contender's distribution, with the targets that it is held to."""

    name: str
    hdr: Hdr
    targets: Sequence[TargetResult] = ()
    reference: bool = False


def spectrum(title: str, unit: str, curves: Sequence[Curve]) -> Markup | None:
    """The figure of one metric; None when no contender has a sample."""
    lines = [(curve, steps(curve.hdr)) for curve in curves if curve.hdr.count > 0]
    lines = [(curve, line) for curve, line in lines if line]
    if not lines:
        return None
    limits = [target for curve, _ in lines for target in curve.targets if limited(target)]
    judged = [nines(share) for target in limits if (share := _share(target)) is not None]
    n = max(curve.hdr.count for curve, _ in lines)
    x = percentile_scale(n, max([1.0, *judged]))
    values = [value for _, line in lines for _, value in line]
    values += [target.bound for target in limits if target.bound is not None]
    values += [end for target in limits for end in _ends(target)]
    y = value_scale(values, FRAME.bottom, TOP)
    grounds, labels = _limits(limits, x, y)
    parts = [*grid(x, y), *grounds]
    for index, (curve, line) in enumerate(lines):
        parts.append(_line(curve, line, index, x, y))
    for index, (curve, _) in enumerate(lines):
        for target in curve.targets:
            if limited(target):
                parts += _whisker(target, index, x, y)
    parts += labels
    label = f"{title}: value by percentile of {', '.join(curve.name for curve, _ in lines)}"
    return figure(title, unit, FRAME.drawing(label, parts), _legend([c for c, _ in lines], unit))


def steps(hdr: Hdr) -> Stairs:
    """(share of samples up to here, value in the metric's unit), ascending."""
    return stairs(hdr.buckets, hdr.maximum, hdr.scale)


def quantile(line: Stairs, share: float) -> float:
    return next((value for upto, value in line if upto >= share - 1e-12), line[-1][1])


def resolves(hdr: Hdr, share: float) -> bool:
    """There is a sample beyond this percentile; else it would be the maximum under another name."""
    return hdr.count * (1 - share) >= 1 - 1e-9


def limited(target: TargetResult) -> bool:
    """A limit in the metric's own unit at a percentile: it can be drawn here."""
    return target.kind is TargetKind.QUANTILE and _share(target) is not None


def _share(target: TargetResult) -> float | None:
    """0.99 of `p99`."""
    digits = target.stat.removeprefix("p")
    try:
        share = float(digits) / 100 if target.stat.startswith("p") else None
    except ValueError:
        return None
    return share if share is not None and 0 < share < 1 else None


def _ends(target: TargetResult) -> list[float]:
    ci = target.ci
    ends = (target.observed, ci.low if ci else None, ci.high if ci else None)
    return [end for end in ends if end is not None]


def _limits(
    limits: Sequence[TargetResult], x: Scale, y: Scale
) -> tuple[list[Markup], list[Markup]]:
    """(forbidden areas with their borders, labels): the labels go on top of the curves."""
    parts: list[Markup] = []
    labels: list[Markup] = []
    drawn = set()
    taken: list[float] = []
    for target in limits:
        share, bound = _share(target), target.bound
        if share is None or bound is None or (share, bound, target.op) in drawn:
            continue
        drawn.add((share, bound, target.op))
        at, level = x.place(nines(share)), y.place(bound)
        label = f"{target.stat} {target.op} {with_unit(exact(bound), target.unit)}"
        free = all(abs(level - other) > LABEL_ROOM for other in taken)
        taken += [level] if free else []
        if target.op is Op.AT_MOST:
            parts += FRAME.forbidden(LEFT, at, TOP, level)
            path = f"M{LEFT:g} {level:.1f}H{at:.1f}V{TOP:g}"
            above = level - 5 if level > TOP + 16 else level + 13
            labels += [text(label, LEFT + 6, above, "start", "limit-text")] if free else []
        else:
            parts += FRAME.forbidden(at, RIGHT, level, FRAME.bottom)
            path = f"M{RIGHT:g} {level:.1f}H{at:.1f}V{FRAME.bottom:g}"
            below = level + 13 if level < FRAME.bottom - 18 else level - 5
            labels += [text(label, RIGHT - 6, below, "end", "limit-text")] if free else []
        parts.append(tag("path", d=path, class_="limit"))
    return parts, labels


def _line(curve: Curve, line: Stairs, index: int, x: Scale, y: Scale) -> Markup:
    known = [(s, p) for s, p in PERCENTILES[1:5] if resolves(curve.hdr, s)]
    shown = ", ".join(f"p{p} {number(quantile(line, s))}" for s, p in known)
    title = tag("title", f"{curve.name}: {shown}, max {number(line[-1][1])}")
    return tag("path", title, d=staircase(line, x, y), class_=f"line {series(curve, index)}")


def _whisker(target: TargetResult, index: int, x: Scale, y: Scale) -> list[Markup]:
    """The interval of the judged percentile, moved aside a little so that contenders stay apart."""
    share = _share(target)
    if share is None or target.observed is None:
        return []
    at = x.place(nines(share)) + 5.0 * ((index + 1) // 2) * (-1) ** index
    kind = f"s{index % SERIES}"
    parts = []
    if target.ci is not None:
        low = y.low if target.ci.low is None else target.ci.low
        high = y.high if target.ci.high is None else target.ci.high
        parts.append(
            tag("line", x1=at, x2=at, y1=y.place(low), y2=y.place(high), class_=f"whisker {kind}")
        )
    circle = tag("circle", cx=at, cy=y.place(target.observed), r=3.4, class_=f"spot {kind}")
    return [*parts, circle]


def series(curve: Curve, index: int) -> str:
    return "sref" if curve.reference else f"s{index % SERIES}"


def _legend(curves: Sequence[Curve], unit: str) -> Markup:
    items = []
    for index, curve in enumerate(curves):
        swatch = tag("line", x1=0, x2=26, y1=5, y2=5, class_=f"line {series(curve, index)}")
        line = steps(curve.hdr)
        share, percent = (0.99, 99) if resolves(curve.hdr, 0.99) else (0.5, 50)
        figure_text = f"p{percent} {with_unit(number(quantile(line, share)), unit)}"
        items.append(
            tag(
                "li",
                tag("svg", swatch, viewBox="0 0 26 10", class_="swatch", aria_hidden="true"),
                tag("span", curve.name),
                tag("span", figure_text, class_="unit"),
            )
        )
    return tag("ul", *items, class_="legend")
