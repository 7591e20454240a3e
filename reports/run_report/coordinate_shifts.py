"""What sets the states apart that a feature fires on most: coordinate by coordinate, and in words.

Two-sample Kolmogorov-Smirnov between the top states and all states. Its p value is the asymptotic one
with Stephens's correction (Press et al. 2007, Numerical Recipes, 14.3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asys_bench.reports.page.quantity import number
from asys_bench.reports.run_report.coordinates import Coordinate

TOP = 50
"""States that a feature fires on most."""
LEAST_TOP = 10
SIGNIFICANT = 1e-3
"""p below which a coordinate counts."""
LARGE_DISTANCE = 0.35
"""Largest distance of the two distributions (0..1) from which a coordinate is put in words."""
MOST_CLAUSES = 2
BINS = 24

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CoordinateShift:
    """One coordinate of a feature's top states against all states.

    distance: of the two cumulative distributions, 0..1; p: that it is chance.
    middle: median of the top states; at: the share of all states below it.
    low, high: range of the drawing; all_B, top_B: shares of states per bin, each adding up to 1 at most.
    """

    column: int
    distance: float
    p: float
    middle: float
    at: float
    low: float
    high: float
    all_B: npt.NDArray[np.float64]
    top_B: npt.NDArray[np.float64]


def coordinate_shifts(acts_N: Rows, seen_NW: Rows) -> tuple[CoordinateShift, ...]:
    """One per coordinate; none for a feature that fires on too few states.

    acts_N: activations; seen_NW: the observation of each row, finite.
    """
    top_K = np.argsort(-acts_N, kind="stable")[:TOP]
    top_K = top_K[acts_N[top_K] > 0]
    if len(top_K) < LEAST_TOP:
        return ()
    return tuple(
        _coordinate_shift(column, seen_NW[:, column], seen_NW[top_K, column])
        for column in range(seen_NW.shape[1])
    )


def _coordinate_shift(column: int, all_N: Rows, top_K: Rows) -> CoordinateShift:
    distance, p = kolmogorov_smirnov(top_K, all_N)
    low, high = (float(edge) for edge in np.quantile(all_N, [0.005, 0.995]))
    low, high = min(low, float(top_K.min())), max(high, float(top_K.max()))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    middle = float(np.median(top_K))
    return CoordinateShift(
        column, distance, p, middle, float((all_N < middle).mean()), low, high,
        np.histogram(all_N, edges)[0] / len(all_N), np.histogram(top_K, edges)[0] / len(top_K),
    )  # fmt: skip


def kolmogorov_smirnov(a_N: Rows, b_M: Rows) -> tuple[float, float]:
    """(largest distance of the two cumulative distributions, p value)."""
    a, b = np.sort(a_N), np.sort(b_M)
    both = np.concatenate([a, b])
    below_a = np.searchsorted(a, both, side="right") / len(a)
    below_b = np.searchsorted(b, both, side="right") / len(b)
    distance = float(np.abs(below_a - below_b).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    t = (root + 0.12 + 0.11 / root) * distance
    if t < 0.2:
        return distance, 1.0  # the series does not converge there, and is 1
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * k * k * t * t) for k in range(1, 101))
    return distance, min(1.0, max(0.0, sum(terms)))


def describe(found: Sequence[CoordinateShift], coordinates: Sequence[Coordinate]) -> str:
    """ "the pole leans right and swings right"; empty where no coordinate tells the states apart."""
    shifted = [one for one in found if one.p < SIGNIFICANT and one.distance >= LARGE_DISTANCE]
    chosen = sorted(shifted, key=lambda one: -one.distance)[:MOST_CLAUSES]
    clauses = [_clause(one, _named(coordinates, one.column)) for one in chosen]
    if len(clauses) == 2:
        return _joined(*clauses)
    return clauses[0] if clauses else ""


def _clause(one: CoordinateShift, about: Coordinate) -> str:
    if one.at >= 0.7:
        return about.high if one.middle > 0 and about.high else f"{about.name} is high"
    if one.at <= 0.3:
        return about.low if one.middle < 0 and about.low else f"{about.name} is low"
    value = f"{number(one.middle, 2)} {about.unit}".strip()
    return f"{about.name} is near {value}"


def _joined(first: str, second: str) -> str:
    """Two clauses; a subject that both share is said once."""
    a, b = first.split(" "), second.split(" ")
    if a[:2] == b[:2] and a[0] == "the" and len(b) > 2:
        second = " ".join(b[2:])
    return f"{first} and {second}"


def _named(coordinates: Sequence[Coordinate], column: int) -> Coordinate:
    return coordinates[column] if column < len(coordinates) else Coordinate(f"input {column}")
