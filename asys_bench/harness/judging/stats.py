"""The statistics: pure functions of counts and numbers. No I/O, no clock, no random numbers.

Rounds are the unit of independence. Samples of one round share a process, a memory layout and a
moment, so they agree with each other more than with other rounds; pretending otherwise is the
commonest way for a benchmark to be sure of something false.

Rejected, and the number that lost (share of targets passed with the truth exactly on the limit)::

    point estimate against the limit                             about 50 %
    pooled i.i.d. binomial, rounds correlated (rho 0.005..0.02)  23-44 %
    normal interval on per-round p99                             biased: a p99 of 500 samples is not
                                                                 the p99, and its mean is another number
    looking after every round until it passes                    grows without bound
    sequential blocks (all of A, then all of B) under drift      53 % false alarms; interleaved 3.5 %

`tests/unit/harness/test_stats_simulation.py` measures these rates for the rules kept here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as distributions

MAX_DESIGN_EFFECT = 10.0
"""Above this, rounds differ so much that their samples say little: no quantile is gated on them."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Proportion:
    """An interval for a proportion from clustered counts. Bounds in [0, 1]."""

    estimate: float
    low: float
    high: float
    deff: float
    """Design effect: variance over that of independent samples; at least 1."""
    n: int
    n_effective: float


@dataclass(frozen=True, slots=True)
class Span:
    """An interval for a location. `low`/`high` are infinite when there are too few values."""

    estimate: float
    low: float
    high: float


def design_effect(exceed: Sequence[int], n: Sequence[int]) -> float:
    """Variance of the pooled proportion over rounds as clusters, over the binomial variance; >= 1.

    Source: ratio estimator of clustered proportions, Rao & Scott, Biometrics 48 (1992), eq. 2-3:
    ``v = m / (m-1) sum (k_i - p n_i)^2 / n^2``, ``deff = n v / (p (1 - p))``. It is 1 with fewer
    than two rounds or when p is 0 or 1, where the data show no variance at all.
    """
    m, total, events = len(n), sum(n), sum(exceed)
    if m < 2 or events in (0, total):
        return 1.0
    p = events / total
    residual = np.asarray(exceed, float) - p * np.asarray(n, float)
    variance = m / (m - 1) * float(residual @ residual) / total**2
    return max(1.0, total * variance / (p * (1.0 - p)))


def clustered_proportion(exceed: Sequence[int], n: Sequence[int], alpha: float) -> Proportion:
    """Two-sided 1 - alpha interval of a proportion, rounds as clusters.

    Source: Korn & Graubard, Survey Methodology 24 (1998) 193-201: Clopper-Pearson with the sample
    size ``n* = n / deff * (t_{n-1} / t_{m-1})^2``; the t ratio pays for estimating the variance
    from m rounds only. n* never exceeds n.

    Raises:
        ValueError: no samples, or a count outside 0..n.
    """
    total, events, m = sum(n), sum(exceed), len(n)
    if total <= 0 or any(not 0 <= k <= size for k, size in zip(exceed, n, strict=True)):
        raise ValueError(f"counts {list(exceed)} of {list(n)} are not a proportion")
    deff = design_effect(exceed, n)
    n_star = total / deff
    if m >= 2:
        t_all = float(distributions.t.ppf(1 - alpha / 2, total - 1))
        t_rounds = float(distributions.t.ppf(1 - alpha / 2, m - 1))
        n_star = min(float(total), n_star * (t_all / t_rounds) ** 2)
    k_star = n_star * events / total
    low, high = clopper_pearson(k_star, n_star, alpha)
    return Proportion(events / total, low, high, deff, total, n_star)


def clopper_pearson(k: float, n: float, alpha: float) -> tuple[float, float]:
    """Two-sided exact binomial interval; k and n may be effective (non-integer) numbers.

    Source: Clopper & Pearson, Biometrika 26 (1934), in its beta form.
    """
    low = float(distributions.beta.ppf(alpha / 2, k, n - k + 1)) if k > 0 else 0.0
    high = float(distributions.beta.ppf(1 - alpha / 2, k + 1, n - k)) if k < n else 1.0
    return low, high


def exceedance_p_value(
    exceed: Sequence[int], n: Sequence[int], limit: float, alpha: float
) -> float:
    """One-sided p-value of "the proportion is at most `limit`", by inverting the interval above."""
    found = clustered_proportion(exceed, n, alpha)
    k_star = found.n_effective * found.estimate
    if k_star <= 0:
        return 1.0
    return float(distributions.beta.cdf(limit, k_star, found.n_effective - k_star + 1))


