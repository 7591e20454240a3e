"""The run directory: `runs/<timestamp>-<name>/` (or `runs/<id>/`), private, never over an earlier run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asys_bench
from asys_bench.system.files import replace_file
from asys_bench.system.files.atomic import FOLDER_MODE
from asys_bench.workers.run_lock import RunLock

MOST_NAMED_ALIKE = 1000


class RunDir:
    """Where everything of one run is written.

    id: what it is found by when it goes on. attempt: 0, and one more each time that it went on.
    earlier: what run.json says of the attempts before this one.
    """

    def __init__(
        self,
        path: Path,
        run_id: str,
        *,
        id: str = "",
        attempt: int = 0,
        earlier: tuple[Mapping[str, Any], ...] = (),
        lock: RunLock | None = None,
    ) -> None:
        self.path, self.run_id, self.id = path, run_id, id or run_id
        self.attempt, self.earlier = attempt, earlier
        self._lock = lock

    @classmethod
    def create(cls, parent: str | os.PathLike[str], name: str) -> RunDir:
        """A new directory (mode 0700); a suffix keeps two runs of one second apart.

        Raises:
            OSError: the parent cannot be written.
        """
        return cls._new(Path(parent), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", "")

    @classmethod
    def create_for(cls, parent: str | os.PathLike[str], id: str) -> RunDir:
        """A new directory that is called by its id; `<id>-2` and so on beside one that is there.

        Raises:
            OSError: the parent cannot be written.
        """
        return cls._new(Path(parent), id, id)

    @classmethod
    def _new(cls, base: Path, first: str, id: str) -> RunDir:
        base.mkdir(parents=True, exist_ok=True)
        for run_id in names_alike(first):
            path = base / run_id
            try:
                path.mkdir(FOLDER_MODE)
            except FileExistsError:
                continue
            path.chmod(FOLDER_MODE)  # a umask may have taken bits away
            path = path.resolve()
            return cls(path, run_id, id=id)
        raise FileExistsError(f"{base}: a thousand runs named {first}")

    def locked(self) -> RunDir:
        """This one, held by this process from here on.

        Raises:
            RunBusyError: another process has it. OSError: the folder is gone.
        """
        self._lock = self._lock or RunLock(self.path)
        return self

    def release(self) -> None:
        """Another process may go on with it. Idempotent."""
        if self._lock is not None:
            self._lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Write a small document atomically, mode 0600.

        Raises:
            OSError: the disk refused; what was there stays.
        """
        replace_file(self.path / name, text.encode(), sync=False)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """The same, of JSON values."""
        self.write_text(name, json.dumps(data, indent=2, sort_keys=True) + "\n")


def names_alike(first: str) -> Iterator[str]:
    """`first`, then `first-2`, `first-3`, ..."""
    yield first
    for number in range(2, MOST_NAMED_ALIKE):
        yield f"{first}-{number}"


def environment() -> dict[str, str]:
    """Versions worth keeping beside a result."""
    import torch

    return {
        "asys_i": asys_bench.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
