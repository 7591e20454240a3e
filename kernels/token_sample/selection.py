"""Which rows a draw keeps, computed from (rows, number to keep, key) by hashing alone.

`stratified` cuts rows 0..total-1 into `count` strata of equal size (up to one row), takes one row of
each and rotates all by one random offset. With h(i) of `kernels.simd.splitmix` and
b(i, n) = h(i) * n >> 32 (Lemire, "Fast random integer generation in an interval", 2019, without the
rejection: a bias of at most n / 2^32)::

    start(i) = i * total // count;   r = b(1, total)
    row(i)   = (start(i) + b(2 + i, start(i + 1) - start(i)) + r) mod total

Why this: it takes `count` hashes and no sort, gives every row the probability count / total, and
spreads the rows over the tensor (lower variance for values that vary slowly along it). Independent
draws need a sort; a fixed stride aliases with sequence lengths. h(0) is left to the caller.
"""

from __future__ import annotations

import numpy as np

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd import native
from asys_bench.kernels.simd.splitmix import hash32, hashes32


def stratified(total: int, count: int, key: int) -> Positions:
    """`count` of `total` rows (total < 2^31), ascending; compiled where that is possible."""
    module = native.load()
    if module is not None:
        return np.frombuffer(module.sample(total, count, key), dtype=np.int64)
    return stratified_numpy(total, count, key)


def stratified_numpy(total: int, count: int, key: int) -> Positions:
    """The same in numpy: the definition that the compiled one matches."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    start = np.arange(count + 1, dtype=np.int64) * total // count
    size = np.diff(start).astype(np.uint64)
    pick = hashes32(key, np.arange(2, 2 + count, dtype=np.uint64)) * size >> np.uint64(32)
    row = start[:-1] + pick.astype(np.int64) + (hash32(key, 1) * total >> 32)
    row[row >= total] -= total
    return np.roll(row, -int(row.argmin()))
