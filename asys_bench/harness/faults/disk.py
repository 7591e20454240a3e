"""Faults of places to write to: a full disk, a full /dev/shm, a torn file, no descriptors left."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

from asys_bench.harness.faults.archive_count import shard_packets
from asys_bench.harness.faults.fault import Fault
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.options import ChaosOptions
from asys_bench.harness.faults.stage import Stage, cannot_mount
from asys_bench.sinks.archive.layout import SUFFIX
from asys_bench.system.liveness import ProcessHandle

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

        if newest.suffix == SUFFIX:
            self._lost += self._packets(whole) - self._packets(whole[: -self.options.torn_bytes])

    @staticmethod
    def _packets(shard: bytes) -> int:
        with NamedTemporaryFile(suffix=SUFFIX) as file:
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
