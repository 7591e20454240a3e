"""Rows of an archive as a torch `IterableDataset`: shuffled, split over ranks and workers, resumable.

An epoch has one order of all its rows (`row_order`). Each reader, of a rank and a `DataLoader` worker, has
an interval of it, so each row is read once whatever the number of readers is. What a reader has left is two
numbers, and with the shards that the epoch is over (`row_index`) they are its state (`row_state`). A resumed
reader reads nothing again but the window that it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from asys_bench.rundir.archive_columns import (
    LABEL_PREFIX,
    Columns,
    column_array,
    column_tensor,
    labels_among,
)
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.row_index import RowIndex
from asys_bench.rundir.row_labels import KEYS, LabelTable
from asys_bench.rundir.row_order import Interval, Rows, cut, share_of_rank, share_of_worker, size
from asys_bench.rundir.row_state import Part, Plan, Reader, left_for, load, save
from asys_bench.sinks.archive import Archive, ShardGoneError, ShardRows

log = logging.getLogger(__name__)
SHARDS_WALKED = 256
"""Shards of which a reader remembers where their record batches are."""
_EPOCH, _IN_WORKERS = 0, 1
Tensors = dict[str, "torch.Tensor | list[str]"]


@dataclass
class _Progress:
    """One iteration: `taken` positions of `intervals` are behind it, of which `gone_rows` had no rows."""

    epoch: int
    reader: Reader
    intervals: list[Interval]
    gone_before: int = 0
    taken: int = 0
    gone_rows: int = 0

    def part(self) -> Part:
        left = cut(self.intervals, self.taken, size(self.intervals))
        return Part(self.epoch, self.reader, left, self.gone_before + self.gone_rows)


class RowDataset(IterableDataset[Any]):
    """Rows of one hook, or of several that belong together; `ArchiveView.torch` makes it and says how."""

    def __init__(
        self,
        archive: Archive,
        index: RowIndex,
        columns: Sequence[str],
        batch_rows: int | None,
        *,
        shuffle_window: int,
        epoch: int,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        labels: LabelTable | None = None,
    ) -> None:
        """labels: of the archive, where columns of theirs are asked for."""
        if batch_rows is not None and batch_rows < 1:
            raise ValueError(f"batch_rows {batch_rows} must be at least 1, or None for single rows")
        if shuffle_window < 0:
            raise ValueError(
                f"shuffle_window {shuffle_window} must be rows, or 0 for the order written"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be in 0..{world_size - 1}, below world_size")
        self._archive, self._columns, self._batch_rows = archive, tuple(columns), batch_rows
        self._rank, self._world_size, self._drop_last = rank, world_size, drop_last
        self._labels = labels
        self._plan = Plan.of(index, seed, shuffle_window)
        self._shared = torch.tensor([epoch, 0]).share_memory_()  # type: ignore[no-untyped-call]
        """The epoch, for workers that outlive one, and whether the rows are read in workers."""
        self._loaded: Part | None = None
        self._progress: _Progress | None = None

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all ranks; with several hooks, those that have a partner in each."""
        return self._plan.index.rows

    @property
    def left_out(self) -> int:
        """Rows of the first of several hooks that have no partner."""
        return self._plan.index.left_out

    @property
    def gone_rows(self) -> int:
        """Rows of the epoch that this process did not give out, because their shards had been deleted."""
        progress = self._progress
        return progress.gone_before + progress.gone_rows if progress is not None else 0

    @property
    def epoch(self) -> int:
        return int(self._shared[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; a state that was loaded of another one is forgotten."""
        self._shared[_EPOCH] = epoch

    def __iter__(self) -> Iterator[Any]:
        """The epoch's rows, or what is left of them where a state was loaded.

        Raises (while iterating):
            ArchiveError: a shard is damaged. ReadingError: the hook's width changes.
        """
        worker = get_worker_info()
        at, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self._shared[_IN_WORKERS] = int(worker is not None)
        reader = Reader(self._rank, self._world_size, at, workers)
        loaded, self._loaded = self._loaded, None
        part = loaded if loaded is not None and loaded.epoch == self.epoch else self._whole_part()
        if part.reader != reader:
            left = share_of_worker(part.left, at, workers, self._batch_rows or 1)
            part = Part(part.epoch, reader, left, part.gone_rows if at == 0 else 0)
        self._progress = _Progress(part.epoch, reader, part.left, part.gone_rows)
        return self._items(self._progress)

    def _whole_part(self) -> Part:
        """This rank's share of an epoch."""
        left = share_of_rank(
            [(0, self.rows)] if self.rows else [],
            self._rank,
            self._world_size,
            self._batch_rows or 1,
            self._drop_last,
        )
        return Part(self.epoch, Reader(self._rank, self._world_size), left)

    def state_dict(self) -> dict[str, Any]:
        """What this reader has left of the epoch, after the item that it gave out last: JSON takes it.

        `torchdata.stateful_dataloader.StatefulDataLoader` asks each worker for it. Raises RuntimeError where
        workers of a plain `DataLoader` read: what has arrived of theirs is known to nobody here.
        """
        if get_worker_info() is None and self._shared[_IN_WORKERS]:
            raise RuntimeError(
                "DataLoader workers read these rows ahead, and which of them have arrived is known to the "
                "loader alone: use torchdata.stateful_dataloader.StatefulDataLoader and its state_dict()"
            )
        if self._loaded is not None:
            part = self._loaded
        else:
            part = self._progress.part() if self._progress is not None else self._whole_part()
        return save(self._plan, part)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on where the reader was that `state` is of: the next iteration gives what it had left, in the
        same order. Seed, window and shards are the state's, in later epochs too.

        state: the states of all ranks and workers in one list are shared anew over any other number of them.

        Raises:
            ValueError: not a state of these hooks' rows, or states of some readers are missing.
        """
        states = [state] if isinstance(state, Mapping) else list(state)
        plan, parts = load(states)
        if plan.index.hooks != self._plan.index.hooks:
            raise ValueError(
                f"a state of rows of {plan.index.hooks}; these are of {self._plan.index.hooks}"
            )
        for name in (name for names in plan.index.shards for name in names):
            self._archive.path_of(name)
        worker = get_worker_info()
        if worker is not None:
            mine = Reader(self._rank, self._world_size, worker.id, worker.num_workers)
            if parts[0].reader != mine:
                raise ValueError(f"a state of {parts[0].reader}; this is {mine}")
            part = parts[0]
        else:
            part = left_for(
                parts, self._rank, self._world_size, self._batch_rows or 1, self._drop_last
            )
        self._plan, self._loaded, self._progress = plan, part, None
        self._shared[_IN_WORKERS] = 0
        self.set_epoch(part.epoch)

    def _items(self, progress: _Progress) -> Iterator[Any]:
        for batch in self._batches(progress):
            item: dict[str, Any] = dict(batch)
            if self._batch_rows is None:
                item = {name: column[0] for name, column in batch.items()}
            yield item if len(item) > 1 else next(iter(item.values()))

    def _batches(self, progress: _Progress) -> Iterator[Tensors]:
        most = self._batch_rows or 1
        rows = _Rows(self._archive, self._plan.index, self._columns, self._labels)
        order = self._plan.order(progress.epoch)
        held: Tensors = {}
        held_rows = taken = gone = 0
        for first, stop in progress.intervals:
            for _, numbers in order.windows(first, stop):
                window, there_N = rows.read(numbers)
                after_N = taken + 1 + np.flatnonzero(there_N)
                gone_N = gone + np.cumsum(~there_N)
                taken, gone, at = taken + len(numbers), int(gone_N[-1]), 0
                while at < len(after_N):
                    end = min(len(after_N), at + most - held_rows)
                    held = _joined(held, {n: column[at:end] for n, column in window.items()})
                    held_rows, at = held_rows + end - at, end
                    if held_rows == most:
                        progress.taken = int(after_N[at - 1])
                        progress.gone_rows = int(
                            gone_N[progress.taken - 1 - (taken - len(numbers))]
                        )
                        yield held
                        held, held_rows = {}, 0
        progress.taken, progress.gone_rows = taken, gone
        if held_rows and not self._drop_last:
            yield held


def _joined(held: Tensors, more: Tensors) -> Tensors:
    """Copies: an item that is kept must not keep its window."""
    if not held:
        return {n: c.clone() if isinstance(c, torch.Tensor) else list(c) for n, c in more.items()}
    found: Tensors = {}
    for name, column in held.items():
        other = more[name]
        if isinstance(column, torch.Tensor) and isinstance(other, torch.Tensor):
            found[name] = torch.cat([column, other])
        else:
            found[name] = [*column, *other]
    return found


class _Rows:
    """Rows by their number in the index, as tensors. It holds what it was asked for and one record batch of
    each hook."""

    def __init__(
        self,
        archive: Archive,
        index: RowIndex,
        columns: Sequence[str],
        labels: LabelTable | None = None,
    ) -> None:
        self._archive, self._index, self._labels = archive, index, labels
        self._wanted = columns
        stored = [name for name in columns if not name.startswith(LABEL_PREFIX)]
        self._metadata = [name for name in stored if name != "values"]
        if labels is not None:
            self._metadata = list(dict.fromkeys([*self._metadata, *KEYS]))
        self._joined = len(index.hooks) > 1
        self._values = self._joined or "values" in columns
        self._walked: dict[str, ShardRows] = {}
        self._recent: dict[int, ShardRows] = {}
        self._gone: dict[str, ShardGoneError] = {}

    def read(self, rows_N: Rows) -> tuple[Tensors, npt.NDArray[np.bool_]]:
        """(columns of those of the rows that are there, in this order; which of the rows are there)."""
        there_N = np.ones(len(rows_N), dtype=bool)
        found: Columns = {}
        for place, hook in enumerate(self._index.hooks):
            keys = {name: name for name in self._metadata} if place == 0 else {}
            if self._values:
                keys["values"] = hook if self._joined else "values"
            shard_N, row_N = self._index.places(rows_N, place)
            for number in np.unique(shard_N).tolist():
                name = self._index.shards[place][number]
                at_K = np.flatnonzero(shard_N == number)
                at_K = at_K[np.argsort(row_N[at_K], kind="stable")]
                try:
                    for part_K, batch in self._shard(place, name).read(row_N[at_K]):
                        for column, key in keys.items():
                            _fill(
                                found, key, len(rows_N), at_K[part_K], column_array(batch, column)
                            )
                except ShardGoneError as error:
                    self._leave_out(name, error)
                    there_N[at_K] = False
        whole = bool(there_N.all())
        kept = {key: array if whole else array[there_N] for key, array in found.items()}
        if self._labels is not None and kept:
            kept |= self._labels.columns(labels_among(self._wanted), kept)
            own = set(self._index.hooks) if self._joined else set()
            kept = {key: array for key, array in kept.items() if key in own or key in self._wanted}
        return {key: column_tensor(array) for key, array in kept.items()}, there_N

    def _shard(self, place: int, name: str) -> ShardRows:
        if name in self._gone:
            raise self._gone[name]
        shard, recent = self._walked.get(name), self._recent.get(place)
        if recent is not None and recent is not shard:
            recent.forget()
        if shard is None:
            if len(self._walked) >= SHARDS_WALKED:
                self._walked.pop(next(iter(self._walked)))
            shard = self._walked[name] = ShardRows(self._archive.path_of(name))
        self._recent[place] = shard
        return shard

    def _leave_out(self, name: str, error: ShardGoneError) -> None:
        if name not in self._gone:
            self._gone[name] = error
            self._walked.pop(name, None)
            self._archive.skip(error.path)
            log.warning(
                "%s was deleted: its rows are left out of this epoch and counted", error.path
            )


def _fill(found: Columns, key: str, rows: int, at_K: Rows, array: npt.NDArray[Any]) -> None:
    """Put `array` at these places of the column `key`, which has `rows` places."""
    dtype = np.dtype(object) if array.dtype.kind == "U" else array.dtype
    target = found.get(key)
    if target is None:
        target = found[key] = np.zeros((rows, *array.shape[1:]), dtype=dtype)
    if target.shape[1:] != array.shape[1:]:
        widths = sorted({target.shape[1], array.shape[1]})
        raise ReadingError(
            f"rows of {key!r} have several widths {widths}: choose shards of one (`shards=`)"
        )
    if target.dtype != dtype:  # `values` of the archiver was changed when the run went on
        target = found[key] = target.astype(np.promote_types(target.dtype, dtype))
    target[at_K] = array
