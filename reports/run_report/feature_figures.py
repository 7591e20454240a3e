"""Two pictures of all features of an SAE at once: how often they fire, and where they point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.page.quantity import number, share
from asys_bench.reports.page.scale import LEFT, RIGHT, TOP, WIDTH, Frame, Scale, figure, text
from asys_bench.reports.run_report.features import FeatureStats
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.metrics import DENSE_RATE as DENSE


@dataclass(frozen=True)
class DecoderMap:
    """The decoder's directions on a plane: near each other means that they write nearly the same thing.

    Principal components of the unit-norm decoder rows (Pearson 1901), by SVD of the centred matrix. They
    are linear and need no seed, so that two maps can be compared.

    xy_F2: a point per feature. explained: share of the variance on each axis; in many dimensions it is
    small, so it is shown beside the map.
    """

    xy_F2: npt.NDArray[np.float64]
    explained: tuple[float, float]


@torch.no_grad()
def decoder_map(sae: SparseAutoencoder) -> DecoderMap | None:
    """None when there are fewer than three features or they all point the same way."""
    rows_FD = sae.W_dec.detach().double()
    norm_F1 = torch.linalg.vector_norm(rows_FD, dim=1, keepdim=True)
    rows_FD = rows_FD / norm_F1.clamp_min(1e-12)
    centred_FD = rows_FD - rows_FD.mean(0)
    if len(rows_FD) < 3 or rows_FD.shape[1] < 2 or not bool(torch.isfinite(centred_FD).all()):
        return None
    # The covariance is D x D: small where F is large.
    values_D, vectors_DD = torch.linalg.eigh(centred_FD.T @ centred_FD)
    total = float(values_D.clamp_min(0).sum())
    if total <= 0:
        return None
    axes_D2 = vectors_DD[:, -2:].flip(1)
    # The sign of an eigenvector is arbitrary: its largest entry is made positive.
    biggest = axes_D2.abs().argmax(0)
    axes_D2 = axes_D2 * torch.sign(axes_D2[biggest, torch.arange(2)])
    share = (values_D[-2:].flip(0).clamp_min(0) / total).tolist()
    return DecoderMap((centred_FD @ axes_D2).numpy(), (float(share[0]), float(share[1])))


BINS_PER_DECADE = 4
MOST_POINTS = 3000
HEAT = 5
"""Shades of density on the map."""
DENSITY_FRAME = Frame(bottom=284.0, height=316.0)
MAP = 360.0


def density_histogram(stats: FeatureStats) -> Markup:
    """How many features fire in which share of the rows; those that never did stand apart."""
    density_F = stats.density_F
    firing = density_F[density_F > 0]
    silent = int((density_F == 0).sum())
    low = math.floor(math.log10(1 / max(stats.rows, 10)))
    edges = np.arange(low * BINS_PER_DECADE, 1) / BINS_PER_DECADE
    counts, _ = (
        np.histogram(np.log10(firing), bins=edges)
        if len(firing)
        else (np.zeros(len(edges) - 1), None)
    )
    left = LEFT + 34
    x = Scale(float(low), 0.0, left, RIGHT)
    # By the features that fire: silent ones are often so many that they would flatten the rest.
    y = Scale(0.0, 1.15 * max(1.0, float(counts.max())), DENSITY_FRAME.bottom, TOP)
    apart = 1 if low >= -4 else 2
    decades = range(low % apart + low, 1, apart)
    ticks = [(x.place(d), _percent(10.0**d)) for d in decades if low < d < 0]
    parts = [*DENSITY_FRAME.rows(y), *DENSITY_FRAME.columns(ticks)]
    parts.append(_bar(LEFT + 6, 22, silent, y, "silent", f"{silent} features never fired"))
    top = min(max(y.place(float(silent)), TOP), DENSITY_FRAME.bottom - 16)
    parts.append(text(f"{silent}", LEFT + 17, top + 12, "middle", "strong"))
    parts.append(text("never", LEFT + 17, DENSITY_FRAME.bottom + 15, "middle", "tick"))
    for index, count in enumerate(counts.tolist()):
        if count:
            at, end = x.place(float(edges[index])), x.place(float(edges[index + 1]))
            lower, upper = 10 ** float(edges[index]), 10 ** float(edges[index + 1])
            kind = "dense" if lower >= DENSE * 0.999 else "firing"
            words = f"{count:.0f} features in {_percent(lower)} to {_percent(upper)} of the rows"
            parts.append(_bar(at + 0.5, end - at - 1, count, y, kind, words))
    parts.append(
        text("share of rows in which it is active", RIGHT, DENSITY_FRAME.height - 4, "end", "tick")
    )
    label = f"Feature densities: {len(firing)} features fired, {silent} never"
    dense = int((density_F > DENSE).sum())
    below = tag(
        "p",
        f"{len(firing):,} of {len(density_F):,} features fired in {stats.rows:,} of the newest "
        f"archived rows; {dense:,} of them in more than {share(DENSE)}.",
    )
    return figure("Feature densities", "features", DENSITY_FRAME.drawing(label, parts), below)


def decoder_picture(
    plane: DecoderMap, stats: FeatureStats | None, labelled: Sequence[int]
) -> Markup:
    """The decoder's directions as points; larger and warmer ones fire more often."""
    xy_F2 = plane.xy_F2
    reach = float(np.abs(xy_F2).max()) * 1.08 or 1.0
    side = MAP - 20
    left = (WIDTH - side) / 2
    x, y = Scale(-reach, reach, left, left + side), Scale(-reach, reach, 10 + side, 10.0)
    order = list(range(len(xy_F2)))
    if len(order) > MOST_POINTS:
        step = len(order) / MOST_POINTS
        order = sorted({*(int(i * step) for i in range(MOST_POINTS)), *labelled})
    if stats is not None:  # the frequent ones on top
        order.sort(key=lambda feature: float(stats.density_F[feature]))
    parts = [
        tag(
            "path",
            d=f"M{left:g} {10 + side / 2:g}h{side:g}M{left + side / 2:g} 10v{side:g}",
            class_="grid",
        ),
    ]
    parts += [_point(feature, xy_F2[feature], stats, x, y) for feature in order]
    for feature in labelled:
        at_x, at_y = x.place(float(xy_F2[feature, 0])), y.place(float(xy_F2[feature, 1]))
        parts.append(text(f"{feature}", at_x, at_y - 6, "middle", "strong"))
    border = tag("rect", x=left, y=10, width=side, height=side, class_="border")
    words = f"Decoder map: {len(xy_F2)} feature directions on their two principal axes"
    view = f"0 0 {WIDTH:g} {MAP:g}"
    drawing = tag(
        "svg", tag("title", words), *parts, border, viewBox=view, class_="chart", role="img"
    )
    shares = " and ".join(share(one) for one in plane.explained)
    below = tag(
        "p",
        f"Principal axes of the unit decoder rows; they hold {shares} of the variance. Numbers are the "
        "most active features below.",
    )
    return figure("Decoder map", "", drawing, _heat_legend() if stats is not None else None, below)


