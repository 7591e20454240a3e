"""Blocks of the FIFO arena never overlap, and everything that is freed can be used again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.capture.gpu.side_stream import ALIGNMENT, FifoArena

CAPACITY = 8 * ALIGNMENT


@given(st.lists(st.one_of(st.integers(0, CAPACITY), st.just("free")), max_size=200))
def test_live_blocks_are_aligned_inside_and_apart(actions):
    arena = FifoArena(CAPACITY)
    live = []
    for action in actions:
        if action == "free":
            if live:
                arena.free_through(live.pop(0)[0])
            continue
        start = arena.allocate(action)
        if start is None:
            assert live, "an empty arena holds any block up to its capacity"
            continue
        end = start + max(1, action)
        assert start % ALIGNMENT == 0
        assert 0 <= start < end <= CAPACITY
        assert all(end <= other or stop <= start for other, stop in live)
        live.append((start, end))
    assert sum(stop - start for start, stop in live) <= arena.used <= CAPACITY
    assert (arena.used == 0) == (not live)


def test_freeing_a_block_frees_older_ones_that_were_never_freed():
    arena = FifoArena(2 * ALIGNMENT)
    arena.allocate(1)
    second = arena.allocate(1)
    assert arena.allocate(1) is None
    arena.free_through(second)
    assert arena.used == 0


def test_undo_takes_back_the_newest():
    arena = FifoArena(2 * ALIGNMENT)
    first = arena.allocate(1)
    arena.allocate(1)
    arena.undo_newest()
    assert arena.allocate(1) == ALIGNMENT
    arena.free_through(first)
    assert arena.used == ALIGNMENT


@pytest.mark.parametrize("capacity", [0, -ALIGNMENT, ALIGNMENT + 1])
def test_a_capacity_that_does_not_fit_the_alignment_is_refused(capacity):
    with pytest.raises(ValueError, match=str(capacity)):
        FifoArena(capacity)
