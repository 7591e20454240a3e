"""Bets on ranks are fair whatever the distribution, and their sums keep the average run length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.change.alarm.e_detector import BETS, SLACK, EDetector, RankReference, increments


def test_each_bet_is_fair():
    p = (np.arange(10_000) + 0.5) / 10_000
    found = increments(p)
    assert found.shape == (10_000, BETS)
    assert found.mean(0) == pytest.approx(np.full(BETS, 1 / (1 + SLACK)), abs=1e-9)
    assert found.min() > 0


def ranks_of(values_TN, window=64, seed=0):
    reference = RankReference(window, seed)
    reference.grow(values_TN.shape[1])
    everybody = np.arange(values_TN.shape[1])
    found = []
    for values in values_TN:
        found.append(reference.p_values(everybody, values, values, np.zeros(len(values))))
        reference.add(everybody, values, values)
    return np.array(found)


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, shape: random.standard_normal(shape),
        lambda random, shape: random.standard_cauchy(shape),
        lambda random, shape: random.integers(0, 3, shape).astype(float),
        lambda random, shape: np.zeros(shape),
    ],
    ids=["normal", "Cauchy", "three values", "one value"],
)
def test_ranks_are_uniform_whatever_is_ranked(draw):
    p = ranks_of(draw(np.random.default_rng(1), (60, 2000)))
    for t in (0, 1, 7, 59):
        shares = np.histogram(p[t], 10, (0, 1))[0] / 2000
        assert np.abs(shares - 0.1).max() < 0.035  # 5 standard errors


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=60), st.integers(0, 99))
def test_ranks_do_not_change_when_values_are_stretched(values, seed):
    plain = np.array(values, float)[:, None]
    assert ranks_of(plain, seed=seed) == pytest.approx(ranks_of(plain**3 + plain, seed=seed), abs=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=20, max_size=20), st.integers(0, 99))
def test_the_highest_so_far_has_the_least_rank_and_is_never_zero(values, seed):
    p = ranks_of(np.array([*values, 1e10])[:, None], seed=seed)[-1, 0]
    assert 0 <= p < 1 / 21 * 1.0001


def test_a_full_reference_forgets_the_oldest():
    rising = np.arange(200.0)[:, None]
    reference = RankReference(16, 0)
    reference.grow(1)
    for value in rising:
        reference.add(np.array([0]), value, value)
    assert sorted(reference.of(0)) == list(range(184, 200))
    assert reference.counts.tolist() == [16]


def detectors(streams, up):
    one = EDetector()
    one.add(up)
    return one.copies(0, streams)


def sums_of(p_TN, up):
    detector = detectors(p_TN.shape[1], up)
    everybody = np.arange(p_TN.shape[1])
    return np.array([detector.update(everybody, p) for p in p_TN])


@pytest.mark.parametrize("up", [1.0, 0.0, 0.5])
def test_before_a_change_the_expected_sum_is_the_number_of_values(up):
    """E[M_t] is t for uniform p, less the slack: the inequality holds, and nothing more is wasted."""
    p = (np.arange(400) + 0.5) / 400  # no bet has a quantile inside a cell
    both = np.stack([np.repeat(p, 400), np.tile(p, 400)])
    kept = 1 / (1 + SLACK)
    assert sums_of(both, up).mean(1) == pytest.approx([kept, kept * (1 + kept)])


@pytest.fixture(scope="module")
def cauchy_ranks():
    return ranks_of(np.random.default_rng(4).standard_cauchy((1500, 200)), window=1024)


@pytest.mark.rest
@pytest.mark.parametrize("up", [1.0, 0.5])
@pytest.mark.parametrize("run_length", [20, 200])
def test_the_average_run_length_is_at_least_one_over_alpha(cauchy_ranks, up, run_length):
    """Streams of Cauchy values, an alarm at 1 / alpha; after one a stream starts again."""
    p, shape = cauchy_ranks, cauchy_ranks.shape
    detector, alarms = detectors(shape[1], up), 0
    everybody = np.arange(shape[1])
    for row in p:
        raised = everybody[detector.update(everybody, row) >= run_length]
        detector.restart(raised)
        alarms += len(raised)
    expected = shape[0] * shape[1] / run_length
    assert 0.1 * expected < alarms <= expected


def test_the_larger_half_says_which_way_it_went():
    detector = detectors(2, 0.5)
    for _ in range(5):
        detector.update(np.array([0, 1]), np.array([0.001, 0.999]))
    assert [detector.went_up(0), detector.went_up(1)] == [True, False]


def test_the_newest_are_forgotten_and_their_places_filled_again():
    reference = RankReference(8, 0)
    reference.grow(1)
    for value in range(12):
        reference.add(np.array([0]), np.array([-value]), np.array([float(value)]))
    assert reference.newest(0, 3).tolist() == [11, 10, 9]
    reference.forget(0, 3)
    assert sorted(reference.of(0)) == [-8, -7, -6, -5, -4]
    assert reference.counts.tolist() == [5]
    reference.add(np.array([0]), np.array([-20.0]), np.array([20.0]))
    assert reference.newest(0, 2).tolist() == [20, 8]
    p = reference.p_values(np.array([0]), np.array([0.0]), np.array([0.0]), np.array([0.0]))
    assert 0 <= p[0] <= 1 / 7
    reference.forget(0, 99)
    assert reference.counts.tolist() == [0]
    assert len(reference.newest(0, 5)) == 0
