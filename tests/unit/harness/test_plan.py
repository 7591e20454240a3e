"""The plan: order, looks, seeds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.harness.planning import plan

names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=9, unique=True)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_latin_square_has_every_symbol_once_in_each_row_and_column(size, seed):
    square = plan.latin_square(size, seed)
    want = set(range(size))
    assert all(set(row) == want for row in square)
    assert all({row[column] for row in square} == want for column in range(size))


@given(names, st.integers(0, 2**32 - 1))
def test_over_as_many_blocks_as_contenders_each_stands_once_in_each_position(contenders, seed):
    seen = Counter(
        (position, name)
        for block in range(len(contenders))
        for position, name in enumerate(plan.block_order(contenders, block, seed))
    )
    assert set(seen.values()) == {1}


@given(names, st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_the_order_depends_on_the_seed_alone(contenders, block, seed):
    first = plan.block_order(contenders, block, seed)
    assert first == plan.block_order(contenders, block, seed)
    assert sorted(first) == sorted(contenders)


def test_the_error_is_split_over_the_looks():
    looks = plan.planned_looks((12, 24, 48), 0.95)
    assert [look.rounds for look in looks] == [12, 24, 48]
    assert sum(look.alpha for look in looks) == pytest.approx(0.05)


@pytest.mark.parametrize("rounds", [(), (0,), (12, 12), (24, 12)])
def test_looks_must_rise(rounds):
    with pytest.raises(ValueError, match="rise"):
        plan.planned_looks(rounds, 0.95)


@given(st.integers(0, 2**32 - 1))
def test_environment_lengths_stay_in_a_page(seed):
    assert 0 <= plan.environment_length(seed) < 4096


def test_environment_lengths_differ_between_rounds():
    assert len({plan.environment_length(seed) for seed in range(100)}) > 80


def test_at_most_a_tenth_of_the_rounds_may_be_replaced():
    assert [plan.replacement_budget(n) for n in (5, 10, 24, 48)] == [0, 1, 2, 4]
