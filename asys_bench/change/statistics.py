"""Change points of firing rates, with exact p-values. Pure functions of counts: no I/O, no randomness.

Rows in time order are cut into U *units* of equally many rows, each of which spans at least one whole
block: a document, an episode, 64 steps. What is dependent is then inside of a unit, and if nothing
changed, every order of a life's units is equally likely. That is the null: permuting blocks of rows
across the run.

Of a life and a unit one thing counts: whether it fired in it (`presence`). Under the null the number
X_b of present units among the first b is hypergeometric, so that permutations need not be drawn:

    LLR_b = log-likelihood ratio of two rates, before and after b units, against one
    statistic = max over candidate b of LLR_b, where the rate rises
    p <= sum over b of P(X_b <= x_b),  x_b: the largest x with LLR_b(x) >= statistic and a rising rate

The sum is Boole's bound over the candidates: p is never too small. It is larger than the p-value that
permutations would give by a factor of about 10 (neighbouring candidates are nearly one), which costs a
birth 3 to 4 more units with the feature. A drawn null of R permutations cannot be below 1 / (R + 1),
and 1 % of FDR over 16,384 lives needs 6e-7.

Lives are declared at `FDR` by Benjamini and Hochberg 1995, "Controlling the False Discovery Rate",
procedure (1), over *all* lives: those that cannot be births (see `BIRTH_RATIO`) stay among them with
p = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

FDR = 0.01
"""Expected share of declared changes that are none."""
BIRTH_RATIO = 0.25
"""A birth is a rate that was at most so much of what it became: a feature that fires twice as often as
before was there before. An SAE fires by chance on rows without the feature, so that 0.1 asks too much:
of rates of 0.3 % three births in ten were missed."""
MOST_CANDIDATES = 256
"""Places at which a change is looked for: 0.4 % of the run apart."""
PRESENCE_SHARE = 0.5
"""A life is present in a unit with at least this share of its usual count there (and one row at least):
its mean over the units in which it fired. Chance firing at a tenth of the rate is then no presence, in
whatever number of rows."""
LIKELY_DROP = 1.92
"""Half the 95 % quantile of chi-square with one degree of freedom: places whose log-likelihood is at
most so much lower are in the interval (Siegmund 1988, "Confidence sets in change-point problems")."""
LEAST_AFTER = 5
"""Rows that fired after a place, where there are so many: two neighbours at the end are no new rate."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def presence(counts_UF: npt.NDArray[np.integer]) -> BoolArray:
    """Whether each life is present in each unit. The threshold of a life does not depend on the order of
    its units, so that a permutation leaves it as it is."""
    counts_UF = np.asarray(counts_UF)
    fired_F = np.maximum(1, np.count_nonzero(counts_UF, axis=0))
    usual_F = counts_UF.sum(0) / fired_F
    least_F = np.maximum(1, np.ceil(PRESENCE_SHARE * usual_F)).astype(np.int64)
    return np.asarray(counts_UF >= least_F)


def candidates(units: int) -> IntArray:
    """Numbers of units before a change: at most `MOST_CANDIDATES`, evenly spaced, none at an end."""
    if units < 2:
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(1, units - 1, min(units - 1, MOST_CANDIDATES)).round().astype(int))


def log_likelihood_ratio(
    hits: npt.ArrayLike, trials: npt.ArrayLike, all_hits: npt.ArrayLike, all_trials: npt.ArrayLike
) -> FloatArray:
    """ln of the likelihood with two rates (`hits` in the first `trials`, the others in the rest) over
    that with one, of binomial counts. Broadcasts."""
    k, n = np.asarray(hits, np.float64), np.asarray(trials, np.float64)
    K, N = np.asarray(all_hits, np.float64), np.asarray(all_trials, np.float64)
    return np.asarray(_entropy(k, n) + _entropy(K - k, N - n) - _entropy(K, N))


def _entropy(k: FloatArray, n: FloatArray) -> FloatArray:
    """Largest log-likelihood of k hits in n trials."""
    return np.asarray(_x_ln_x(k) + _x_ln_x(n - k) - _x_ln_x(n))


def _x_ln_x(x: FloatArray) -> FloatArray:
    return np.asarray(x * np.log(np.maximum(x, 1e-300)))


def lower_tail(
    x: npt.ArrayLike, total: npt.ArrayLike, drawn: npt.ArrayLike, marked: npt.ArrayLike
) -> FloatArray:
    """P(X <= x) of `marked` among `drawn` of `total`, hypergeometric; for x at most at the mean. Broadcasts.

    The sum from x downwards: its terms fall from there on."""
    x, total, drawn, marked = np.broadcast_arrays(
        *(np.asarray(one, np.float64) for one in (x, total, drawn, marked))
    )
    lowest = np.maximum(0.0, drawn + marked - total)
    inside = x >= lowest
    x = np.where(inside, x, lowest)
    term = np.exp(
        _ln_choose(marked, x) + _ln_choose(total - marked, drawn - x) - _ln_choose(total, drawn)
    )
    added, at = term.copy(), x.copy()
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = at * (total - marked - drawn + at) / ((marked - at + 1) * (drawn - at + 1))
        term = np.where(at > lowest, term * ratio, 0.0)
        if not bool((term > 1e-4 * added).any()):
            break
        added, at = added + term, at - 1
    return np.where(inside, np.minimum(added * (1 + 1e-3), 1.0), 0.0)


