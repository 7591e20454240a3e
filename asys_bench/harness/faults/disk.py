"""Faults of places to write to: a full disk, a full /dev/shm, a torn file, no descriptors left."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

import numpy as np
import pyarrow as pa

from asys_bench.contracts.run_files import ARCHIVE_DIR, SHARD_SUFFIX
from asys_bench.harness.faults.fault import ChaosOptions, Fault, Stage, cannot_mount
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.twin import Sums, row_sums
from asys_bench.sinks.archive.read import open_shard, read_shard
from asys_bench.sinks.archive.reader import open_archive, shard_paths
from asys_bench.sinks.archive.sidecar import ArchiveError
from asys_bench.system.liveness import ProcessHandle

# What an archive holds, read from its files alone: how many packets, and whether they are the right ones.

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


BALLAST = "ballast"
SHM = Path("/dev/shm")


class DiskFull(Fault):
    """The run directory lies on a disk of its own, which a ballast file fills and then frees."""

    name, summary = "disk_full", "no space left for the whole run directory, then space again"
    lasts: ClassVar[bool] = True
    replaces: ClassVar[bool] = False

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        return cannot_mount()

    def prepare(self, stage: Stage) -> None:
        stage.mount_memory(stage.runs, f"size={self.options.disk_mib}m,mode=0700")
        self._ballast = stage.runs / BALLAST

    def inject(self, run: ObservedRun) -> None:
        fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        block = bytes(1 << 16)
        try:
            while True:
                os.write(fd, block)
        except OSError:
            return  # ENOSPC: that is what it is for
        finally:
            os.close(fd)

    def lift(self, run: ObservedRun) -> None:
        self._ballast.unlink()


class ShmFull(Fault):
    """Segments are memfds, taken in full at start: /dev/shm being full must make no difference."""

    name, summary = "shm_full", "/dev/shm is full from before the start to the end"
    replaces: ClassVar[bool] = False

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        return cannot_mount()

    def prepare(self, stage: Stage) -> None:
        stage.mount_memory(SHM, "size=64k,mode=1777")
        try:
            (SHM / BALLAST).write_bytes(bytes(1 << 20))
        except OSError:
            return


class TornFile(Fault):
    """A power cut or a careless copy: the end of the newest file is gone when the worker returns."""

    name, summary = "torn_file", "SIGKILL, then the newest file loses its end before the restart"

    def __init__(self, options: ChaosOptions, seed: int) -> None:
        super().__init__(options, seed)
        self._lost = 0

    def inject(self, run: ObservedRun) -> None:
        self.remember(run)
        handle = ProcessHandle(run.pid(self.options.worker))
        handle.kill()
        handle.wait(5.0)
        handle.close()
        newest = max(
            run.run_dir.glob(self.options.torn_glob),
            key=lambda path: path.stat().st_mtime_ns,
            default=None,
        )
        if newest is None:
            raise RuntimeError(f"no file {self.options.torn_glob!r} in {run.run_dir} to tear")
        whole = newest.read_bytes()
        os.truncate(newest, max(0, len(whole) - self.options.torn_bytes))
        if self.recovered(run):
            raise RuntimeError(
                "the successor came before the file was torn: raise backoff_initial_s"
            )

        if newest.suffix == SHARD_SUFFIX:
            self._lost += self._packets(whole) - self._packets(whole[: -self.options.torn_bytes])

    @staticmethod
    def _packets(shard: bytes) -> int:
        with NamedTemporaryFile(suffix=SHARD_SUFFIX) as file:
            file.write(shard)
            file.flush()
            return len(shard_packets(Path(file.name)))

    def excused_packets(self) -> int:
        return self._lost


class NoDescriptors(Fault):
    """Every file that the worker opens meanwhile is refused with EMFILE."""

    name, summary = "emfile", "RLIMIT_NOFILE of the worker falls below what it has open"
    lasts: ClassVar[bool] = True
    replaces: ClassVar[bool] = False

    def inject(self, run: ObservedRun) -> None:
        self._pid = run.pid(self.options.worker)
        self._limits = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)
        few = (self.options.files, self._limits[1])
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, few)

    def lift(self, run: ObservedRun) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._limits)
