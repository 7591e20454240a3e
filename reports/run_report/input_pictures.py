"""An input as a small picture: the scene where we know it, bars where we know only the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.page.quantity import number, share
from asys_bench.reports.page.scale import text
from asys_bench.reports.run_report.coordinate_shifts import SIGNIFICANT, CoordinateShift
from asys_bench.reports.run_report.coordinates import Coordinate
from asys_bench.reports.run_report.fields import Field
from asys_bench.reports.run_report.inputs import Tokens

WIDTH, HEIGHT = 120.0, 64.0
MOST_BARS = 64
"""Wider vectors are drawn as a strip of averages."""
STRIP_WIDTH, STRIP_HEIGHT, MOST_STRIPS = 120.0, 26.0, 8
Vector = npt.NDArray[np.float32]


def observation(
    values: Vector,
    environment_id: str,
    bounds: tuple[float, float],
    coordinates: Sequence[Coordinate] = (),
) -> Markup:
    """An observation drawn in WIDTH x HEIGHT; its numbers are in the picture's title."""
    width, scene = _SCENES.get(environment_id.partition("-")[0], (0, None))
    finite = bool(np.isfinite(values).all())
    if scene is not None and finite and len(values) == width:
        parts = scene([float(value) for value in values])
    else:
        parts = bars(values, bounds)
    return _picture(parts, _told(values, coordinates))


def row(values: Vector, bounds: tuple[float, float]) -> Markup:
    """An activation row as bars."""
    return _picture(bars(values, bounds), f"{len(values)} activations")


def bars(values: Vector, bounds: tuple[float, float]) -> list[Markup]:
    """A bar per value around a zero line; NaN leaves a gap."""
    if len(values) > MOST_BARS:
        values = np.array([np.nanmean(p) for p in np.array_split(values, MOST_BARS)], np.float32)
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    span = (high - low) or 1.0
    inside = HEIGHT - 8
    zero = 4 + inside * high / span
    step = (WIDTH - 8) / len(values)
    parts = [tag("path", d=f"M4 {zero:.1f}H{WIDTH - 4:g}", class_="ground-line")]
    for index, value in enumerate(values.tolist()):
        if not math.isfinite(value):
            continue
        size = min(inside, abs(value) / span * inside)
        top = zero - size if value >= 0 else zero
        parts.append(
            tag(
                "rect",
                x=4 + index * step + step * 0.1,
                y=top,
                width=max(0.4, step * 0.8),
                height=max(0.3, size),
                class_="plus" if value >= 0 else "minus",
            )
        )
    return parts


def field_map(field: Field, coordinates: Sequence[Coordinate] = ()) -> Markup:
    """Where in two coordinates of the observation a feature fires: the warmer, the more."""

    def called(column: int) -> str:
        return coordinates[column].name if column < len(coordinates) else f"input {column}"

    cells = field.mean_YX.shape[0]
    most = float(np.nanmax(field.mean_YX))
    left, top, side = 14.0, 4.0, 132.0
    step = side / cells
    parts: list[Markup] = []
    for y in range(cells):
        levels = [_level(float(value), most) for value in field.mean_YX[cells - 1 - y]]
        start = 0
        for x in range(1, cells + 1):  # cells of one level side by side are one rectangle
            if x == cells or levels[x] != levels[start]:
                if levels[start] is not None:
                    box = {"x": left + start * step, "y": top + y * step}
                    parts.append(
                        tag("rect", width=(x - start) * step + 0.3, height=step + 0.3,
                            class_=f"cell c{levels[start]}", **box)
                    )  # fmt: skip
                start = x
    parts.append(tag("rect", x=left, y=top, width=side, height=side, class_="border"))
    bottom = top + side
    (x0, x1), (y0, y1) = field.x_range, field.y_range
    parts += [
        text(number(x0, 2), left, bottom + 11, "start", "tick"),
        text(called(field.x), left + side / 2, bottom + 11, "middle", "strong"),
        text(number(x1, 2), left + side, bottom + 11, "end", "tick"),
        tag("text", called(field.y), transform=f"translate(9 {top + side / 2:g}) rotate(-90)",
            text_anchor="middle", class_="strong"),
        tag("text", number(y0, 2), transform=f"translate(9 {bottom:g}) rotate(-90)",
            text_anchor="start", class_="tick"),
        tag("text", number(y1, 2), transform=f"translate(9 {top:g}) rotate(-90)",
            text_anchor="end", class_="tick"),
    ]  # fmt: skip
    told = (
        f"mean activation over {called(field.x)} and {called(field.y)}; they explain "
        f"{share(field.explained)} of it"
    )
    return tag("svg", tag("title", told), *parts, viewBox="0 0 148 150", class_="field", role="img")


