"""The newest archived rows of a hook, with the keys that say where each came from.

An SAE follows a host that changes, so its last weights belong to the last rows. Only the wanted
record batches are read; a shard of a killed writer is read up to its tear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.read import open_shard, read_rows, read_schema
from asys_bench.sinks.archive.reader import Archive, rows_of
from asys_bench.sinks.archive.sidecar import ArchiveError, ShardGoneError
from asys_bench.sinks.decoding import rows_each

ROW_KEY = ("source", "host_step", "weights_version", "microbatch", "call_index", "row")
"""Which row of which call it is: the same for every capture of one module."""
RowKey = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class RowBlock:
    """One record batch: `values` [rows, width] and a column per key, int64 [rows].

    text: int64[rows], the column of the archive; None where it was not recorded.
    """

    values: npt.NDArray[Any]
    keys: dict[str, npt.NDArray[np.int64]]
    text: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """A number per row, equal for equal keys (and hardly ever otherwise)."""
        return hash_keys(np.stack([self.keys[name] for name in ROW_KEY], axis=1))

    def key(self, at: int) -> RowKey:
        """The key of row `at`."""
        source, step, version, microbatch, call, row = (
            int(self.keys[name][at]) for name in ROW_KEY
        )
        return source, step, version, microbatch, call, row


def hash_keys(keys_NK: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Keys as single numbers, so that a million of them are compared by sorting, not one by one."""
    mixed = np.zeros(len(keys_NK), dtype=np.uint64)
    for column in keys_NK.astype(np.uint64).T:
        mixed = (mixed ^ column) * np.uint64(0x9E37_79B9_7F4A_7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def newest_rows(archive: Archive, hook: str, most: int, every: int = 1) -> Iterator[RowBlock]:
    """The last `most` rows (about: whole record batches), each worker's newest ones, oldest first.

    every: read one record batch in so many. Training passes over the same rows again and again, so
    that a wider span with gaps holds more different rows than a dense one.

    A shard that is damaged ends what its worker gives. Rows of another width than the newest ones
    are left out.
    """
    by_worker: dict[str, list[Path]] = {}
    for path in archive.shards(hook):
        name = ShardName.parse(path.name)
        by_worker.setdefault(name.worker if name else path.name, []).append(path)
    width: int | None = None
    for paths in by_worker.values():
        for batch in _newest_batches(paths, max(1, most // len(by_worker)), every):
            block = _block(rows_of(batch, archive.wanted(batch)))
            width = width or block.values.shape[1]
            if block.values.shape[1] == width:
                yield block


def _newest_batches(paths: list[Path], most: int, every: int) -> Iterator[Any]:
    """Record batches of one worker that hold its last `most` rows, oldest first."""
    parts: list[tuple[Path, int]] = []
    rows = 0
    for path in reversed(paths):  # how many batches of each shard are needed
        if rows >= most:
            break
        try:
            with open_shard(path) as (_, frames):
                counts = [frame.rows for frame in frames.batches]
        except ArchiveError:
            continue
        taken = 0
        while taken < len(counts) and rows < most:
            taken += 1
            rows += counts[-taken]
        parts.append((path, taken))
    for path, taken in reversed(parts):
        try:
            with open_shard(path) as (fd, frames):  # walked once: a long shard has many batches
                schema = read_schema(fd, path, frames)
                for frame in frames.batches[len(frames.batches) - taken :: every]:
                    yield from read_rows(fd, path, schema, frame)
        except ShardGoneError:
            continue
        except ArchiveError:
            return


def _block(batch: Any) -> RowBlock:
    values = batch.column("values")
    width = values.type.list_size
    flat = values.flatten().to_numpy(zero_copy_only=False)
    columns = {name: batch.column(name).to_numpy().astype(np.int64) for name in ROW_KEY}
    has_text = "text" in batch.schema.names
    text = batch.column("text").to_numpy().astype(np.int64) if has_text else None
    if text is not None and batch.num_rows and _are_heads(batch):
        text = np.zeros_like(text)
    return RowBlock(flat.reshape(-1, width), columns, text)


def _are_heads(batch: Any) -> bool:
    """Its rows are several of a token each: nothing is shown of their tokens."""
    return rows_each(str(batch.column("encoding")[0].as_py())) > 1
