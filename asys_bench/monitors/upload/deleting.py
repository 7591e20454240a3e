"""Deleting closed shards of a run that its copy has (`storage.delete_local_after_s`), on record and
under the lock of the archive's other deletions (`sinks.archive.deletions`). Pinned shards stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.sinks.archive.deletions import Reason, Record, deciding
from asys_bench.sinks.archive.pins import pin_of
from asys_bench.system.files.below import is_file

RECORD_WORKER = "storage"


class StoredDeletions:
    """Of one run. Raises OSError: the disk refuses."""

    def __init__(self, run_dir: Path, attempt: int, alive: Callable[[], None]) -> None:
        """Finish what an earlier process recorded."""
        self._archive, self._alive = run_dir / ARCHIVE_DIR, alive
        self._record = Record(self._archive, RECORD_WORKER, attempt)
        self._record.resume(alive)

    def keeps(self, shard: Path) -> bool:
        """Whether it is pinned."""
        return is_file(pin_of(shard))

    def delete(self, shard: Path) -> bool:
        """A closed shard and its sidecar; False: it is pinned, or somebody else decides just now."""
        with deciding(self._archive, self._alive) as mine:
            if not mine or self.keeps(shard) or not is_file(shard):
                return False
            self._record.delete(shard, Reason.STORED)
            return True