def _level(value: float, most: float) -> int | None:
    """0..7 of the warmest cell; None where the agent hardly was."""
    if not math.isfinite(value):
        return None
    return min(7, int(8 * value / most)) if most > 0 else 0


def sentence(
    tokens: Tokens, vocabulary: Mapping[int, str], activation: float, most: float
) -> Markup:
    """A token in its context; each token is marked by how strongly the feature fires on it."""
    pieces: list[Markup | str] = []
    for index, token in enumerate(tokens.ids):
        shown = vocabulary.get(token, f" {token}").replace("\n", "↵")
        level = tokens.levels[index] if tokens.levels else math.nan
        if index == tokens.at:
            pieces.append(_mark(shown, activation, most, " hit"))
        elif level > 0:
            pieces.append(_mark(shown, level, most))
        else:
            pieces.append(shown)
    return tag("p", *pieces, class_="sentence")


def _mark(shown: str, level: float, most: float, more: str = "") -> Markup:
    strength = min(4, 1 + int(4 * level / most)) if most > 0 else 1
    told = f"activation {number(level)}"
    return tag("mark", shown, class_=f"fires h{strength}{more}", title=told)


def _picture(parts: Sequence[Markup], told: str) -> Markup:
    view = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return tag("svg", tag("title", told), *parts, viewBox=view, class_="look", role="img")


def _told(values: Vector, coordinates: Sequence[Coordinate]) -> str:
    if len(values) > 16:
        return f"{len(values)} values"
    named = len(coordinates) == len(values)
    told = []
    for index, value in enumerate(values.tolist()):
        label = coordinates[index].name if named else f"[{index}]"
        unit = coordinates[index].unit if named else ""
        if math.isfinite(value):
            told.append(f"{label} {number(value)} {unit}".rstrip())
    return ", ".join(told)


def strips(
    coordinate_shifts: Sequence[CoordinateShift], coordinates: Sequence[Coordinate]
) -> Markup:
    """A small histogram per coordinate: all states in grey, those it fires on most in colour."""
    items = []
    for one in coordinate_shifts[:MOST_STRIPS]:
        about = (
            coordinates[one.column]
            if one.column < len(coordinates)
            else Coordinate(f"input {one.column}")
        )
        told = (
            f"{about.label}: the top states are around {number(one.middle, 2)}, above "
            f"{share(one.at)} of all states"
        )
        parts: list[Markup] = [tag("title", told)]
        if one.low < 0 < one.high:
            zero = STRIP_WIDTH * -one.low / (one.high - one.low)
            parts.append(tag("path", d=f"M{zero:.1f} 0V{STRIP_HEIGHT:g}", class_="zero"))
        for shares, kind in ((one.all_B, "every"), (one.top_B, "best")):
            parts.append(tag("path", d=_outline(shares), class_=kind))
        drawing = tag(
            "svg", *parts, viewBox=f"0 0 {STRIP_WIDTH:g} {STRIP_HEIGHT + 1:g}", class_="strip",
            role="img", preserveAspectRatio="none",
        )  # fmt: skip
        ends = tag(
            "span", tag("i", number(one.low, 2)), tag("i", number(one.high, 2)), class_="strip-axis"
        )  # fmt: skip
        label = tag("b", about.label)
        items.append(
            tag("li", label, drawing, ends, class_="sure" if one.p < SIGNIFICANT else None)
        )
    return tag("ul", *items, class_="strips")


def _outline(shares_B: npt.NDArray[np.float64]) -> str:
    """Bars as one closed path, the tallest as high as the strip."""
    most = float(shares_B.max()) or 1.0
    step = STRIP_WIDTH / len(shares_B)
    path = f"M0 {STRIP_HEIGHT:g}"
    for index, value in enumerate(shares_B.tolist()):
        y = STRIP_HEIGHT - value / most * (STRIP_HEIGHT - 1)
        path += f"V{y:.1f}H{(index + 1) * step:.1f}"
    return f"{path}V{STRIP_HEIGHT:g}Z"


