"""A run's archive as numpy arrays, a torch `IterableDataset` or a Hugging Face dataset.

Labels (`observation.label`) are columns `label.<name>` of the rows that they are of: float64, NaN where a row
has none, or str where they are texts, "" there.

Every row comes once, in the order in which its worker wrote it, also while the run goes on (up to the
last whole record batch). `asys_bench.sinks.archive.layout` says what the columns are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import distributed

from asys_bench.contracts.names import LABELS, SIDE_STREAMS
from asys_bench.contracts.run_files import SIDECAR_SUFFIX
from asys_bench.rundir.archive_columns import (
    COLUMNS,
    LABEL_PREFIX,
    Columns,
    check_columns,
    column_array,
    labels_among,
)
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.row_dataset import RowDataset
from asys_bench.rundir.row_index import index_rows
from asys_bench.rundir.row_labels import KEYS, LabelTable
from asys_bench.sinks.archive import Archive, Deleted, Repeats, open_archive
from asys_bench.system.files.below import is_file
from asys_bench.system.files.sources import is_elsewhere

if TYPE_CHECKING:
    from datasets import Dataset


_ROWS_AT_A_TIME = 1 << 16


class ArchiveView:
    """The archive of the run in `run_dir`; made anew it sees what was written meanwhile."""

    def __init__(self, run_dir: Path, repeats: Repeats = "all") -> None:
        """repeats: of a step that the host made again in a later attempt, the rows of all attempts, or
        of the last. Raises ArchiveError: the run has no archive, or a shard's schema is damaged."""
        self._archive: Archive = open_archive(run_dir, repeats)

    @property
    def hooks(self) -> list[str]:
        """Archived streams, side streams such as `tokens` and `labels` included."""
        return self._archive.hooks

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the archived labels; `label.<name>` are columns of their rows. Raises ArchiveError."""
        return self._labels.names

    @cached_property
    def _labels(self) -> LabelTable:
        return LabelTable(self._archive)

    def label_rows(self, hook: str) -> dict[str, int]:
        """Label -> archived rows of the hook that have it. Raises as `batches`."""
        columns = [LABEL_PREFIX + name for name in self.labels]
        rows = dict.fromkeys(self.labels, 0)
        for batch in self.batches(hook, columns) if columns else ():
            for name in rows:
                values = batch[LABEL_PREFIX + name]
                there = values != "" if values.dtype.kind == "U" else ~np.isnan(values)
                rows[name] += int(there.sum())
        return rows

    @property
    def gone(self) -> int:
        """Shards that a budget took away between the opening of this view and their turn."""
        return self._archive.gone

    def deleted(self, hook: str | None = None) -> Deleted:
        """Shards, rows, packets and bytes that a budget had taken away when this view was made."""
        return self._archive.deleted(hook)

    def deleted_by_reason(self, hook: str | None = None) -> dict[str, Deleted]:
        """The same for each reason: `budget` (max_gib), `age` (max_age_s), `free_space` (min_free_gib),
        `stored` (storage.delete_local_after_s)."""
        return self._archive.deleted_by_reason(hook)

    def batches(self, hook: str, columns: Sequence[str] = COLUMNS) -> Iterator[Columns]:
        """One dict of arrays per record batch: `values` [n, D] in the archived dtype, others [n]; the
        columns of labels among them (`label.reward`) where they are asked for.

        Raises:
            KeyError: no such hook; ReadingError: no such column; ArchiveError: a damaged shard.
        """
        labels = self._check(columns)
        for batch in self._archive.batches(hook):
            joined = {}
            if labels:
                keys = {name: column_array(batch, name) for name in KEYS}
                joined = self._labels.columns(labels, keys)
            yield {
                name: joined[name] if name in joined else column_array(batch, name)
                for name in columns
            }

    def rows_each(self, hook: str) -> int:
        """Rows that each row of a captured tensor has become: its heads. Raises as `batches`."""
        return self._archive.rows_each(hook)

    def _check(self, columns: Sequence[str]) -> list[str]:
        """The labels among the columns. Raises ReadingError: there is no such column."""
        labels = labels_among(columns)
        check_columns(columns, self.labels if labels else ())
        return labels

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

    def shards(self, hook: str) -> list[str]:
        """Names of the hook's shards, by worker and in the order each wrote them. Raises KeyError."""
        return [self._archive.name_of(path) for path in self._archive.shards(hook)]

    def torch(
        self,
        hook: str | Sequence[str],
        columns: Sequence[str] = ("values",),
        batch_rows: int | None = None,
        *,
        shuffle_window: int = 0,
        shards: Sequence[str] | None = None,
        epoch: int = 0,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
    ) -> RowDataset:
        """A dataset of rows for `torch.utils.data.DataLoader`, each row once per epoch.

        hook: one, or several: rows of one call and place, `tokens` among them. Items are then dicts of each
            hook's values under its name; rows that one of the hooks does not have are left out
            (`RowDataset.left_out`). To join them, or where a worker was restarted, the shards are read once.
        columns: of the (first) hook. One gives tensors, more give dicts of them. Unsigned columns and
            timestamps (ns) come as int64; `hook`, `encoding`, `grid` and labels that are texts as lists of
            str. `label.<name>` is float64, NaN where the row has no such label.
        batch_rows: None gives single rows ([D] for `values`), a number gives batches of that many ([n, D]),
            which is a hundred times faster: pass `batch_size=None` to the `DataLoader` then.
        shuffle_window: rows that are in memory and in random order at a time; they are drawn from chunks of
            the whole archive. 0: the order written. The order is a function of seed and epoch
            (`RowDataset.set_epoch`).
        shards: names of the (first) hook's shards to read (`shards`); None: all of them.
        rank, world_size: of the readers that share the rows; None: torch.distributed's. Ranks differ by at
            most one row. Of a run that goes on, ranks must be given the same closed `shards`.
        drop_last: every rank gives equally many batches of exactly `batch_rows`; the rows at the end of the
            epoch's order are left out, other ones in each epoch.

        Workers of the `DataLoader` share the rows of their rank. A shard that `max_gib` deletes before its
        turn is left out and counted (`RowDataset.gone_rows`). `RowDataset.state_dict` resumes.

        Raises:
            KeyError: no such hook; ReadingError: no such column or shard, or no rows belong together;
            ArchiveError: a damaged shard.
        """
        hooks = (hook,) if isinstance(hook, str) else tuple(hook)
        labels = self._check(columns)
        if not hooks or (len(hooks) > 1 and set(hooks) & set(columns)):
            raise ReadingError(f"hooks {list(hooks)} cannot stand beside columns {list(columns)}")
        if LABELS in hooks and len(hooks) > 1:
            raise ReadingError(f"labels are columns: ask for {LABEL_PREFIX}<name>, not for a hook")
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size go together")
        if rank is None or world_size is None:
            ranks = distributed.is_available() and distributed.is_initialized()
            rank, world_size = (
                (distributed.get_rank(), distributed.get_world_size()) if ranks else (0, 1)
            )
        return RowDataset(
            self._archive,
            index_rows(self._archive, hooks, shards),
            columns,
            batch_rows,
            shuffle_window=shuffle_window,
            epoch=epoch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            labels=self._labels if labels else None,
        )

    def datasets(self, hook: str) -> Dataset:
        """A Hugging Face dataset with every column, labels (in memory) among them; memory-mapped where each
        row is there once and is stored as it is, else in memory.

        Raises:
            ImportError: datasets is not installed; KeyError, ArchiveError: as `batches`.
        """
        from datasets import Dataset, concatenate_datasets
        from datasets.table import InMemoryTable
        from pyarrow import Table

        shards = self._archive.shards(hook)
        whole = all(is_file(path.with_suffix(SIDECAR_SUFFIX)) for path in shards)
        here = not any(map(is_elsewhere, shards)) and not self._archive.is_encoded(hook)
        if whole and here and self._archive.each_once(hook):
            parts = []
            for path in shards:
                try:
                    parts.append(Dataset.from_file(str(path)))
                except FileNotFoundError:
                    self._archive.skip(path)
            if parts:
                return self._with_labels(concatenate_datasets(parts), hook)
        table = Table.from_batches(list(self._archive.batches(hook)))
        return self._with_labels(Dataset(InMemoryTable(table)), hook)

    def _with_labels(self, dataset: Dataset, hook: str) -> Dataset:
        if hook in SIDE_STREAMS or not self.labels:
            return dataset
        columns = [LABEL_PREFIX + name for name in self.labels]
        parts: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in columns}
        rows = dataset.with_format("numpy", columns=list(KEYS))
        for start in range(0, len(dataset), _ROWS_AT_A_TIME):
            keys = rows[start : start + _ROWS_AT_A_TIME]
            for name, values in self._labels.columns(self.labels, dict(keys)).items():
                parts[name].append(values)
        for name in columns:
            if parts[name]:
                dataset = dataset.add_column(name, np.concatenate(parts[name]))
        return dataset
