"""The order of an epoch: each of n rows once, as a function of seed, epoch and window alone.

The rows are cut into chunks of `chunk_rows`. The chunks of an epoch come in random order, one behind the
other; every `window` rows of that line are put into random order among themselves. So a window has rows
of many places of the archive, and a reader holds one window at a time. Nothing is kept from row to row:
a position in the epoch is all that a resumed reader needs.

Random orders are sorts by SplitMix64 (`contracts.coin`) and not a library's generator, because a position
that was saved must mean the same rows under every version of numpy and torch.

Readers side by side share an epoch by positions: an interval [first, stop) of it each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.coin import GOLDEN, MASK, mix

BLOCK_ROWS = 4096
"""Rows that are read at once where there is no window."""
CHUNKS_PER_WINDOW = 16
Rows = npt.NDArray[np.int64]
Interval = tuple[int, int]


class RowOrder:
    """The order of one epoch over rows 0 .. `rows` - 1; window 0: ascending."""

    def __init__(
        self, rows: int, window: int = 0, chunk_rows: int = 1, *, seed: int = 0, epoch: int = 0
    ) -> None:
        self.rows, self.window, self.chunk_rows = rows, window, max(1, chunk_rows)
        self._key = mix((mix(seed & MASK) + epoch * GOLDEN) & MASK)

    def windows(self, first: int, stop: int) -> Iterator[tuple[int, Rows]]:
        """(p, the rows at positions p, p + 1, ...), window by window, of the positions [first, stop)."""
        stop, step = min(stop, self.rows), self.window or BLOCK_ROWS
        while first < stop:
            if not self.window:
                end = min(stop, first + step)
                yield first, np.arange(first, end, dtype=np.int64)
            else:
                number = first // step
                begin, end = number * step, min(stop, (number + 1) * step)
                yield first, self._window(number)[first - begin : end - begin]
            first = end

    def _window(self, number: int) -> Rows:
        first = number * self.window
        members = self._line(first, min(self.rows, first + self.window))
        return members[_shuffle(mix(self._key ^ (number + 1)), len(members))]

    @cached_property
    def _chunks(self) -> tuple[Rows, Rows]:
        """The chunks in their order, and where each begins on the line."""
        chunks = -(-self.rows // self.chunk_rows)
        order = _shuffle(self._key, chunks)
        sizes = np.minimum(self.chunk_rows, self.rows - order * self.chunk_rows)
        return order, np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def _line(self, first: int, stop: int) -> Rows:
        """Rows at [first, stop) of the line of chunks."""
        order, starts = self._chunks
        at = np.arange(first, stop, dtype=np.int64)
        chunk = np.searchsorted(starts, at, side="right") - 1
        return order[chunk] * self.chunk_rows + (at - starts[chunk])


def _shuffle(key: int, n: int) -> Rows:
    numbers = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
    return np.argsort(mix(numbers), kind="stable")


def size(intervals: Sequence[Interval]) -> int:
    """Positions in all of them."""
    return sum(stop - first for first, stop in intervals)


def cut(intervals: Sequence[Interval], first: int, stop: int) -> list[Interval]:
    """[first, stop) of the positions in `intervals`, counted one interval after another."""
    found = []
    for begin, end in intervals:
        low, high = max(first, 0), min(stop, end - begin)
        if low < high:
            found.append((begin + low, begin + high))
        first, stop = first - (end - begin), stop - (end - begin)
    return found


def share_of_rank(
    intervals: Sequence[Interval], rank: int, world_size: int, batch_rows: int, drop_last: bool
) -> list[Interval]:
    """What one of `world_size` ranks reads: sizes differ by at most one row. drop_last: they are equal,
    of whole batches, and up to `world_size * batch_rows - 1` rows are nobody's."""
    total = size(intervals)
    if drop_last:
        each = total // (world_size * batch_rows) * batch_rows
        return cut(intervals, rank * each, (rank + 1) * each)
    return cut(intervals, rank * total // world_size, (rank + 1) * total // world_size)


def share_of_worker(
    intervals: Sequence[Interval], worker: int, workers: int, batch_rows: int
) -> list[Interval]:
    """What one of a rank's workers reads: whole batches but for the last worker's last one."""
    total = size(intervals)
    batches = -(-total // batch_rows)
    bounds = [min(total, at * batches // workers * batch_rows) for at in (worker, worker + 1)]
    return cut(intervals, bounds[0], bounds[1])
