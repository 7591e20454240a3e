"""The order of an epoch, and the shares of those who read it side by side."""

import numpy as np
import pytest

from asys_bench.rundir.row_order import (
    RowOrder,
    cut,
    share_of_rank,
    share_of_worker,
    size,
)


def rows(order, first=0, stop=10**9):
    parts = [numbers for _, numbers in order.windows(first, stop)]
    return np.concatenate(parts).tolist() if parts else []


@pytest.mark.parametrize("n", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize("window", [0, 1, 5, 64, 5000])
@pytest.mark.parametrize("chunk", [1, 3, 64, 999])
def test_every_row_is_there_once_and_windows_are_no_larger_than_asked_for(n, window, chunk):
    order = RowOrder(n, window, chunk, seed=3, epoch=2)
    assert sorted(rows(order)) == list(range(n))
    if window:
        assert all(len(numbers) <= window for _, numbers in order.windows(0, n))


def test_without_a_window_rows_come_as_they_were_written():
    assert rows(RowOrder(10_000, 0)) == list(range(10_000))


def test_the_order_is_one_of_seed_and_epoch_for_ever():
    """A position that was saved means these rows: the numbers must never change."""
    assert rows(RowOrder(12, 6, 2, seed=0, epoch=0)) == [10, 5, 8, 11, 4, 9, 2, 0, 6, 1, 3, 7]
    assert rows(RowOrder(12, 6, 2, seed=0, epoch=1)) == [5, 1, 11, 0, 10, 4, 9, 2, 6, 3, 8, 7]
    seen = {tuple(rows(RowOrder(50, 20, 4, seed=s, epoch=e))) for s in range(5) for e in range(5)}
    assert len(seen) == 25


def test_any_part_of_the_order_is_had_without_what_comes_before():
    order = RowOrder(1000, 64, 10, seed=1)
    whole = rows(order)
    for first, stop in [(0, 1), (63, 65), (64, 128), (500, 1000), (999, 1000), (70, 70)]:
        assert rows(order, first, stop) == whole[first:stop]


def test_a_window_has_rows_of_many_places_and_neighbours_part():
    order = RowOrder(100_000, 4096, 256, seed=5)
    first = np.array(rows(order, 0, 4096))
    assert len(np.unique(first // 256)) >= 16
    assert first.max() - first.min() > 50_000
    assert (np.abs(np.diff(first)) == 1).sum() < 20  # of 4,095; in order it is all of them


def test_a_large_epoch_costs_no_more_memory_than_its_chunks_and_a_window():
    order = RowOrder(10**11, 1 << 16, 1 << 20, seed=9)
    ((position, numbers),) = order.windows(10**10, 10**10 + 5)
    assert position == 10**10
    assert len(set(numbers.tolist())) == 5


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (3, 2), (4, 5), (7, 1)])
@pytest.mark.parametrize("n", [0, 1, 13, 1000, 1024])
@pytest.mark.parametrize("batch", [1, 8])
def test_readers_share_every_position_and_ranks_differ_by_one_row(world, workers, n, batch):
    whole, taken, sizes = [(0, n)] if n else [], [], []
    for rank in range(world):
        mine = share_of_rank(whole, rank, world, batch, drop_last=False)
        sizes.append(size(mine))
        shares = [share_of_worker(mine, w, workers, batch) for w in range(workers)]
        partial = sum(size(share) % batch != 0 for share in shares)
        assert partial <= 1
        taken += [p for share in shares for first, stop in share for p in range(first, stop)]
    assert sorted(taken) == list(range(n))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", [0, 7, 1000])
def test_with_drop_last_ranks_have_equally_many_whole_batches(n):
    shares = [share_of_rank([(0, n)], rank, 3, 8, drop_last=True) for rank in range(3)]
    assert {size(share) for share in shares} == {n // 24 * 8}
    assert n - sum(map(size, shares)) < 24


def test_intervals_are_cut_one_behind_another():
    intervals = [(10, 20), (40, 45), (7, 8)]
    assert size(intervals) == 16
    assert cut(intervals, 0, 16) == intervals
    assert cut(intervals, 8, 12) == [(18, 20), (40, 42)]
    assert cut(intervals, 15, 99) == [(7, 8)]
    assert cut(intervals, 5, 5) == []
