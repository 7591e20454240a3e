"""One process sends a run: a lock of the kernel on `.upload.lock`, which ends with its holder however
it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

from asys_bench.contracts.run_files import UPLOAD_LOCK
from asys_bench.system.files.below import open_or_create
from asys_bench.system.files.locks import take_lock


class UploadBusyError(RuntimeError):
    """Another process of this machine sends the run."""


class UploadLock:
    """Held until `release` or the process's end."""

    def __init__(self, run_dir: Path, wait_s: float = 0.0) -> None:
        """Take it; wait_s: for how long another one may still have it.

        Raises:
            UploadBusyError: it still has. OSError: the folder cannot be written.
        """
        self._fd = open_or_create(run_dir / UPLOAD_LOCK, below=run_dir)
        until = time.monotonic() + wait_s
        while not take_lock(self._fd):
            if time.monotonic() >= until:
                self.release()
                raise UploadBusyError(f"{run_dir}: another process sends this run to its store")
            time.sleep(0.05)

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