def _cart_pole(values: Sequence[float]) -> list[Markup]:
    """gymnasium's CartPole: track of +-2.4, pole upright at 0, positive angles to the right.

    The arrow above the cart is its speed, the arc of the pole's tip its angular speed.
    """
    position, speed, angle, turning = values
    ground = HEIGHT - 12
    middle = WIDTH / 2 + max(-1.0, min(1.0, position / 2.4)) * (WIDTH / 2 - 34)
    cart_top = ground - 9
    length = 36.0
    # Angles end the episode at 12 degrees: they are drawn three times as large.
    drawn = max(-1.2, min(1.2, 3 * angle))
    tip_x, tip_y = middle + length * math.sin(drawn), cart_top - length * math.cos(drawn)
    swing = max(-18.0, min(18.0, 8 * turning))
    parts = [
        tag("path", d=f"M8 {ground:g}H{WIDTH - 8:g}", class_="ground-line"),
        tag("path", d=f"M{WIDTH / 2:g} {ground:g}v4", class_="ground-line"),
        tag("rect", x=middle - 11, y=cart_top, width=22, height=9, rx=2, class_="cart"),
        tag("path", d=f"M{middle:.1f} {cart_top:.1f}L{tip_x:.1f} {tip_y:.1f}", class_="pole"),
        tag("circle", cx=middle, cy=cart_top, r=2, class_="axle"),
    ]
    if abs(swing) > 1:
        side_x, side_y = math.cos(drawn) * swing, math.sin(drawn) * swing
        parts.append(_arrow(tip_x, tip_y, tip_x + side_x, tip_y + side_y, "turning"))
    if abs(speed) > 0.05:
        reach = max(-30.0, min(30.0, 12 * speed))
        parts.append(_arrow(middle, ground + 7, middle + reach, ground + 7, "speed"))
    return parts


def _mountain_car(values: Sequence[float]) -> list[Markup]:
    """gymnasium's MountainCar: height sin(3 x) over x in -1.2..0.6, goal at 0.5."""
    position, speed = values

    def place(x: float) -> tuple[float, float]:
        return 6 + (x + 1.2) / 1.8 * (WIDTH - 12), HEIGHT - 10 - (math.sin(3 * x) + 1) * 22

    hill = [place(-1.2 + 1.8 * i / 40) for i in range(41)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in hill)
    at_x, at_y = place(max(-1.2, min(0.6, position)))
    goal_x, goal_y = place(0.5)
    parts = [
        tag("path", d=path, class_="ground-line"),
        tag("path", d=f"M{goal_x:.1f} {goal_y:.1f}v-12", class_="pole"),
        tag("circle", cx=at_x, cy=at_y - 5, r=5, class_="cart"),
    ]
    if abs(speed) > 0.002:
        parts.append(_arrow(at_x, at_y - 15, at_x + 350 * speed, at_y - 15, "speed"))
    return parts


def _pendulum(values: Sequence[float]) -> list[Markup]:
    """gymnasium's Pendulum: (cos, sin, angular speed), upright is (1, 0)."""
    cosine, sine, turning = values
    x, y, length = WIDTH / 2, HEIGHT / 2, 24.0
    tip_x, tip_y = x - length * sine, y - length * cosine
    swing = max(-16.0, min(16.0, 2 * turning))
    return [
        tag("path", d=f"M{x:g} {y:g}L{tip_x:.1f} {tip_y:.1f}", class_="pole"),
        tag("circle", cx=x, cy=y, r=3, class_="axle"),
        _arrow(tip_x, tip_y, tip_x - cosine * swing, tip_y + sine * swing, "turning"),
    ]


def _arrow(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    angle = math.atan2(y1 - y0, x1 - x0)
    head = "".join(
        f"M{x1:.1f} {y1:.1f}L{x1 - 4 * math.cos(angle + turn):.1f} {y1 - 4 * math.sin(angle + turn):.1f}"
        for turn in (0.5, -0.5)
    )
    return tag("path", d=f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{head}", class_=f"arrow {kind}")


_SCENES: Mapping[str, tuple[int, Callable[[Sequence[float]], list[Markup]]]] = {
    "CartPole": (4, _cart_pole),
    "MountainCar": (2, _mountain_car),
    "MountainCarContinuous": (2, _mountain_car),
    "Pendulum": (3, _pendulum),
}
"""Environment -> (numbers of an observation, its drawing)."""
