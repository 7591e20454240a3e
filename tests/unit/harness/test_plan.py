"""The plan: order, looks, seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.harness.planning import plan
from asys_bench.harness.planning.pilot import Candidate, affordable

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


def candidate(name, rounds, round_s):
    return Candidate(name, rounds=rounds, most=rounds, needs=None, round_s=round_s)


def test_the_cases_that_take_least_go_on_first_as_far_as_the_time_allows():
    cases = [candidate("long", 6, 10.0), candidate("short", 6, 1.0), candidate("middle", 6, 5.0)]
    assert [one.name for one in affordable(cases, 36.0)] == ["short", "middle"]
    assert [one.name for one in affordable(cases, 35.9)] == ["short"]
    assert affordable(cases, -1.0) == []
    assert len(affordable(cases, None)) == 3
    assert "60 s" in cases[0].late
    first = [replace(cases[0], needs=1), *cases[1:]]  # 10 s will do, the pilot says
    assert [one.name for one in affordable(first, 66.0)] == ["short", "long"]


def test_a_case_whose_pilot_asks_for_four_times_what_it_may_have_is_hopeless():
    near = replace(candidate("near", 6, 1.0), needs=24)
    assert near.hopeless is None
    assert "about 25" in (replace(near, needs=25).hopeless or "")
