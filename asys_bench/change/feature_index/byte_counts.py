"""Counts of one byte each, for a histogram of every feature in every part of the run.

A code v stands for ((1 + a)^v - 1) / a, with a = 1 / 16: up to 83 million. A count between two of them is
rounded up with the probability that makes its expectation right (Morris 1978, "Counting large numbers of
events in small registers"). The standard error of a large count is sqrt(a / 2), 18 %: enough for a shade.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asys_bench.change.feature_index.slots import Ints, uniform
from asys_bench.change.reservoir.rows import mixed
from asys_bench.rundir.feature_index_layout import BYTE_COUNTS

Codes = npt.NDArray[np.uint8]
_FEATURES_AT_ONCE = 1 << 12


def add_counts(
    codes: Codes, cell_N: Ints, weight_N: npt.NDArray[np.float64], salt: np.uint64
) -> None:
    """Add weights to cells of the flat table `codes`, of which some come several times. salt: a hash that
    differs from call to call."""
    cells, of_N = np.unique(cell_N, return_inverse=True)
    count_C = BYTE_COUNTS[codes[cells]] + np.bincount(of_N.reshape(-1), weight_N)
    codes[cells] = coded(count_C, uniform(mixed(cells.astype(np.uint64) ^ salt)))


def join_pairs(codes_FWB: Codes, salt: np.uint64) -> None:
    """Windows 0 and 1 become window 0, 2 and 3 window 1, and so on; the second half is empty then."""
    windows = codes_FWB.shape[1]
    for first in range(0, len(codes_FWB), _FEATURES_AT_ONCE):
        some = codes_FWB[first : first + _FEATURES_AT_ONCE]
        count = BYTE_COUNTS[some[:, ::2]] + BYTE_COUNTS[some[:, 1::2]]
        number = np.arange(count.size, dtype=np.uint64) + np.uint64(first * count[0].size)
        some[:, : windows // 2] = coded(count, uniform(mixed(number ^ salt)).reshape(count.shape))
        some[:, windows // 2 :] = 0


def coded(count: npt.NDArray[np.float64], u: npt.NDArray[np.float64]) -> Codes:
    """The codes of counts; u: uniform numbers in (0, 1). What is beyond the last code is the last."""
    low = np.clip(np.searchsorted(BYTE_COUNTS, count, side="right") - 1, 0, 254)
    step = BYTE_COUNTS[low + 1] - BYTE_COUNTS[low]
    return np.asarray(low + (u * step < count - BYTE_COUNTS[low]), dtype=np.uint8)
