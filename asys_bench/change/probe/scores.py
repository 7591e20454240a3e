"""How well held-out rows are told apart: AUC and R2 with intervals over blocks. Pure functions.

Both figures are smooth functions of sums over rows; a row's influence is what it moves the figure by, and
influences of one block are added before they are squared, so that rows which depend on each other count as
one. For the AUC these are the placements of DeLong, DeLong and Clarke-Pearson (1988), summed by cluster as in
Obuchowski (1997).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from asys_bench.change.probe.blocks import Ids

LEVEL = 0.95
LEAST_BLOCKS = 8
"""With fewer blocks (or fewer than 2 that hold a class) there is a figure and no interval."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """A figure and its interval at `LEVEL`; NaN where there is none. blocks: held-out ones that count."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    blocks: int = 0


NO_SCORE = Score()


def auc(
    score_N: Floats, positive_N: npt.NDArray[np.bool_], weight_N: Floats, block_N: Ids
) -> Score:
    """Chance that a row of the class scores above one of the others, ties half."""
    found = _auc(score_N, positive_N, weight_N)
    if found is None:
        return NO_SCORE
    value, influence_N = found
    return _with_interval(value, influence_N, block_N, _least_of(positive_N, block_N), logit=True)


def mean_auc(
    score_NC: Floats, class_N: npt.NDArray[np.int64], weight_N: Floats, block_N: Ids
) -> Score:
    """The mean AUC of each class against the others, over classes that have rows on both sides."""
    values, influences, least = [], np.zeros(len(class_N)), 1 << 30
    for index in range(score_NC.shape[1]):
        found = _auc(score_NC[:, index], class_N == index, weight_N)
        if found is not None:
            values.append(found[0])
            influences += found[1]
            least = min(least, _least_of(class_N == index, block_N))
    if not values:
        return NO_SCORE
    value = float(np.mean(values))
    return _with_interval(value, influences / len(values), block_N, least, logit=True)


def r_squared(predicted_N: Floats, value_N: Floats, weight_N: Floats, block_N: Ids) -> Score:
    """1 - SSE / SST, around the held-out mean."""
    weight_N = weight_N / max(weight_N.sum(), 1e-300)
    mean = float(weight_N @ value_N)
    error_N, spread_N = (value_N - predicted_N) ** 2, (value_N - mean) ** 2
    total = float(weight_N @ spread_N)
    if not total > 1e-12 * max(1.0, mean * mean):
        return NO_SCORE
    ratio = float(weight_N @ error_N) / total
    influence_N = -weight_N * (error_N - ratio * spread_N) / total
    return _with_interval(1 - ratio, influence_N, block_N, 1 << 30, logit=False)


def _auc(
    score_N: Floats, positive_N: npt.NDArray[np.bool_], weight_N: Floats
) -> tuple[float, Floats] | None:
    """The AUC and each row's influence on it; None: one side is empty."""
    weights = weight_N[positive_N].sum(), weight_N[~positive_N].sum()
    if not min(weights) > 0:
        return None
    levels, level_N = np.unique(score_N, return_inverse=True)
    placed_N = np.zeros(len(score_N))
    for own_N, other_N, sign in ((positive_N, ~positive_N, 1.0), (~positive_N, positive_N, -1.0)):
        mass = (
            np.bincount(level_N[other_N], weight_N[other_N], len(levels)) / weight_N[other_N].sum()
        )
        below = np.cumsum(mass) - mass
        share = below + 0.5 * mass  # of the others that lie below
        placed_N[own_N] = (share if sign > 0 else 1.0 - share)[level_N[own_N]]
    value = min(1.0, float((weight_N * placed_N)[positive_N].sum() / weights[0]))
    own_weight_N = np.where(positive_N, weight_N / weights[0], weight_N / weights[1])
    return value, own_weight_N * (placed_N - value)


def _least_of(positive_N: npt.NDArray[np.bool_], block_N: Ids) -> int:
    """Blocks that hold the class, or that hold the others: whichever are fewer."""
    return min(len(np.unique(block_N[positive_N])), len(np.unique(block_N[~positive_N])))


def _with_interval(
    value: float, influence_N: Floats, block_N: Ids, least: int, *, logit: bool
) -> Score:
    ids, inverse = np.unique(block_N, return_inverse=True)
    blocks = len(ids)
    if blocks < LEAST_BLOCKS or least < 2:
        return Score(value, blocks=blocks)
    by_block = np.bincount(inverse.reshape(-1), influence_N, blocks)
    error = math.sqrt(blocks / (blocks - 1) * float(by_block @ by_block))
    reach = _quantile(min(blocks, least) - 1) * error
    if not logit:
        return Score(value, value - reach, value + reach, blocks)
    if not 0.0 < value < 1.0:  # the rule of three
        off = min(1.0, 3.0 / least)
        return Score(value, max(0.0, value - off), min(1.0, value + off), blocks)
    centre, spread = math.log(value / (1 - value)), reach / (value * (1 - value))
    return Score(value, _expit(centre - spread), _expit(centre + spread), blocks)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@cache
def _quantile(freedom: int) -> float:
    """Of Student's distribution; `LEVEL` lies between it and its negative."""
    from scipy import stats  # here: a host that starts up needs none of it

    return float(stats.t.ppf(0.5 + LEVEL / 2, max(1, min(freedom, 1000))))
