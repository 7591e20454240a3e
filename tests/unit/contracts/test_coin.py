"""The coin is a hash: uniform, independent along each of its coordinates, the same for whoever asks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.coin import GOLDEN, MASK, coin_key, compiled_toss, hashed, mix, toss

compiled = pytest.mark.skipif(compiled_toss is None, reason="it was not compiled")
SIDE = 16
CELLS = SIDE * SIDE
CALLS = 20_000
WORST = CELLS - 1 + 5 * (2 * (CELLS - 1)) ** 0.5
"""Chi-square with 255 degrees of freedom: its mean and five standard deviations."""
KEYS = [coin_key(seed, source) for seed in (0, 1, 7) for source in (0, 1)]


def chi_square(pairs):
    """Of points in the unit square, over a grid of 16 x 16."""
    counts = [0] * CELLS
    for x, y in pairs:
        counts[int(x * SIDE) * SIDE + int(y * SIDE)] += 1
    expected = sum(counts) / CELLS
    return sum((count - expected) ** 2 for count in counts) / expected


def test_it_is_splitmix64():
    numbers = [mix(n * GOLDEN & MASK) for n in (1, 2, 3)]
    assert numbers == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.integers(0, MASK), min_size=1))
def test_it_mixes_an_array_as_it_mixes_each_of_its_numbers(numbers):
    mixed = mix(np.array(numbers, dtype=np.uint64))
    assert mixed.dtype == np.uint64
    assert mixed.tolist() == [mix(number) for number in numbers]


@pytest.mark.parametrize(
    "call_of",
    [
        lambda n: (n, 0, 0, 0),
        lambda n: (0, n, 0, 0),
        lambda n: (3, 1, n, 0),
        lambda n: (3, 1, 2, n),
        lambda n: (n // 4, 0, n % 4, 0),
        lambda n: (n // 512, n // 512, n % 512 // 2, n % 2),
        lambda n: (128 * n, 0, 0, 0),
    ],
    ids=["step", "version", "microbatch", "call", "accumulated", "all", "many environments"],
)
def test_successive_calls_are_uniform_and_know_nothing_of_each_other(call_of):
    for key in KEYS[:2]:
        u = [toss(key, *call_of(n)) for n in range(CALLS)]
        for lag in (1, 2, 4):
            pairs = list(zip(u, u[lag:], strict=False))
            assert chi_square(pairs) < WORST, (key, lag)


def test_ranks_seeds_and_hooks_with_coins_of_their_own_are_independent():
    keys = [*KEYS, coin_key(0, 0, "layer.0"), coin_key(0, 0, "layer.1"), coin_key(1, 0, "layer.0")]
    assert len(set(keys)) == len(keys)
    for one, other in itertools.combinations(keys, 2):
        pairs = [(toss(one, n, 0, 0, 0), toss(other, n, 0, 0, 0)) for n in range(8_000)]
        assert chi_square(pairs) < WORST, (one, other)


@given(st.integers(0, MASK), st.tuples(*[st.integers(-(2**63), 2**64)] * 4))
def test_it_is_a_number_from_0_up_to_1_whatever_the_call(key, call):
    assert 0.0 <= toss(key, *call) < 1.0


@compiled
@given(st.integers(0, MASK), st.tuples(*[st.integers(-(2**63), 2**65)] * 4))
def test_the_compiled_one_is_the_same_bit_for_bit(key, call):
    *tags, index = call
    assert compiled_toss(key, (*tags, -1), index) == toss(key, *call)


@compiled
@pytest.mark.parametrize("arguments", [(), (1, 2, 3), (1, (2, 3), 4), (1, (2, "3", 4), 5)])
def test_the_compiled_one_takes_numbers_only(arguments):
    with pytest.raises(TypeError):
        compiled_toss(*arguments)


def test_tuples_are_hashed_as_in_every_earlier_run_and_one_number_stands_for_a_column():
    rows = np.array([[0, -1, 3], [2**40, 7, 9]])
    assert hashed(*rows.T).tolist() == [16879537477510255323, 13635241362717752983]
    assert hashed(0, rows[:1, 1], 3).tolist() == [16879537477510255323]
    assert hashed(*rows[:0].T).tolist() == []
