"""A run's archive as numpy arrays, a torch `IterableDataset` or a Hugging Face dataset.

Every row comes once, in the order in which its worker wrote it, also while the run goes on (up to the
last whole record batch). `asys_bench.sinks.archive.layout` says what the columns are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from asys_bench.rundir.live_run import ReadingError
from asys_bench.sinks.archive import Archive, Deleted, Repeats, open_archive
from asys_bench.sinks.archive.layout import METADATA_COLUMNS, ShardName
from asys_bench.system.files.below import is_elsewhere, is_file

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("values", *(name for name, _ in METADATA_COLUMNS))
TEXT_NOT_RECORDED = 255
"""The column `text` of archives that were written without it."""
Columns = dict[str, npt.NDArray[Any]]


class ArchiveView:
    """The archive of the run in `run_dir`; made anew it sees what was written meanwhile."""

    def __init__(self, run_dir: Path, repeats: Repeats = "all") -> None:
        """repeats: of a step that the host made again in a later attempt, the rows of all attempts, or
        of the last. Raises ArchiveError: the run has no archive, or a shard's schema is damaged."""
        self._archive: Archive = open_archive(run_dir, repeats)

    @property
    def hooks(self) -> list[str]:
        """Archived streams, side streams such as `tokens` included."""
        return self._archive.hooks

    @property
    def gone(self) -> int:
        """Shards that a budget took away between the opening of this view and their turn."""
        return self._archive.gone

    def deleted(self, hook: str | None = None) -> Deleted:
        """Shards, rows, packets and bytes that a budget had taken away when this view was made."""
        return self._archive.deleted(hook)

    def deleted_by_reason(self, hook: str | None = None) -> dict[str, Deleted]:
        """The same for each reason: `budget` (max_gib), `age` (max_age_s), `free_space` (min_free_gib)."""
        return self._archive.deleted_by_reason(hook)

    def batches(self, hook: str, columns: Sequence[str] = COLUMNS) -> Iterator[Columns]:
        """One dict of arrays per record batch: `values` [n, D] in the archived dtype, others [n].

        Raises:
            KeyError: no such hook; ReadingError: no such column; ArchiveError: a damaged shard.
        """
        _check(columns)
        for batch in self._archive.batches(hook):
            yield {name: _array(batch, name) for name in columns}

    def numpy(
        self, hook: str, columns: Sequence[str] = COLUMNS, limit: int | None = None
    ) -> Columns:
        """The whole stream (or its first `limit` rows) in memory, as one dict of arrays.

        Raises:
            As `batches`; ReadingError when there are no rows, or the hook's width changed on the way.
        """
        parts: list[Columns] = []
        rows = 0
        for batch in self.batches(hook, columns):
            parts.append(batch)
            rows += len(next(iter(batch.values())))
            if limit is not None and rows >= limit:
                break
        if not parts:
            raise ReadingError(f"the archive has no rows of {hook!r} yet")
        if "values" in columns and len({part["values"].shape[1] for part in parts}) > 1:
            widths = sorted({part["values"].shape[1] for part in parts})
            raise ReadingError(f"rows of {hook!r} have several widths {widths}: use batches()")
        return {name: np.concatenate([part[name] for part in parts])[:limit] for name in columns}

    def places(self, hook: str, limit: int | None = None) -> npt.NDArray[np.int64]:
        """Where the rows of `numpy(hook)` were in their tensors: int64[n, k], an index for each leading
        dimension (sample, then position in a text, or line and column of an image).

        Raises:
            As `numpy`; ReadingError where a row's place is not known, or k changed on the way.
        """
        columns = self.numpy(hook, ("row", "grid"), limit)
        grids, inverse = np.unique(columns["grid"], return_inverse=True)
        known = [tuple(int(n) for n in grid.split("x") if n) for grid in grids.tolist()]
        ranks = {len(grid) for grid in known}
        if len(ranks) != 1 or 0 in ranks:
            raise ReadingError(
                f"rows of {hook!r} have no one kind of place: their tensors' leading dimensions are "
                f"{', '.join(grids.tolist()[:8]) or 'not recorded'}"
            )
        places_NK = np.empty((len(inverse), ranks.pop()), dtype=np.int64)
        for index, grid in enumerate(known):
            mine = inverse == index
            places_NK[mine] = np.stack(np.unravel_index(columns["row"][mine], grid), axis=1)
        return places_NK

    def torch(
        self, hook: str, columns: Sequence[str] = ("values",), batch_rows: int | None = None
    ) -> RowDataset:
        """A dataset for `torch.utils.data.DataLoader`; see `RowDataset`. Raises as `batches`."""
        _check(columns)
        self._archive.shards(hook)
        return RowDataset(self, hook, tuple(columns), batch_rows)

    def datasets(self, hook: str) -> Dataset:
        """A Hugging Face dataset with every column; memory-mapped where each row is there once and is
        stored as it is, else in memory.

        Raises:
            ImportError: datasets is not installed; KeyError, ArchiveError: as `batches`.
        """
        from datasets import Dataset, concatenate_datasets
        from datasets.table import InMemoryTable
        from pyarrow import Table

        shards = self._archive.shards(hook)
        elsewhere = any(map(is_elsewhere, shards))
        if _written_once(shards) and not elsewhere and not self._archive.is_encoded(hook):
            parts = []
            for path in shards:
                try:
                    parts.append(Dataset.from_file(str(path)))
                except FileNotFoundError:
                    self._archive.skip(path)
            if parts:
                return concatenate_datasets(parts)
        table = Table.from_batches(list(self._archive.batches(hook)))
        return Dataset(InMemoryTable(table))


