"""What an archive holds, read from its files alone: how many packets, and whether they are the right ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from asys_bench.harness.faults.twin import Sums, row_sums
from asys_bench.sinks.archive.error import ArchiveError
from asys_bench.sinks.archive.layout import ARCHIVE_DIR
from asys_bench.sinks.archive.read import open_shard, read_shard
from asys_bench.sinks.archive.reader import open_archive, shard_paths

Key = tuple[int, int, int]
"""(source, shard, seq): one packet of one hook and run."""
AS_IT_IS = "identity"
"""The encoding that changes nothing."""


def shard_packets(path: Path) -> set[Key]:
    """The packets with rows in whole batches of one shard file; a torn end does not count.

    Raises:
        ArchiveError: it is damaged.
    """
    found: set[Key] = set()
    with open_shard(path) as (_, frames):
        if frames.damage is None and not frames.schema_end:  # torn while its schema was written
            return found
    batches, _ = read_shard(path)
    for batch in batches:
        keys = np.stack([batch.column(c).to_numpy() for c in ("source", "shard", "seq")], axis=1)
        found.update(map(tuple, np.unique(keys, axis=0).tolist()))
    return found


def archived_packets(run_dir: Path) -> int:
    """Packets in the archive of a run, each once, however often it was delivered.

    Raises:
        ArchiveError: a shard is damaged.
    """
    found: set[Key] = set()
    try:
        paths = shard_paths(run_dir)
    except ArchiveError:
        return 0
    for path in paths:
        found |= shard_packets(path)
    return len(found)


def changed_rows(run_dir: Path, rows: Mapping[str, Sums]) -> tuple[int, int]:
    """(archived rows that are not those of the twin, bit by bit; rows compared).

    Raises:
        ArchiveError: a shard is damaged.
    """
    if not rows or not (run_dir / ARCHIVE_DIR).is_dir():
        return 0, 0
    archive = open_archive(run_dir)
    changed = compared = 0
    for hook in set(archive.hooks) & set(rows):
        truth = rows[hook]
        for batch in archive.batches(hook):
            mine = np.asarray(batch.column("encoding").to_pylist()) == AS_IT_IS
            values = batch.column(0)
            if values.type.value_type != pa.float32():
                continue
            flat = values.flatten().to_numpy().reshape(-1, values.type.list_size)
            step, row = (batch.column(name).to_numpy()[mine] for name in ("host_step", "row"))
            known = (step < truth.shape[0]) & (row < truth.shape[1])
            same = row_sums(flat[mine][known]) == truth[step[known], row[known]]
            compared += len(step)
            changed += len(step) - int(same.sum())
    return changed, compared