def _ln_choose(n: FloatArray, k: FloatArray) -> FloatArray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


@dataclass(frozen=True)
class Rises:
    """Of each of F lives the most likely place at which its rate rose."""

    before_F: IntArray
    """Units before it."""
    llr_F: FloatArray
    p_F: FloatArray
    """At most this is the chance of as large a statistic without any change; of lives with a p-value
    above `FDR` only that it is above."""


def rises(present_UF: BoolArray) -> Rises:
    """Scan the presence of F lives in U units for a rise; see the module's docstring."""
    units, lives = present_UF.shape
    place_C = candidates(units)
    marked_F = present_UF.sum(0).astype(np.int64)
    none = Rises(np.zeros(lives, np.int64), np.zeros(lives), np.ones(lives))
    if not len(place_C) or not lives:
        return none
    pieces_CF = np.add.reduceat(present_UF, np.r_[0, place_C[:-1]], axis=0, dtype=np.int32)
    pieces_CF[-1] = present_UF[(place_C[-2] if len(place_C) > 1 else 0) : place_C[-1]].sum(0)
    hits_CF = np.cumsum(pieces_CF, axis=0)
    llr_CF = log_likelihood_ratio(hits_CF, place_C[:, None], marked_F, units)
    rising_CF = hits_CF * float(units) < place_C[:, None] * marked_F.astype(np.float64)
    llr_CF = np.where(rising_CF, llr_CF, 0.0)
    best_F = llr_CF.argmax(0)
    index_F = np.arange(lives)
    llr_F = llr_CF[best_F, index_F]
    before_F, hits_F = place_C[best_F], hits_CF[best_F, index_F]
    p_F = np.ones(lives)
    some_F = (llr_F > 0) & (marked_F < units)
    p_F[some_F] = lower_tail(hits_F[some_F], units, before_F[some_F], marked_F[some_F])
    for life in np.flatnonzero(some_F & (p_F <= FDR)):
        p_F[life] = _bound(float(llr_F[life]), place_C, int(marked_F[life]), units)
    return Rises(before_F, llr_F, p_F)


def _bound(llr: float, place_C: IntArray, marked: int, units: int) -> float:
    """Boole's bound on the p-value of the statistic `llr` of a life present in `marked` units."""
    low_C = np.maximum(0, place_C + marked - units) - 1  # the largest x that is known to be extreme
    high_C = np.ceil(place_C * (marked / units)).astype(np.int64)  # one that is not
    lowest_C, slack = low_C.copy(), 1e-9 * max(1.0, llr)
    while bool((high_C - low_C > 1).any()):
        middle_C = (low_C + high_C) // 2
        value_C = log_likelihood_ratio(middle_C, place_C, marked, units)
        extreme_C = (value_C >= llr - slack) & (high_C - low_C > 1)
        low_C = np.where(extreme_C, middle_C, low_C)
        high_C = np.where(extreme_C | (high_C - low_C <= 1), high_C, middle_C)
    there_C = low_C > lowest_C
    if not bool(there_C.any()):
        return 1.0
    tail_C = lower_tail(low_C[there_C], units, place_C[there_C], marked)
    return float(min(1.0, tail_C.sum()))


def declared(p_F: FloatArray, rate: float = FDR) -> BoolArray:
    """Benjamini and Hochberg: the lives whose change is declared with a false discovery rate of `rate`."""
    count = len(p_F)
    if not count:
        return np.zeros(0, bool)
    order = np.argsort(p_F, kind="stable")
    below = p_F[order] <= rate * np.arange(1, count + 1) / count
    found = np.zeros(count, bool)
    if below.any():
        found[order[: int(np.flatnonzero(below)[-1]) + 1]] = True
    return found


@dataclass(frozen=True)
class Place:
    """Where in N rows a rate rose. Rows are counted from 0; `row` is the first with the new rate."""

    row: float
    """In the median: the first row that fired is later than the change, by ln 2 / rate rows."""
    low: float
    high: float
    """A likelihood interval of 95 %."""
    rate_before: float
    rate_after: float


def place_of_rise(fired_N: IntArray, rows: int) -> Place:
    """The most likely place of a rise in `rows` rows, of which those in `fired_N` (ascending) fired.

    The likelihood is largest just before a row that fired, so only these are looked at.
    """
    if not len(fired_N) or rows < 2:
        return Place(0.0, 0.0, float(rows), 0.0, 0.0)
    before_K = np.arange(len(fired_N))
    llr_K = log_likelihood_ratio(before_K, fired_N, len(fired_N), rows)
    rising_K = before_K * float(rows) <= fired_N * float(len(fired_N))
    enough_K = before_K <= max(0, len(fired_N) - LEAST_AFTER)
    llr_K = np.where(rising_K & enough_K, llr_K, 0.0)
    best = int(llr_K.argmax())
    at = int(fired_N[best])
    after = (len(fired_N) - best) / max(1, rows - at)
    gap = 1.0 / max(after, 1.0 / rows)
    earliest = float(fired_N[best - 1] + 1) if best else 0.0
    likely = fired_N[llr_K >= llr_K[best] - LIKELY_DROP]
    low = max(0.0, float(likely.min()) - np.log(20.0) * gap)
    return Place(
        row=max(earliest, at - np.log(2.0) * gap),
        low=min(low, float(at)),
        high=float(likely.max()),
        rate_before=best / at if at else 0.0,
        rate_after=after,
    )