class RowDataset(IterableDataset[Any]):
    """Rows of one hook: tensors, or dicts of them when there is more than one column.

    batch_rows: None gives single rows ([D] for `values`), a number gives batches of up to that many
    ([n, D]), which is a hundred times faster: pass `batch_size=None` to the `DataLoader` then.
    Unsigned columns and timestamps (ns) come as int64; `hook` and `encoding` as text.
    Workers of a `DataLoader` share the record batches.
    """

    def __init__(
        self, view: ArchiveView, hook: str, columns: tuple[str, ...], batch_rows: int | None
    ) -> None:
        if batch_rows is not None and batch_rows < 1:
            raise ValueError(f"batch_rows {batch_rows} must be at least 1, or None for single rows")
        self._view, self._hook = view, hook
        self._columns, self._batch_rows = columns, batch_rows

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number, batch in enumerate(self._view.batches(self._hook, self._columns)):
            if number % count == index:
                yield from self._items(batch)

    def _items(self, batch: Columns) -> Iterator[Any]:
        tensors = {name: _tensor(array) for name, array in batch.items()}
        rows = len(next(iter(batch.values())))
        step = self._batch_rows or 1
        for start in range(0, rows, step):
            item: dict[str, Any] = {}
            for name, column in tensors.items():
                part = column[start : start + step]
                item[name] = part if self._batch_rows else part[0]
            yield item if len(item) > 1 else next(iter(item.values()))


def _check(columns: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns:
        raise ReadingError(f"no columns {unknown} in an archive; it has {', '.join(COLUMNS)}")


def _array(batch: Any, name: str) -> npt.NDArray[Any]:
    if name == "grid" and name not in batch.schema.names:  # asys.archive/1
        return np.full(batch.num_rows, "", dtype=np.str_)
    if name == "text" and name not in batch.schema.names:
        return np.full(batch.num_rows, TEXT_NOT_RECORDED, dtype=np.uint8)
    if name == "attempt" and name not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=np.uint16)
    column = batch.column(name)
    if name != "values":
        array: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return array.astype(np.str_) if array.dtype == object else array
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(batch.num_rows, column.type.list_size)


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor | list[str]:
    if array.dtype.kind == "U":
        return [str(text) for text in array]
    if array.dtype.kind in "uM" and array.dtype != np.uint8:
        array = array.astype("datetime64[ns]" if array.dtype.kind == "M" else np.int64)
        array = array.view(np.int64)
    return torch.from_numpy(np.array(array))  # a copy: Arrow's memory is read-only


def _written_once(shards: Sequence[Path]) -> bool:
    """Whether no packet can be there twice and no shard is torn: one worker, never restarted, closed."""
    names = [ShardName.parse(path.name) for path in shards]
    writers = {(name.worker, name.life) if name else None for name in names}
    closed = all(is_file(path.with_suffix(".json")) for path in shards)
    return len(writers) == 1 and None not in writers and closed
