"""Change points of firing rates against drawn permutations, scipy and planted truths."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from asys_bench.change.statistics import (
    FDR,
    candidates,
    declared,
    log_likelihood_ratio,
    lower_tail,
    place_of_rise,
    presence,
    rises,
)

SOAK = os.environ.get("ASYS_SOAK") == "1"
EXAMPLES, DRAWS, FEATURES = (1000, 20_000, 50_000) if SOAK else (60, 1500, 2000)


@pytest.mark.stress
@given(st.integers(2, 400), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_lower_tail_is_scipys_where_x_is_at_most_at_the_mean(total, data):
    drawn = data.draw(st.integers(1, total - 1))
    marked = data.draw(st.integers(1, total - 1))
    x = data.draw(st.integers(0, max(0, int(drawn * marked / total))))
    wanted = hypergeom.cdf(x, total, marked, drawn)
    assert float(lower_tail(x, total, drawn, marked)) == pytest.approx(wanted, rel=5e-3, abs=1e-12)
    assert float(lower_tail(x, total, drawn, marked)) >= wanted * (1 - 1e-6) - 1e-15


def scan(orders_DU: np.ndarray) -> np.ndarray:
    """The statistic of each of D orders of presences, written out."""
    units, marked_D = orders_DU.shape[1], orders_DU.sum(1)
    best_D = np.zeros(len(orders_DU))
    for before in candidates(units):
        hits_D = orders_DU[:, :before].sum(1)
        ratio_D = log_likelihood_ratio(hits_D, before, marked_D, units)
        best_D = np.where(hits_D * units < before * marked_D, np.maximum(best_D, ratio_D), best_D)
    return best_D


@pytest.mark.stress
@pytest.mark.parametrize(
    ("marked", "hits_before", "before"), [(8, 0, 24), (12, 1, 22), (20, 3, 20)]
)
def test_the_p_value_is_above_that_of_drawn_permutations_and_not_by_far(
    marked, hits_before, before
):
    units = 40
    order = np.zeros(units, bool)
    order[:hits_before] = True
    order[before : before + marked - hits_before] = True
    found = rises(order[:, None])
    (statistic,), draws = scan(order[None]), np.random.default_rng(1)
    assert float(found.llr_F[0]) == pytest.approx(statistic)
    drawn = draws.permuted(np.tile(order, (DRAWS, 1)), axis=1)
    as_large = (scan(drawn) >= statistic - 1e-9).mean()
    assert as_large - 3 * np.sqrt(as_large / DRAWS) <= found.p_F[0] or found.p_F[0] == 1.0
    if as_large > 1e-3:
        assert found.p_F[0] <= 12 * as_large or found.p_F[0] > FDR


@pytest.mark.stress
@pytest.mark.parametrize("rate", [0.004, 0.05, 0.5, 0.95])
def test_without_a_change_p_values_below_alpha_are_as_rare_as_alpha_says(rate):
    draws = np.random.default_rng(int(1000 * rate))
    present_UF = draws.random((300, FEATURES)) < rate
    p_F = rises(present_UF).p_F
    for alpha in (1e-2, 3e-3, 1e-3):
        assert (p_F <= alpha).sum() <= FEATURES * alpha + 3 * np.sqrt(FEATURES * alpha)
    assert not declared(p_F).any()


def test_bursts_inside_of_a_unit_are_no_change():
    """A life that fires in runs of hundreds of rows, a few of them: by rows it changed, by units not."""
    draws = np.random.default_rng(3)
    counts_UF = np.where(draws.random((200, 3000)) < 0.01, draws.integers(1, 400, (200, 3000)), 0)
    assert not declared(rises(presence(counts_UF)).p_F).any()


def test_births_are_declared_and_steady_lives_are_not():
    draws = np.random.default_rng(4)
    rate_F = np.geomspace(0.01, 0.6, 300)
    counts_UF = draws.binomial(25, np.broadcast_to(rate_F / 25 * 4, (1000, 300)))
    born_F = np.arange(300) % 10 == 0
    counts_UF[:400][:, born_F] = 0
    found = rises(presence(counts_UF))
    told_F = declared(found.p_F)
    assert told_F[born_F].mean() >= 0.9
    assert not told_F[~born_F].any()
    assert np.abs(found.before_F[told_F] - 400).max() <= 40


def test_chance_firing_at_a_hundredth_of_the_rate_hides_no_birth():
    draws = np.random.default_rng(5)
    counts_UF = draws.binomial(256, np.where(np.arange(256)[:, None] < 128, 3e-4, 3e-2), (256, 50))
    told_F = declared(rises(presence(counts_UF)).p_F)
    assert told_F.all()


def test_presence_does_not_depend_on_the_order_of_units():
    draws = np.random.default_rng(6)
    counts_UF = draws.poisson(3.0, (50, 20))
    order = draws.permutation(50)
    assert np.array_equal(presence(counts_UF)[order], presence(counts_UF[order]))


def test_benjamini_and_hochberg_declare_up_to_the_last_p_value_under_the_line():
    """Their own example (1995, section 3.2): 15 p-values, 4 declared at 5 %."""
    p = np.array([0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240,
                  0.4262, 0.5719, 0.6528, 0.7590, 1.0])  # fmt: skip
    assert declared(p, 0.05).tolist() == [True] * 4 + [False] * 11
    assert declared(p[::-1], 0.05).sum() == 4
    assert not declared(np.zeros(0)).any()


@pytest.mark.parametrize(("rate", "start"), [(1e-3, 60_000), (1e-2, 20_000), (0.2, 70_000)])
def test_the_place_of_a_rise_is_unbiased_in_the_median_and_within_its_interval(rate, start):
    rows, errors, rates, inside = 100_000, [], [], 0
    for seed in range(60):
        draws = np.random.default_rng(seed)
        fired_N = start + np.flatnonzero(draws.random(rows - start) < rate)
        place = place_of_rise(fired_N, rows)
        errors.append(place.row - start)
        inside += place.low <= start <= place.high
        rates.append(place.rate_after)
    assert abs(np.median(errors)) <= 0.5 / rate
    assert np.median(np.abs(errors)) <= 0.8 / rate
    assert np.median(rates) == pytest.approx(rate, rel=0.15)
    assert inside >= 54


@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_too_few_units_declare_nothing_and_do_not_fail(units):
    found = rises(presence(np.ones((units, 4), int)))
    assert not declared(found.p_F).any()
