"""Which examples stay."""

from __future__ import annotations

import numpy as np

from asys_bench.change.feature_index.slots import place, random_keys


def test_the_largest_of_each_group_stay_whatever_batches_they_come_in():
    draw = np.random.default_rng(0)
    group_N, key_N = draw.integers(0, 7, 3000), draw.normal(size=3000).astype(np.float32)
    keys_GS, least_G = np.full((8, 5), -np.inf, np.float32), np.full(8, -np.inf, np.float32)
    who_GS = np.full((8, 5), -1)
    for at in [*range(0, 40), *range(40, 3000, 37)]:
        block = slice(at, at + 1 if at < 39 else at + 37)
        found, group, slot = place(keys_GS, least_G, group_N[block], key_N[block])
        who_GS[group, slot] = at + found
    for group in range(7):
        own = np.flatnonzero(group_N == group)
        wanted = own[np.argsort(-key_N[own])[:5]]
        assert sorted(who_GS[group]) == sorted(wanted)
        assert sorted(keys_GS[group]) == sorted(key_N[wanted])
        assert least_G[group] == keys_GS[group].min()
    assert (who_GS[7] == -1).all()


def test_of_equal_keys_the_one_that_is_there_stays():
    keys_GS, least_G = np.full((1, 2), -np.inf, np.float32), np.full(1, -np.inf, np.float32)
    zeros = np.zeros(2, np.int64)
    place(keys_GS, least_G, zeros, np.ones(2, np.float32))
    found, _, _ = place(keys_GS, least_G, zeros, np.ones(2, np.float32))
    assert len(found) == 0


def test_a_row_that_stands_for_three_is_kept_three_times_as_often():
    rows = np.arange(40_000, dtype=np.uint64)
    weight = np.where(rows % 2 == 0, 3.0, 1.0)
    key = random_keys(rows * np.uint64(0x9E3779B97F4A7C15), np.zeros(40_000, np.int64), weight)
    kept = np.argsort(-key)[:2000]
    heavy = (kept % 2 == 0).mean()
    assert abs(heavy - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 2000)