def median_span(values: Sequence[float], alpha: float) -> Span:
    """Two-sided 1 - alpha order-statistic interval of the median; no assumption on the shape.

    Source: Conover, Practical Nonparametric Statistics (3rd ed.), sec. 3.2: ``[x_(j), x_(m+1-j)]``
    with the largest j for which ``2 P(Bin(m, 1/2) < j) <= alpha``. Infinite when even j = 1 is too
    much to claim (m < 6 at 95 %).
    """
    ordered = np.sort(np.asarray(values, float))
    m = len(ordered)
    if m == 0:
        raise ValueError("no values")
    j = int(distributions.binom.ppf(alpha / 2, m, 0.5))
    while j > 0 and 2 * float(distributions.binom.cdf(j - 1, m, 0.5)) > alpha:
        j -= 1
    middle = float(np.median(ordered))
    if j == 0:
        return Span(middle, -math.inf, math.inf)
    return Span(middle, float(ordered[j - 1]), float(ordered[m - j]))


def sign_p_value(values: Sequence[float], limit: float) -> float:
    """One-sided p-value of "the median is at most `limit`": the sign test; ties count against."""
    above = sum(value > limit for value in values)
    return float(distributions.binom.sf(above - 1, len(values), 0.5)) if values else 1.0


def ratio_span(values: Sequence[float], references: Sequence[float], alpha: float) -> Span:
    """Interval of the median per-round ratio: `median_span` of ln(value / reference), as a ratio.

    Both sides of a pair ran in the same block, so what slowed the machine slowed both.

    Raises:
        ValueError: a value that is not positive has no logarithm.
    """
    logs = [math.log(a / b) for a, b in zip(values, references, strict=True) if a > 0 and b > 0]
    if len(logs) != len(values):
        raise ValueError("a ratio needs positive values on both sides")
    span = median_span(logs, alpha)
    return Span(math.exp(span.estimate), math.exp(span.low), _exp(span.high))


def mean_span(values: Sequence[float], alpha: float) -> Span:
    """Two-sided Student t interval of the mean of round values."""
    m = len(values)
    if m == 0:
        raise ValueError("no values")
    mean = float(np.mean(values))
    if m < 2:
        return Span(mean, -math.inf, math.inf)
    half = (
        float(distributions.t.ppf(1 - alpha / 2, m - 1))
        * float(np.std(values, ddof=1))
        / math.sqrt(m)
    )
    return Span(mean, mean - half, mean + half)


def mean_p_value(values: Sequence[float], limit: float) -> float:
    """One-sided p-value of "the mean is at most `limit`": Student's t."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if spread == 0.0:
        return 1.0
    t = (float(np.mean(values)) - limit) / (spread / math.sqrt(len(values)))
    return float(distributions.t.sf(t, len(values) - 1))


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected at family-wise error `alpha`.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def samples_to_decide(quantile: float, confidence: float) -> int:
    """Fewest samples with which a pN target can be passed and still stand one exceedance.

    Source: Wilks, Annals of Mathematical Statistics 12 (1941) 91-96, second-largest order
    statistic: the least n with ``P(Bin(n, 1 - q) <= 1) <= 1 - confidence``. p99 needs 662 at 99 %,
    p99.9 needs 4742 at 95 %.
    """
    tail = 1.0 - quantile
    low, high = 2, 4
    while _at_most_one(high, tail) > 1 - confidence:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if _at_most_one(middle, tail) <= 1 - confidence:
            high = middle
        else:
            low = middle + 1
    return low


def hodges_lehmann(values: Sequence[float]) -> float:
    """The median of all means of two values (a value with itself included): where they lie.

    Source: Hodges & Lehmann, Annals of Mathematical Statistics 34 (1963) 598-611. As robust against
    29 % of wild values, and 1.5 times as efficient as the median where the rest is normal.

    Raises:
        ValueError: no values.
    """
    given = np.asarray(values, float)
    if not len(given):
        raise ValueError("no values")
    first, second = np.triu_indices(len(given))
    return float(np.median((given[first] + given[second]) / 2))


def rounds_to_decide(alpha: float) -> int:
    """Fewest rounds with which a median or ratio can be decided at all: ``2 (1/2)^m <= alpha``."""
    return max(2, math.ceil(math.log2(2 / alpha) - 1e-9))


def rounds_to_fail(targets: int, looks: int, confidence: float) -> int:
    """Fewest rounds with which the sign test of one of `targets` can fail after Holm's correction."""
    return max(2, math.ceil(math.log2(2 * looks * targets / (1 - confidence)) - 1e-9))


def _at_most_one(n: int, tail: float) -> float:
    return float(distributions.binom.cdf(1, n, tail))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
