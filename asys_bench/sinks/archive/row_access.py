"""The rows of one shard by their number in it, so that a reader need not begin at its start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from asys_bench.sinks.archive.encoded import is_encoded
from asys_bench.sinks.archive.read import open_descriptor, opened, read_rows
from asys_bench.sinks.archive.read_columns import read_columns
from asys_bench.sinks.archive.sidecar import ArchiveError, sidecar_of_stored


class ShardRows:
    """One shard as far as it was written when this was made. It is not kept open; the record batch that was
    read last is kept, decoded, until `forget`."""

    def __init__(self, path: Path) -> None:
        """Walks the headers.

        Raises:
            ShardGoneError: the shard was deleted; ArchiveError: it is damaged.
        """
        self.path = path
        with opened(path) as (_, schema, frames):
            self._schema, self._frames = schema, frames.batches
        ends = np.cumsum([frame.rows for frame in self._frames], dtype=np.int64)
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._last: tuple[int, list[Any]] | None = None

    @property
    def rows(self) -> int:
        return int(self._starts[-1])

    @property
    def batches(self) -> int:
        return len(self._frames)

    def forget(self) -> None:
        """Let go of the record batch that was read last."""
        self._last = None

    def keys(self, columns: Sequence[str]) -> Iterator[Any]:
        """All rows with some of their columns, without reading the bytes of the others; packets are decoded
        for it. Raises as `read`."""
        with open_descriptor(self.path) as fd:
            for frame in self._frames:
                if is_encoded(self._schema):
                    yield from read_rows(fd, self.path, self._schema, frame)
                else:
                    yield read_columns(fd, self.path, self._schema, frame, columns)

    def read(self, rows_N: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
        """(places in `rows_N`, a record batch of just these rows), for every record batch that holds some of
        the ascending `rows_N`.

        Raises:
            As the constructor; ArchiveError too where the shard has not so many rows.
        """
        if not len(rows_N):
            return
        if rows_N[-1] >= self.rows:
            raise ArchiveError(self.path, None, f"row {rows_N[-1]} of {self.rows} was asked for")
        bounds_B = np.searchsorted(rows_N, self._starts)
        with open_descriptor(self.path) as fd:
            for index in np.flatnonzero(np.diff(bounds_B)).tolist():
                start = int(self._starts[index])
                for batch in self._rows_of(fd, index):
                    first, stop = np.searchsorted(rows_N, (start, start + batch.num_rows)).tolist()
                    if first < stop:
                        yield np.arange(first, stop), _taken(batch, rows_N[first:stop] - start)
                    start += batch.num_rows

    def _rows_of(self, fd: int, index: int) -> list[Any]:
        if self._last is None or self._last[0] != index:
            self._last = None
            found = list(read_rows(fd, self.path, self._schema, self._frames[index]))
            self._last = index, found
        return self._last[1]


def _taken(batch: Any, rows_N: npt.NDArray[np.int64]) -> Any:
    if rows_N[-1] - rows_N[0] + 1 == len(rows_N):
        return batch.slice(int(rows_N[0]), len(rows_N))
    return batch.take(pa.array(rows_N))


def counts(path: Path) -> tuple[int, int]:
    """(rows, record batches) of a shard, from its headers alone, or its sidecar where a store has it.

    Raises:
        As `ShardRows`.
    """
    if (sidecar := sidecar_of_stored(path)) is not None:
        return sidecar.rows, sidecar.batches
    shard = ShardRows(path)
    return shard.rows, shard.batches
