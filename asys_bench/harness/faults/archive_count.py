"""How many packets an archive holds, counted from its files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asys_bench.sinks.archive.error import ArchiveError
from asys_bench.sinks.archive.read import open_shard, read_shard
from asys_bench.sinks.archive.reader import shard_paths

Key = tuple[int, int, int]
"""(source, shard, seq): one packet of one hook and run."""


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
