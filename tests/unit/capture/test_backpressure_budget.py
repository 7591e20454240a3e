"""The budget of rows: kept on average, from a standing start, without a bias in what is sampled."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.capture.sampling import RowBudget

SECOND = 1_000_000_000


class Run:
    """`calls_per_s` calls of `rows` rows each, sampled at the budget's rate."""

    def __init__(self, budget, calls_per_s, rows, seconds, seed=1):
        self.sent, self.offered, self.weighted = 0, 0, 0.0
        self.rates, self.times = [], []
        controller, draw = RowBudget(budget), random.Random(seed).random
        for call in range(int(calls_per_s * seconds)):
            now = int(call / calls_per_s * SECOND)
            controller.offer(rows, now)
            self.offered += rows
            self.rates.append(controller.rate)
            if draw() < controller.rate:
                controller.take(rows)
                self.sent += rows
                self.weighted += rows / controller.rate
                self.times.append(now / SECOND)
        self.rate_per_s = self.sent / seconds


@pytest.mark.parametrize(
    ("budget", "calls_per_s", "rows", "seconds"),
    [
        (2000, 1000, 64, 30),
        (50, 1000, 1, 60),
        (500, 0.5, 8192, 4000),
        (500, 50, 4096, 400),
        (100_000, 5000, 512, 20),
    ],
)
def test_the_budget_is_kept_within_5_percent_whatever_the_load(budget, calls_per_s, rows, seconds):
    run = Run(budget, calls_per_s, rows, seconds)
    assert run.rate_per_s == pytest.approx(budget, rel=0.05)


def test_after_three_seconds_each_window_of_five_is_within_20_percent():
    run = Run(budget=2000, calls_per_s=1000, rows=64, seconds=60)
    for start in range(3, 55, 5):
        sent = sum(64 for t in run.times if start <= t < start + 5)
        assert sent / 5 == pytest.approx(2000, rel=0.2)


def test_a_load_under_the_budget_is_sent_whole():
    run = Run(budget=1000, calls_per_s=10, rows=50, seconds=30)
    assert run.sent == run.offered
    assert set(run.rates) == {1.0}


def test_weights_of_one_over_the_rate_give_back_what_was_offered():
    ratios = []
    for seed in range(60):
        run = Run(budget=2000, calls_per_s=1000, rows=64, seconds=4, seed=seed)
        ratios.append(run.weighted / run.offered)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    assert abs(statistics.mean(ratios) - 1) < 4 * error
    assert error < 0.02


def test_no_call_is_without_a_chance():
    run = Run(budget=10, calls_per_s=1000, rows=100, seconds=20)
    assert min(run.rates) > 0


def test_rows_that_were_not_used_are_saved_for_seconds_only():
    controller = RowBudget(1000)
    for call in range(1000):  # a long quiet time
        controller.offer(1, call * SECOND)
    before = controller.rate
    assert before == 1.0
    now = 1000 * SECOND
    rates = []
    for call in range(2000):  # then a flood of a hundred times the budget, every row taken
        controller.offer(100, now + call * SECOND // 1000)
        controller.take(100 * controller.rate)
        rates.append(controller.rate)
    assert rates[-1] < 0.1


@given(
    st.floats(0.1, 1e6),
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**10), st.booleans()), max_size=80),
)
def test_the_rate_is_a_probability_for_every_load(budget, calls):
    controller = RowBudget(budget)
    now = 0
    for rows, passed, taken in calls:
        now += passed
        controller.offer(rows, now)
        assert 0 < controller.rate <= 1
        if taken:
            controller.take(rows)
