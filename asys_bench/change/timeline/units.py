"""Rows in time order, cut into units that are as good as independent: whole blocks, of about as many rows.

A block is what the data itself holds together: a sequence of a text, where the hook's rows say which they
are of; elsewhere the rows of `BLOCK_STEPS` host steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asys_bench.change.reservoir.rows import NO_SEQUENCE, ReservoirRows

BLOCK_STEPS = 64
"""Of a host of which nothing else is known: a rollout's rows follow one another, a batch's do not."""
MOST_UNITS = 4096
MOST_COUNTS = 1 << 27
"""Cells of a table of units and features: 512 MiB as int32."""
BLOCKS_QUANTILE = 0.95
"""A unit has as many rows as a block of this quantile at least, and so spans a whole one as a rule."""


@dataclass(frozen=True)
class Units:
    """U units of N rows: `of_row` ascends from 0 to U - 1."""

    of_row: npt.NDArray[np.int64]
    count: int


def blocks_of(rows: ReservoirRows) -> npt.NDArray[np.int64]:
    """The block of each row, numbered from 0 in the rows' order (that of time)."""
    known = rows.sequence != NO_SEQUENCE
    columns = [np.where(known, rows.host_step, rows.host_step // BLOCK_STEPS), known]
    columns += [np.where(known, rows.about[name], 0)
                for name in ("weights_version", "source", "microbatch", "call", "sequence")]  # fmt: skip
    changes = np.zeros(len(rows), bool)
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.cumsum(changes).astype(np.int64)


def unit_rows(block_N: npt.NDArray[np.int64], features: int) -> int:
    """Rows that a unit has at least. features: of the SAE, whose counts per unit have to find room."""
    if not len(block_N):
        return 1
    most = max(2, min(MOST_UNITS, MOST_COUNTS // max(1, features)))
    block = np.quantile(np.bincount(block_N), BLOCKS_QUANTILE)
    return max(int(np.ceil(block)), -(-len(block_N) // most))


def units_of(block_N: npt.NDArray[np.int64], wanted: int) -> Units:
    """Whole blocks put together until a unit has `wanted` rows."""
    if not len(block_N):
        return Units(np.zeros(0, np.int64), 0)
    sizes = np.bincount(block_N)
    first_of_block = np.cumsum(sizes) - sizes
    unit_of_block = np.unique(first_of_block // wanted, return_inverse=True)[1]
    return Units(unit_of_block[block_N].astype(np.int64), int(unit_of_block[-1]) + 1)