def heat(density: float) -> int:
    """0 (never) to HEAT (dense) of a share of rows."""
    if density <= 0:
        return 0
    return max(1, min(HEAT, HEAT + math.floor(math.log10(density) + 1 + 1e-9)))


def _point(feature: int, at: np.ndarray, stats: FeatureStats | None, x: Scale, y: Scale) -> Markup:
    density = float(stats.density_F[feature]) if stats is not None else 0.001
    level = heat(density) if stats is not None else 2
    words = f"feature {feature}" + (f": active in {_percent(density)} of rows" if stats else "")
    return tag(
        "circle",
        tag("title", words),
        cx=x.place(float(at[0])),
        cy=y.place(float(at[1])),
        r=1.6 + 0.8 * level,
        class_=f"point p{level}",
    )


def _heat_legend() -> Markup:
    names = ("never", "< 0.01 %", "to 0.1 %", "to 1 %", "to 10 %", "of the rows: above 10 %")
    items = []
    for level in range(HEAT + 1):
        circle = tag("circle", cx=8, cy=8, r=1.6 + 0.8 * level, class_=f"point p{level}")
        swatch = tag("svg", circle, viewBox="0 0 16 16", class_="swatch square", aria_hidden="true")
        items.append(tag("li", swatch, tag("span", names[level])))
    return tag("ul", *items, class_="legend")


def _bar(x: float, width: float, count: float, y: Scale, kind: str, words: str) -> Markup:
    top = y.place(float(count))
    box = {"x": x, "y": top, "width": width, "height": DENSITY_FRAME.bottom - top}
    return tag("rect", tag("title", words), class_=f"column {kind}", **box)


def _percent(value: float) -> str:
    percent = value * 100
    return f"{number(percent, 1) if percent < 1 else f'{percent:.0f}'} %"
