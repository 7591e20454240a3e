"""The archive: Arrow IPC stream shards with one row per token or sample. Writing, reading, repair.

``<run>/archive/<hook>/<worker>-<incarnation>-<n>.arrows`` (`<worker>-<attempt>.<incarnation>-...` of a run
that went on) opens with `datasets.Dataset.from_file` and
`pyarrow.ipc.open_stream`; see `layout` for the columns, `shard` for the writing protocol and `reader`
for reading a whole run.
"""

from asys_bench.sinks.archive.deletions import Deleted
from asys_bench.sinks.archive.reader import (
    Archive,
    Repeats,
    SeenRows,
    ShardReport,
    attempt_of,
    open_archive,
    read_shard,
    repair_shard,
)
from asys_bench.sinks.archive.row_access import ShardRows, counts
from asys_bench.sinks.archive.sidecar import ArchiveError, ShardGoneError
from asys_bench.sinks.archive.verify import verify_archive

__all__ = [
    "Archive",
    "ArchiveError",
    "Deleted",
    "Repeats",
    "SeenRows",
    "ShardGoneError",
    "ShardReport",
    "ShardRows",
    "attempt_of",
    "counts",
    "open_archive",
    "read_shard",
    "repair_shard",
    "verify_archive",
]
