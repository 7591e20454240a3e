"""Where in the space of observations a feature fires: its receptive field, as a map of two coordinates.

The pair of coordinates is the one that says most about the activation: the share of the activation's
variance that lies between the cells of the map (the correlation ratio, Fisher 1925).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

CELLS = 14
LEAST_ROWS = 500
"""With fewer joined rows a map would show where the agent was, not where the feature fires."""
LEAST_PER_CELL = 3
LEAST_EXPLAINED = 0.05
MOST_COORDINATES = 6
"""Of wider observations the ones that say most by themselves are tried."""

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """`mean_YX`: mean activation per cell, NaN where the agent hardly was. x, y: coordinates."""

    x: int
    y: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    mean_YX: npt.NDArray[np.float64]
    explained: float
    """Share of the activation's variance that the map explains, 0..1."""


def receptive_field(acts_N: Rows, seen_NW: Rows) -> Field | None:
    """The map of one feature; None when no pair of coordinates says enough.

    acts_N: activations; seen_NW: the observation of each row, finite.
    """
    if len(acts_N) < LEAST_ROWS or seen_NW.shape[1] < 2 or not acts_N.any():
        return None
    bins = [_bins(seen_NW[:, column]) for column in range(seen_NW.shape[1])]
    usable = [column for column, found in enumerate(bins) if found is not None]
    if len(usable) > MOST_COORDINATES:
        worth = {c: _explained(acts_N, _index(bins, (c,)), CELLS) for c in usable}
        usable = sorted(sorted(usable, key=lambda c: -worth[c])[:MOST_COORDINATES])
    best: tuple[float, tuple[int, int]] | None = None
    for pair in combinations(usable, 2):
        explained = _explained(acts_N, _index(bins, pair), CELLS**2)
        if best is None or explained > best[0]:
            best = explained, pair
    if best is None or best[0] < LEAST_EXPLAINED:
        return None
    explained, (x, y) = best
    index_N = _index(bins, (y, x))
    inside = index_N >= 0
    count = np.bincount(index_N[inside], minlength=CELLS**2)
    total = np.bincount(index_N[inside], acts_N[inside], CELLS**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count >= LEAST_PER_CELL, total / count, np.nan)
    return Field(x, y, _range(bins, x), _range(bins, y), mean.reshape(CELLS, CELLS), explained)


_Bins = tuple[npt.NDArray[np.int64], float, float]
"""Cell of each row (-1 outside), and the first and last edge."""


def _bins(values_N: Rows) -> _Bins | None:
    """Equal cells over the middle 98 % of the values; None for a coordinate that does not vary."""
    low, high = (float(edge) for edge in np.quantile(values_N, [0.01, 0.99]))
    if not high > low:
        return None
    cell_N = np.floor((values_N - low) / (high - low) * CELLS).astype(np.int64)
    cell_N[values_N == high] = CELLS - 1
    cell_N[(cell_N < 0) | (cell_N >= CELLS)] = -1
    return cell_N, low, high


def _index(bins: Sequence[_Bins | None], columns: Sequence[int]) -> npt.NDArray[np.int64]:
    """The cell of each row in the grid of these coordinates, the first one slowest; -1 outside."""
    joined: npt.NDArray[np.int64] | None = None
    for column in columns:
        found = bins[column]
        assert found is not None
        cell_N = found[0]
        if joined is None:
            joined = cell_N
        else:
            joined = np.where((joined < 0) | (cell_N < 0), -1, joined * CELLS + cell_N)
    assert joined is not None
    return joined


def _explained(acts_N: Rows, index_N: npt.NDArray[np.int64], cells: int) -> float:
    """Variance between cells over the whole variance, of the rows that are in a cell."""
    inside = index_N >= 0
    acts = acts_N[inside].astype(np.float64)
    if len(acts) < LEAST_ROWS:
        return 0.0
    count = np.bincount(index_N[inside], minlength=cells)
    total = np.bincount(index_N[inside], acts, cells)
    mean = total / np.maximum(count, 1)
    whole = float(acts.var())
    between = float((count * (mean - acts.mean()) ** 2).sum() / len(acts))
    # What cells of a few rows explain by chance: one degree of freedom each.
    chance = whole * (int((count > 0).sum()) - 1) / len(acts)
    return max(0.0, (between - chance) / whole) if whole > 0 else 0.0


def _range(bins: Sequence[_Bins | None], column: int) -> tuple[float, float]:
    found = bins[column]
    assert found is not None
    return found[1], found[2]
