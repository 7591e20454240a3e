"""The formulas against known values and against their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.harness.judging import stats


@pytest.mark.parametrize(
    ("quantile", "confidence", "samples"),
    [(0.99, 0.99, 662), (0.999, 0.95, 4742), (0.99, 0.95, 473), (0.5, 0.95, 8)],
)
def test_samples_needed_to_pass_a_quantile_are_those_of_wilks(quantile, confidence, samples):
    assert stats.samples_to_decide(quantile, confidence) == samples


def test_rounds_needed_to_decide_a_median():
    assert stats.rounds_to_decide(0.05) == 6
    assert stats.rounds_to_decide(0.05 / 3) == 7


def test_clopper_pearson_matches_the_published_interval():
    low, high = stats.clopper_pearson(10, 100, 0.05)
    assert low == pytest.approx(0.04900, abs=5e-5)
    assert high == pytest.approx(0.17622, abs=5e-5)


def test_median_interval_of_nine_values_takes_the_second_and_the_eighth():
    span = stats.median_span(list(range(1, 10)), 0.05)
    assert (span.low, span.estimate, span.high) == (2, 5, 8)


def test_five_rounds_cannot_bound_a_median_at_95_percent():
    span = stats.median_span([1, 2, 3, 4, 5], 0.05)
    assert (span.low, span.high) == (-math.inf, math.inf)
    assert stats.median_span([1, 2, 3, 4, 5, 6], 0.05).low == 1


def test_design_effect_is_one_for_equal_rounds_and_large_for_rounds_that_disagree():
    assert stats.design_effect([10] * 12, [1000] * 12) == 1.0
    assert stats.design_effect([0, 0, 0, 0, 0, 60], [1000] * 6) > 10


def test_holm_rejects_stepwise():
    assert stats.holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert stats.holm([], 0.05) == []


counts = st.lists(
    st.integers(10, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    min_size=2, max_size=30,
)  # fmt: skip


@given(counts, st.sampled_from([0.05, 0.01]))
def test_a_clustered_interval_holds_its_estimate_and_is_never_narrower_than_independent(
    rounds, alpha
):
    exceed, n = [k for k, _ in rounds], [size for _, size in rounds]
    found = stats.clustered_proportion(exceed, n, alpha)
    low, high = stats.clopper_pearson(sum(exceed), sum(n), alpha)
    assert found.low <= found.estimate <= found.high
    assert found.low <= low + 1e-9
    assert found.high >= high - 1e-9


@given(counts)
def test_less_alpha_is_a_wider_interval(rounds):
    exceed, n = [k for k, _ in rounds], [size for _, size in rounds]
    wide, narrow = (stats.clustered_proportion(exceed, n, a) for a in (0.01, 0.1))
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=60))
def test_a_median_interval_is_made_of_values_and_holds_the_median(values):
    span = stats.median_span(values, 0.05)
    assert span.low <= span.estimate <= span.high
    assert span.low in values
    assert span.high in values


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=6, max_size=40))
def test_a_ratio_interval_turns_over_with_its_sides(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    one, other = stats.ratio_span(a, b, 0.05), stats.ratio_span(b, a, 0.05)
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)


def test_p_values_agree_with_the_intervals():
    rng = np.random.default_rng(5)
    for _ in range(50):
        exceed = rng.binomial(500, 0.015, 12).tolist()
        found = stats.clustered_proportion(exceed, [500] * 12, 0.05)
        p_value = stats.exceedance_p_value(exceed, [500] * 12, 0.01, 0.05)
        assert (p_value <= 0.025) == (found.low >= 0.01)


def test_where_values_lie_is_the_median_of_the_means_of_pairs():
    assert stats.hodges_lehmann([1.0, 2.0, 6.0]) == 2.75  # of 1, 1.5, 2, 3.5, 4, 6
    assert stats.hodges_lehmann([3.0]) == 3.0
    with pytest.raises(ValueError, match="no values"):
        stats.hodges_lehmann([])


def test_it_scatters_less_than_a_median_and_wild_values_do_not_move_it_far():
    rng = np.random.default_rng(0)
    rounds = [rng.normal(size=30) for _ in range(400)]
    found = [stats.hodges_lehmann(one) for one in rounds]
    assert np.std(found) < 0.9 * np.std([np.median(one) for one in rounds])
    assert abs(stats.hodges_lehmann([*rounds[0], *(1e6 * np.ones(6))]) - found[0]) < 0.6
