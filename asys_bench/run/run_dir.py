"""The run directory: `runs/<timestamp>-<name>/`, private, never over an earlier run."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import asys_bench
from asys_bench.system.files import replace_file
from asys_bench.system.files.atomic import FOLDER_MODE


class RunDir:
    """Where everything of one run is written."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path, self.run_id = path, run_id

    @classmethod
    def create(cls, parent: str | os.PathLike[str], name: str) -> RunDir:
        """A new directory (mode 0700); a suffix keeps two runs of one second apart.

        Raises:
            OSError: the parent cannot be written.
        """
        base = Path(parent)
        base.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1, 1000):
            run_id = f"{stamp}-{name}" + (f"-{attempt}" if attempt > 1 else "")
            try:
                (base / run_id).mkdir(FOLDER_MODE)
            except FileExistsError:
                continue
            (base / run_id).chmod(FOLDER_MODE)  # a umask may have taken bits away
            return cls((base / run_id).resolve(), run_id)
        raise FileExistsError(f"{base}: a thousand runs named {stamp}-{name}")

    def write_text(self, name: str, text: str) -> None:
        """Write a small document atomically, mode 0600.

        Raises:
            OSError: the disk refused; what was there stays.
        """
        replace_file(self.path / name, text.encode(), sync=False)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """The same, of JSON values."""
        self.write_text(name, json.dumps(data, indent=2, sort_keys=True) + "\n")


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
