"""The promised error rates, measured by simulation with the truth exactly on the limit.

Each test prints its figure (`pytest -s`). The bounds are those of the specification; the standard
error of a rate near 0.05 from 2000 trials is 0.005.
"""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.harness.judging import stats
from asys_bench.harness.planning.plan import planned_looks

LOOKS = planned_looks((12, 24, 48), 0.95)
TRIALS = 1500
TAIL = 0.01  # a p99 that is exactly its limit


def round_counts(rng: np.random.Generator, rho: float, n: int, rounds: int) -> list[int]:
    """Exceedances per round: beta-binomial with correlation `rho` within a round."""
    if rho == 0:
        return rng.binomial(n, TAIL, rounds).tolist()
    scale = (1 - rho) / rho
    shares = rng.beta(TAIL * scale, (1 - TAIL) * scale, rounds)
    return rng.binomial(n, shares).tolist()


def passes(counts: list[int], n: int) -> bool:
    """Whether the rule ever passes it, at any planned look."""
    for look in LOOKS:
        seen = counts[: look.rounds]
        found = stats.clustered_proportion(seen, [n] * look.rounds, look.alpha)
        if found.deff > stats.MAX_DESIGN_EFFECT:
            continue
        if found.high <= TAIL:
            return True
        if found.low > TAIL:
            return False
    return False


@pytest.mark.parametrize(
    ("rho", "n", "at_most"),
    [
        (0.0, 200, 0.06),
        (0.02, 200, 0.10),
        pytest.param(0.0, 1000, 0.06, marks=pytest.mark.rest),
        pytest.param(0.02, 400, 0.10, marks=pytest.mark.rest),
    ],
)
def test_a_p99_exactly_on_its_limit_is_rarely_passed(rho, n, at_most):
    rng = np.random.default_rng(20240501)
    share = sum(passes(round_counts(rng, rho, n, 48), n) for _ in range(TRIALS)) / TRIALS
    print(f"false pass at rho {rho}, n {n}: {share:.4f} (limit {at_most})")
    assert share <= at_most


def test_the_rejected_rules_do_pass_it():
    rng = np.random.default_rng(7)
    point = pooled = 0
    for _ in range(TRIALS):
        counts = round_counts(rng, 0.02, 200, 24)
        share = sum(counts) / (24 * 200)
        point += share <= TAIL
        pooled += stats.clopper_pearson(sum(counts), 24 * 200, 0.05)[1] <= TAIL
    print(f"rejected at rho 0.02: point estimate {point / TRIALS:.3f}, pooled i.i.d. "
          f"{pooled / TRIALS:.3f}")  # fmt: skip
    assert point / TRIALS > 0.4
    assert pooled / TRIALS > 0.10


def test_a_good_p99_is_passed_and_a_bad_one_failed():
    rng = np.random.default_rng(11)
    good = bad = 0
    for _ in range(300):
        low = rng.binomial(1000, 0.004, 12).tolist()
        high = rng.binomial(1000, 0.02, 12).tolist()
        good += stats.clustered_proportion(low, [1000] * 12, LOOKS[0].alpha).high <= TAIL
        bad += stats.clustered_proportion(high, [1000] * 12, LOOKS[0].alpha).low > TAIL
    print(f"power at the first look: pass {good / 300:.3f} at 0.4 %, fail {bad / 300:.3f} at 2 %")
    assert good / 300 > 0.9
    assert bad / 300 > 0.9


def drifting(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """Log speed of a machine that drifts: a random walk, one step per block."""
    return np.cumsum(rng.normal(0, 0.02, blocks))


def test_equal_contenders_interleaved_under_drift_rarely_differ():
    rng = np.random.default_rng(3)
    alarms = sequential = 0
    for _ in range(TRIALS):
        drift = drifting(rng, 48)
        noise = rng.normal(0, 0.02, (2, 24))
        a, b = np.exp(drift[::2] + noise[0]), np.exp(drift[::2] + noise[1])
        span = stats.ratio_span(a.tolist(), b.tolist(), 0.05)
        alarms += not span.low <= 1 <= span.high
        first, second = np.exp(drift[:24] + noise[0]), np.exp(drift[24:] + noise[1])
        blocks = stats.ratio_span(first.tolist(), second.tolist(), 0.05)
        sequential += not blocks.low <= 1 <= blocks.high
    print(f"A/A false alarms: interleaved {alarms / TRIALS:.4f} (limit 0.05), "
          f"sequential blocks {sequential / TRIALS:.3f}")  # fmt: skip
    assert alarms / TRIALS <= 0.05
    assert sequential / TRIALS > 0.3


def test_a_five_percent_slowdown_is_found():
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(500):
        drift = drifting(rng, 24)
        a = np.exp(drift + rng.normal(0, 0.03, 24)) * 1.05
        b = np.exp(drift + rng.normal(0, 0.03, 24))
        found += stats.ratio_span(a.tolist(), b.tolist(), 0.05).low > 1
    print(f"an injected 5 % at 3 % noise per round, 24 rounds: found in {found / 500:.3f}")
    assert found / 500 > 0.95


def test_a_median_exactly_on_its_limit_is_rarely_passed():
    rng = np.random.default_rng(9)
    false = 0
    for _ in range(TRIALS):
        values = rng.lognormal(0, 0.3, 48)
        for look in LOOKS:
            span = stats.median_span(values[: look.rounds].tolist(), look.alpha)
            if span.high <= 1:
                false += 1
                break
            if span.low > 1:
                break
    print(f"median false pass: {false / TRIALS:.4f} (limit 0.06)")
    assert false / TRIALS <= 0.06
